//! One scenario in a process of its own: load, streams, changes, a reconnect.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mesh::process::telemetry::LogFormat;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use crate::cluster::Cluster;
use crate::controller::{self, Controller};
use crate::measure::{Cpu, Latencies, milliseconds, settled};
use crate::parts::Parts;
use crate::proxies::{self, Clock, Seen};
use crate::{RATE, Scenario};

/// After this long a scenario has failed, and says so.
const PATIENCE: Duration = Duration::from_secs(300);
/// Changes that are made before any is measured.
const WARM_UP: u64 = RATE / 2;
/// How often one stream is cut.
const CUTS: u64 = 5;

/// What was measured; what was not is absent.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Milliseconds until the index had published everything.
    pub(crate) load: f64,
    /// Bytes in the controller for each pod.
    pub(crate) controller: Option<f64>,
    /// The same by what it is for, where that alone was measured.
    pub(crate) parts: Option<Parts>,
    /// Bytes in a proxy for each pod.
    pub(crate) world: Option<f64>,
    /// Milliseconds from connecting to the full state: the first, and the last of all.
    pub(crate) first_state: (f64, f64),
    /// Milliseconds, p50 and p99.
    pub(crate) arrived: Option<(f64, f64)>,
    /// Milliseconds, p50 and p99.
    pub(crate) effective: Option<(f64, f64)>,
    /// Changes that reached no world or reader, of those that should.
    pub(crate) missed: u64,
    /// Microseconds on a core in the controller for each change and stream.
    pub(crate) cpu: Option<f64>,
    /// Cores in use while changes were made: the controller, the proxies.
    pub(crate) cores: Option<(f64, f64)>,
    /// Milliseconds from the cut to a change made after it, in that proxy's world: p50 and the longest.
    pub(crate) reconnect: Option<(f64, f64)>,
    /// The longest that any other stream waited for a change meanwhile.
    pub(crate) stall: Option<f64>,
}

