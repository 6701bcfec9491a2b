//! Strangers and tenants who ask for too much: others are served as if they were not there.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::apps::{EchoClient, Namespace, apply_objects};
use e2e::cluster::machine::Machine;
use e2e::probe::{PodRef, eventually, has_condition};
use e2e::replicas;
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::DeleteParams;
use mesh::ca::{Caller, obtain};
use mesh::proto::certificate::IstioCertificateRequest;
use mesh::proto::certificate::istio_certificate_service_client::IstioCertificateServiceClient;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::callers::{Controller, dial, identity, token, ztunnel_of};
use super::shop::{self, AMBIENT, GATEWAY_API, SOON, START};

/// Connections that say nothing, to each replica: more than a server would think of.
const SILENT: usize = 300;
/// How soon one that was closed is there again.
const COME_AGAIN: Duration = Duration::from_millis(10);
/// A node proxy that starts meanwhile, from its pod's deletion on.
const STARTED: Duration = Duration::from_secs(15);
/// Bad tokens, and how many are on their way at once.
const BAD_TOKENS: usize = 10_000;
const AT_ONCE: usize = 100;
/// Of a flood of bad tokens the API server may hear so many a second, and some that others ask.
const REVIEWS_PER_SECOND: u32 = 100;
/// A caller with a good one waits no longer: the one in the middle of five, on a machine that also makes the flood.
const SIGNED: Duration = Duration::from_secs(1);
/// Gateways that cannot be deployed, of one tenant.
const GATEWAYS: usize = 500;
/// Others' changes meanwhile: the one in the middle, on a machine that also creates all of this.
const PROMPT: Duration = Duration::from_secs(1);

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn silent_strangers_keep_no_proxy_out() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "quiet", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        let from = cluster.node("worker-2")?.machine.clone();
        let mut strangers = Vec::new();
        for replica in replicas::ready(&client).await? {
            let ip = replica
                .pod
                .ips()
                .await?
                .into_iter()
                .next()
                .context("no address")?;
            strangers.push(Strangers::come(from.clone(), SocketAddr::new(ip, 15012)));
        }
        for crowd in &strangers {
            eventually("all strangers have come", SOON, async || crowd.all_came()).await?;
        }
        let old = ztunnel_of(&asks).await?;
        let began = Instant::now();
        let how = DeleteParams::default().grace_period(0);
        old.api().delete(old.name(), &how).await?;
        eventually("its successor is ready", STARTED, async || {
            let new = ztunnel_of(&asks).await?;
            ensure!(new.name() != old.name(), "still the old one");
            ensure!(
                has_condition(&new.get().await?, "Ready", "True"),
                "not ready"
            );
            Ok(())
        })
        .await?;
        println!(
            "beside {SILENT} silent strangers: ready after {:.1} s",
            began.elapsed().as_secs_f32()
        );
        eventually("an answer", SOON, async || {
            asks.ask_once("http://web/").await
        })
        .await?;
        Ok(())
    })
    .await
}

/// Connections that are made, say nothing, and are made again when they are closed; they go when this does.
struct Strangers {
    connected: Arc<AtomicUsize>,
    _keeper: AbortOnDropHandle<()>,
}

impl Strangers {
    fn come(from: Machine, to: SocketAddr) -> Self {
        let connected = Arc::new(AtomicUsize::new(0));
        let keeper = tokio::spawn(keep_coming(from, to, connected.clone()));
        Self {
            connected,
            _keeper: AbortOnDropHandle::new(keeper),
        }
    }

    fn all_came(&self) -> Result<()> {
        let came = self.connected.load(Ordering::Relaxed);
        ensure!(came >= SILENT, "{came} connected so far");
        Ok(())
    }
}

async fn keep_coming(from: Machine, to: SocketAddr, connected: Arc<AtomicUsize>) {
    let mut crowd: Vec<TcpStream> = Vec::new();
    let mut pace = tokio::time::interval(COME_AGAIN);
    loop {
        pace.tick().await;
        crowd.retain(is_open);
        while crowd.len() < SILENT {
            let from = from.clone();
            let dialled = tokio::task::spawn_blocking(move || dial(&from, to)).await;
            // One that is refused comes again with the next round.
            let Ok(Ok(stranger)) = dialled else { break };
            crowd.push(stranger);
            connected.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn is_open(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.peek(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the cluster: make e2e"]
async fn bad_tokens_cost_the_api_server_little() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "tokens", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        let controller = Controller::reach(&cluster, ns.client()).await?;
        let good = token(&ztunnel_of(&asks).await?, "ztunnel").await?;
        let own = identity(ns.name(), "client")?;
        // A share is per address, and no ztunnel has a stranger's.
        let elsewhere = &cluster.node("worker-2")?.machine;
        let stranger = controller.reached_from(elsewhere).await?;
        let before = reviews(&client).await?;
        let began = Instant::now();
        let (flood, middle) = tokio::try_join!(
            bad_tokens(&stranger),
            middle_of_five(&controller, &good, &own)
        )?;
        let took = began.elapsed();
        let heard = reviews(&client).await? - before;
        println!(
            "{BAD_TOKENS} bad tokens in {:.1} s ({:.0}/s): {heard} reviews; certificates took {middle:?}; {flood:?}",
            took.as_secs_f32(),
            10_000.0 / took.as_secs_f32()
        );
        let bound = u64::from(REVIEWS_PER_SECOND) * (took.as_secs() + 2);
        ensure!(heard <= bound, "{heard} reviews in {took:?}, not {bound}");
        ensure!(middle <= SIGNED, "a certificate took {middle:?}");
        Ok(())
    })
    .await
}

/// How many were refused as unknown, and how many as too many.
async fn bad_tokens(controller: &Controller) -> Result<[usize; 2]> {
    let channel = controller.control().connect().await?;
    let answers = futures_util::stream::iter(0..BAD_TOKENS).map(|number| {
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        async move {
            let mut request = tonic::Request::new(IstioCertificateRequest::default());
            let shown = format!(
                "Bearer eyJhbGciOiJSUzI1NiJ9.{number}.{}",
                std::process::id()
            );
            request
                .metadata_mut()
                .insert("authorization", shown.parse()?);
            anyhow::Ok(client.create_certificate(request).await.map(drop))
        }
    });
    let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).try_collect().await?;
    let mut counts = [0, 0];
    for answer in answers {
        let refusal = answer.err().context("a certificate for a bad token")?;
        match refusal.code() {
            tonic::Code::Unauthenticated => counts[0] += 1,
            tonic::Code::ResourceExhausted | tonic::Code::Unavailable => counts[1] += 1,
            _ => anyhow::bail!("refused otherwise: {refusal:?}"),
        }
    }
    Ok(counts)
}

async fn middle_of_five(
    controller: &Controller,
    good: &str,
    own: &hbone::SpiffeId,
) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..5 {
        let client = controller.client(good, Caller::Node)?;
        let began = Instant::now();
        obtain(&client, own).await?;
        took.push(began.elapsed());
    }
    took.sort();
    Ok(took[took.len() / 2])
}

