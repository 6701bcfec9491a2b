//! Plain TCP: the server's lines, then our own line back.

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::codec::{Framed, LinesCodec};

use super::{Ask, dial};
use crate::echo::Answer;

/// No line of ours is longer.
const MAX_LINE: usize = 1 << 20;
/// The server introduces itself in fewer lines.
const MAX_LINES: usize = 64;

/// A connection that speaks in lines.
pub(super) struct Lines(Framed<TcpStream, LinesCodec>);

impl Lines {
    pub(super) async fn open(ask: &Ask) -> Result<Self> {
        Ok(Self(Framed::new(
            dial::tcp(ask).await?,
            LinesCodec::new_with_max_length(MAX_LINE),
        )))
    }

    pub(super) async fn send(&mut self, line: &str) -> Result<()> {
        self.0.send(line).await.context("send")
    }

    /// The next line, or none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<String>> {
        self.0.next().await.transpose().context("receive")
    }

    /// The lines in which the server says who it is.
    pub(super) async fn introduction(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        while lines.len() < MAX_LINES {
            let Some(line) = self.next().await? else {
                bail!("closed by the server before it said who it is");
            };
            let last = line.starts_with("Hostname=");
            lines.push(line);
            if last {
                return Ok(lines);
            }
        }
        bail!("{MAX_LINES} lines and none of them Hostname=")
    }

    /// Says that nothing more comes from us.
    pub(super) async fn finish(&mut self) -> Result<()> {
        self.0.get_mut().shutdown().await.context("half-close")
    }
}

/// One message there and back, and a clean end in both directions.
pub(super) async fn ask(ask: &Ask) -> Result<Answer> {
    let message = if ask.message.is_empty() {
        "HelloWorld"
    } else {
        &ask.message
    };
    let mut lines = Lines::open(ask).await?;
    let mut answer = ask.answer(200);
    if ask.server_first {
        answer.body = lines.introduction().await?;
    }
    lines.send(message).await?;
    if !ask.server_first {
        answer.body = lines.introduction().await?;
    }
    let back = lines
        .next()
        .await?
        .context("closed by the server before the echo")?;
    ensure!(back == message, "sent {message:?}, got {back:?}");
    answer.body.push(format!("Echo={back}"));
    lines.finish().await?;
    if let Some(line) = lines.next().await? {
        bail!("after the echo came {line:?} instead of the end");
    }
    Ok(answer)
}
