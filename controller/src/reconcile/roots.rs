//! Keeps the roots readable in one namespace, or takes them away there.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::FIELD_MANAGER;
use super::outcome::Outcome;
use crate::ca::roots::{CONFIG_MAP, LABEL};
use crate::index::names::{MANAGED, MANAGED_BY_US};

/// Makes the ConfigMap say the roots.
pub(super) async fn publish(client: &Client, namespace: &str, roots: &str) -> Outcome {
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "labels": {LABEL.0: LABEL.1}},
        "data": {"root-cert.pem": roots},
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&map);
    maps(client, namespace)
        .patch(CONFIG_MAP, &params, &patch)
        .await
        .into()
}

/// Takes the ConfigMap away where nothing runs any more: an index that does not see a Gateway may be wrong.
pub(super) async fn give_up(client: &Client, namespace: &str) -> Outcome {
    let ours = ListParams::default().labels(&format!("{MANAGED}={MANAGED_BY_US}"));
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    match deployments.list_metadata(&ours.limit(1)).await {
        Ok(running) if running.items.is_empty() => withdraw(client, namespace).await,
        Ok(_) => Outcome::Moot,
        Err(error) => error.into(),
    }
}

/// Takes the ConfigMap away, if it is ours.
pub(crate) async fn withdraw(client: &Client, namespace: &str) -> Outcome {
    let maps = maps(client, namespace);
    let map = match maps.get_metadata_opt(CONFIG_MAP).await {
        Ok(Some(map)) => map,
        Ok(None) => return Outcome::Done,
        Err(error) => return error.into(),
    };
    if map.labels().get(LABEL.0).map(String::as_str) != Some(LABEL.1) {
        tracing::debug!(
            namespace,
            name = CONFIG_MAP,
            "a ConfigMap that is not ours is left"
        );
        return Outcome::Done;
    }
    let params = DeleteParams::default().preconditions(Preconditions {
        uid: map.uid(),
        resource_version: None,
    });
    maps.delete(CONFIG_MAP, &params).await.into()
}

fn maps(client: &Client, namespace: &str) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), namespace)
}
