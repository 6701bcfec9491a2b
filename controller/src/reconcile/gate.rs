//! Sets the taints that say whether pods may be scheduled on a node, and touches nothing else of it.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::FIELD_MANAGER;
use super::outcome::{Failure, Outcome};
use crate::index::desired::Gate;
use crate::index::names::{ECOSYSTEMS_NOT_READY, NOT_READY};

/// Brings the node there. Its list of taints is one value to Kubernetes: it is written as it was read, or not at all.
pub(super) async fn reconcile(client: &Client, name: &str, uid: &str, gate: Gate) -> Outcome {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = match nodes.get_opt(name).await {
        Ok(Some(node)) => node,
        Ok(None) => return Outcome::Moot,
        Err(error) => return error.into(),
    };
    if node.uid().as_deref() != Some(uid) {
        return Outcome::Moot;
    }
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone());
    let before = before.unwrap_or_default();
    let after = taints(&before, gate);
    if after == before {
        return Outcome::Done;
    }
    tracing::info!(node = name, ?gate, "setting the node's taint {NOT_READY}");
    let patch = json!({
        "metadata": {"resourceVersion": node.resource_version(), "uid": uid},
        "spec": {"taints": after},
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match nodes.patch(name, &params, &Patch::Merge(&patch)).await {
        // Somebody else's write came between, of which the index may learn nothing that matters to it.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Outcome::Failed(Failure::Kubernetes(Box::new(kube::Error::Api(status))))
        }
        written => written.into(),
    }
}

/// A node's taints as they should be.
fn taints(before: &[Taint], gate: Gate) -> Vec<Taint> {
    let goes = |taint: &&Taint| match gate {
        Gate::Closed => false,
        Gate::Open => taint.key == NOT_READY || taint.key == ECOSYSTEMS_NOT_READY,
        Gate::NotOurs => taint.key == NOT_READY,
    };
    let mut after: Vec<Taint> = before.iter().filter(|one| !goes(one)).cloned().collect();
    if gate == Gate::Closed && !after.iter().any(|taint| taint.key == NOT_READY) {
        after.push(Taint {
            key: NOT_READY.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    after
}
