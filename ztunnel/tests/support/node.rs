//! One node of the fabric: the whole program but for its control plane clients.

use std::{
    fs,
    num::NonZeroUsize,
    os::fd::AsRawFd,
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use hbone::TrustDomain;
use mesh::{
    certs::{Certificates, Clock},
    proto::node::{EnrolmentReport, MeshState, enrolment_report::State as Reported},
    revocations::RevocationFile,
    world::{World, WorldWriter, world},
    xds::{MESH_STATE_NAME, MESH_STATE_TYPE, Update},
};
use parking_lot::Mutex;
use prometheus_client::{encoding::text::encode, registry::Registry};
use prost::Message;
use tokio::{sync::watch, task::LocalSet};
use tokio_util::sync::CancellationToken;
use ztunnel::{
    cni::protocol::{Answer, Request, Sandbox},
    leaving,
    metrics::Metrics,
    pods::{Pods, handover::Ztunnels, node::Node},
    proxy::Shared,
    workers::{Run, Workers},
};

use super::{
    ca::Ca,
    fabric::{NAMESPACE, TestPod},
    log,
    net::PATIENCE,
};

/// One node: the whole program but for its control plane clients.
pub(crate) struct TestNode {
    proc: tempfile::TempDir,
    state: tempfile::TempDir,
    writer: Mutex<WorldWriter>,
    world: World,
    reports: Mutex<mpsc::Receiver<EnrolmentReport>>,
    /// Reports that came while one about another pod was waited for.
    early: Mutex<Vec<EnrolmentReport>>,
    report: mpsc::Sender<EnrolmentReport>,
    connected: watch::Sender<bool>,
    running: Mutex<Option<Running>>,
    /// How many programs were started, one after the other.
    started: watch::Sender<usize>,
    /// How often one of them gave the node back.
    given_back: Arc<AtomicUsize>,
    /// The pods of which there is nothing to tell any more.
    forgotten: Arc<Mutex<Vec<String>>>,
    /// The metrics of the program that was started last.
    registry: Mutex<Registry>,
    files: Mutex<Vec<fs::File>>,
}

pub(crate) struct Running {
    asks: tokio::sync::mpsc::UnboundedSender<(Request, mpsc::Sender<Answer>)>,
    leave: tokio::sync::mpsc::UnboundedSender<Duration>,
    thread: thread::JoinHandle<()>,
}

// === impl TestNode ===

/// What a report says, without the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Enrolled,
    Removed,
    Failed,
}

impl TestNode {
    pub(super) fn new(ca: &Ca) -> Self {
        let (writer, world) = world();
        let (report, reports) = mpsc::channel();
        let proc = tempfile::tempdir().unwrap();
        // The host is somewhere else.
        fs::create_dir_all(proc.path().join("1/ns")).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", proc.path().join("1/ns/net")).unwrap();
        let node = Self {
            proc,
            state: tempfile::tempdir().unwrap(),
            writer: Mutex::new(writer),
            world,
            reports: Mutex::new(reports),
            early: Mutex::default(),
            report,
            connected: watch::channel(true).0,
            running: Mutex::default(),
            started: watch::channel(0).0,
            given_back: Arc::default(),
            forgotten: Arc::default(),
            registry: Mutex::default(),
            files: Mutex::default(),
        };
        node.start(ca);
        node
    }

    fn revocation_file(&self) -> PathBuf {
        self.state.path().join("ca-crl.pem")
    }

    /// From now on these lists say who is revoked.
    pub(crate) fn revoke(&self, lists: &str) {
        let next = self.state.path().join("next-crl.pem");
        fs::write(&next, lists).unwrap();
        fs::rename(next, self.revocation_file()).unwrap();
    }

    /// The file that the CNI plugin reads.
    pub(crate) fn namespaces_file(&self) -> PathBuf {
        self.state.path().join("namespaces.json")
    }

    pub(crate) fn connected(&self, connected: bool) {
        self.connected.send_replace(connected);
    }

    /// What the controller says.
    pub(super) fn tell(&self, update: &Update) {
        self.writer.lock().apply(update).unwrap();
    }

