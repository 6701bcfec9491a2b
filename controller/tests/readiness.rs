//! When a replica is ready: not while one of its watches alone is broken, and always while the API server is away for all.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/replica.rs"]
mod replica;

use std::time::Duration;

use controller::watch::RECOVERED_WITHIN;
use serde_json::json;
use tokio::time::sleep;

use self::kubernetes::{Cluster, Fault};
use self::replica::Replica;

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
/// A watch is asked for again, has its first bookmark, and that is looked at.
const SOON: Duration = Duration::from_secs(90);
/// How finely is looked: no replica is unready for a shorter time.
const STEP: Duration = Duration::from_secs(4);

/// The leader, another replica, and a cluster that has said a few bookmarks to both.
async fn two_replicas() -> (Cluster, Replica, Replica) {
    let cluster = Cluster::new();
    cluster.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    let replicas = ["controller-0", "controller-1"].map(|name| Replica::start(&cluster, name));
    sleep(Duration::from_secs(200)).await;
    let [one, other] = replicas;
    match one.term.leads() {
        true => (cluster, one, other),
        false => (cluster, other, one),
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_whose_watch_of_one_kind_is_broken_names_it_until_the_watch_is_back() {
    for fault in [
        Fault::Refuse(500, "InternalError"),
        Fault::Refuse(403, "Forbidden"),
        Fault::Hang,
        Fault::Stall,
    ] {
        let (cluster, leader, follower) = two_replicas().await;
        cluster.spoil("*", ROUTES, fault.clone());
        cluster.cut();
        sleep(RECOVERED_WITHIN - Duration::from_secs(90)).await;
        assert!(follower.ready.pending().is_empty(), "not yet: {fault:?}");
        sleep(Duration::from_secs(180)).await;
        assert_eq!(follower.ready.pending(), ["httproutes"], "{fault:?}");
        assert!(leader.term.leads());
        assert!(leader.ready.pending().is_empty(), "one serves: {fault:?}");
        cluster.heal();
        cluster.cut();
        sleep(SOON).await;
        assert!(follower.ready.pending().is_empty(), "back: {fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_and_when_it_comes_back_every_replica_is_ready() {
    for (away, fault) in [
        (100, None),
        (400, None),
        (1200, None),
        (170, Some(Fault::Hang)),
        (520, Some(Fault::Cut)),
    ] {
        let (cluster, leader, follower) = two_replicas().await;
        let ready = || leader.ready.pending().is_empty() && follower.ready.pending().is_empty();
        match &fault {
            None => cluster.freeze(),
            Some(fault) => {
                cluster.silence();
                cluster.spoil("*", "*", fault.clone());
            }
        }
        for second in (0..away).step_by(4) {
            sleep(STEP).await;
            assert!(ready(), "away for {second} s: {fault:?}");
        }
        cluster.thaw();
        cluster.heal();
        for second in (0..900).step_by(4) {
            sleep(STEP).await;
            assert!(ready(), "back for {second} s after {away} s: {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_no_reason() {
    let cluster = Cluster::new();
    cluster.install("httproutes", false);
    let replicas = ["controller-0", "controller-1"].map(|name| Replica::start(&cluster, name));
    sleep(RECOVERED_WITHIN * 3).await;
    for replica in replicas {
        assert!(replica.ready.pending().is_empty());
    }
}
