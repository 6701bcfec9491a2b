//! What a pod says of itself: its log, and pages on its ports.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{AsyncBufReadExt as _, TryStreamExt as _};
use http::Request;
use http::header::{CONNECTION, HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kube::api::LogParams;

use super::PodRef;

/// No page of ours is longer.
const MAX_PAGE: usize = 64 << 20;
/// A page takes no longer.
const PATIENCE: Duration = Duration::from_secs(10);

impl PodRef {
    /// Its log so far.
    pub async fn logs(&self) -> Result<String> {
        let logs = self.api().logs(self.name(), &LogParams::default()).await;
        logs.with_context(|| format!("log of pod {}", self.name()))
    }

    /// Follows its log, past lines included, to the first line that `wanted` chooses.
    pub async fn wait_log(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let follow = async {
            let params = LogParams {
                follow: true,
                ..LogParams::default()
            };
            let mut lines = self.api().log_stream(self.name(), &params).await?.lines();
            while let Some(line) = lines.try_next().await? {
                if wanted(&line) {
                    return Ok(line);
                }
            }
            bail!("the log ended")
        };
        let found = tokio::time::timeout(within, follow)
            .await
            .with_context(|| format!("not within {within:?}"));
        found
            .and_then(|line| line)
            .with_context(|| format!("{what} in the log of pod {}", self.name()))
    }

    /// A page on a port of its network namespace, loopback included, through the API server.
    pub async fn page(&self, port: u16, path: &str) -> Result<String> {
        let page = tokio::time::timeout(PATIENCE, self.fetch(port, path)).await;
        let page = page.with_context(|| format!("not within {PATIENCE:?}"));
        page.and_then(|page| page)
            .with_context(|| format!("http://{}:{port}{path}", self.name()))
    }

    async fn fetch(&self, port: u16, path: &str) -> Result<String> {
        let mut forward = self.api().portforward(self.name(), &[port]).await?;
        let stream = forward.take_stream(port).context("no stream")?;
        let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(driver);
        let request = Request::get(path)
            .header(HOST, "localhost")
            .header(CONNECTION, "close");
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_PAGE).collect().await;
        let text = String::from_utf8_lossy(&body.map_err(anyhow::Error::from_boxed)?.to_bytes())
            .into_owned();
        driver.abort();
        ensure!(status.is_success(), "{status}: {text}");
        Ok(text)
    }
}
