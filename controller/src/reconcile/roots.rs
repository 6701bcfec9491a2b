//! Keeps the roots readable in one namespace, or takes them away there.

use std::io::ErrorKind;
use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::FIELD_MANAGER;
use super::outcome::Outcome;
use crate::ca::roots::{CONFIG_MAP, LABEL, REVOCATIONS};
use crate::index::names::{MANAGED, MANAGED_BY_US};

/// Of revocation lists: a ConfigMap holds 1 MiB, and the roots are in the same.
const MAX_REVOCATIONS: usize = 900 << 10;

/// The revocation lists as they are now; nothing where there are none. Proxies judge what is in them, each whole.
pub(super) async fn revocations(path: Option<&Path>) -> Result<Option<String>, String> {
    let Some(path) = path else { return Ok(None) };
    match tokio::fs::read_to_string(path).await {
        Ok(lists) if lists.len() > MAX_REVOCATIONS => {
            Err(format!("more than {MAX_REVOCATIONS} bytes"))
        }
        Ok(lists) => Ok(Some(lists)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes the ConfigMap say the roots, and who is revoked.
pub(super) async fn publish(
    client: &Client,
    namespace: &str,
    roots: &str,
    revocations: Option<String>,
) -> Outcome {
    let mut map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "labels": {LABEL.0: LABEL.1}},
        "data": {"root-cert.pem": roots},
    });
    if let Some(lists) = revocations {
        map["data"][REVOCATIONS] = json!(lists);
    }
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
