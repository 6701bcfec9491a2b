//! What tests and demo put into a cluster: a namespace of their own, echo servers and clients, any YAML.

mod apply;
mod echo;
mod events;

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;

pub(crate) use apply::documents;
pub use apply::{apply_objects, apply_yaml, delete_yaml, dynamic};
pub use echo::{EchoClient, EchoServer, service};

use crate::probe::{self, PodRef};

/// Says which process made a namespace, so that the next run can sweep up after one that crashed.
const OWNER: &str = "ambit.mesh/e2e-owner";
/// Who applies, as the API server sees it.
const MANAGER: &str = "ambit-e2e";

/// A namespace of one test's own.
///
/// Call [`Namespace::delete`] at the end, or use [`Namespace::within`], which does. One that is only dropped is deleted if
/// the runtime lives long enough, and else by the next run on this machine.
pub struct Namespace {
    client: Client,
    name: String,
    /// Or not to be: nothing is left to do when this value goes.
    deleted: bool,
}

impl Namespace {
    /// Makes a namespace `<prefix>-<random>` with these labels.
    pub async fn temporary(client: &Client, prefix: &str, labels: &[(&str, &str)]) -> Result<Self> {
        sweep(client).await?;
        let mut all: BTreeMap<String, String> = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        all.insert(OWNER.to_owned(), owner());
        let metadata = ObjectMeta {
            generate_name: Some(format!("{prefix}-")),
            labels: Some(all),
            ..ObjectMeta::default()
        };
        let wanted = KubeNamespace {
            metadata,
            ..KubeNamespace::default()
        };
        let made = Api::all(client.clone())
            .create(&PostParams::default(), &wanted)
            .await;
        let name = made
            .context("a namespace")?
            .metadata
            .name
            .context("a namespace without a name")?;
        Ok(Self {
            client: client.clone(),
            name,
            deleted: false,
        })
    }

    /// Makes a namespace of this name, after deleting the one that has it; it stays until somebody deletes it.
    pub async fn fresh(client: &Client, name: &str, within: Duration) -> Result<Self> {
        let all = Api::<KubeNamespace>::all(client.clone());
        delete(client, name).await?;
        probe::wait_gone(all.clone(), name, within).await?;
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        };
        let wanted = KubeNamespace {
            metadata,
            ..KubeNamespace::default()
        };
        all.create(&PostParams::default(), &wanted)
            .await
            .with_context(|| format!("namespace {name}"))?;
        Ok(Self {
            client: client.clone(),
            name: name.to_owned(),
            deleted: true,
        })
    }

    /// Runs `work` in a temporary namespace and deletes it, whether the work succeeds, fails or panics.
    pub async fn within<T>(
        client: &Client,
        prefix: &str,
        labels: &[(&str, &str)],
        work: impl AsyncFnOnce(&Namespace) -> Result<T>,
    ) -> Result<T> {
        let namespace = Self::temporary(client, prefix, labels).await?;
        // Boxed: what a test does is a large future.
        let caught = Box::pin(catch(work(&namespace))).await;
        let deleted = namespace.delete().await;
        match caught {
            Ok(result) => result.and_then(|value| deleted.map(|()| value)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client it was made with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The objects of one kind in it.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// A pod in it.
    pub fn pod(&self, name: &str) -> PodRef {
        PodRef::new(&self.client, &self.name, name)
    }

    /// The pods in it that a selector chooses (`app=echo,version=v1`), those on their way out left aside.
    pub async fn pods(&self, selector: &str) -> Result<Vec<PodRef>> {
        let list = self
            .api::<k8s_openapi::api::core::v1::Pod>()
            .list(&ListParams::default().labels(selector))
            .await?;
        let living = list
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(living
            .filter_map(|pod| pod.metadata.name)
            .map(|name| self.pod(&name))
            .collect())
    }

    /// Applies YAML documents into it.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        apply_yaml(&self.client, Some(&self.name), yaml)
            .await
            .map(drop)
    }

    /// Sets a label of the namespace itself, or takes it off.
    pub async fn label(&self, key: &str, value: Option<&str>) -> Result<()> {
        label(
            &Api::<KubeNamespace>::all(self.client.clone()),
            &self.name,
            key,
            value,
        )
        .await
    }

    /// Deletes it, without waiting for its end.
    pub async fn delete(mut self) -> Result<()> {
        self.deleted = true;
        delete(&self.client, &self.name).await
    }

    /// Deletes it and waits until nothing of it is left.
    pub async fn delete_and_wait(self, within: Duration) -> Result<()> {
        let (client, name) = (self.client.clone(), self.name.clone());
        self.delete().await?;
        probe::wait_gone(Api::<KubeNamespace>::all(client), &name, within).await
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.deleted {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (client, name) = (self.client.clone(), self.name.clone());
            runtime.spawn(async move { delete(&client, &name).await });
        }
    }
}

/// Sets a label of any object, or takes it off.
pub async fn label<K>(api: &Api<K>, name: &str, key: &str, value: Option<&str>) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patch = Patch::Merge(json!({"metadata": {"labels": {key: value}}}));
    api.patch(name, &PatchParams::default(), &patch)
        .await
        .with_context(|| format!("label {key} of {name}"))?;
    Ok(())
}

async fn catch<T>(work: impl Future<Output = T>) -> std::thread::Result<T> {
    use futures_util::FutureExt as _;
    std::panic::AssertUnwindSafe(work).catch_unwind().await
}

async fn delete(client: &Client, name: &str) -> Result<()> {
    match Api::<KubeNamespace>::all(client.clone())
        .delete(name, &DeleteParams::default())
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("deleting namespace {name}")),
    }
}

/// Deletes what processes that are no more have left.
async fn sweep(client: &Client) -> Result<()> {
    let all = Api::<KubeNamespace>::all(client.clone());
    for namespace in all
        .list_metadata(&ListParams::default().labels(OWNER))
        .await
        .context("list namespaces")?
    {
        let made_by = namespace
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(OWNER));
        if made_by.is_some_and(|owner| !lives(owner))
            && namespace.metadata.deletion_timestamp.is_none()
            && let Some(name) = &namespace.metadata.name
        {
            delete(client, name).await?;
        }
    }
    Ok(())
}

/// This process: its id, and its start, because ids come again.
fn owner() -> String {
    let id = std::process::id();
    format!("{id}-{}", started(id).unwrap_or_default())
}

fn lives(owner: &str) -> bool {
    let Some((id, start)) = owner.split_once('-') else {
        return false;
    };
    id.parse()
        .ok()
        .and_then(started)
        .is_some_and(|now| now == start)
}

/// When a process started, in ticks since boot.
fn started(id: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The command's name may hold anything; what follows it starts at field 3, and the start is field 22.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_live_or_do_not() {
        assert!(lives(&owner()));
        assert!(!lives(&format!("{}-1", std::process::id())));
        assert!(!lives("nonsense"));
    }
}
