//! `kubectl delete -k manifests`: holds back the controller's own rights until nothing of the mesh is left.
//!
//! Guarantees: the ServiceAccount, ClusterRole and ClusterRoleBinding of the controller carry a finalizer while a
//! controller runs. Deleted, they stay until it has withdrawn what it wrote: conditions, annotations, route status,
//! roots, waypoints and classes.
//!
//! Assumptions: the API server accepts the token of a service account that is being deleted for a minute, and the
//! controller's pod has as long to end.
//!
//! Caveats: if no controller runs when the mesh is deleted, nobody takes the finalizers away; `manifests/README.md`
//! says how.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

/// What holds the objects back.
pub const FINALIZER: &str = "ambit.mesh/uninstall";

/// The controller's own objects.
#[derive(Clone)]
pub struct Installation {
    client: Client,
    namespace: String,
    name: String,
}

// === impl Installation ===

impl Installation {
    /// All of them have this name.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn accounts(&self) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn roles(&self) -> Api<ClusterRole> {
        Api::all(self.client.clone())
    }

    fn bindings(&self) -> Api<ClusterRoleBinding> {
        Api::all(self.client.clone())
    }

    /// Holds the objects back, now and whenever someone takes the finalizers off.
    pub async fn guard(self) {
        let (accounts, roles, bindings) = (self.accounts(), self.roles(), self.bindings());
        loop {
            let held = tokio::try_join!(
                hold(&accounts, &self.name),
                hold(&roles, &self.name),
                hold(&bindings, &self.name)
            );
            let pause = match held {
                Ok(_) => Duration::from_secs(60),
                Err(error) => {
                    tracing::warn!(%error, "uninstalling would leave traces: the controller's rights are not held back");
                    Duration::from_secs(2)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether the mesh is being deleted, rather than the controller restarted or stopped for a while. What cannot be
    /// asked says nothing.
    pub async fn leaving(&self) -> bool {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let accounts = self.accounts();
        let (namespace, account) = tokio::join!(
            namespaces.get_opt(&self.namespace),
            accounts.get_opt(&self.name)
        );
        going(namespace) || going(account)
    }

    /// Lets the objects go. All at once: each takes away the right to ask for the next.
    pub async fn release(&self) {
        let (accounts, roles, bindings) = (self.accounts(), self.roles(), self.bindings());
        let name = &*self.name;
        let others = tokio::join!(
            others(&accounts, name),
            others(&roles, name),
            others(&bindings, name)
        );
        let released = tokio::join!(
            let_go(&accounts, name, others.0),
            let_go(&roles, name, others.1),
            let_go(&bindings, name, others.2)
        );
        for error in [released.0.err(), released.1.err(), released.2.err()]
            .into_iter()
            .flatten()
        {
            tracing::error!(%error, "a finalizer {FINALIZER} is left; take it off by hand");
        }
    }
}

fn going<K: Resource>(object: kube::Result<Option<K>>) -> bool {
    match object {
        Ok(None) => true,
        Ok(Some(object)) => object.meta().deletion_timestamp.is_some(),
        Err(_) => false,
    }
}

async fn hold<K>(api: &Api<K>, name: &str) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let Some(object) = api.get_metadata_opt(name).await? else {
        return Ok(());
    };
    let finalizers = object.finalizers();
    if object.meta().deletion_timestamp.is_some() || finalizers.iter().any(|one| one == FINALIZER) {
        return Ok(());
    }
    let finalizers: Vec<String> = finalizers
        .iter()
        .cloned()
        .chain([FINALIZER.to_owned()])
        .collect();
    write(api, name, &finalizers, object.resource_version()).await
}

/// The finalizers that are not ours; `None`: ours is not there.
async fn others<K>(api: &Api<K>, name: &str) -> kube::Result<Option<Vec<String>>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let Some(object) = api.get_metadata_opt(name).await? else {
        return Ok(None);
    };
    let held = object.finalizers().iter().any(|one| one == FINALIZER);
    Ok(held.then(|| {
        object
            .finalizers()
            .iter()
            .filter(|one| *one != FINALIZER)
            .cloned()
            .collect()
    }))
}

async fn let_go<K>(
    api: &Api<K>,
    name: &str,
    others: kube::Result<Option<Vec<String>>>,
) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    match others? {
        None => Ok(()),
        Some(others) => write(api, name, &others, None).await,
    }
}

async fn write<K>(
    api: &Api<K>,
    name: &str,
    finalizers: &[String],
    version: Option<String>,
) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut metadata = json!({"finalizers": finalizers});
    if let Some(version) = version {
        metadata["resourceVersion"] = json!(version);
    }
    api.patch_metadata(
        name,
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": metadata})),
    )
    .await
    .map(drop)
}
