//! Keeps the roots readable wherever a proxy runs: one ConfigMap per namespace.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;

use crate::status::FIELD_MANAGER;

/// The ConfigMap; the roots are in its `root-cert.pem`.
pub const CONFIG_MAP: &str = "ambit-ca-root-cert";
/// Even if nothing changed: someone may have deleted one.
const AGAIN: Duration = Duration::from_secs(60);

/// Keeps a ConfigMap in each of these namespaces, and none where it is no longer needed.
pub async fn publish(
    client: Client,
    roots: String,
    mut wanted: watch::Receiver<BTreeSet<Arc<str>>>,
) {
    let mut kept: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        let namespaces = wanted.borrow_and_update().clone();
        let mut failed = false;
        for namespace in kept.difference(&namespaces).cloned().collect::<Vec<_>>() {
            match remove(&client, &namespace).await {
                Ok(()) => drop(kept.remove(&namespace)),
                Err(error) => {
                    failed = true;
                    tracing::warn!(%namespace, %error, "the roots cannot be withdrawn");
                }
            }
        }
        for namespace in &namespaces {
            match apply(&client, namespace, &roots).await {
                Ok(()) => drop(kept.insert(namespace.clone())),
                Err(error) => {
                    failed = true;
                    tracing::warn!(%namespace, %error, "the roots cannot be published");
                }
            }
        }
        let pause = if failed {
            Duration::from_secs(2)
        } else {
            AGAIN
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn apply(client: &Client, namespace: &str, roots: &str) -> kube::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "labels": {"app.kubernetes.io/managed-by": "ambit"}},
        "data": {"root-cert.pem": roots},
    });
    let how = PatchParams::apply(FIELD_MANAGER).force();
    maps.patch(CONFIG_MAP, &how, &Patch::Apply(&map))
        .await
        .map(drop)
}

/// Takes the ConfigMap away.
pub async fn remove(client: &Client, namespace: &str) -> kube::Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match maps.delete(CONFIG_MAP, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