    /// A process of the pod runs.
    pub(crate) fn add_process(&self, pod: &TestPod, pid: usize) {
        let process = self.proc.path().join(pid.to_string());
        fs::create_dir_all(process.join("ns")).unwrap();
        fs::write(
            process.join("cgroup"),
            format!("0::/kubepods/pod{}/1\n", pod.uid()),
        )
        .unwrap();
        let file = pod
            .ns
            .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        std::os::unix::fs::symlink(path, process.join("ns/net")).unwrap();
        // The link names the open file.
        self.files.lock().push(file);
    }

    /// A process that runs is one of the pod's.
    pub(crate) fn adopt(&self, pod: &TestPod, pid: u32) {
        let process = self.proc.path().join(pod.number.to_string());
        for part in ["fd", "comm"] {
            let real = format!("/proc/{pid}/{part}");
            std::os::unix::fs::symlink(real, process.join(part)).unwrap();
        }
    }

    /// All processes of a pod have ended.
    pub(crate) fn remove_process(&self, pod: &TestPod) {
        fs::remove_dir_all(self.proc.path().join(pod.number.to_string())).unwrap();
    }

    /// Starts (again) what the program starts.
    pub(crate) fn start(&self, ca: &Ca) {
        let (asks, mut asked) =
            tokio::sync::mpsc::unbounded_channel::<(Request, mpsc::Sender<Answer>)>();
        let (leave, mut leaving) = tokio::sync::mpsc::unbounded_channel();
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        *self.registry.lock() = registry;
        let shared = Arc::new(Shared {
            world: self.world.clone(),
            metrics,
            trust_domain: TrustDomain::default(),
            cluster: "Kubernetes".into(),
            node: "node".into(),
        });
        let world = self.world.clone();
        let (ca, proc) = (ca.clone(), self.proc.path().to_owned());
        let (report, connected) = (self.report.clone(), self.connected.subscribe());
        let (file, lists) = (self.namespaces_file(), self.revocation_file());
        self.started.send_modify(|started| *started += 1);
        let mut started = self.started.subscribe();
        let (given_back, forgotten) = (self.given_back.clone(), self.forgotten.clone());
        let thread = thread::spawn(move || {
            let cores = NonZeroUsize::new(2).unwrap();
            let spawn = |name, body| thread::Builder::new().name(name).spawn(body).map(drop);
            let workers = Arc::new(Workers::start(cores, &shared, spawn).unwrap());
            let reporting = workers.clone().keep_reporting();
            let (lists, in_force) = RevocationFile::open(Some(lists));
            let (certificates, keeper) = Certificates::new(ca, Clock::system());
            let keeper = keeper.judging_by(in_force);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            LocalSet::new().block_on(&runtime, async move {
                let node = Node {
                    shared,
                    workers,
                    certificates,
                    report: Box::new(move |r| drop(report.send(r))),
                    forget: Box::new(move |uid| forgotten.lock().push(uid.to_owned())),
                    proc,
                    connected,
                    synced: watch::channel(true).1,
                    end: CancellationToken::new(),
                    runs: std::cell::RefCell::new(Run::NONE),
                    ztunnels: Ztunnels::new("/nonexistent".into()),
                    running: std::cell::RefCell::default(),
                };
                let pods = Pods::new(node, file);
                let time = tokio::select! {
                    _ = keeper.run() => return,
                    _ = lists.run() => return,
                    () = reporting => return,
                    () = pods.run() => return,
                    () = async {
                        while let Some((request, answer)) = asked.recv().await {
                            let pods: Rc<Pods> = pods.clone();
                            tokio::task::spawn_local(async move {
                                let _ = answer.send(pods.answer(request).await);
                            });
                        }
                        std::future::pending::<()>().await;
                    } => return,
                    told = leaving.recv() => told.expect("the test tells before it goes"),
                };
                // From now on the CNI plugin is not answered.
                drop(asked);
                let successor = async { drop(started.changed().await) };
                let give_back = async || {
                    given_back.fetch_add(1, Ordering::Relaxed);
                };
                leaving::leave(&world, &pods, time, successor, give_back).await;
            });
        });
        *self.running.lock() = Some(Running {
            asks,
            leave,
            thread,
        });
    }

