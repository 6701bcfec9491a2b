//! The story a newcomer is told: plain Kubernetes, into the mesh, a waypoint, and back; no step without its evidence.

mod back;
mod enrol;
mod plain;
mod stage;
mod story;
mod waypoint;
mod wire;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::mesh;
use stage::Stage;
use story::Story;

/// Tells the whole story; fails at the first step that cannot show what it says.
pub async fn run() -> Result<()> {
    let mut story = Story::begin("Set up: a Kubernetes cluster of two nodes, and the mesh on it");
    let (cluster, client) = mesh::installed().await.context("setting up")?;
    let nodes = cluster.nodes.len();
    story.line(format!(
        "{nodes} nodes run; controller and ztunnels are ready"
    ));
    story.next("The demo's pods: echo v1 and v2 on worker-2, a client and an outsider on worker-1");
    // Boxed: much happens at once in there.
    let mut stage = Box::pin(Stage::set(&cluster, client)).await?;
    story.line("all are ready, in two namespaces without labels".to_owned());

    story.next("Plain Kubernetes");
    plain::tell(&mut story, &mut stage).await?;
    story.next("kubectl label namespace ambit-demo istio.io/dataplane-mode=ambient");
    enrol::tell(&mut story, &mut stage).await?;
    story.next("kubectl apply: a waypoint, and an HTTPRoute for the service");
    waypoint::tell(&mut story, &mut stage).await?;
    story.next("Back: waypoint, route and labels removed");
    back::tell(&mut story, &mut stage).await?;
    story.end();
    epilogue(&cluster);
    Ok(())
}

fn epilogue(cluster: &Cluster) {
    let (space, tools) = (stage::NAMESPACE, cluster.tools.display());
    story::say(&format!(
        "
The cluster runs on, with the mesh installed and namespace {space} plain. To play with it:
  export KUBECONFIG={} PATH={tools}:$PATH
  kubectl label namespace {space} istio.io/dataplane-mode=ambient
  kubectl -n {space} exec client -- client http://echo/
  kubectl -n ambit-system logs daemonset/ztunnel --tail=3
When done: make down",
        cluster.kubeconfig.display()
    ));
}
