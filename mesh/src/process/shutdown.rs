//! How a process ends: by a signal, in order and in time; or because a task that must live died, with its name.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal as on_signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// `EX_SOFTWARE`: a task that must live ended.
const DIED: u8 = 70;
/// `EX_TEMPFAIL`: draining took longer than it may.
const UNDRAINED: u8 = 75;

/// The two signals that end a process in order.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

/// Owns the tasks that must not end.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<Death>,
    draining: CancellationToken,
}

/// Why a process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A signal came, and all was drained in time.
    Drained(&'static str),
    /// A signal came, and the deadline passed, or a second signal came, before all was drained.
    Undrained(&'static str),
    /// A task that must live ended.
    Died(Death),
}

/// The end of a task that must not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Of the task.
    pub name: Cow<'static, str>,
    /// Its last words.
    pub reason: String,
}

// === impl Signals ===

impl Signals {
    /// From here on the signals no longer kill the process.
    pub fn new() -> std::io::Result<Self> {
        let term = on_signal(SignalKind::terminate())?;
        Ok(Self {
            term,
            int: on_signal(SignalKind::interrupt())?,
        })
    }

    /// The next one's name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

/// Waits for SIGTERM or SIGINT; returns its name.
pub async fn signal() -> std::io::Result<&'static str> {
    Ok(Signals::new()?.next().await)
}

// === impl Supervisor ===

impl Supervisor {
    /// Nobody to look after yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when draining begins: accept nothing new, let go what runs.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// Runs a task whose end, whatever it says, ends the process.
    pub fn must_live<T: LastWords>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        let name = name.into();
        self.tasks.spawn(async move {
            let reason = task.await.last_words();
            Death { name, reason }
        });
    }

    /// As [`Self::must_live`], for a thread with a runtime of its own. A panic in it is its end, too.
    pub fn must_live_thread<T: LastWords>(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<()> {
        let name = name.into();
        let (say, said) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.clone().into_owned())
            .spawn(move || drop(say.send(body().last_words())))?;
        self.tasks.spawn(async move {
            let reason = said.await.unwrap_or_else(|_| "it panicked".to_owned());
            Death { name, reason }
        });
        Ok(())
    }

    /// Lives until a signal comes or a task dies; after a signal, gives `drain` until the deadline.
    ///
    /// While draining, tasks may end: they were told to.
    pub async fn run(
        mut self,
        mut signals: Signals,
        drain: impl Future<Output = ()>,
        deadline: Duration,
    ) -> Exit {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            Some(ended) = self.tasks.join_next() => {
                let death = ended.unwrap_or_else(|panic| Death {
                    name: "a task".into(),
                    reason: panic.to_string(),
                });
                tracing::error!(task = %death.name, "a task that must live ended: {}", death.reason);
                return Exit::Died(death);
            }
        };
        tracing::info!(signal, ?deadline, "draining");
        self.draining.cancel();
        tokio::select! {
            () = drain => Exit::Drained(signal),
            () = tokio::time::sleep(deadline) => Exit::Undrained(signal),
            again = signals.next() => Exit::Undrained(again),
        }
    }
}

// === impl Exit ===

impl Exit {
    /// What the process returns: 0 only when all was drained.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    fn status(&self) -> u8 {
        match self {
            Self::Drained(_) => 0,
            Self::Undrained(_) => UNDRAINED,
            Self::Died(_) => DIED,
        }
    }
}

// === last words ===

/// What a task that must live may return.
pub trait LastWords: Send + 'static {
    /// Why it ended.
    fn last_words(self) -> String;
}

impl LastWords for () {
    fn last_words(self) -> String {
        "it returned".to_owned()
    }
}

impl LastWords for std::convert::Infallible {
    fn last_words(self) -> String {
        match self {}
    }
}

impl<T: Send + 'static, E: Display + Send + 'static> LastWords for Result<T, E> {
    fn last_words(self) -> String {
        match self {
            Ok(_) => "it returned".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_task_ends_the_process_with_its_name() {
        let mut supervisor = Supervisor::new();
        supervisor.must_live("lives", std::future::pending::<()>());
        supervisor.must_live("dies", async { Err::<(), _>("of boredom") });
        let signals = Signals::new().expect("signals");
        let exit = supervisor
            .run(signals, async {}, Duration::from_secs(1))
            .await;
        let death = Death {
            name: "dies".into(),
            reason: "of boredom".to_owned(),
        };
        assert_eq!(exit, Exit::Died(death));
        assert_eq!(exit.status(), DIED);
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_a_death() {
        let mut supervisor = Supervisor::new();
        supervisor
            .must_live_thread("core-0", || -> () {
                std::panic::resume_unwind(Box::new(()))
            })
            .expect("a thread");
        let signals = Signals::new().expect("signals");
        let exit = supervisor
            .run(signals, async {}, Duration::from_secs(1))
            .await;
        assert!(matches!(exit, Exit::Died(death) if death.name == "core-0"));
    }
}
