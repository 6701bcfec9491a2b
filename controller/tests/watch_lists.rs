//! How the watch loop lists: pages that grow and shrink, lists that break off, and objects that cannot be read.

#[path = "support/kubernetes.rs"]
mod kubernetes;
#[path = "support/watching.rs"]
mod watching;

use std::ops::ControlFlow;
use std::time::Duration;

use controller::kubernetes::CALL_DEADLINE;
use controller::watch::{WatchEvent, Watched, watch};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::kubernetes::{Cluster, Fault};
use self::watching::{Heard, PODS, client, count, limits, pod, short, watched};

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
