//! Who writes: never two, and soon another when one is killed, frozen or cut off.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use controller::hub::IndexState;
use controller::lease::{Candidate, LEASE, RENEW, Term, fenced};
use controller::metrics::Metrics;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::kubernetes::{Cluster, End, Fault};

/// What the issue promises: a leader that is gone is replaced within this.
const PROMISED: Duration = Duration::from_secs(15);
/// How finely is looked whether two lead.
const STEP: Duration = Duration::from_millis(50);

/// One replica: its candidate, what it writes with, and switches for what may happen to it.
struct Replica {
    term: Term,
    writer: Client,
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    index: watch::Sender<IndexState>,
    frozen: Arc<AtomicBool>,
    /// No call of it is answered.
    cut: watch::Sender<bool>,
}

/// A process that may be stopped (`SIGSTOP`): while it is, nothing in it goes on, and time passes.
struct Stoppable<F> {
    process: Pin<Box<F>>,
    frozen: Arc<AtomicBool>,
}

impl<F: Future> Future for Stoppable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.frozen.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.process.as_mut().poll(cx)
    }
}

impl Replica {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let (cut, is_cut) = watch::channel(false);
        let server = cluster.service();
        let service = tower::service_fn(move |request| {
            let (mut server, mut is_cut) = (server.clone(), is_cut.clone());
            async move {
                if *is_cut.borrow() {
                    let _ = is_cut.wait_for(|cut| !cut).await;
                }
                tower::Service::call(&mut server, request).await
            }
        });
        let client = Client::new(service, "default");
        let (index, uninstalling) = watch::channel(IndexState::default());
        let candidate = Candidate::new(
            client.clone(),
            "ambit-system",
            name.to_owned(),
            uninstalling,
            Metrics::default(),
        );
        let (stop, stopped) = watch::channel(false);
        let frozen = Arc::new(AtomicBool::new(false));
        let term = candidate.term();
        let process = Stoppable {
            process: Box::pin(candidate.run(stopped)),
            frozen: frozen.clone(),
        };
        Self {
            writer: fenced(client, term.clone()),
            term,
            task: tokio::spawn(process),
            stop,
            index,
            frozen,
            cut,
        }
    }

    fn leads(&self) -> bool {
        self.term.leads()
    }

    async fn write(&self, name: &str) -> kube::Result<ConfigMap> {
        let maps: Api<ConfigMap> = Api::namespaced(self.writer.clone(), "shop");
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}}))
            .map_err(kube::Error::SerdeError)?;
        maps.create(&PostParams::default(), &map).await
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lets time pass until it is so; never do two lead on the way. How long it took.
async fn until(replicas: &[&Replica], so: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !so() {
        let leaders = replicas.iter().filter(|replica| replica.leads()).count();
        assert!(leaders <= 1, "two lead after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(600), "never");
        tokio::time::sleep(STEP).await;
    }
    began.elapsed()
}

/// Two replicas of which the first leads.
async fn two(cluster: &Cluster) -> (Replica, Replica) {
    let first = Replica::start(cluster, "first");
    until(&[&first], || first.leads()).await;
    let second = Replica::start(cluster, "second");
    let after = Instant::now() + Duration::from_secs(60);
    until(&[&first, &second], || Instant::now() >= after).await;
    assert!(first.leads() && !second.leads(), "it is kept");
    (first, second)
}

#[tokio::test(start_paused = true)]
async fn of_those_that_start_together_one_leads() {
    let cluster = Cluster::new();
    let all: Vec<Replica> = ["a", "b", "c"]
        .map(|name| Replica::start(&cluster, name))
        .into();
    let all: Vec<&Replica> = all.iter().collect();
    until(&all, || all.iter().any(|one| one.leads())).await;
    let after = Instant::now() + Duration::from_secs(120);
    until(&all, || Instant::now() >= after).await;
    assert_eq!(all.iter().filter(|one| one.leads()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_killed_is_replaced_in_time() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    first.task.abort();
    let took = until(&[&first, &second], || second.leads()).await;
    assert!(took <= PROMISED, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_ends_in_order_is_replaced_at_once() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    first.stop.send_replace(true);
    let took = until(&[&first, &second], || second.leads()).await;
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_frozen_is_replaced_and_writes_nothing_when_it_goes_on() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    assert!(first.write("before").await.is_ok());
    first.frozen.store(true, Ordering::Relaxed);
    let took = until(&[&first, &second], || second.leads()).await;
    assert!(took <= PROMISED, "{took:?}");
    // It goes on, and has not yet looked at the Lease: its write is not even sent.
    cluster.forget_calls();
    let written = first.write("after").await;
    assert!(written.is_err_and(|error| controller::lease::is_fenced(&error)));
    assert!(cluster.called("POST", "*").is_empty());
    assert!(second.write("after").await.is_ok());
    first.frozen.store(false, Ordering::Relaxed);
    let after = Instant::now() + Duration::from_secs(60);
    until(&[&first, &second], || Instant::now() >= after).await;
    assert!(second.leads() && !first.leads());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_ceases_before_another_begins() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    first.cut.send_replace(true);
    let ceased = until(&[&first, &second], || !first.leads()).await;
    assert!(ceased < LEASE, "{ceased:?}");
    let took = ceased + until(&[&first, &second], || second.leads()).await;
    assert!(took <= PROMISED, "{took:?}");
    first.cut.send_replace(false);
    let after = Instant::now() + Duration::from_secs(60);
    until(&[&first, &second], || Instant::now() >= after).await;
    assert!(second.leads() && !first.leads());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_hangs_is_given_up_when_the_lease_ends() {
    let cluster = Cluster::new();
    let (first, _second) = two(&cluster).await;
    cluster.spoil("POST", "*/configmaps", Fault::Hang);
    cluster.spoil("PUT", "*/leases/*", Fault::Hang);
    let began = Instant::now();
    let written = first.write("hangs").await;
    assert!(written.is_err_and(|error| controller::lease::is_fenced(&error)));
    assert!(began.elapsed() < LEASE, "{:?}", began.elapsed());
    let calls = cluster.called("POST", "*/configmaps");
    assert_eq!(calls[0].end, End::GivenUp);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_done_and_answered_too_late_is_no_loss() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    let mut term = first.term.clone();
    cluster.spoil_times(1, "PUT", "*/leases/*", Fault::LoseAnswer);
    let ended = tokio::time::timeout(Duration::from_secs(60), term.changed());
    assert!(ended.await.is_err(), "it ceased, if only for a moment");
    assert!(first.leads() && !second.leads());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_took_is_a_loss_at_the_next_renewal() {
    let cluster = Cluster::new();
    let (first, _second) = two(&cluster).await;
    cluster.put(json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"namespace": "ambit-system", "name": "ambit-controller"},
        "spec": {"holderIdentity": "third"},
    }));
    let took = until(&[&first], || !first.leads()).await;
    assert!(took <= RENEW + STEP, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_frozen_nobody_leads_and_then_somebody() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    cluster.freeze();
    let both = [&first, &second];
    until(&both, || !first.leads()).await;
    let after = Instant::now() + Duration::from_secs(60);
    until(&both, || Instant::now() >= after).await;
    assert!(!first.leads() && !second.leads());
    cluster.thaw();
    let took = until(&both, || first.leads() || second.leads()).await;
    assert!(took <= PROMISED, "{took:?}");
    let after = Instant::now() + Duration::from_secs(60);
    until(&both, || Instant::now() >= after).await;
}

#[tokio::test(start_paused = true)]
async fn what_another_ones_wall_clock_says_is_nothing_to_us() {
    for renewed in ["1970-01-01T00:00:00.000000Z", "2970-01-01T00:00:00.000000Z"] {
        let cluster = Cluster::new();
        cluster.put(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": "ambit-system", "name": "ambit-controller"},
            "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 12, "renewTime": renewed},
        }));
        let first = Replica::start(&cluster, "first");
        let took = until(&[&first], || first.leads()).await;
        assert!((LEASE..PROMISED).contains(&took), "{renewed}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_renews_is_left_alone_however_old_its_renewals_say_they_are() {
    let cluster = Cluster::new();
    let second = Replica::start(&cluster, "second");
    for renewal in 0..60 {
        cluster.put(json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": "ambit-system", "name": "ambit-controller"},
            "spec": {"holderIdentity": "slow", "renewTime": format!("1970-01-01T00:00:{renewal:02}.000000Z")},
        }));
        let after = Instant::now() + Duration::from_secs(3);
        until(&[&second], || Instant::now() >= after).await;
        assert!(!second.leads());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_deleted_is_made_again_by_its_holder() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    cluster.remove("leases", "ambit-system", "ambit-controller");
    let after = Instant::now() + Duration::from_secs(60);
    until(&[&first, &second], || Instant::now() >= after).await;
    assert!(first.leads() && !second.leads());
}

#[tokio::test(start_paused = true)]
async fn while_the_mesh_is_uninstalled_the_leader_stays_without_a_lease() {
    let cluster = Cluster::new();
    let (first, second) = two(&cluster).await;
    for replica in [&first, &second] {
        replica.index.send_modify(|state| state.uninstalling = true);
    }
    cluster.spoil("*", "*/leases*", Fault::Refuse(403, "Forbidden"));
    for _ in 0..600 {
        tokio::time::sleep(STEP).await;
        assert!(first.leads(), "somebody must take back what was made");
    }
    drop(first);
    until(&[&second], || second.leads()).await;
}
