//! Into the mesh: one label, nothing restarted, nothing readable, and everybody known by name.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};

use super::stage::{DATAPLANE_MODE, NAMESPACE, Stage};
use super::story::Story;
use super::wire;
use crate::mesh::SYSTEM_NAMESPACE;
use crate::probe::{PodRef, has_condition};

/// What the mesh says on a pod that it serves.
pub(super) const IN_MESH: &str = "ambit.mesh/InMesh";
/// Until every pod is in the mesh, or a line is in a log.
const SOON: Duration = Duration::from_secs(20);

pub(super) async fn tell(story: &mut Story, stage: &mut Stage) -> Result<()> {
    let labelled = Instant::now();
    stage.demo.label(DATAPLANE_MODE, Some("ambient")).await?;
    let waits = stage.members().map(|pod| {
        pod.wait("in the mesh", SOON, |pod| {
            has_condition(pod, IN_MESH, "True")
        })
    });
    let pods = try_join_all(waits).await?.len();
    let took = labelled.elapsed().as_secs_f32();
    let same = stage.untouched().await?;
    story.line(format!(
        "all {pods} pods are in the mesh after {took:.1} s; {same} of {same} container ids and restart counts are the same"
    ));
    let seen = wire::hidden(stage).await?;
    story.line(format!(
        "`x-secret: {}`: readable in 0 of {} packets; all are to or from port 15008, {} begin a TLS record",
        seen.marker, seen.tunnelled, seen.tls
    ));
    let (client, server) = who(stage).await?;
    story.line(format!(
        "who talked to whom, says the server's ztunnel: {client} -> {server}"
    ));
    outsider(story, stage).await?;
    stage.hold("in the mesh", "tcp://echo:9090").await?;
    let held = stage.held().await? - 1;
    story.line(format!(
        "connections opened before: {held} of {held} live; one more is opened"
    ));
    Ok(())
}

/// Both identities of the last connection, from the access log of the server's node.
async fn who(stage: &Stage) -> Result<(String, String)> {
    let api = Api::<Pod>::namespaced(stage.demo.client().clone(), SYSTEM_NAMESPACE);
    let there = ListParams::default()
        .labels("app.kubernetes.io/name=ztunnel")
        .fields("spec.nodeName=worker-2,status.phase=Running");
    let proxies = api.list(&there).await?;
    let name = proxies.items.into_iter().find_map(|pod| {
        let leaving = pod.metadata.deletion_timestamp.is_some();
        pod.metadata.name.filter(|_| !leaving)
    });
    let proxy = PodRef::new(
        stage.demo.client(),
        SYSTEM_NAMESPACE,
        &name.context("no ztunnel runs on worker-2")?,
    );
    let server = stage
        .servers
        .iter()
        .find(|pod| pod.name().contains("-v1-"))
        .context("no pod of v1")?;
    let wanted = |line: &str| {
        field(line, "dst.workload").as_deref() == Some(server.name())
            && field(line, "direction").as_deref() == Some("inbound")
            && field(line, "src.identity").is_some()
    };
    let line = proxy.wait_log("the connection", SOON, wanted).await?;
    let identity = |key| field(&line, key).with_context(|| format!("no {key} in {line}"));
    let (client, server) = (identity("src.identity")?, identity("dst.identity")?);
    let expected = |account| format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}");
    ensure!(
        client == expected("client") && server == expected("echo"),
        "unexpected identities: {line}"
    );
    Ok((client, server))
}

/// The value of `key=value` or `key="value"` in a line of a log.
fn field(line: &str, key: &str) -> Option<String> {
    line.split_whitespace().find_map(|word| {
        let (found, value) = word.split_once('=')?;
        (found == key).then(|| value.trim_matches('"').to_owned())
    })
}

async fn outsider(story: &Story, stage: &Stage) -> Result<()> {
    let url = format!("http://echo-v1.{NAMESPACE}/");
    let answer = stage.visitor.ask_once(&url).await?;
    let (status, space) = (answer.status, stage.visitor.namespace());
    ensure!(status == 200, "the client outside the mesh got {status}");
    story.line(format!(
        "a client outside the mesh (namespace {space}) still gets in: {status}"
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_are_read_with_and_without_quotes() {
        let line = r#"INFO access: done src.identity=spiffe://a/b dst.workload="echo" direction="inbound""#;
        assert_eq!(field(line, "src.identity").as_deref(), Some("spiffe://a/b"));
        assert_eq!(field(line, "dst.workload").as_deref(), Some("echo"));
        assert_eq!(field(line, "workload"), None);
    }
}
