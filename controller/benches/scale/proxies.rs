//! The other end of the streams: real clients with real worlds, readers that only acknowledge, and a way that can be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh::control::Control;
use mesh::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh::xds::client::{Client, Config, Handle};
use mesh::xds::node::NodeInfo;
use mesh::xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ENROLMENT_TYPE, Update};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::cluster::Cluster;
use crate::measure::Latencies;

/// What their threads are called.
pub(crate) const THREADS: &str = "proxies";
/// What a ztunnel asks for.
const TYPES: [&str; 3] = [ADDRESS_TYPE, ENROLMENT_TYPE, ENROLLED_NAMESPACE_TYPE];

/// Readers that connect at once.
static HANDSHAKES: Semaphore = Semaphore::const_new(16);
/// How often a reader comes again before it fails, and after how long.
const ATTEMPTS: usize = 50;
const RETRY: Duration = Duration::from_millis(100);

/// When each pod was changed last, for those at the other end.
#[derive(Clone)]
pub(crate) struct Clock {
    base: Instant,
    changed: Arc<[AtomicU64]>,
}

/// What is measured at the other ends. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Measured>>);

#[derive(Default)]
pub(crate) struct Measured {
    /// From the event at the hub to the message at a proxy.
    pub(crate) arrived: Latencies,
    /// ... to the snapshot that decisions are made from.
    pub(crate) effective: Latencies,
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(pods: usize) -> Self {
        Self {
            base: Instant::now(),
            changed: (0..pods).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// This pod is changed now.
    pub(crate) fn start(&self, pod: usize) {
        self.changed[pod].store(self.now(), Ordering::Release);
    }

    /// Since when the change of that resource is under way, if it is one of ours.
    fn since(&self, resource: &str) -> Option<Duration> {
        let at = self
            .changed
            .get(Cluster::number(resource)?)?
            .load(Ordering::Acquire);
        (at > 0).then(|| Duration::from_nanos(self.now().saturating_sub(at)))
    }
}

// === impl Seen ===

impl Seen {
    /// How many have arrived by now.
    pub(crate) fn arrived(&self) -> usize {
        self.0.lock().arrived.len()
    }

    pub(crate) fn take(&self) -> Measured {
        std::mem::take(&mut *self.0.lock())
    }
}

/// A ztunnel's client and world.
pub(crate) fn world(
    control: Control,
    number: usize,
    clock: Clock,
    seen: Seen,
) -> (impl Future<Output = ()>, Handle) {
    let node = NodeInfo {
        kind: "ztunnel".to_owned(),
        pod: format!("ztunnel-{number:05}"),
        namespace: crate::cluster::SYSTEM.to_owned(),
        node_name: Cluster::node(number),
        ip: [127, 0, 0, 1].into(),
        cluster: "Kubernetes".to_owned(),
        metadata: Default::default(),
    };
    let config = Config {
        control,
        node,
        types: TYPES.to_vec(),
    };
    let (mut writer, world) = mesh::world::world();
    let (client, handle) = Client::new(config, move |update: &Update| {
        let since = |(name, _): &(String, _)| clock.since(name);
        let arrived: Vec<Duration> = update.updated.iter().filter_map(since).collect();
        let taken = writer.apply(update);
        if !arrived.is_empty() {
            let effective: Vec<Duration> = update.updated.iter().filter_map(since).collect();
            let mut seen = seen.0.lock();
            arrived.into_iter().for_each(|one| seen.arrived.add(one));
            effective
                .into_iter()
                .for_each(|one| seen.effective.add(one));
        }
        taken
    });
    let run = async move {
        // The world is there for as long as its client.
        let _world = world;
        match client.run().await {}
    };
    (run, handle)
}

/// One that acknowledges and keeps nothing. Says `true` when it has been told everything.
pub(crate) async fn reader(
    control: Control,
    clock: Clock,
    seen: Seen,
    synced: watch::Sender<bool>,
) -> anyhow::Result<()> {
    // Worlds connect beside the readers: one that was pushed out comes again, as a proxy does.
    let mut attempts = 0;
    let (requests, mut responses) = loop {
        match opened(&control).await {
            Ok(opened) => break opened,
            Err(error) if attempts == ATTEMPTS => return Err(error),
            Err(_) => sleep(RETRY).await,
        }
        attempts += 1;
    };
    while let Some(response) = responses.message().await? {
        let arrived = response
            .resources
            .iter()
            .filter_map(|one| clock.since(&one.name));
        let arrived: Vec<Duration> = arrived.collect();
        if !arrived.is_empty() {
            let mut seen = seen.0.lock();
            arrived.into_iter().for_each(|one| seen.arrived.add(one));
        }
        if response.type_url == ADDRESS_TYPE && response.system_version_info != "more" {
            synced.send_replace(true);
        }
        let acknowledge = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(acknowledge).await?;
    }
    Ok(())
}

/// A stream that was authorised, and what is said on it.
async fn opened(
    control: &Control,
) -> anyhow::Result<(
    mpsc::Sender<DeltaDiscoveryRequest>,
    Streaming<DeltaDiscoveryResponse>,
)> {
    let (requests, outgoing) = mpsc::channel(16);
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    if let Some(authorization) = control.authorization()? {
        request
            .metadata_mut()
            .insert("authorization", authorization);
    }
    for type_url in TYPES {
        let subscribe = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(subscribe).await?;
    }
    // More of one address at once are strangers to the controller, until a call of theirs was authorised.
    let _turn = HANDSHAKES.acquire().await?;
    let channel = control.connect().await?;
    let responses = AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .delta_aggregated_resources(request)
        .await?;
    Ok((requests, responses.into_inner()))
}

/// A relay to an address, whose connections break whenever the sender says something new.
pub(crate) async fn relay(
    listener: TcpListener,
    to: SocketAddr,
    cut: watch::Receiver<u64>,
) -> std::io::Result<()> {
    loop {
        let (mut near, _) = listener.accept().await?;
        let mut cut = cut.clone();
        cut.mark_unchanged();
        let mut far = TcpStream::connect(to).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, 1 << 18, 1 << 18) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// All of these, one after the other.
pub(crate) async fn all_synced(
    all: impl IntoIterator<Item = watch::Receiver<bool>>,
    since: Instant,
) -> anyhow::Result<Latencies> {
    let mut times = Latencies::default();
    let waits = all.into_iter().map(|mut synced| async move {
        synced.wait_for(|synced| *synced).await.map(drop)?;
        anyhow::Ok(since.elapsed())
    });
    let mut waits: futures_util::stream::FuturesUnordered<_> = waits.collect();
    while let Some(time) = waits.next().await {
        times.add(time?);
    }
    Ok(times)
}
