//! The reconciler against a Kubernetes that hangs, refuses, loses objects, and is changed by others.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/reconciling.rs"]
mod reconciling;

use std::collections::BTreeSet;
use std::time::Duration;

use controller::index::changes::{Kind, Notice, Target};
use controller::index::desired::{Entry, Item, Wanted};
use controller::index::names::Key;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::kubernetes::{Cluster, End, Fault};

use self::reconciling::{
    Reconciling, at, deployed, events, pass, pod_status, put_pod, put_pods, reason,
};

#[tokio::test(start_paused = true)]
async fn sixteen_hung_patches_of_one_namespace_do_not_stop_anothers() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 1100);
    put_pod(&cluster, "other", "a");
    cluster.spoil("PATCH", "/api/v1/namespaces/shop/*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    for pod in 0..1100 {
        reconciling.want_pod(&cluster, "shop", &format!("p{pod}"), "Pending");
    }
    cluster
        .until("16 hang", |cluster| {
            cluster.in_flight("PATCH", "*/shop/*") == 16
        })
        .await;
    let began = Instant::now();
    reconciling.want_pod(&cluster, "other", "a", "Pending");
    cluster
        .until("another's is written", |cluster| {
            reason(cluster, "other", "a").is_some()
        })
        .await;
    assert_eq!(began.elapsed(), Duration::ZERO, "at once");
    assert_eq!(cluster.in_flight("PATCH", "*/shop/*"), 16);
}

/// A hundred of each kind of work in `shop`, one kind after another; one of the kinds of which a namespace has one.
async fn want_all_kinds(cluster: &Cluster, reconciling: &Reconciling) {
    let name = |number: usize| format!("p{number}");
    let target = |kind: Kind, number: usize| Target {
        kind,
        key: Key::new("shop", &name(number)),
    };
    let status = |number: usize| pod_status(cluster, "shop", &name(number), "Pending").1;
    let settled = || pass(Duration::from_millis(10));
    for kind in [Kind::Pod, Kind::Service, Kind::Gateway, Kind::HttpRoute] {
        for number in 0..100 {
            let item = Item::Status(target(kind, number));
            reconciling.want(item, status(number));
        }
        settled().await;
    }
    for number in 0..100 {
        let Wanted::Status(status) = status(number).wanted else {
            panic!("no status")
        };
        let told = Entry::leader(Wanted::Events(status.notices));
        reconciling.want(Item::Events(target(Kind::EndpointSlice, number)), told);
    }
    settled().await;
    for number in 0..100 {
        reconciling.want_gateway("shop", &name(number));
    }
    settled().await;
    let kept = Wanted::Accepted([("a".to_owned(), "b".to_owned())].into());
    reconciling.want(Item::Roots("shop".into()), Entry::leader(Wanted::Roots));
    reconciling.want(Item::Accepted("shop".into()), Entry::leader(kept));
    settled().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_whose_writes_of_all_kinds_hang_keeps_nobody_waiting() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 100);
    put_pod(&cluster, "other", "a");
    cluster.spoil("*", "*shop*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    want_all_kinds(&cluster, &reconciling).await;
    let hung = cluster.in_flight("*", "*shop*");
    let began = Instant::now();
    reconciling.want_pod(&cluster, "other", "a", "Pending");
    cluster
        .until("another's is written", |cluster| {
            reason(cluster, "other", "a").is_some()
        })
        .await;
    assert_eq!(began.elapsed(), Duration::ZERO, "at once");
    assert_eq!(cluster.in_flight("*", "*shop*"), hung, "they hang still");
    let kinds = [
        ("PATCH", "*/pods/*/status"),
        ("PATCH", "*/services/*/status"),
        ("PATCH", "*/gateways/*/status"),
        ("PATCH", "*/httproutes/*/status"),
        ("POST", "*/events"),
    ];
    for (verb, path) in kinds {
        let tried = cluster.called(verb, path);
        let tried = tried.iter().any(|call| call.path.contains("shop"));
        assert!(tried, "none of {path} has its turn");
    }
}

#[tokio::test(start_paused = true)]
async fn a_seventeenth_patch_of_the_same_namespace_is_tried_within_a_minute() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 17);
    cluster.spoil_times(16, "PATCH", "/api/v1/namespaces/shop/*", Fault::Hang);
    let reconciling = Reconciling::start(&cluster);
    let began = Instant::now();
    for pod in 0..17 {
        reconciling.want_pod(&cluster, "shop", &format!("p{pod}"), "Pending");
    }
    cluster
        .until("all are written, also those that hung", |cluster| {
            (0..17).all(|pod| reason(cluster, "shop", &format!("p{pod}")).is_some())
        })
        .await;
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    let given_up = cluster.called("PATCH", "*").into_iter();
    let given_up = given_up.filter(|call| call.end == End::GivenUp);
    assert_eq!(given_up.count(), 16, "each hung call has ended");
}

