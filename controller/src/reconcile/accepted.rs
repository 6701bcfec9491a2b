//! Keeps the last accepted generations of one namespace's objects, so that they survive restarts and are the same for
//! every replica: a ConfigMap per namespace, in the controller's own.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::FIELD_MANAGER;
use super::outcome::Outcome;
use crate::index::names::{ACCEPTED_IN, ACCEPTED_PREFIX};

/// The ConfigMap for a namespace. Namespaces' names are labels of at most 63 characters: it is a name in any case.
pub fn name(namespace: &str) -> String {
    format!("{ACCEPTED_PREFIX}{namespace}")
}

/// Makes the ConfigMap say `generations`, and no more than that.
pub(super) async fn reconcile(
    client: &Client,
    system: &str,
    namespace: &str,
    generations: &BTreeMap<String, String>,
) -> Outcome {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), system);
    let name = name(namespace);
    if generations.is_empty() {
        return match maps.delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Outcome::Done,
            deleted => deleted.into(),
        };
    }
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "ambit", ACCEPTED_IN: namespace},
        },
        "data": generations,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    maps.patch(&name, &params, &Patch::Apply(&map)).await.into()
}
