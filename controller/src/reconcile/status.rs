//! Brings the status of one object to what it should say.

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::outcome::{Failure, Outcome};
use crate::desired::Writer;
use crate::index::changes::{How, Kind, Target};
use crate::index::names::IN_MESH;

/// What the leader says of a pod as long as it has heard of no node's word.
const PENDING: &str = "Pending";

/// One patch. It names the object by its UID, so that one that has come to have its name is left alone (409).
pub(super) async fn reconcile(
    client: &Client,
    target: &Target,
    how: How,
    body: &Value,
    writer: Writer,
) -> Outcome {
    let api = api(client.clone(), target);
    if target.kind == Kind::Pod && writer == Writer::Leader && says_pending(body) {
        return guess(&api, body).await;
    }
    patch(&api, target, how, body).await
}

/// That a pod waits is the leader's guess: it must not go over what the pod's node has said meanwhile to another replica,
/// which everybody else would take for the pod's leaving the mesh. So it is made only over the version that it was
/// compared with.
async fn guess(api: &Api<DynamicObject>, body: &Value) -> Outcome {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let pod = match api.get(name).await {
        Ok(pod) => pod,
        Err(error) => return error.into(),
    };
    let same = pod.metadata.uid.as_deref() == body["metadata"]["uid"].as_str();
    if !same || is_nodes_word(in_mesh(&pod.data)) {
        return Outcome::Moot;
    }
    let mut body = body.clone();
    body["metadata"]["resourceVersion"] = json!(pod.metadata.resource_version);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch_status(name, &params, &Patch::Apply(&body)).await {
        // The pod has moved on: it is compared again.
        Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Failed(Failure::Busy(None)),
        patched => patched.into(),
    }
}

fn in_mesh(object: &Value) -> Option<&Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == IN_MESH)
}

fn says_pending(body: &Value) -> bool {
    in_mesh(body).is_some_and(|condition| condition["reason"] == PENDING)
}

/// Whether a pod's node has said it: captured, or failed.
fn is_nodes_word(condition: Option<&Value>) -> bool {
    condition.is_some_and(|condition| {
        condition["status"] == "True"
            || !matches!(
                condition["reason"].as_str(),
                Some(PENDING | "UnknownDataplaneMode")
            )
    })
}

async fn patch(api: &Api<DynamicObject>, target: &Target, how: How, body: &Value) -> Outcome {
    let name = &target.key.name;
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patched = match how {
        How::Apply => {
            let patch = Patch::Apply(body);
            api.patch_status(name, &params.force(), &patch).await
        }
        How::Merge => {
            let patch = Patch::Merge(body);
            api.patch_status(name, &params, &patch).await
        }
    };
    patched.into()
}

fn api(client: Client, target: &Target) -> Api<DynamicObject> {
    let resource = target.kind.api().resource();
    if target.key.namespace.is_empty() {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, &target.key.namespace, &resource)
    }
}
