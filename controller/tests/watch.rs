//! The watch loop and the client's deadlines against an API server that hangs, freezes, lies silent, refuses and forgets.

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::ops::ControlFlow;
use std::time::Duration;

use controller::kubernetes::{CALL_DEADLINE, DeadlineLayer, is_late, retry_after};
use controller::watch::{IDLE, SILENT_BEFORE_RELIST, WatchEvent, Watched, watch};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tower::Layer;

use self::kubernetes::{Cluster, End, Fault};

const PODS: &str = "/api/v1/pods";

/// What a watch says, in short: `begin`, `=a` an item, `?a` one that cannot be read, `end`, `+a`, `-a`, `@` for progress, `absent`.
struct Heard {
    said: mpsc::UnboundedReceiver<String>,
    task: AbortHandle,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heard {
    fn of<K>(api: Api<K>, watched: Watched) -> Self
    where
        K: Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    {
        let (say, said) = mpsc::unbounded_channel();
        let on = move |event: WatchEvent<K>| {
            let said = say.send(short(&event));
            async move {
                match said {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            }
        };
        let task = tokio::spawn(watch(watched, api, on)).abort_handle();
        Self { said, task }
    }

    fn pods(cluster: &Cluster) -> Self {
        Self::of(Api::<Pod>::all(client(cluster)), Watched::all("pods"))
    }

    /// The next that is no progress.
    async fn next(&mut self) -> String {
        loop {
            let wait = tokio::time::timeout(Duration::from_secs(3600), self.said.recv());
            let said = wait.await.expect("something is said").expect("it lives");
            if said != "@" {
                return said;
            }
        }
    }

    async fn expect(&mut self, all: &[&str]) {
        for one in all {
            assert_eq!(self.next().await, *one);
        }
    }

    /// The version is forgotten, and everything is listed anew.
    async fn expect_relist(&mut self, cluster: &Cluster, items: &[&str]) {
        self.expect_relist_begins(cluster).await;
        self.expect(items).await;
        self.expect(&["end"]).await;
    }

    async fn expect_relist_begins(&mut self, cluster: &Cluster) {
        cluster.silence();
        cluster.pass();
        cluster.compact();
        cluster.cut();
        self.expect(&["begin"]).await;
    }

    /// Nothing but progress for so long.
    async fn quiet(&mut self, time: Duration) {
        let wait = tokio::time::timeout(time, self.next()).await;
        assert!(wait.is_err(), "said {wait:?}");
    }
}

fn short<K: Resource>(event: &WatchEvent<K>) -> String {
    let name = |object: &K| object.meta().name.clone().expect("a name");
    match event {
        WatchEvent::Begin => "begin".to_owned(),
        WatchEvent::Item(object) => format!("={}", name(object)),
        WatchEvent::Kept { key } => format!("?{}", key.name),
        WatchEvent::End { .. } => "end".to_owned(),
        WatchEvent::Apply(object) => format!("+{}", name(object)),
        WatchEvent::Delete { key, .. } => format!("-{}", key.name),
        WatchEvent::Progress { .. } => "@".to_owned(),
        WatchEvent::Absent => "absent".to_owned(),
    }
}

/// As the controller makes it, above the network.
fn client(cluster: &Cluster) -> Client {
    let service = DeadlineLayer::default().layer(cluster.service());
    Client::new(service, "default")
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "spec": {}})
}

/// A cluster with one pod, that is watched.
async fn watched() -> (Cluster, Heard) {
    let cluster = Cluster::new();
    cluster.put(pod("a"));
    let mut heard = Heard::pods(&cluster);
    heard.expect(&["begin", "=a", "end"]).await;
    let open = |cluster: &Cluster| {
        let calls = cluster.called("WATCH", PODS);
        calls
            .last()
            .is_some_and(|call| call.end == End::Answered(200))
    };
    cluster.until("it is watched", open).await;
    (cluster, heard)
}

