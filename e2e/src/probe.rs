//! Looking at a cluster: waits that watch, programs run in pods, and what they answer.

mod exec;
mod look;
mod run;
mod wait;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;

pub use exec::Output;
pub use run::Run;
pub use wait::{conditions, eventually, has_condition, wait_available, wait_gone, wait_until};

use crate::echo::{Answer, BenchSummary, HoldSummary, LoadSummary};

/// A pod, by name.
#[derive(Clone)]
pub struct PodRef {
    api: Api<Pod>,
    namespace: String,
    name: String,
}

impl PodRef {
    /// The pod of this name; nobody is asked whether it is there.
    pub fn new(client: &Client, namespace: &str, name: &str) -> Self {
        let api = Api::namespaced(client.clone(), namespace);
        Self {
            api,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// All pods of its namespace.
    pub fn api(&self) -> &Api<Pod> {
        &self.api
    }

    /// The pod as it is now.
    pub async fn get(&self) -> Result<Pod> {
        self.api
            .get(&self.name)
            .await
            .with_context(|| format!("pod {}", self.name))
    }

    /// Its addresses, the first family first.
    pub async fn ips(&self) -> Result<Vec<std::net::IpAddr>> {
        let status = self.get().await?.status.unwrap_or_default();
        let ips = status.pod_ips.unwrap_or_default();
        ips.iter()
            .map(|ip| {
                ip.ip
                    .parse()
                    .with_context(|| format!("address {} of pod {}", ip.ip, self.name))
            })
            .collect()
    }

    /// Each container's id and how often it was restarted: the same before and after, and nothing was touched.
    pub async fn containers(&self) -> Result<Vec<(String, i32)>> {
        let status = self.get().await?.status.unwrap_or_default();
        let all = status.container_statuses.unwrap_or_default();
        Ok(all
            .into_iter()
            .map(|one| (one.container_id.unwrap_or_default(), one.restart_count))
            .collect())
    }

    /// Waits until it is ready.
    pub async fn wait_ready(&self, within: Duration) -> Result<Pod> {
        self.wait("ready", within, |pod| has_condition(pod, "Ready", "True"))
            .await
    }

    /// Waits until it is as `done` says; `what` names that in the error.
    pub async fn wait(
        &self,
        what: &str,
        within: Duration,
        done: impl FnMut(&Pod) -> bool,
    ) -> Result<Pod> {
        wait_until(self.api.clone(), &self.name, what, within, done).await
    }

    /// Runs a program in its first container, to its end.
    pub async fn exec(&self, command: &[&str]) -> Result<Output> {
        exec::exec(&self.api, &self.name, command)
            .await
            .with_context(|| format!("{} in pod {}", command.join(" "), self.name))
    }

    /// Runs the echo client; whatever fails, fails this.
    pub async fn ask(&self, args: &[&str]) -> Result<Vec<Answer>> {
        let output = self.exec(&[&["client"], args].concat()).await?;
        if output.code != 0 {
            bail!(
                "client {} in pod {}: {}",
                args.join(" "),
                self.name,
                output.stderr.trim_end()
            );
        }
        Ok(Answer::parse_all(&output.stdout))
    }

    /// Runs the echo client for one answer.
    pub async fn ask_once(&self, url: &str) -> Result<Answer> {
        let answers = self.ask(&[url]).await?;
        answers
            .into_iter()
            .next()
            .with_context(|| format!("client {url} in pod {} printed nothing", self.name))
    }

    /// Begins fresh connections to `url` at a fixed rate, and waits for the first that succeeds.
    pub async fn load(&self, url: &str, rate: u32) -> Result<Run<LoadSummary>> {
        self.load_with(url, rate, &[]).await
    }

    /// The same with further arguments of `client load`.
    pub async fn load_with(&self, url: &str, rate: u32, more: &[&str]) -> Result<Run<LoadSummary>> {
        let (url, rate) = (format!("--url={url}"), format!("--rate={rate}"));
        let command = ["client", "load", "--stdin", &url, &rate];
        Run::start(self, &[&command[..], more].concat()).await
    }

    /// Readies a closed loop on `url`, which runs a slice at each `now`.
    pub async fn bench(&self, url: &str, more: &[&str]) -> Result<Run<BenchSummary>> {
        let url = format!("--url={url}");
        let command = ["client", "bench", &url];
        Run::start(self, &[&command[..], more].concat()).await
    }

    /// Opens a TCP connection to `url` that stays open, and waits for the first echo.
    pub async fn hold(&self, url: &str, every: Duration) -> Result<Run<HoldSummary>> {
        let (url, every) = (
            format!("--url={url}"),
            format!("--every={}ms", every.as_millis()),
        );
        Run::start(self, &["client", "hold", "--stdin", &url, &every]).await
    }
}
