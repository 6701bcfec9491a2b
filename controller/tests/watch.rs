//! The watch loop and the client's deadlines against an API server that hangs, freezes, lies silent, refuses and forgets.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/watching.rs"]
mod watching;

use std::time::Duration;

use controller::kubernetes::{CALL_DEADLINE, is_late, retry_after};
use controller::watch::{IDLE, SILENT_BEFORE_RELIST};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use self::kubernetes::{Cluster, Fault};
use self::watching::{Heard, PODS, client, count, pod, watched};

// --- the client ---

#[tokio::test(start_paused = true)]
async fn every_call_has_a_deadline_with_its_body() {
    for fault in [Fault::Hang, Fault::Stall, Fault::Delay(CALL_DEADLINE * 2)] {
        let cluster = Cluster::new();
        cluster.put(pod("a"));
        cluster.spoil("*", "*", fault);
        let pods = Api::<Pod>::namespaced(client(&cluster), "shop");
        let begun = Instant::now();
        let got = pods.get("a").await.expect_err("no answer");
        assert!(is_late(&got), "{got}");
        assert_eq!(begun.elapsed().as_secs(), CALL_DEADLINE.as_secs());
        let body = json!({"status": {"phase": "Running"}});
        let how = PatchParams::default();
        let patched = pods.patch_status("a", &how, &Patch::Merge(body)).await;
        assert!(is_late(&patched.expect_err("no answer")));
        assert_eq!(begun.elapsed().as_secs(), 2 * CALL_DEADLINE.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_holds_nobody_and_a_hung_call_no_other() {
    let cluster = Cluster::new();
    cluster.put(pod("a"));
    let client = client(&cluster);
    cluster.spoil("GET", "*/pods/hangs", Fault::Hang);
    // More than a client's queue holds.
    let hangs = (0..1100).map(|_| {
        let pods = Api::<Pod>::namespaced(client.clone(), "shop");
        tokio::spawn(async move { pods.get("hangs").await.is_err() })
    });
    let hangs: Vec<_> = hangs.collect();
    cluster
        .until("all of them hang", |cluster| {
            cluster.in_flight("GET", "*") == 1100
        })
        .await;
    let begun = Instant::now();
    let pods = Api::<Pod>::namespaced(client.clone(), "shop");
    pods.get("a").await.expect("an answer");
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "it need not wait for those"
    );
    for hang in hangs {
        assert!(hang.await.expect("no panic"));
    }
    cluster.freeze();
    assert!(is_late(&pods.get("a").await.expect_err("frozen")));
    cluster.thaw();
    pods.get("a").await.expect("an answer");
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_says_when_to_come_again() {
    let cluster = Cluster::new();
    cluster.spoil("*", "*", Fault::Busy(7));
    let pods = Api::<Pod>::namespaced(client(&cluster), "shop");
    let busy = pods.get("a").await.expect_err("refused");
    assert_eq!(retry_after(&busy), Some(Duration::from_secs(7)), "{busy}");
    cluster.heal();
    let absent = pods.get("a").await.expect_err("not there");
    assert_eq!(retry_after(&absent), None);
}

// --- the watch ---

#[tokio::test(start_paused = true)]
async fn follows_what_happens_and_says_each_version() {
    let (cluster, mut heard) = watched().await;
    cluster.put(pod("b"));
    cluster.edit("pods", "shop", "a", |pod| {
        pod["spec"]["nodeName"] = json!("n1");
    });
    cluster.remove("pods", "shop", "b");
    heard.expect(&["+b", "+a", "-b"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_bookmarks_is_no_reason_to_list_again() {
    let (cluster, mut heard) = watched().await;
    heard.quiet(Duration::from_secs(3600)).await;
    assert_eq!(count(&cluster, "LIST"), 1);
    // They end every four or five minutes, and go on at once.
    assert!((12..=16).contains(&count(&cluster, "WATCH")));
    cluster.put(pod("b"));
    assert_eq!(heard.next().await, "+b");
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_opened_again_and_misses_nothing() {
    let (cluster, mut heard) = watched().await;
    cluster.silence();
    cluster.put(pod("b"));
    let begun = Instant::now();
    assert_eq!(heard.next().await, "+b");
    assert_eq!(begun.elapsed().as_secs(), IDLE.as_secs());
    assert_eq!(
        count(&cluster, "LIST"),
        1,
        "from the last version, not anew"
    );
}

#[tokio::test(start_paused = true)]
async fn watches_that_stay_silent_are_listed_again() {
    let (cluster, mut heard) = watched().await;
    cluster.silence();
    cluster.spoil("WATCH", PODS, Fault::Stall);
    cluster.put(pod("b"));
    let begun = Instant::now();
    heard.expect(&["begin", "=a", "=b", "end"]).await;
    let silent = IDLE * SILENT_BEFORE_RELIST;
    assert_eq!(begun.elapsed().as_secs(), silent.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_version_too_old_is_listed_again_at_once_and_only_once() {
    let (cluster, mut heard) = watched().await;
    cluster.silence();
    cluster.remove("pods", "shop", "a");
    cluster.put(pod("b"));
    cluster.compact();
    let begun = Instant::now();
    heard.expect(&["begin", "=b", "end"]).await;
    assert_eq!(begun.elapsed().as_secs(), IDLE.as_secs());
    cluster.put(pod("c"));
    heard.expect(&["+c"]).await;
    assert_eq!(count(&cluster, "LIST"), 2);
}

#[tokio::test(start_paused = true)]
async fn frozen_for_ten_minutes_it_goes_on_where_it_was() {
    let (cluster, mut heard) = watched().await;
    cluster.freeze();
    heard.quiet(Duration::from_secs(600)).await;
    // Open calls of a process that stands still are answered when it goes on, whether or not anybody still waits.
    cluster.thaw();
    cluster.put(pod("b"));
    let begun = Instant::now();
    assert_eq!(heard.next().await, "+b");
    assert!(
        begun.elapsed() <= Duration::from_secs(26),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(count(&cluster, "LIST"), 1);
}

#[tokio::test(start_paused = true)]
async fn behind_a_black_hole_it_asks_seldom_and_comes_back() {
    let (cluster, mut heard) = watched().await;
    cluster.silence();
    cluster.spoil("*", "*", Fault::Hang);
    heard.quiet(Duration::from_secs(3000)).await;
    // One call in between 17.5 s and 25 s, by the deadline and the longest pause.
    let calls = count(&cluster, "*");
    assert!((110..190).contains(&calls), "{calls}");
    assert_eq!(
        count(&cluster, "LIST"),
        1,
        "nothing is wrong with the version"
    );
    cluster.heal();
    cluster.put(pod("b"));
    let begun = Instant::now();
    assert_eq!(heard.next().await, "+b");
    assert!(
        begun.elapsed() <= Duration::from_secs(26),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn refused_at_first_it_is_neither_empty_nor_absent() {
    for fault in [
        Fault::Refuse(403, "Forbidden"),
        Fault::Refuse(500, "InternalError"),
        Fault::Cut,
        Fault::Hang,
        Fault::Stall,
        // It says one object where a list should be.
        Fault::Answer(pod("a")),
    ] {
        let cluster = Cluster::new();
        cluster.put(pod("a"));
        cluster.spoil("LIST", PODS, fault.clone());
        let mut heard = Heard::pods(&cluster);
        heard.quiet(Duration::from_secs(600)).await;
        let calls = count(&cluster, "LIST");
        assert!((20..150).contains(&calls), "{calls} calls for {fault:?}");
        cluster.heal();
        heard.expect(&["begin", "=a", "end"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_left_alone_for_as_long_as_it_says() {
    let cluster = Cluster::new();
    cluster.spoil_times(2, "LIST", PODS, Fault::Busy(60));
    let mut heard = Heard::pods(&cluster);
    let begun = Instant::now();
    heard.expect(&["begin", "end"]).await;
    assert_eq!(begun.elapsed().as_secs(), 120);
    assert_eq!(count(&cluster, "LIST"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_absent_and_looked_for() {
    let cluster = Cluster::new();
    cluster.install("pods", false);
    let mut heard = Heard::pods(&cluster);
    assert_eq!(heard.next().await, "absent");
    heard.quiet(Duration::from_secs(600)).await;
    cluster.install("pods", true);
    cluster.put(pod("a"));
    heard.expect(&["begin", "=a", "end"]).await;
    // An API server that has just started does not know its kinds yet: what is known stays.
    cluster.install("pods", false);
    cluster.cut();
    heard.quiet(Duration::from_secs(600)).await;
    cluster.install("pods", true);
    heard.expect(&["begin", "=a", "end"]).await;
}

#[tokio::test(start_paused = true)]
async fn watches_that_are_refused_are_listed_again_after_some() {
    let (cluster, mut heard) = watched().await;
    // "Too large resource version": a server that came back from a backup waits for a version that does not come.
    cluster.spoil("WATCH", PODS, Fault::Refuse(504, "Timeout"));
    cluster.cut();
    heard.expect(&["begin", "=a", "end"]).await;
    cluster.heal();
    cluster.put(pod("b"));
    heard.expect(&["+b"]).await;
    // A server in trouble of its own, or one that cannot be reached, says nothing about the version.
    for fault in [
        Fault::Refuse(500, "InternalError"),
        Fault::Refuse(503, "ServiceUnavailable"),
        Fault::Busy(1),
        Fault::Cut,
    ] {
        let lists = count(&cluster, "LIST");
        cluster.spoil("WATCH", PODS, fault.clone());
        cluster.cut();
        heard.quiet(Duration::from_secs(600)).await;
        assert_eq!(count(&cluster, "LIST"), lists, "{fault:?}");
        cluster.heal();
        cluster.put(pod("c"));
        heard.expect(&["+c"]).await;
        cluster.remove("pods", "shop", "c");
        heard.expect(&["-c"]).await;
    }
}
