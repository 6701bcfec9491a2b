//! A long-running client in a pod, asked and stopped over its stdin.

use std::marker::PhantomData;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::api::{AttachParams, AttachedProcess};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Lines};
use tokio::task::JoinHandle;

use super::{PodRef, exec};

/// How long anything may take that the client is asked: its own timeout for a request, and some.
const PATIENCE: Duration = Duration::from_secs(15);

/// `client load` or `client hold` under way, with a summary of kind `S`. Dropped, it ends without one.
pub struct Run<S> {
    /// Keeps the stream open.
    _process: Option<AttachedProcess>,
    what: String,
    stdin: Box<dyn AsyncWrite + Unpin + Send>,
    stdout: Lines<BufReader<Box<dyn AsyncRead + Unpin + Send>>>,
    stderr: Option<JoinHandle<Result<String>>>,
    last: Option<String>,
    summary: PhantomData<fn() -> S>,
}

impl<S: DeserializeOwned> Run<S> {
    /// Starts `command` in the pod and waits until it says `ready`.
    pub(super) async fn start(pod: &PodRef, command: &[&str]) -> Result<Self> {
        let what = format!("{} in pod {}", command.join(" "), pod.name());
        let params = AttachParams::default()
            .stdin(true)
            .stdout(true)
            .stderr(true);
        let started = pod
            .api()
            .exec(pod.name(), command.iter().copied(), &params)
            .await;
        let mut process = started.with_context(|| what.clone())?;
        let stdin = Box::new(process.stdin().context("no stdin")?);
        let stdout = Box::new(process.stdout().context("no stdout")?);
        let stderr = Box::new(process.stderr().context("no stderr")?);
        let mut run = Self::over(what, stdin, stdout, stderr);
        run._process = Some(process);
        run.ready().await?;
        Ok(run)
    }

    fn over(
        what: String,
        stdin: Box<dyn AsyncWrite + Unpin + Send>,
        stdout: Box<dyn AsyncRead + Unpin + Send>,
        stderr: Box<dyn AsyncRead + Unpin + Send>,
    ) -> Self {
        Self {
            _process: None,
            what,
            stdin,
            stdout: BufReader::new(stdout).lines(),
            stderr: Some(tokio::spawn(exec::text(stderr))),
            last: None,
            summary: PhantomData,
        }
    }

    async fn ready(&mut self) -> Result<()> {
        match self.line().await? {
            Some(line) if line == "ready" => Ok(()),
            other => {
                let why = self.complaints().await;
                bail!(
                    "{}: never ready: {} {why}",
                    self.what,
                    other.unwrap_or_default()
                )
            }
        }
    }

    /// How it goes so far.
    pub async fn now(&mut self) -> Result<S> {
        self.order("now").await;
        if let Some(line) = self.line().await? {
            self.last = Some(line);
        }
        self.summary().await
    }

    /// Ends it; how it went.
    pub async fn stop(mut self) -> Result<S> {
        self.order("stop").await;
        while let Some(line) = self.line().await? {
            self.last = Some(line);
        }
        self.summary().await
    }

    /// A client that has ended by itself hears nothing; its last line says why.
    async fn order(&mut self, order: &str) {
        let _ = self.stdin.write_all(format!("{order}\n").as_bytes()).await;
        let _ = self.stdin.flush().await;
    }

    async fn line(&mut self) -> Result<Option<String>> {
        match tokio::time::timeout(PATIENCE, self.stdout.next_line()).await {
            Ok(line) => line.with_context(|| self.what.clone()),
            Err(_) => bail!("{}: silent for {PATIENCE:?}", self.what),
        }
    }

    async fn summary(&mut self) -> Result<S> {
        match &self.last {
            Some(line) => {
                serde_json::from_str(line).with_context(|| format!("{}: {line:?}", self.what))
            }
            None => {
                let why = self.complaints().await;
                bail!("{}: ended without a summary: {why}", self.what)
            }
        }
    }

    async fn complaints(&mut self) -> String {
        let Some(stderr) = self.stderr.take() else {
            return String::new();
        };
        match tokio::time::timeout(Duration::from_secs(1), stderr).await {
            Ok(Ok(Ok(text))) => text.trim_end().to_owned(),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::echo::HoldSummary;

    /// A scripted client: what it printed, as if it were a pod's.
    fn run(stdout: &'static [u8], stderr: &'static [u8]) -> Run<HoldSummary> {
        Run::over(
            "hold".into(),
            Box::new(tokio::io::sink()),
            Box::new(stdout),
            Box::new(stderr),
        )
    }

    #[tokio::test]
    async fn the_last_line_is_the_summary() {
        let line = |rounds| {
            let summary = HoldSummary {
                rounds,
                ..HoldSummary::default()
            };
            serde_json::to_string(&summary).expect("JSON") + "\n"
        };
        let printed = format!("ready\n{}{}", line(1), line(2)).leak().as_bytes();
        let mut hold = run(printed, b"");
        hold.ready().await.expect("ready");
        assert_eq!(hold.now().await.expect("so far").rounds, 1);
        assert_eq!(hold.stop().await.expect("the end").rounds, 2);
    }

    #[tokio::test]
    async fn one_that_never_got_ready_says_why() {
        let error = run(b"", b"connect: refused\n")
            .ready()
            .await
            .expect_err("not ready");
        assert!(error.to_string().contains("refused"), "{error}");
        let error = run(b"", b"gone\n").stop().await.expect_err("no summary");
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