/// How many tokens the API server has looked at.
async fn reviews(client: &Client) -> Result<u64> {
    let page = client
        .request_text(http::Request::get("/metrics").body(Vec::new())?)
        .await?;
    let counts = page.lines().filter(|line| {
        line.starts_with("apiserver_request_total{") && line.contains("resource=\"tokenreviews\"")
    });
    let counts = counts.map(|line| {
        let count = line.rsplit(' ').next().unwrap_or_default();
        count.parse::<f64>().with_context(|| line.to_owned())
    });
    let all: f64 = counts.collect::<Result<Vec<_>>>()?.iter().sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count"
    )]
    Ok(all as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the cluster: make e2e"]
async fn a_tenants_gateways_hold_nobody_elses_changes_up() -> Result<()> {
    let (_cluster, client) = e2e::mesh::installed().await?;
    Namespace::within(&client, "shop", &[AMBIENT], async |ns| {
        let asks = shop::open(ns).await?;
        shop::bind(ns, &asks).await?;
        let load = asks.load("http://web/", 50).await?;
        Namespace::within(&client, "evil", &[], async |evil| {
            let flood = gateways(evil);
            let others = changes(ns, &asks);
            // The flood goes on for as long as others are looked at.
            tokio::select! {
                flooded = flood => flooded.context("the flood ended"),
                seen = others => seen,
            }
        })
        .await?;
        let load = load.stop().await?;
        ensure!(load.failed == 0 && load.ok == load.sent, "{load:?}");
        Ok(())
    })
    .await
}

/// Gateways whose Service is somebody else's, made and deleted without end.
async fn gateways(evil: &Namespace) -> Result<()> {
    let service = |number: usize| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("g{number}")},
            "spec": {"clusterIP": "None", "ports": [{"port": 80}]}})
    };
    let gateway = |number: usize| shop::waypoint(&format!("g{number}"));
    apply_all(evil, (0..GATEWAYS).map(service)).await?;
    let all = e2e::apps::dynamic(evil.client(), GATEWAY_API, "Gateway", Some(evil.name())).await?;
    loop {
        apply_all(evil, (0..GATEWAYS).map(gateway)).await?;
        all.delete_collection(&DeleteParams::default(), &Default::default())
            .await?;
    }
}

async fn apply_all(ns: &Namespace, objects: impl Iterator<Item = Value>) -> Result<()> {
    futures_util::stream::iter(objects)
        .map(|object| apply_objects(ns.client(), Some(ns.name()), [object]))
        .buffer_unordered(8)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
}

/// Routes take effect promptly and a new pod gets in, as if there were no flood.
async fn changes(ns: &Namespace, asks: &PodRef) -> Result<()> {
    let mut took = Vec::new();
    for turn in 0..9 {
        let version = if turn % 2 == 0 { "v1" } else { "v2" };
        ns.apply(&shop::all_to_version(version)).await?;
        let began = Instant::now();
        eventually("the route took effect", SOON, async || {
            let answers = asks.ask(&["http://web/", "--count=5"]).await?;
            let others = answers
                .iter()
                .any(|one| one.field("ServiceVersion") != Some(version));
            ensure!(!others, "not all from {version}");
            Ok(())
        })
        .await?;
        took.push(began.elapsed());
    }
    took.sort();
    println!("beside {GATEWAYS} Gateways of another tenant routes took effect within {took:?}");
    let middle = took[took.len() / 2];
    ensure!(middle <= PROMPT, "a route took {middle:?}");
    let pod = ns.run(&EchoClient::new("late"), START).await?;
    pod.wait("in the mesh", SOON, |pod: &Pod| {
        has_condition(pod, "ambit.mesh/InMesh", "True")
    })
    .await
    .map(drop)
}
