//! Brings the status of one object to what it should say.

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::outcome::{Failure, Outcome};
use crate::index::changes::{How, Target};
use crate::index::desired::Writer;
use crate::index::names::IN_MESH;

/// One patch. It names the object by its UID, so that one that has come to have its name is left alone (409).
pub(super) async fn reconcile(
    client: &Client,
    target: &Target,
    how: &How,
    body: &Value,
    writer: Writer,
) -> Outcome {
    let api = api(client.clone(), target);
    match how {
        How::ApplyOver(seen) if writer == Writer::Leader => apply_over(&api, body, seen).await,
        How::Apply | How::ApplyOver(_) | How::Merge => patch(&api, target, how, body).await,
    }
}

/// What the leader says of a pod's place in the mesh is a guess, or what another replica has written before: the leader's
/// watch may be behind. It must not go over what the pod's node has said meanwhile to another replica, which everybody
/// would take for the pod's leaving the mesh, or coming into it. So it is written only over the condition, and the version
/// of the pod, that it was compared with.
async fn apply_over(api: &Api<DynamicObject>, body: &Value, seen: &Value) -> Outcome {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let pod = match api.get(name).await {
        Ok(pod) => pod,
        Err(error) => return error.into(),
    };
    let same = pod.metadata.uid.as_deref() == body["metadata"]["uid"].as_str();
    // The index sees it soon, and compares again.
    if !same || !says_the_same(in_mesh(&pod.data), seen) {
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

fn in_mesh(object: &Value) -> &Value {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let found = conditions.find(|one| one["type"] == IN_MESH);
    found.unwrap_or(&Value::Null)
}

fn says_the_same(one: &Value, other: &Value) -> bool {
    ["status", "reason", "message"]
        .iter()
        .all(|field| one[field] == other[field])
}

async fn patch(api: &Api<DynamicObject>, target: &Target, how: &How, body: &Value) -> Outcome {
    let name = &target.key.name;
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patched = match how {
        How::Apply | How::ApplyOver(_) => {
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
