//! Brings the status of one object to what it should say.

use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};

use super::FIELD_MANAGER;
use super::outcome::Outcome;
use crate::index::changes::{How, Target, Write};

/// One patch. It names the object by its UID, so that one that has come to have its name is left alone (409).
pub(super) async fn reconcile(client: &Client, target: &Target, write: &Write) -> Outcome {
    let api = api(client.clone(), target);
    let name = &target.key.name;
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patched = match write.how {
        How::Apply => {
            let patch = Patch::Apply(&write.body);
            api.patch_status(name, &params.force(), &patch).await
        }
        How::Merge => {
            let patch = Patch::Merge(&write.body);
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
