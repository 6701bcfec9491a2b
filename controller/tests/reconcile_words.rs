//! Which replica writes what of a pod: nobody goes over what the pod's node has said to another.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/reconciling.rs"]
mod reconciling;

use std::time::Duration;

use controller::index::desired::{Entry, Wanted, Writer};
use controller::lease::Term;

use self::kubernetes::{Cluster, Fault};

use self::reconciling::{Reconciling, over_what_is_seen, pass, pod_status, put_pod, reason};

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_lead_writes_only_what_it_alone_knows() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    put_pod(&cluster, "shop", "b");
    let reconciling = Reconciling::with(&cluster, Term::never());
    reconciling.want_gateway("shop", "gate");
    reconciling.want_pod(&cluster, "shop", "a", "Pending");
    let (item, mut entry) = pod_status(&cluster, "shop", "b", "NoNetns");
    entry.writer = Writer::ThisReplica;
    reconciling.want(item, entry);
    pass(Duration::from_secs(600)).await;
    assert_eq!(reason(&cluster, "shop", "b").as_deref(), Some("NoNetns"));
    assert_eq!(reason(&cluster, "shop", "a"), None);
    assert!(cluster.called("*", "*/deployments/*").is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_leaders_guess_never_goes_over_a_nodes_word() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let (item, guess) = over_what_is_seen(&cluster, "shop", "a", "Pending");
    let (_, mut word) = pod_status(&cluster, "shop", "a", "NoNetns");
    word.writer = Writer::ThisReplica;
    let other = Reconciling::with(&cluster, Term::never());
    other.want(item.clone(), word);
    cluster
        .until("the node's word stands there", |cluster| {
            reason(cluster, "shop", "a").is_some()
        })
        .await;
    let leader = Reconciling::start(&cluster);
    leader.want(item, guess);
    pass(Duration::from_secs(120)).await;
    let guesses = cluster.called("PATCH", "*").into_iter();
    let guesses =
        guesses.filter(|call| call.body["status"]["conditions"][0]["reason"] == "Pending");
    assert_eq!(guesses.count(), 0);
    assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("NoNetns"));
}

#[tokio::test(start_paused = true)]
async fn what_the_leader_has_read_never_goes_over_what_the_node_has_said_since() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let word = |cluster: &Cluster, status: &str, reason: &str| {
        let (item, mut entry) = over_what_is_seen(cluster, "shop", "a", reason);
        if let Wanted::Status(write) = &mut entry.wanted {
            write.conditions[0].conditions[0].on = status == "True";
        }
        (item, entry)
    };
    let other = Reconciling::with(&cluster, Term::never());
    let heard = async |status: &str, reason: &str| {
        let (item, mut entry) = word(&cluster, status, reason);
        entry.writer = Writer::ThisReplica;
        other.want(item, entry);
        let said =
            |cluster: &Cluster| self::reason(cluster, "shop", "a").as_deref() == Some(reason);
        cluster.until("the node's word stands there", said).await;
    };
    heard("True", "Enrolled").await;
    // The leader has read that, and has something else to write, with what it believes of the pod.
    let (item, believed) = word(&cluster, "True", "Enrolled");
    let (_, gone) = {
        let (item, mut entry) = word(&cluster, "True", "Enrolled");
        if let Wanted::Status(write) = &mut entry.wanted {
            write.conditions.clear();
        }
        (item, entry)
    };
    heard("False", "NoNetns").await;
    for stale in [believed, gone] {
        let leader = Reconciling::start(&cluster);
        leader.want(item.clone(), stale);
        pass(Duration::from_secs(120)).await;
        assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("NoNetns"));
    }
    // Once it has seen what stands there, its writes count.
    let (item, fresh) = word(&cluster, "False", "NoNetns");
    let Wanted::Status(mut write) = fresh.wanted else {
        panic!("a status")
    };
    write.conditions.clear();
    let leader = Reconciling::start(&cluster);
    leader.want(item.clone(), Entry::leader(Wanted::Status(write)));
    other.forget(&item);
    cluster
        .until("it is taken back", |cluster| {
            reason(cluster, "shop", "a").is_none()
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_guess_is_compared_again_when_the_pod_moves_on() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    cluster.spoil_times(1, "PATCH", "*", Fault::Refuse(409, "Conflict"));
    let leader = Reconciling::start(&cluster);
    let (item, guess) = over_what_is_seen(&cluster, "shop", "a", "Pending");
    leader.want(item, guess);
    pass(Duration::from_secs(1)).await;
    assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("Pending"));
    assert_eq!(cluster.called("PATCH", "*").len(), 2);
}