#[tokio::test(start_paused = true)]
async fn an_object_is_written_by_one_at_a_time_and_the_newest_wins() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    cluster.spoil("PATCH", "*", Fault::Delay(Duration::from_secs(1)));
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "First");
    cluster
        .until("the first is on its way", |cluster| {
            cluster.in_flight("PATCH", "*") == 1
        })
        .await;
    for reason in ["Second", "Third", "Fourth"] {
        reconciling.want_pod(&cluster, "shop", "a", reason);
        pass(Duration::from_millis(10)).await;
        assert_eq!(cluster.in_flight("PATCH", "*"), 1);
    }
    cluster
        .until("the last is written", |cluster| {
            reason(cluster, "shop", "a").as_deref() == Some("Fourth")
        })
        .await;
    let (item, _) = pod_status(&cluster, "shop", "a", "Fourth");
    reconciling.forget(&item);
    pass(Duration::from_secs(600)).await;
    let patches = cluster.called("PATCH", "*");
    assert_eq!(
        patches.len(),
        2,
        "what was wanted in between is not written"
    );
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_another_now_or_gone_is_left_to_the_index() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    put_pod(&cluster, "shop", "b");
    let stale = pod_status(&cluster, "shop", "a", "NoNetns");
    let gone = pod_status(&cluster, "shop", "b", "NoNetns");
    cluster.remove("pods", "shop", "a");
    cluster.remove("pods", "shop", "b");
    put_pod(&cluster, "shop", "a");
    let reconciling = Reconciling::start(&cluster);
    reconciling.want(stale.0.clone(), stale.1);
    reconciling.want(gone.0.clone(), gone.1);
    pass(Duration::from_secs(10)).await;
    let answers: BTreeSet<String> = cluster
        .called("PATCH", "*")
        .iter()
        .map(|call| format!("{} {:?}", call.path, call.end))
        .collect();
    let expected = [
        format!("{} {:?}", at("shop", "a"), End::Answered(409)),
        format!("{} {:?}", at("shop", "b"), End::Answered(404)),
    ];
    assert_eq!(answers, expected.into());
    assert_eq!(cluster.called("PATCH", "*").len(), 2, "once each");
    assert_eq!(reason(&cluster, "shop", "a"), None);
    // The watch has shown them: the new one gets what is its own.
    reconciling.forget(&gone.0);
    reconciling.want_pod(&cluster, "shop", "a", "Fresh");
    cluster
        .until("the new one is written", |cluster| {
            reason(cluster, "shop", "a").as_deref() == Some("Fresh")
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn each_refusal_has_its_consequence() {
    let cluster = Cluster::new();
    let waits = [
        ("busy", Fault::Busy(7), 7..9),
        ("refused", Fault::Refuse(422, "Invalid"), 150..301),
        ("forbidden", Fault::Refuse(403, "Forbidden"), 0..1),
        ("broken", Fault::Refuse(500, "InternalError"), 0..1),
        ("cut", Fault::Cut, 0..1),
    ];
    let reconciling = Reconciling::start(&cluster);
    for (name, fault, _) in &waits {
        put_pod(&cluster, name, "a");
        cluster.spoil_times(1, "PATCH", &at(name, "a"), fault.clone());
        reconciling.want_pod(&cluster, name, "a", "Pending");
    }
    for (name, _, seconds) in waits {
        cluster
            .until(name, |cluster| reason(cluster, name, "a").is_some())
            .await;
        let calls = cluster.called("PATCH", &at(name, "a"));
        let waited = calls[1].at - calls[0].at;
        assert!(seconds.contains(&waited.as_secs()), "{name}: {waited:?}");
    }
    let refused: Vec<Value> = events(&cluster)
        .into_iter()
        .filter(|event| event["reason"] == "StatusRefused")
        .collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0]["regarding"]["namespace"], "refused");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_lasts_is_met_ever_more_rarely() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    cluster.spoil("PATCH", "*", Fault::Refuse(500, "InternalError"));
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "Pending");
    pass(Duration::from_secs(3600)).await;
    let calls = cluster.called("PATCH", "*").len();
    assert!((20..45).contains(&calls), "{calls} in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_somebody_took_back_unseen_is_made_again() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "Pending");
    cluster
        .until("written", |cluster| reason(cluster, "shop", "a").is_some())
        .await;
    cluster.edit("pods", "shop", "a", |pod| pod["status"] = json!({}));
    pass(Duration::from_secs(40)).await;
    assert_eq!(reason(&cluster, "shop", "a").as_deref(), Some("Pending"));
}

