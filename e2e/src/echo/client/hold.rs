//! One connection kept open, a numbered line every so often, and the first thing that goes wrong with it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::load::deadline;
use super::tcp::Lines;
use super::{Ask, Scheme, millis, say, unix_ms};
use crate::echo::flags::{self, Flags};
use crate::echo::orders::{Order, Orders};
use crate::echo::summary::HoldSummary;

/// What to hold, and how often to ask whether it still lives.
#[derive(Debug)]
pub(crate) struct Hold {
    ask: Ask,
    every: Duration,
    /// Zero: until told to stop.
    duration: Duration,
    /// For each echo.
    timeout: Duration,
    stdin: bool,
}

impl Hold {
    pub(super) fn take(ask: Ask, flags: &mut Flags) -> Result<Self> {
        ensure!(ask.scheme == Scheme::Tcp, "hold speaks tcp:// only");
        let hold = Self {
            ask,
            every: flags.or("every", Duration::from_millis(200), flags::duration)?,
            duration: flags.or("duration", Duration::ZERO, flags::duration)?,
            timeout: flags.or("timeout", Duration::from_secs(5), flags::duration)?,
            stdin: flags.or("stdin", false, flags::boolean)?,
        };
        ensure!(!hold.every.is_zero(), "--every=0 leaves no pause");
        Ok(hold)
    }

    /// Prints `ready` after the first echo, and the summary at the end; true if the connection never broke.
    pub(super) async fn main(self) -> Result<bool> {
        let mut orders = Orders::listen(self.stdin).context("signals")?;
        let start = Instant::now();
        let mut summary = HoldSummary {
            started_unix_ms: unix_ms(),
            ..HoldSummary::default()
        };
        let end = deadline(self.duration);
        tokio::pin!(end);
        let (tell, mut told) = mpsc::channel(1);
        tokio::spawn(self.rounds(tell));
        loop {
            tokio::select! {
                note = told.recv() => match note.unwrap_or_else(|| Note::Broken("the task died".to_owned())) {
                    Note::Open(hostname) => summary.hostname = hostname,
                    Note::Echo(took) => {
                        summary.rounds += 1;
                        summary.slowest_ms = summary.slowest_ms.max(took.as_secs_f64() * 1e3);
                        if summary.rounds == 1 {
                            say("ready\n")?;
                        }
                    }
                    Note::Broken(why) => {
                        summary.broken = Some(why);
                        summary.broken_at_ms = Some(millis(start));
                        break;
                    }
                },
                () = &mut end => break,
                order = orders.next() => {
                    if order != Order::Now {
                        break;
                    }
                    summary.ran_ms = millis(start);
                    say(&json(&summary)?)?;
                }
            }
        }
        summary.ran_ms = millis(start);
        say(&json(&summary)?)?;
        Ok(summary.broken.is_none())
    }

    /// Line after line until something breaks.
    async fn rounds(self, tell: mpsc::Sender<Note>) {
        let why = match self.try_rounds(&tell).await {
            Ok(()) => return, // nobody listens any more
            Err(error) => format!("{error:#}"),
        };
        let _ = tell.send(Note::Broken(why)).await;
    }

    async fn try_rounds(&self, tell: &mpsc::Sender<Note>) -> Result<()> {
        let late = |what: &str| format!("{what} not within {:?}", self.timeout);
        let opened = timeout(self.timeout, Lines::open(&self.ask));
        let mut lines = opened.await.with_context(|| late("connected"))??;
        let mut pace = tokio::time::interval(self.every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = false;
        if self.ask.server_first {
            let introduction = timeout(self.timeout, lines.introduction()).await;
            tell.send(open(&introduction.with_context(|| late("greeted"))??))
                .await?;
            known = true;
        }
        for round in 0_u64.. {
            tokio::select! {
                _ = pace.tick() => {}
                line = lines.next() => match line? {
                    Some(line) => bail!("between rounds came {line:?}"),
                    None => bail!("closed by the other side after {round} rounds"),
                },
            }
            let start = Instant::now();
            let echo = timeout(self.timeout, one(&mut lines, round, known)).await;
            if let Some(introduction) = echo.with_context(|| late(&format!("echo {round}")))?? {
                tell.send(open(&introduction)).await?;
                known = true;
            }
            tell.send(Note::Echo(start.elapsed())).await?;
        }
        Ok(())
    }
}

/// What the holding task tells.
enum Note {
    /// Who is at the other end.
    Open(String),
    /// A line came back after so long.
    Echo(Duration),
    /// It is over.
    Broken(String),
}

fn open(introduction: &[String]) -> Note {
    let hostname = introduction
        .last()
        .and_then(|line| line.strip_prefix("Hostname="));
    Note::Open(hostname.unwrap_or_default().to_owned())
}

/// One line there and back; before the first echo the server says who it is, unless it is `known` already.
async fn one(lines: &mut Lines, round: u64, known: bool) -> Result<Option<Vec<String>>> {
    let sent = round.to_string();
    lines.send(&sent).await?;
    let introduction = if known {
        None
    } else {
        Some(lines.introduction().await?)
    };
    let back = lines
        .next()
        .await?
        .with_context(|| format!("closed by the other side in round {round}"))?;
    ensure!(back == sent, "sent {sent:?}, got {back:?}");
    Ok(introduction)
}

fn json(summary: &HoldSummary) -> Result<String> {
    Ok(serde_json::to_string(summary)? + "\n")
}
