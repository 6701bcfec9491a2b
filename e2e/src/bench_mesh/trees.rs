//! Whose proxies serve: this tree's, or in turns with them those of an earlier commit.

use anyhow::{Context as _, Result};
use kube::Client;

use super::figures::Tree;
use super::stage::Stage;
use crate::cluster::Cluster;
use crate::images::previous::{self, Previous};
use crate::mesh;

/// What images of today's programs are tagged with.
const TODAY: &str = "local";

/// The cluster with the proxies of both trees on its nodes.
pub(super) struct Trees {
    cluster: Cluster,
    client: Client,
    previous: Option<Previous>,
}

impl Trees {
    /// Builds what is missing, brings the cluster and the mesh up, and the other tree's images onto the nodes.
    pub(super) async fn prepare(commit: Option<&str>) -> Result<Self> {
        let previous = match commit.map(str::to_owned) {
            Some(commit) => {
                Some(tokio::task::spawn_blocking(move || previous::build(&commit)).await??)
            }
            None => None,
        };
        let (cluster, client) = mesh::installed().await?;
        if let Some(previous) = &previous {
            previous.bring(&cluster)?;
            mesh::grant(&cluster, previous)?;
        }
        Ok(Self {
            cluster,
            client,
            previous,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The trees of a round: the one that is second is the next round's first, so that each change serves two.
    pub(super) fn order(&self, round: usize) -> Vec<Tree> {
        match (&self.previous, round % 2) {
            (None, _) => vec![Tree::Now],
            (Some(_), 0) => vec![Tree::Now, Tree::Previous],
            (Some(_), _) => vec![Tree::Previous, Tree::Now],
        }
    }

    /// Has a tree's proxies serve, with today's controller, and waits until they do.
    pub(super) async fn switch(&self, stage: &Stage<'_>, tree: Tree) -> Result<()> {
        let tag = match tree {
            Tree::Now => TODAY,
            Tree::Previous => previous::TAG,
        };
        let (waypoint, ztunnel) = (
            format!("ambit/waypoint:{tag}"),
            format!("ztunnel=ambit/ztunnel:{tag}"),
        );
        if self.previous.is_some() {
            mesh::waypoints_run(&self.cluster, &waypoint)?;
            mesh::set_image(&self.cluster, "daemonset/ztunnel", &ztunnel)?;
            mesh::serving(&self.client).await?;
        }
        let settled = stage.settled(&waypoint).await;
        settled.with_context(|| format!("with the proxies of {}", tree.name()))
    }

    /// Leaves today's proxies behind.
    pub(super) async fn restore(&self) -> Result<()> {
        if let Some(previous) = &self.previous {
            mesh::revoke(&self.cluster, previous)?;
            mesh::install(&self.cluster).await?;
        }
        Ok(())
    }
}
