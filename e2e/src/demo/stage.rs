//! What the story is played with: namespaces, pods, and connections that are opened before a step and live through it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::Client;

use crate::apps::{EchoClient, EchoServer, Namespace};
use crate::cluster::Cluster;
use crate::echo::HoldSummary;
use crate::probe::{PodRef, Run};

/// The namespace that goes into the mesh and out of it.
pub(super) const NAMESPACE: &str = "ambit-demo";
/// The namespace that stays outside.
const OUTSIDE: &str = "ambit-demo-outside";
/// The label that takes a namespace into the mesh.
pub(super) const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Until pods run, or are gone.
const PODS: Duration = Duration::from_secs(60);
/// Between two lines on a held connection.
const EVERY: Duration = Duration::from_millis(100);

/// The demo's namespaces and pods.
pub(super) struct Stage {
    pub(super) cluster: Cluster,
    pub(super) demo: Namespace,
    /// The client, on worker-1.
    pub(super) client: PodRef,
    /// A client in a namespace that never joins.
    pub(super) visitor: PodRef,
    /// The servers, v1 and v2, on worker-2.
    pub(super) servers: Vec<PodRef>,
    /// Container ids and restarts at the beginning.
    untouched: Vec<(String, i32)>,
    held: Vec<(&'static str, Run<HoldSummary>)>,
}

impl Stage {
    /// Clears away what an earlier run left, and waits until all pods are ready.
    pub(super) async fn set(cluster: &Cluster, client: Client) -> Result<Self> {
        let (demo, outside) = tokio::try_join!(
            Namespace::fresh(&client, NAMESPACE, PODS),
            Namespace::fresh(&client, OUTSIDE, PODS),
        )?;
        let server = |version| EchoServer::new("echo", version).on("worker-2");
        let (v1, v2) = (server("v1"), server("v2"));
        let (inside, visiting) = (EchoClient::new("client"), EchoClient::new("visitor"));
        let (inside, visiting) = (inside.on("worker-1"), visiting.on("worker-1"));
        // One after the other: both apply the Service that they share.
        demo.deploy(&v1).await?;
        let (_, _, client, visitor) = tokio::try_join!(
            demo.serve(&v1, PODS),
            demo.serve(&v2, PODS),
            demo.run(&inside, PODS),
            outside.run(&visiting, PODS),
        )?;
        let servers = demo.pods("app=echo").await?;
        ensure!(servers.len() == 2, "{} echo pods, not 2", servers.len());
        let mut stage = Self {
            cluster: cluster.clone(),
            demo,
            client,
            visitor,
            servers,
            untouched: Vec::new(),
            held: Vec::new(),
        };
        stage.untouched = stage.containers().await?;
        Ok(stage)
    }

    /// All pods that are to join the mesh.
    pub(super) fn members(&self) -> impl Iterator<Item = &PodRef> {
        std::iter::once(&self.client).chain(&self.servers)
    }

    /// The addresses of the servers.
    pub(super) async fn server_ips(&self) -> Result<Vec<IpAddr>> {
        let mut all = Vec::new();
        for server in &self.servers {
            all.extend(server.ips().await?);
        }
        Ok(all)
    }

    async fn containers(&self) -> Result<Vec<(String, i32)>> {
        let mut all = Vec::new();
        for pod in self.members() {
            all.extend(pod.containers().await?);
        }
        Ok(all)
    }

    /// How many containers are what they were at the beginning; fails if not all.
    pub(super) async fn untouched(&self) -> Result<usize> {
        let now = self.containers().await?;
        ensure!(
            now == self.untouched,
            "containers are not what they were: {:?}, then {now:?}",
            self.untouched
        );
        Ok(now.len())
    }

    /// Opens a connection that is to live to the end of the story.
    pub(super) async fn hold(&mut self, since: &'static str, url: &str) -> Result<()> {
        let held = self.client.hold(url, EVERY).await;
        let held = held.with_context(|| format!("a connection opened {since}"))?;
        self.held.push((since, held));
        Ok(())
    }

    /// Fails if one of the held connections is broken; says how many there are.
    pub(super) async fn held(&mut self) -> Result<usize> {
        for (since, held) in &mut self.held {
            whole(since, &held.now().await?)?;
        }
        Ok(self.held.len())
    }

    /// Ends the held connections: when each was opened, and how it fared.
    pub(super) async fn release(&mut self) -> Result<Vec<(&'static str, HoldSummary)>> {
        let mut all = Vec::new();
        for (since, held) in self.held.drain(..) {
            let summary = held.stop().await?;
            whole(since, &summary)?;
            all.push((since, summary));
        }
        Ok(all)
    }
}

fn whole(since: &str, summary: &HoldSummary) -> Result<()> {
    if let Some(why) = &summary.broken {
        let rounds = summary.rounds;
        bail!("the connection opened {since} broke after {rounds} rounds: {why}");
    }
    Ok(())
}