fn count(cluster: &Cluster, verb: &str) -> usize {
    cluster.called(verb, PODS).len()
}

/// How large the pages were that were asked for.
fn limits(cluster: &Cluster) -> Vec<String> {
    let limits = cluster.called("LIST", PODS).into_iter().map(|call| {
        let limit = call.query.into_iter().find(|(name, _)| name == "limit");
        limit.expect("a limit").1
    });
    limits.collect()
}

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
async fn lists_in_pages_and_hands_them_on_one_by_one() {
    let cluster = Cluster::new();
    for number in 0..1201 {
        cluster.put(pod(&format!("p{number:04}")));
    }
    let pages = cluster.clone();
    let (say, mut said) = mpsc::channel(1);
    let on = move |event: WatchEvent<Pod>| {
        let say = say.clone();
        let at = count(&pages, "LIST");
        async move {
            say.send((short(&event), at)).await.expect("a listener");
            ControlFlow::Continue(())
        }
    };
    let api = Api::all(client(&cluster));
    let task = tokio::spawn(watch(Watched::all("pods"), api, on));
    assert_eq!(said.recv().await, Some(("begin".to_owned(), 1)));
    for number in 0..1201 {
        let item = said.recv().await;
        // No page before the one before it is told.
        assert_eq!(item, Some((format!("=p{number:04}"), number / 500 + 1)));
    }
    assert_eq!(said.recv().await, Some(("end".to_owned(), 3)));
    task.abort();
}

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

#[tokio::test(start_paused = true)]
async fn pages_that_come_too_late_become_smaller() {
    let cluster = Cluster::new();
    for number in 0..300 {
        cluster.put(pod(&format!("p{number:04}")));
    }
    cluster.spoil_times(2, "LIST", PODS, Fault::Delay(CALL_DEADLINE * 2));
    let mut heard = Heard::pods(&cluster);
    assert_eq!(heard.next().await, "begin");
    for number in 0..300 {
        assert_eq!(heard.next().await, format!("=p{number:04}"));
    }
    assert_eq!(heard.next().await, "end");
    assert_eq!(limits(&cluster), ["500", "250", "125", "125", "125"]);
}