    /// The sum of a metric over all its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut page = String::new();
        encode(&mut page, &self.registry.lock()).unwrap();
        let samples = page.lines().filter(|line| line.starts_with(name));
        let value = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        samples.filter_map(value).sum()
    }

    /// Ends the program; if the mesh is uninstalled, it cleans up.
    pub(crate) fn stop(&self, uninstalled: bool) {
        self.uninstalling(uninstalled);
        self.running.lock().take().unwrap().stop();
        self.uninstalling(false);
    }

    /// The controller says whether the mesh is being uninstalled.
    pub(crate) fn uninstalling(&self, uninstalling: bool) {
        let state = MeshState { uninstalling }.encode_to_vec();
        self.tell(&Update {
            type_url: MESH_STATE_TYPE,
            updated: vec![(MESH_STATE_NAME.to_owned(), state.into())],
            removed: vec![],
        });
    }

    /// How often the node was given back.
    pub(crate) fn given_back(&self) -> usize {
        self.given_back.load(Ordering::Relaxed)
    }

    /// Whether a program had nothing to tell of the pod any more.
    pub(crate) fn has_forgotten(&self, pod: &TestPod) -> bool {
        self.forgotten.lock().contains(&pod.uid())
    }

    /// The program that runs, so that another can be started beside it.
    pub(crate) fn take(&self) -> Running {
        self.running.lock().take().unwrap()
    }

    /// Asks as the CNI plugin does for a new sandbox.
    pub(crate) fn cni_add(&self, pod: &TestPod) -> Answer {
        self.cni(pod, Request::Add, |_| ())
    }

    /// As the CNI plugin does when a sandbox goes.
    pub(crate) fn cni_del(&self, pod: &TestPod) -> Answer {
        self.cni(pod, Request::Del, |_| ())
    }

    /// As the CNI plugin does, with a sandbox that differs.
    pub(crate) fn cni(
        &self,
        pod: &TestPod,
        request: fn(Sandbox) -> Request,
        differ: impl FnOnce(&mut Sandbox),
    ) -> Answer {
        let file = open_namespace(pod);
        let netns = PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            file.as_raw_fd()
        ));
        let mut sandbox = Sandbox {
            uid: Some(pod.uid()),
            name: pod.name.clone(),
            namespace: NAMESPACE.into(),
            container_id: pod.name.clone(),
            netns,
            ips: vec![pod.v4, pod.v6],
        };
        differ(&mut sandbox);
        let (answer, answered) = mpsc::channel();
        let asks = self.running.lock().as_ref().unwrap().asks.clone();
        asks.send((request(sandbox), answer)).unwrap();
        answered.recv_timeout(PATIENCE).expect("no answer")
    }

    /// Waits for a report about a pod.
    pub(crate) fn wait_for(&self, pod: &TestPod, wanted: Outcome) -> EnrolmentReport {
        let of_pod = |report: &EnrolmentReport| report.uid == pod.uid();
        let mut early = self.early.lock();
        let reports = self.reports.lock();
        loop {
            let report = match early.iter().position(of_pod) {
                Some(at) => Ok(early.remove(at)),
                None => reports.recv_timeout(PATIENCE),
            };
            let Ok(report) = report else {
                panic!("{}: not {wanted:?}\n{}", pod.name, log::dump());
            };
            let state = match report.state() {
                Reported::Enrolled => Outcome::Enrolled,
                Reported::Removed => Outcome::Removed,
                _ => Outcome::Failed,
            };
            if !of_pod(&report) {
                early.push(report);
            } else if state == wanted {
                return report;
            }
        }
    }
}

impl Running {
    /// Says whether it has heard that it shall end.
    pub(crate) fn is_leaving(&self) -> impl Fn() -> bool + use<> {
        let asks = self.asks.clone();
        move || asks.is_closed()
    }

    pub(crate) fn stop(self) {
        self.leave(Duration::from_secs(1));
    }

    /// Tells it to end within `time`, and waits until it has.
    pub(crate) fn leave(self, time: Duration) {
        self.leave.send(time).unwrap();
        self.thread.join().unwrap();
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if self.running.lock().is_some() {
            self.stop(true);
        }
    }
}

fn open_namespace(pod: &TestPod) -> fs::File {
    let open = || fs::File::open("/proc/thread-self/ns/net").unwrap();
    pod.ns.run(open).unwrap()
}