pub(crate) fn main(scenario: &str) -> ExitCode {
    let outcome = serde_json::from_str(scenario)
        .map_err(anyhow::Error::from)
        .and_then(|scenario| run(&scenario))
        .and_then(|outcome| Ok(serde_json::to_string(&outcome)?));
    match outcome {
        Ok(outcome) => {
            println!("{outcome}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything of one scenario.
struct Bench {
    scenario: Scenario,
    cluster: Cluster,
    controller: Controller,
    proxies: Runtime,
    clock: Clock,
    outcome: Outcome,
}

fn run(scenario: &Scenario) -> anyhow::Result<Outcome> {
    // What is said on the way goes before the outcome, and is shown if there is none.
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    let _logs = mesh::process::telemetry::init(LogFormat::Text, &filter)?;
    if scenario.parts {
        let parts = Parts::measure(Cluster::of(scenario), scenario.pods)?;
        return Ok(Outcome {
            parts: Some(parts),
            ..Outcome::default()
        });
    }
    // Two ends of each stream.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let threads = std::thread::available_parallelism()?.get();
    let cluster = Cluster::of(scenario);
    let proxies = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(proxies::THREADS)
        .enable_all()
        .build()?;
    let mut bench = Bench {
        scenario: *scenario,
        cluster,
        controller: Controller::start(threads)?,
        proxies,
        clock: Clock::new(scenario.pods),
        outcome: Outcome::default(),
    };
    bench.load()?;
    let seen = bench.streams()?;
    if scenario.seconds > 0 {
        bench.changes(&seen)?;
        bench.reconnect(&seen)?;
    }
    // Ending a million objects in order says nothing.
    bench.proxies.shutdown_background();
    Ok(bench.outcome)
}

// === impl Bench ===

impl Bench {
    fn load(&mut self) -> anyhow::Result<()> {
        let (before, begun) = (self.memory(), Instant::now());
        self.controller.load(self.cluster)?;
        self.outcome.load = milliseconds(begun.elapsed());
        anyhow::ensure!(
            self.controller.outstanding() <= self.scenario.pods / 10,
            "{} writes are outstanding: the synthetic cluster is not as the index wants it",
            self.controller.outstanding()
        );
        if self.scenario.memory {
            self.outcome.controller = Some(self.per_pod(self.memory().saturating_sub(before)));
        }
        Ok(())
    }

    /// Bytes in memory, where that is what is measured.
    fn memory(&self) -> u64 {
        if self.scenario.memory { settled() } else { 0 }
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn per_pod(&self, bytes: u64) -> f64 {
        bytes as f64 / self.scenario.pods as f64
    }

    /// Opens all streams, and waits until each has been told everything.
    fn streams(&mut self) -> anyhow::Result<Seen> {
        let Scenario {
            streams, worlds, ..
        } = self.scenario;
        let seen = Seen::default();
        let (before, begun) = (self.memory(), Instant::now());
        let mut synced = Vec::new();
        for number in 0..streams {
            let control = self.controller.control(number, self.controller.address())?;
            let (clock, seen) = (self.clock.clone(), seen.clone());
            if number < worlds {
                let (run, handle) = proxies::world(control, number, clock, seen);
                self.proxies.spawn(run);
                synced.push(handle.synced());
            } else {
                let (say, when) = watch::channel(false);
                self.proxies.spawn(async move {
                    if let Err(error) = proxies::reader(control, clock, seen, say).await {
                        eprintln!("a reader ended: {error:#}");
                    }
                });
                synced.push(when);
            }
        }
        let all = proxies::all_synced(synced, begun);
        let mut times = self
            .proxies
            .block_on(async { timeout(PATIENCE, all).await })??;
        self.outcome.first_state = (times.percentile(0.0), times.percentile(1.0));
        if self.scenario.memory {
            let each = self.memory().saturating_sub(before) / worlds as u64;
            self.outcome.world = Some(self.per_pod(each));
        }
        Ok(seen)
    }

    /// Changes pods at a steady rate and waits until every stream has seen every change.
    fn changes(&mut self, seen: &Seen) -> anyhow::Result<()> {
        self.make(WARM_UP, 0)?;
        self.settle(seen, WARM_UP);
        let _ = seen.take();
        let count = RATE * self.scenario.seconds;
        let (server, clients) = (
            Cpu::begin(controller::THREADS),
            Cpu::begin(proxies::THREADS),
        );
        self.make(count, WARM_UP)?;
        let ((taken, cores), (_, proxies)) = (server.end(), clients.end());
        self.settle(seen, count);
        let mut measured = seen.take();
        let wanted = count * self.scenario.streams as u64;
        self.outcome.missed = wanted.saturating_sub(measured.arrived.len() as u64);
        let both = |all: &mut Latencies| Some((all.percentile(0.5), all.percentile(0.99)));
        self.outcome.arrived = both(&mut measured.arrived);
        self.outcome.effective = both(&mut measured.effective);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let each = taken.as_secs_f64() * 1e6 / wanted as f64;
        self.outcome.cpu = Some(each);
        self.outcome.cores = Some((cores, proxies));
        Ok(())
    }

    /// Changes so many pods, one after the other, from that one on.
    fn make(&self, count: u64, from: u64) -> anyhow::Result<()> {
        let (clock, cluster, inputs) = (self.clock.clone(), self.cluster, self.controller.inputs());
        let pods = self.scenario.pods as u64;
        self.proxies.block_on(async move {
            let mut ticks = interval(Duration::from_micros(1_000_000 / RATE));
            for number in from..from + count {
                ticks.tick().await;
                let pod = usize::try_from(number % pods)?;
                let object = cluster.pod_after(pod, number);
                clock.start(pod);
                Controller::change(&inputs, object).await?;
            }
            Ok(())
        })
    }

    /// Until everybody has seen so many changes, or nothing more comes.
    fn settle(&self, seen: &Seen, count: u64) {
        let wanted = count * self.scenario.streams as u64;
        let mut before = 0;
        for _ in 0..200 {
            std::thread::sleep(Duration::from_millis(50));
            let arrived = seen.arrived();
            if arrived as u64 >= wanted {
                return;
            }
            if arrived == before && arrived > 0 {
                std::thread::sleep(Duration::from_millis(500));
                if seen.arrived() == arrived {
                    return;
                }
            }
            before = arrived;
        }
    }

    /// Cuts the connection of one more world, which has everything, and makes a change.
    fn reconnect(&mut self, others: &Seen) -> anyhow::Result<()> {
        let (cut, when) = watch::channel(0);
        let listener = self.proxies.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let detour = listener.local_addr()?;
        self.proxies
            .spawn(proxies::relay(listener, self.controller.address(), when));
        let seen = Seen::default();
        let control = self.controller.control(0, detour)?;
        let (run, handle) = proxies::world(control, 0, self.clock.clone(), seen.clone());
        self.proxies.spawn(run);
        let synced = proxies::all_synced([handle.synced()], Instant::now());
        self.proxies
            .block_on(async { timeout(PATIENCE, synced).await })??;
        // Versions that no pod has yet.
        let from = WARM_UP + RATE * self.scenario.seconds;
        let (mut back, mut stall) = (Latencies::default(), Latencies::default());
        for number in 0..CUTS {
            let _ = (seen.take(), others.take());
            cut.send_replace(number + 1);
            // After the cut, so that it cannot come the old way.
            std::thread::sleep(Duration::from_millis(1));
            self.make(1, from + number)?;
            let begun = Instant::now();
            while seen.arrived() == 0 {
                anyhow::ensure!(begun.elapsed() < PATIENCE, "it did not come back");
                std::thread::sleep(Duration::from_micros(200));
            }
            back.join(&seen.take().effective);
            self.settle(others, 1);
            stall.join(&others.take().arrived);
        }
        self.outcome.reconnect = Some((back.percentile(0.5), back.percentile(1.0)));
        self.outcome.stall = Some(stall.percentile(1.0));
        Ok(())
    }
}