#[tokio::test(start_paused = true)]
async fn no_page_is_smaller_than_the_smallest() {
    let cluster = Cluster::new();
    cluster.put(pod("a"));
    cluster.spoil_times(4, "LIST", PODS, Fault::Delay(CALL_DEADLINE * 2));
    let mut heard = Heard::pods(&cluster);
    heard.expect(&["begin", "=a", "end"]).await;
    assert_eq!(limits(&cluster), ["500", "250", "125", "62", "60"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_the_server_forgets_meanwhile_is_asked_for_in_larger_pages() {
    let cluster = Cluster::new();
    for number in 0..1001 {
        cluster.put(pod(&format!("p{number:04}")));
    }
    cluster.spoil_times(2, "LIST", PODS, Fault::Refuse(410, "Expired"));
    let mut heard = Heard::pods(&cluster);
    while heard.next().await != "end" {}
    assert_eq!(limits(&cluster), ["500", "1000", "2000"]);
    heard.expect_relist_begins(&cluster).await;
    while heard.next().await != "end" {}
    assert_eq!(limits(&cluster)[3..], ["2000"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_forgets_what_it_has_just_listed_is_not_listed_in_a_circle() {
    let (cluster, _heard) = watched().await;
    cluster.spoil("WATCH", PODS, Fault::Refuse(410, "Expired"));
    cluster.cut();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let lists = count(&cluster, "LIST");
    assert!((30..100).contains(&lists), "{lists}");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_begins_again() {
    let cluster = Cluster::new();
    for number in 0..501 {
        cluster.put(pod(&format!("p{number:04}")));
    }
    let (say, said) = mpsc::unbounded_channel();
    let pages = cluster.clone();
    let on = move |event: WatchEvent<Pod>| {
        // Between the first page and the second.
        if event == WatchEvent::Begin && count(&pages, "LIST") == 1 {
            pages.spoil_times(1, "LIST", PODS, Fault::Refuse(410, "Expired"));
        }
        say.send(short(&event)).expect("a listener");
        async { ControlFlow::Continue(()) }
    };
    let api = Api::all(client(&cluster));
    let task = tokio::spawn(watch(Watched::all("pods"), api, on)).abort_handle();
    let mut heard = Heard { said, task };
    assert_eq!(heard.next().await, "begin");
    for number in 0..500 {
        assert_eq!(heard.next().await, format!("=p{number:04}"));
    }
    assert_eq!(heard.next().await, "begin");
    for number in 0..501 {
        assert_eq!(heard.next().await, format!("=p{number:04}"));
    }
    assert_eq!(heard.next().await, "end");
}

#[tokio::test(start_paused = true)]
async fn what_a_tenant_writes_into_managed_fields_is_not_even_read() {
    let deep = (0..200).fold(json!({}), |inner, _| json!({"f:x": inner}));
    for hostile in [
        json!({"manager": "x", "time": "9999-12-31T23:59:59Z"}),
        json!({"manager": "x", "time": {"no": "time"}}),
        json!({"manager": "x", "fieldsV1": deep}),
    ] {
        let (cluster, mut heard) = watched().await;
        let spoilt = |pod: &mut Value| pod["metadata"]["managedFields"] = json!([hostile]);
        cluster.edit("pods", "shop", "a", spoilt);
        cluster.put(pod("b"));
        heard.expect(&["+a", "+b"]).await;
        heard.expect_relist(&cluster, &["=a", "=b"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_stops_no_other() {
    let cluster = Cluster::new();
    for name in ["a", "b", "c"] {
        cluster.put(pod(name));
    }
    let spoilt = |pod: &mut Value| pod["spec"]["containers"] = json!("none");
    cluster.edit("pods", "shop", "b", spoilt);
    let watched = Watched::all("pods");
    let unreadable = watched.unreadable.clone();
    let mut heard = Heard::of(Api::<Pod>::all(client(&cluster)), watched);
    heard.expect(&["begin", "=a", "?b", "=c", "end"]).await;
    assert_eq!(unreadable.get(), 1);
    cluster
        .until("it is watched", |cluster| count(cluster, "WATCH") == 1)
        .await;
    cluster.edit("pods", "shop", "c", spoilt);
    cluster.put(pod("d"));
    // Nothing is said of the one that cannot be read, and the watch goes on.
    heard.expect(&["+d"]).await;
    assert_eq!(unreadable.get(), 2);
    cluster.edit("pods", "shop", "b", |pod| pod["spec"] = json!({}));
    heard.expect(&["+b"]).await;
    assert_eq!(unreadable.get(), 1);
    heard
        .expect_relist(&cluster, &["=a", "=b", "?c", "=d"])
        .await;
    assert_eq!(count(&cluster, "LIST"), 2);
    cluster.remove("pods", "shop", "c");
    heard.expect(&["-c"]).await;
    assert_eq!(unreadable.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn selects_by_label_and_asks_for_metadata_alone() {
    let cluster = Cluster::new();
    let deployment = |name: &str, by: &str| {
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "shop", "labels": {"by": by}},
            "spec": {"replicas": 1},
        })
    };
    cluster.put(deployment("a", "us"));
    cluster.put(deployment("b", "them"));
    let api = Api::<PartialObjectMeta<Deployment>>::all(client(&cluster));
    let mut heard = Heard::of(api, Watched::all("deployments").labels("by=us"));
    heard.expect(&["begin", "=a", "end"]).await;
    cluster.put(deployment("b", "us"));
    cluster.put(deployment("a", "them"));
    heard.expect(&["+b", "-a"]).await;
}
