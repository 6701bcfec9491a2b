//! Running pods go into the mesh and out of it, and nobody who talks to them notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace};
use e2e::capture::Capture;
use e2e::cluster::Cluster;
use e2e::echo::{HoldSummary, LoadSummary};
use e2e::probe::{PodRef, Run, eventually};
use tokio::time::Instant;

use super::{
    CHANGE, HBONE, IN_MESH, LABEL, START, Seen, ask_marked, looks, wait_answers, wait_in_mesh,
    ztunnel,
};

/// Fresh connections per second.
const RATE: u32 = 50;
/// Into the mesh and out of it, so often.
const CYCLES: usize = 2;
/// What a label may take on any machine until the first tunnel; 0.3 s is usual on a quiet one.
const SANE: Duration = Duration::from_secs(10);
/// How a new tunnel begins; those from an earlier stay in the mesh live on.
const CLIENT_HELLO: [u8; 2] = [22, 3];
const SERVER: &str = "http://echo-v1/";

/// Everything one change is watched with.
struct Watched<'a> {
    cluster: &'a Cluster,
    ns: &'a Namespace,
    client: PodRef,
    server: PodRef,
    load: Run<LoadSummary>,
    holds: Vec<(&'static str, Run<HoldSummary>)>,
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn running_pods_change_over_without_a_restart_or_a_lost_request() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "l4-enrol", &[], async |ns| {
        let server = EchoServer::new("echo", "v1").on("worker-2");
        ns.serve(&server, START).await?;
        let client = ns
            .run(&EchoClient::new("client").on("worker-1"), START)
            .await?;
        wait_answers(&client, SERVER).await?;
        let server = ns.pods("app=echo").await?.remove(0);
        Box::pin(changes(&cluster, ns, client, server)).await
    })
    .await
}

async fn changes(cluster: &Cluster, ns: &Namespace, client: PodRef, server: PodRef) -> Result<()> {
    let untouched = (client.containers().await?, server.containers().await?);
    let mut watched = Watched {
        cluster,
        ns,
        load: client.load(SERVER, RATE).await?,
        holds: Vec::new(),
        client,
        server,
    };
    watched.plain().await?;
    for cycle in 1..=CYCLES {
        watched.hold("opened outside").await?;
        Box::pin(watched.enrol(cycle)).await?;
        watched.hold("opened inside").await?;
        watched.leave(cycle).await?;
    }
    let sum = watched.load.stop().await?;
    println!(
        "{} requests over {CYCLES} cycles, {} failed; latency p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        sum.sent, sum.failed, sum.latency_p50_ms, sum.latency_p99_ms, sum.latency_max_ms
    );
    ensure!(sum.failed == 0 && sum.unfinished == 0, "{sum:?}");
    for (when, hold) in watched.holds {
        let sum = hold.stop().await?;
        println!(
            "a connection {when} lived for {} rounds, the slowest {:.1} ms",
            sum.rounds, sum.slowest_ms
        );
        ensure!(sum.broken.is_none(), "a connection {when}: {sum:?}");
    }
    let now = (
        watched.client.containers().await?,
        watched.server.containers().await?,
    );
    ensure!(
        now == untouched,
        "containers before {untouched:?}, after {now:?}"
    );
    Ok(())
}

