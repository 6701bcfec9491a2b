//! Server-side apply of whatever YAML says, with the kinds looked up in the cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::{Scope, pinned_kind};
use serde_json::Value;

use super::MANAGER;
use crate::probe;

/// How long a definition may take until its kind is served.
const ESTABLISH: Duration = Duration::from_secs(10);

/// Applies every document of `yaml` in order; objects that name no namespace go into `namespace`.
pub async fn apply_yaml(
    client: &Client,
    namespace: Option<&str>,
    yaml: &str,
) -> Result<Vec<DynamicObject>> {
    apply_objects(client, namespace, documents(yaml)?).await
}

/// Applies objects in order; those that name no namespace go into `namespace`.
pub async fn apply_objects(
    client: &Client,
    namespace: Option<&str>,
    objects: impl IntoIterator<Item = Value>,
) -> Result<Vec<DynamicObject>> {
    let mut applied = Vec::new();
    for object in objects {
        let (api, name) = place(client, namespace, &object).await?;
        let patched = api
            .patch(
                &name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(&object),
            )
            .await;
        let now = patched.with_context(|| format!("apply {} {name}", object["kind"]))?;
        if object["kind"] == "CustomResourceDefinition" {
            probe::wait_until(api, &name, "established", ESTABLISH, |crd| {
                probe::has_condition(crd, "Established", "True")
            })
            .await?;
        }
        applied.push(now);
    }
    Ok(applied)
}

/// Deletes every object that `yaml` names, last first; those that are not there are as well.
pub async fn delete_yaml(client: &Client, namespace: Option<&str>, yaml: &str) -> Result<()> {
    for object in documents(yaml)?.into_iter().rev() {
        let (api, name) = place(client, namespace, &object).await?;
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("delete {} {name}", object["kind"]));
            }
        }
    }
    Ok(())
}

/// The objects of any kind, found by discovery: in `namespace`, or of the whole cluster.
pub async fn dynamic(
    client: &Client,
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
) -> Result<Api<DynamicObject>> {
    let types = TypeMeta {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    };
    let gvk =
        GroupVersionKind::try_from(types).with_context(|| format!("apiVersion {api_version}"))?;
    let found = pinned_kind(client, &gvk).await;
    let (resource, abilities) =
        found.with_context(|| format!("the cluster does not serve {api_version} {kind}"))?;
    Ok(match (abilities.scope, namespace) {
        (Scope::Cluster, _) | (_, None) => Api::all_with(client.clone(), &resource),
        (Scope::Namespaced, Some(namespace)) => {
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
    })
}

async fn place(
    client: &Client,
    namespace: Option<&str>,
    object: &Value,
) -> Result<(Api<DynamicObject>, String)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(version), Some(kind), Some(name)) =
        (text("/apiVersion"), text("/kind"), text("/metadata/name"))
    else {
        bail!("an object without apiVersion, kind or metadata.name: {object}");
    };
    let namespace = text("/metadata/namespace").or(namespace);
    Ok((
        dynamic(client, version, kind, namespace).await?,
        name.to_owned(),
    ))
}

/// Every object in a YAML text.
pub(crate) fn documents(yaml: &str) -> Result<Vec<Value>> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let all: Vec<Value> =
        serde_saphyr::from_multiple_with_options(yaml, options).context("YAML")?;
    Ok(all
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_as_kubernetes_does() {
        let yaml = "---\n# nothing\n---\nkind: A\nmetadata: {labels: {on: 'yes', n: \"1\"}}\n---\nkind: B\nspec:\n  port: 80\n---\n";
        let all = documents(yaml).expect("YAML");
        assert_eq!(all.len(), 2, "{all:?}");
        assert_eq!(all[0]["metadata"]["labels"]["on"], "yes");
        assert_eq!(all[0]["metadata"]["labels"]["n"], "1");
        assert_eq!(all[1]["spec"]["port"], 80);
        assert!(documents("a: [").is_err());
    }
}
