//! The echo apps on the real cluster, without a mesh: what every other test stands on.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::apps::{EchoClient, EchoServer, Namespace, service};
use e2e::probe::{PodRef, conditions, eventually};
use serde_json::json;

/// A pod's start, its image being there.
const START: Duration = Duration::from_secs(30);
/// What goes over the API server only.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn echo_apps_answer_each_other_across_nodes() -> Result<()> {
    let cluster = e2e::cluster::up().await?;
    e2e::images::refresh(&cluster)?;
    let client = cluster.client().await?;
    Namespace::within(&client, "apps", &[], async |ns| {
        let (v1, v2) = (
            EchoServer::new("echo", "v1").on("worker-1"),
            EchoServer::new("echo", "v2").on("worker-2"),
        );
        ns.deploy(&v1).await?;
        ns.serve(&v2, START).await?;
        ns.serve(&v1, START).await?;
        let pod = ns
            .run(&EchoClient::new("client").on("worker-1"), START)
            .await?;
        every_protocol(&pod, "v2").await?;
        every_address(ns, &pod).await?;
        exits_are_told(&pod).await?;
        pods_are_looked_into(ns).await?;
        long_runs(ns, &pod).await
    })
    .await
}

async fn every_protocol(pod: &PodRef, version: &str) -> Result<()> {
    let host = format!("echo-{version}");
    for url in ["http://H/", "https://H/", "grpc://H:7070", "tcp://H:9090"] {
        let url = url.replace('H', &host);
        let answer = eventually(&url, SOON, async || pod.ask_once(&url).await).await?;
        ensure!(
            answer
                .hostname()
                .is_some_and(|name| name.starts_with(&host)),
            "{url}: {answer}"
        );
        ensure!(
            answer.field("ServiceVersion") == Some(version),
            "{url}: {answer}"
        );
    }
    let first = pod
        .ask(&[&format!("tcp://{host}:9091"), "--server-first"])
        .await?;
    ensure!(first[0].field("Echo") == Some("HelloWorld"), "{}", first[0]);
    let many = pod
        .ask(&[&format!("http://{host}/"), "--count=500"])
        .await?;
    ensure!(many.len() == 500);
    Ok(())
}

async fn every_address(ns: &Namespace, pod: &PodRef) -> Result<()> {
    let headless = service(
        "echo-headless",
        &json!({"app": "echo", "version": "v2"}),
        true,
    );
    e2e::apps::apply_objects(ns.client(), Some(ns.name()), [headless]).await?;
    eventually("headless", SOON, async || {
        pod.ask_once("http://echo-headless:8080/").await
    })
    .await?;
    let server = ns.pods("app=echo,version=v2").await?;
    let ips = server[0].ips().await?;
    ensure!(ips.len() == 2, "one address per family: {ips:?}");
    for ip in ips {
        let url = format!("http://{}/", std::net::SocketAddr::new(ip, 8080));
        let answer = pod.ask_once(&url).await?;
        let own = pod.ips().await?;
        let seen = answer.field("IP").and_then(|ip| ip.parse().ok());
        ensure!(
            seen.is_some_and(|ip| own.contains(&ip)),
            "the server saw {seen:?}, the client is {own:?}"
        );
    }
    Ok(())
}

async fn exits_are_told(pod: &PodRef) -> Result<()> {
    let output = pod.exec(&["client", "http://127.0.0.1:1/"]).await?;
    ensure!(
        output.code == 1 && output.stderr.contains("refused"),
        "{output:?}"
    );
    let output = pod.exec(&["client", "nonsense"]).await?;
    ensure!(output.code == 64 && output.stdout.is_empty(), "{output:?}");
    let error = pod
        .exec(&["/no/such/program"])
        .await
        .expect_err("there is none");
    ensure!(
        format!("{error:#}").contains("/no/such/program"),
        "{error:#}"
    );
    let error = pod
        .ask(&["http://no-such-host/"])
        .await
        .expect_err("there is none");
    ensure!(format!("{error:#}").contains("no-such-host"), "{error:#}");
    Ok(())
}

async fn pods_are_looked_into(ns: &Namespace) -> Result<()> {
    let server = ns.pods("app=echo,version=v1").await?.remove(0);
    server
        .wait_log("a TLS port", SOON, |line| line.contains("tls=true"))
        .await?;
    ensure!(server.logs().await?.lines().count() >= 5);
    let page = server.page(8080, "/a?b=c").await?;
    ensure!(
        page.contains("URL=/a?b=c") && page.contains(server.name()),
        "{page}"
    );
    let error = server
        .page(8080, "/?status=503")
        .await
        .expect_err("not a success");
    ensure!(format!("{error:#}").contains("503"), "{error:#}");
    ns.wait_event(server.name(), "Scheduled: ", SOON).await?;
    let error = ns
        .run(
            &EchoClient::new("nowhere").on("no-such-node"),
            Duration::from_secs(2),
        )
        .await;
    let error = format!("{:#}", error.err().expect("it cannot start"));
    ensure!(
        error.contains("FailedScheduling") && error.contains("nowhere is not ready"),
        "{error}"
    );
    Ok(())
}

async fn long_runs(ns: &Namespace, pod: &PodRef) -> Result<()> {
    let before = pod.containers().await?;
    let mut load = pod.load("http://echo/", 50).await?;
    let hold = pod
        .hold("tcp://echo-v2:9090", Duration::from_millis(50))
        .await?;
    eventually("both backends", SOON, async || {
        let sum = load.now().await?;
        ensure!(sum.hosts.len() == 2 && sum.failed == 0, "{sum:?}");
        Ok(())
    })
    .await?;
    let (load, hold) = (load.stop().await?, hold.stop().await?);
    ensure!(
        load.failed == 0 && load.unfinished == 0 && load.ok == load.sent,
        "{load:?}"
    );
    ensure!(
        hold.broken.is_none() && hold.rounds > 0 && hold.hostname.starts_with("echo-v2"),
        "{hold:?}"
    );

    let hold = pod
        .hold("tcp://echo-v2:9090", Duration::from_millis(50))
        .await?;
    let server = ns.pods("app=echo,version=v2").await?.remove(0);
    server
        .api()
        .delete(server.name(), &kube::api::DeleteParams::default())
        .await?;
    e2e::probe::wait_gone(server.api().clone(), server.name(), START).await?;
    let hold = hold.stop().await?;
    ensure!(hold.broken.is_some(), "the server is gone, yet {hold:?}");
    ensure!(
        pod.containers().await? == before && before.len() == 1,
        "the client was restarted"
    );
    ensure!(!conditions(&pod.get().await?).is_empty());
    Ok(())
}