impl Watched<'_> {
    async fn hold(&mut self, when: &'static str) -> Result<()> {
        let hold = self
            .client
            .hold("tcp://echo-v1:9090", Duration::from_millis(50))
            .await?;
        self.holds.push((when, hold));
        Ok(())
    }

    /// Outside the mesh everybody reads along: the capture sees what it would see.
    async fn plain(&self) -> Result<()> {
        let (captured, marker) =
            ask_marked(self.cluster, &self.client, &self.server, SERVER).await?;
        ensure!(
            looks(&captured, &marker) == (true, false),
            "outside the mesh a marker is readable: {captured:?}"
        );
        Ok(())
    }

    async fn enrol(&mut self, cycle: usize) -> Result<()> {
        let failed = self.load.now().await?.failed;
        let (capture, first) = self
            .first(|port, payload| port == HBONE && payload.starts_with(&CLIENT_HELLO))
            .await?;
        let start = Instant::now();
        self.ns.label(LABEL.0, Some(LABEL.1)).await?;
        tokio::try_join!(wait_in_mesh(&self.client), wait_in_mesh(&self.server))?;
        let told = start.elapsed();
        // Nothing is waited for: what status says holds.
        let (captured, marker) =
            ask_marked(self.cluster, &self.client, &self.server, SERVER).await?;
        ensure!(
            looks(&captured, &marker) == (false, true),
            "the pods say they are in the mesh, and the wire shows {captured:?}"
        );
        let took = first
            .get()
            .context("no tunnel was seen")?
            .duration_since(start);
        drop(capture);
        self.identities().await?;
        let new = self.settled(failed).await?;
        println!(
            "cycle {cycle}: labelled; first tunnel after {took:.2?}, status after {told:.2?}, {new} requests failed"
        );
        ensure!(took < SANE, "the first tunnel took {took:?}");
        Ok(())
    }

    async fn leave(&mut self, cycle: usize) -> Result<()> {
        let failed = self.load.now().await?.failed;
        let (capture, first) = self
            .first(|port, payload| port == 8080 && payload.starts_with(b"GET "))
            .await?;
        let start = Instant::now();
        self.ns.label(LABEL.0, None).await?;
        eventually("a readable request", CHANGE, async || {
            let (captured, marker) =
                ask_marked(self.cluster, &self.client, &self.server, SERVER).await?;
            ensure!(looks(&captured, &marker).0, "still tunnelled");
            Ok(())
        })
        .await?;
        let took = first
            .get()
            .context("no plain request was seen")?
            .duration_since(start);
        drop(capture);
        for pod in [&self.client, &self.server] {
            pod.wait("out of the mesh", CHANGE, |pod| {
                !e2e::probe::conditions(pod)
                    .iter()
                    .any(|[kind, ..]| kind == IN_MESH)
            })
            .await?;
        }
        let new = self.settled(failed).await?;
        println!(
            "cycle {cycle}: label taken off; first plain request after {took:.2?}, {new} requests failed"
        );
        ensure!(took < SANE, "the first plain request took {took:?}");
        Ok(())
    }

    /// Notes when the client first sends the server such a packet, given its port and contents.
    async fn first(
        &self,
        wanted: impl Fn(u16, &[u8]) -> bool + Send + 'static,
    ) -> Result<(Capture, Seen)> {
        let (client, server) = (self.client.ips().await?, self.server.ips().await?);
        let seen = Seen::default();
        let note = seen.clone();
        let capture = self.cluster.underlay_capture(move |packet| {
            let between = client.contains(&packet.from.ip()) && server.contains(&packet.to.ip());
            if between && wanted(packet.to.port(), &packet.payload) {
                note.get_or_init(Instant::now);
            }
            false
        })?;
        Ok((capture, seen))
    }

    /// The server's node says who talked to whom.
    async fn identities(&self) -> Result<()> {
        let name = self.ns.name();
        let says = [
            format!("spiffe://cluster.local/ns/{name}/sa/client"),
            format!("spiffe://cluster.local/ns/{name}/sa/echo"),
        ];
        ztunnel(self.ns.client(), "worker-2")
            .await?
            .wait_log("both identities", CHANGE, |line| {
                line.contains("inbound") && says.iter().all(|id| line.contains(id))
            })
            .await
            .map(drop)
    }

    /// Waits until what was under way at a change is over and every held connection was used again; how many requests
    /// failed since there were `before`.
    async fn settled(&mut self, before: u64) -> Result<u64> {
        let sent = self.load.now().await?.sent;
        let load = &mut self.load;
        let sum = eventually("the requests at the change", CHANGE, async || {
            let sum = load.now().await?;
            ensure!(sum.ok + sum.failed >= sent + u64::from(RATE), "{sum:?}");
            Ok(sum)
        })
        .await?;
        for (when, hold) in &mut self.holds {
            let rounds = hold.now().await?.rounds;
            eventually("a held connection", CHANGE, async || {
                let sum = hold.now().await?;
                ensure!(
                    sum.broken.is_some() || sum.rounds >= rounds + 3,
                    "stuck: {sum:?}"
                );
                Ok(sum)
            })
            .await
            .and_then(|sum| {
                ensure!(sum.broken.is_none(), "a connection {when}: {sum:?}");
                Ok(())
            })?;
        }
        let new = sum.failed - before;
        if new > 0 {
            println!("{:?}", sum.errors);
        }
        Ok(new)
    }
}