#[tokio::test(start_paused = true)]
async fn a_condition_flips_when_it_is_first_written_whatever_happens_to_the_write() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let begun = jiff::Timestamp::now().as_second();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_pod(&cluster, "shop", "a", "Failed");
    cluster
        .until("written", |cluster| reason(cluster, "shop", "a").is_some())
        .await;
    // Somebody takes it back, unseen: it is written again.
    cluster.edit("pods", "shop", "a", |pod| pod["status"] = json!({}));
    pass(Duration::from_secs(40)).await;
    let writes = cluster.called("PATCH", &at("shop", "a"));
    let since = |call: &kubernetes::Call| {
        let since = &call.body["status"]["conditions"][0]["lastTransitionTime"];
        since.as_str().expect("a time").to_owned()
    };
    assert!(writes.len() > 1, "{writes:?}");
    assert_eq!(since(&writes[0]), since(&writes[1]));
    let time: jiff::Timestamp = since(&writes[0]).parse().expect("a time");
    assert!((begun..begun + 60).contains(&time.as_second()), "{time}");
}

#[tokio::test(start_paused = true)]
async fn people_are_told_once_in_one_line() {
    let cluster = Cluster::new();
    put_pod(&cluster, "shop", "a");
    let standing = Notice {
        target: Target {
            kind: Kind::HttpRoute,
            key: Key::new("shop", "r"),
        },
        uid: "route".into(),
        warning: true,
        reason: "UnsupportedValue".to_owned(),
        note: "x".repeat(4096),
    };
    for replica in ["first", "second"] {
        let reconciling = Reconciling::start(&cluster);
        reconciling.want(
            Item::Events(standing.target.clone()),
            Entry::leader(Wanted::Events(vec![standing.clone()])),
        );
        if replica == "first" {
            reconciling.want_pod(&cluster, "shop", "a", "Pending");
        }
        pass(Duration::from_secs(20)).await;
    }
    let events = events(&cluster);
    let notes: Vec<&str> = events
        .iter()
        .map(|event| event["note"].as_str().expect("a note"))
        .collect();
    assert_eq!(notes.len(), 2, "{events:?}");
    assert!(notes.contains(&"Pending\\nforged"), "{notes:?}");
    assert!(notes.contains(&&*"x".repeat(1024)));
}

#[tokio::test(start_paused = true)]
async fn events_of_one_namespace_are_bounded_and_others_have_theirs() {
    let cluster = Cluster::new();
    put_pods(&cluster, "shop", 200);
    put_pod(&cluster, "other", "a");
    let reconciling = Reconciling::start(&cluster);
    for pod in 0..200 {
        reconciling.want_pod(&cluster, "shop", &format!("p{pod}"), "Failed");
    }
    cluster
        .until("all are written", |cluster| {
            (0..200).all(|pod| reason(cluster, "shop", &format!("p{pod}")).is_some())
        })
        .await;
    reconciling.want_pod(&cluster, "other", "a", "Failed");
    pass(Duration::from_secs(5)).await;
    let by = |namespace: &str| {
        let of = |event: &&Value| event["metadata"]["namespace"] == namespace;
        events(&cluster).iter().filter(of).count()
    };
    assert!((100..130).contains(&by("shop")), "{}", by("shop"));
    assert_eq!(by("other"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waypoint_without_its_label_is_repaired() {
    let cluster = Cluster::new();
    let reconciling = Reconciling::start(&cluster);
    reconciling.want_gateway("shop", "gate");
    deployed(&cluster, "shop", "gate").await;
    let label = |cluster: &Cluster| {
        let deployment = cluster
            .get("deployments", "shop", "gate")
            .expect("deployed");
        deployment["metadata"]["labels"]["gateway.istio.io/managed"].clone()
    };
    let ours = label(&cluster);
    assert!(ours.is_string());
    cluster.edit("deployments", "shop", "gate", |deployment| {
        deployment["metadata"]["labels"] = json!({});
    });
    cluster
        .until("repaired", |cluster| label(cluster) == ours)
        .await;
}
