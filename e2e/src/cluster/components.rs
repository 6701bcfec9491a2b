//! What is applied to a fresh cluster: its name server, and on request the Gateway API.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{conditions, wait::await_condition};
use kube::{Client, ResourceExt as _};
use serde::Deserialize;
use serde_json::{Value, json};

use super::plan::Plan;
use super::programs;
use crate::images::COREDNS_IMAGE;

/// Who applies, in the objects' field ownership.
const MANAGER: &str = "ambit-lab";
/// The Gateway API that the mesh is built for; `e2e/gateway-api/go.mod` names its version.
const GATEWAY_API: &str = "sigs.k8s.io/gateway-api";

/// Applies one object of any kind by server-side apply.
pub async fn apply(client: &Client, object: Value) -> anyhow::Result<()> {
    let object: DynamicObject =
        serde_json::from_value(object).context("not a Kubernetes object")?;
    let types = object.types.clone().context("an object without kind")?;
    let kind =
        ApiResource::from_gvk(&GroupVersionKind::try_from(&types).context("an object of no kind")?);
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let name = object.name_any();
    api.patch(
        &name,
        &PatchParams::apply(MANAGER).force(),
        &Patch::Apply(&object),
    )
    .await
    .with_context(|| format!("applying {} {name}", types.kind))?;
    Ok(())
}

/// Installs the cluster's name server.
pub async fn coredns(client: &Client, plan: Plan) -> anyhow::Result<()> {
    for object in coredns_objects(plan) {
        apply(client, object).await?;
    }
    Ok(())
}

fn coredns_objects(plan: Plan) -> [Value; 6] {
    let name = "coredns";
    let space = "kube-system";
    let labels = json!({"k8s-app": "kube-dns"});
    let corefile = ".:53 {\n    errors\n    health\n    ready\n    kubernetes cluster.local in-addr.arpa ip6.arpa {\n        \
                    pods insecure\n    }\n    cache 5\n    loop\n    reload\n}\n";
    let probe = |path: &str, port: u16| json!({"httpGet": {"path": path, "port": port}, "periodSeconds": 1});
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": space}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "system:coredns"},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": space}],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": space},
            "data": {"Corefile": corefile},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": space, "labels": labels},
            "spec": {
                "clusterIP": plan.dns_service(),
                "selector": labels,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": space, "labels": labels},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": name,
                        "priorityClassName": "system-cluster-critical",
                        "dnsPolicy": "Default",
                        "containers": [{
                            "name": name,
                            "image": COREDNS_IMAGE,
                            "imagePullPolicy": "Never",
                            "args": ["-conf", "/etc/coredns/Corefile"],
                            "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": true}],
                            "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}],
                            "readinessProbe": probe("/ready", 8181),
                        }],
                        "volumes": [{"name": "config", "configMap": {"name": name}}],
                    },
                },
            },
        }),
    ]
}

/// Installs the Gateway API's kinds, experimental channel, and waits until they are served.
pub async fn gateway_api(client: &Client) -> anyhow::Result<()> {
    let folder = tokio::task::spawn_blocking(gateway_api_folder).await??;
    let mut names = Vec::new();
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|e| e == "yaml") && !path.ends_with("kustomization.yaml")
        })
        .collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| file.display().to_string())?;
        for object in objects {
            if object["kind"] == "CustomResourceDefinition" {
                names.extend(object["metadata"]["name"].as_str().map(str::to_owned));
            }
            apply(client, object).await?;
        }
    }
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in names {
        await_condition(api.clone(), &name, conditions::is_crd_established())
            .await
            .with_context(|| name.clone())?;
    }
    Ok(())
}

/// Where Go keeps the module's files; fetches them the first time.
fn gateway_api_folder() -> anyhow::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Module {
        #[serde(rename = "Dir")]
        dir: PathBuf,
    }
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway-api");
    let go = programs::go()
        .args(["mod", "download", "-json", GATEWAY_API])
        // The module wants a newer Go than Kubernetes does; an older one fetches that by itself, if it may.
        .env("GOTOOLCHAIN", "auto")
        .current_dir(module)
        .output();
    let output = go.context("running go, which fetches the Gateway API")?;
    if !output.status.success() {
        bail!(
            "fetching the Gateway API: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let found: Module = serde_json::from_slice(&output.stdout).context("reading go's answer")?;
    Ok(found.dir.join("config/crd/experimental"))
}
