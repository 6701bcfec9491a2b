//! Keeps there what runs for one Gateway: a ServiceAccount, a Service and a Deployment; or nothing.
//!
//! What has the Gateway's name and does not name the Gateway (by its UID) as its controller is somebody else's: it is
//! neither changed nor deleted.
//!
//! The number of replicas is said once, when the Deployment is new, under a field manager of its own. It is never part of
//! what is applied afterwards: whoever scales it, by hand or by an autoscaler, owns it.

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::ObjectMeta;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::outcome::{Failure, Outcome};
use crate::index::changes::WaypointPlan;
use crate::index::names::{Key, MANAGED, MANAGED_BY_US};
use crate::waypoint::child::{CHILDREN, Child};
use crate::waypoint::render::{self, Mesh, REPLICAS};

/// Whose the number of replicas is, until somebody else says it.
pub const REPLICAS_MANAGER: &str = "ambit.mesh/waypoint-replicas";

/// Whose an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Made for the Gateway with this UID.
    Ours,
    /// Made for a Gateway of that name before: Kubernetes collects it.
    Predecessors,
    /// Not ours to touch.
    SomebodyElses,
}

/// Makes everything as planned.
pub(super) async fn deploy(
    client: &Client,
    mesh: &Mesh,
    gateway: &Key,
    plan: &WaypointPlan,
) -> Outcome {
    match try_deploy(client, mesh, gateway, plan).await {
        Ok(()) => Outcome::Done,
        Err(Tried::Taken(kind)) => Outcome::Failed(Failure::Taken(kind)),
        // The Gateway is new: as soon as the old one's things are collected.
        Err(Tried::Early) => Outcome::Failed(Failure::Busy(None)),
        Err(Tried::Kubernetes(error)) => match Outcome::from(*error) {
            // Not the Gateway, but something of it went or changed at the same time.
            Outcome::Moot => Outcome::Failed(Failure::Busy(None)),
            outcome => outcome,
        },
    }
}

/// Why nothing is deployed.
enum Tried {
    Taken(&'static str),
    Early,
    Kubernetes(Box<kube::Error>),
}

impl From<kube::Error> for Tried {
    fn from(error: kube::Error) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

async fn try_deploy(
    client: &Client,
    mesh: &Mesh,
    gateway: &Key,
    plan: &WaypointPlan,
) -> Result<(), Tried> {
    let name = &*gateway.name;
    for child in CHILDREN {
        let there = child.of(client, gateway).get_opt(name).await?;
        let Some(there) = there else { continue };
        match whose(&there.metadata, &plan.uid) {
            Whose::SomebodyElses => return Err(Tried::Taken(child.kind())),
            Whose::Predecessors => return Err(Tried::Early),
            Whose::Ours => {}
        }
        if child == Child::Deployment
            && let Some(replicas) = applied_replicas(&there)
        {
            // What is no longer applied and nobody else's would be taken away: first it becomes somebody else's.
            say_replicas(client, gateway, replicas).await?;
        }
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    for (child, object) in render::all(mesh, gateway, plan) {
        let api = child.of(client, gateway);
        let applied = api.patch(name, &params, &Patch::Apply(&object)).await?;
        // In its first generation nobody has touched it since it was made.
        if child == Child::Deployment && applied.metadata.generation == Some(1) {
            say_replicas(client, gateway, REPLICAS).await?;
        }
    }
    tracing::debug!(%gateway, "waypoint applied");
    Ok(())
}

async fn say_replicas(client: &Client, gateway: &Key, replicas: i64) -> kube::Result<()> {
    let body = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": &*gateway.name},
        "spec": {"replicas": replicas},
    });
    let params = PatchParams::apply(REPLICAS_MANAGER);
    let deployments = Child::Deployment.of(client, gateway);
    let said = deployments
        .patch(&gateway.name, &params, &Patch::Apply(&body))
        .await;
    match said {
        // Somebody else says it already.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        said => said.map(drop),
    }
}

/// How many replicas the Deployment has, if their number is part of what we apply, as controllers before this one did.
fn applied_replicas(deployment: &DynamicObject) -> Option<i64> {
    let ours = deployment.managed_fields().iter().any(|entry| {
        let fields = entry
            .fields_v1
            .as_ref()
            .map_or(&Value::Null, |fields| &fields.0);
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && !fields["f:spec"]["f:replicas"].is_null()
    });
    deployment.data["spec"]["replicas"]
        .as_i64()
        .filter(|_| ours)
}

/// Takes back what was made for one Gateway, and nothing of the same name.
pub(super) async fn withdraw(client: &Client, gateway: &Key, uid: &str) -> Outcome {
    for child in CHILDREN {
        let api = child.of(client, gateway);
        let there = match api.get_metadata_opt(&gateway.name).await {
            Ok(Some(there)) => there,
            Ok(None) => continue,
            Err(error) => return error.into(),
        };
        if whose(&there.metadata, uid) != Whose::Ours {
            continue;
        }
        let outcome = delete(&api, &there.metadata).await;
        if matches!(outcome, Outcome::Failed(_)) {
            return outcome;
        }
    }
    Outcome::Done
}

/// Deletes this object, and none that has come to have its name.
pub(crate) async fn delete(api: &Api<DynamicObject>, object: &ObjectMeta) -> Outcome {
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: object.uid.clone(),
        resource_version: None,
    });
    let name = object.name.as_deref().unwrap_or_default();
    api.delete(name, &params).await.into()
}

/// Whose an object with a Gateway's name is, as far as the Gateway with this UID goes.
pub(crate) fn whose(object: &ObjectMeta, gateway: &str) -> Whose {
    let label = object.labels.as_ref().and_then(|all| all.get(MANAGED));
    let labelled = label.map(String::as_str) == Some(MANAGED_BY_US);
    match owner(object) {
        // Without its label it is repaired, not given up.
        Some(uid) if uid == gateway => Whose::Ours,
        Some(_) if labelled => Whose::Predecessors,
        Some(_) | None => Whose::SomebodyElses,
    }
}

/// The UID of the Gateway that an object says controls it.
pub(crate) fn owner(object: &ObjectMeta) -> Option<&str> {
    let owners = object.owner_references.iter().flatten();
    let mut gateways = owners.filter(|owner| {
        owner.kind == "Gateway"
            && owner.api_version.starts_with(crate::gateway_api::GROUP)
            && owner.controller == Some(true)
    });
    gateways.next().map(|owner| owner.uid.as_str())
}
