//! Brings the mesh of this workspace onto the local cluster, as a user would, and takes it away again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use serde_json::Value;

use crate::apps::documents;
use crate::cluster::{self, Cluster};
use crate::images::{self, previous::Previous};
use crate::probe::{wait_available, wait_gone, wait_until};

/// Where the mesh itself runs.
pub const SYSTEM_NAMESPACE: &str = "ambit-system";
/// From `apply` to serving, the images being there.
const INSTALLED: Duration = Duration::from_secs(120);
/// From `delete` to nothing left.
const REMOVED: Duration = Duration::from_secs(120);

/// The cluster (number `AMBIT_LAB`, else 0) with the mesh of this workspace on it; quick when all is there.
pub async fn installed() -> Result<(Cluster, Client)> {
    let cluster = cluster::up_numbered(number()?).await?;
    install(&cluster).await?;
    let client = cluster.client().await?;
    Ok((cluster, client))
}

/// The number of the cluster that tests and the demo use.
pub fn number() -> Result<u8> {
    match std::env::var("AMBIT_LAB") {
        Ok(number) => number
            .parse()
            .with_context(|| format!("AMBIT_LAB={number} is no number")),
        Err(_) => Ok(0),
    }
}

/// Installs the Gateway API and this workspace's mesh, and waits until it serves.
///
/// Programs that changed since they were installed are rolled.
pub async fn install(cluster: &Cluster) -> Result<()> {
    let client = cluster.client().await?;
    cluster::components::gateway_api(&client).await?;
    let changed = images::refresh(cluster)? > 0;
    let before = ztunnel(&client).get_opt("ztunnel").await?.is_some();
    kubectl(
        cluster,
        &[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-k",
            &manifests(),
        ],
    )?;
    if changed && before {
        kubectl(
            cluster,
            &[
                "-n",
                SYSTEM_NAMESPACE,
                "rollout",
                "restart",
                "deployment,daemonset",
            ],
        )?;
    }
    serving(&client).await
}

/// Waits until the controller and every node's ztunnel serve.
pub async fn serving(client: &Client) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    wait_available(deployments, "ambit-controller", INSTALLED).await?;
    wait_until(
        ztunnel(client),
        "ztunnel",
        "ready on every node",
        INSTALLED,
        ready,
    )
    .await?;
    Ok(())
}

/// Deletes the mesh and waits until its namespace is gone.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    kubectl(
        cluster,
        &[
            "delete",
            "--ignore-not-found",
            "--wait=true",
            "--timeout=120s",
            "-k",
            &manifests(),
        ],
    )?;
    let namespaces: Api<Namespace> = Api::all(cluster.client().await?);
    wait_gone(namespaces, SYSTEM_NAMESPACE, REMOVED).await
}

/// The objects that a folder of this workspace's manifests stands for.
pub fn rendered(folder: &str) -> Result<Vec<Value>> {
    let ran = Command::new(cluster::tools()?.join("kubectl"))
        .args(["kustomize", &in_workspace(folder)])
        .output()
        .context("starting kubectl")?;
    ensure!(
        ran.status.success(),
        "kubectl kustomize {folder}: {}",
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    documents(&String::from_utf8_lossy(&ran.stdout))
}

/// Runs the cluster's own kubectl, and returns what it printed.
pub fn kubectl(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let ran = Command::new(cluster.tools.join("kubectl"))
        .arg("--kubeconfig")
        .arg(&cluster.kubeconfig)
        .args(args)
        .output()
        .context("starting kubectl")?;
    ensure!(
        ran.status.success(),
        "kubectl {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&ran.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Which image a Deployment or DaemonSet of the mesh runs: `daemonset/ztunnel`, `ztunnel=ambit/ztunnel:local`.
pub fn set_image(cluster: &Cluster, what: &str, image: &str) -> Result<()> {
    kubectl(
        cluster,
        &["-n", SYSTEM_NAMESPACE, "set", "image", what, image],
    )
    .map(drop)
}

/// Which image waypoints run, for controllers made from now on; those that are there are replaced.
pub fn waypoints_run(cluster: &Cluster, image: &str) -> Result<()> {
    let patch = format!("{{\"data\":{{\"waypointImage\":\"{image}\"}}}}");
    let system = ["-n", SYSTEM_NAMESPACE];
    let settings = [
        "patch",
        "configmap/ambit-settings",
        "--type=merge",
        "-p",
        &patch,
    ];
    kubectl(cluster, &[&system[..], &settings].concat())?;
    let restart = ["rollout", "restart", "deployment/ambit-controller"];
    kubectl(cluster, &[&system[..], &restart].concat()).map(drop)
}

/// Gives an earlier commit's proxies the rights they ask for, as an upgrade leaves them behind: some build's ztunnel asks
/// Kubernetes whether it is deleted for good.
pub fn grant(cluster: &Cluster, previous: &Previous) -> Result<()> {
    let apply = ["-n", SYSTEM_NAMESPACE, "apply", "-f", &role(previous)];
    kubectl(cluster, &apply).map(drop)
}

/// Takes these rights away.
pub fn revoke(cluster: &Cluster, previous: &Previous) -> Result<()> {
    let system = ["-n", SYSTEM_NAMESPACE];
    let delete = ["delete", "--ignore-not-found", "-f", &role(previous)];
    kubectl(cluster, &[&system[..], &delete].concat()).map(drop)
}

fn role(previous: &Previous) -> String {
    let role = previous.source.join("manifests/base/rbac-ztunnel.yaml");
    role.display().to_string()
}

fn manifests() -> String {
    in_workspace("manifests/local")
}

fn in_workspace(path: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let path: PathBuf = workspace.unwrap_or(Path::new("/")).join(path);
    path.display().to_string()
}

fn ztunnel(client: &Client) -> Api<DaemonSet> {
    Api::namespaced(client.clone(), SYSTEM_NAMESPACE)
}

/// All nodes run what the present spec says, and are ready.
fn ready(set: &DaemonSet) -> bool {
    set.status.as_ref().is_some_and(|status| {
        status.observed_generation == set.metadata.generation
            && status.desired_number_scheduled > 0
            && status.updated_number_scheduled == Some(status.desired_number_scheduled)
            && status.number_ready == status.desired_number_scheduled
            && status.current_number_scheduled == status.desired_number_scheduled
    })
}
