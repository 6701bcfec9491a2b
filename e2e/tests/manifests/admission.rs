//! The controller's account may write waypoints and its own words in others' status, and nothing else that its Role would
//! let it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::apps::{EchoServer, Namespace, dynamic};
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::{eventually, has_condition, wait_until};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Pod, Service, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A pod's start, its image being there, on a busy machine.
const START: Duration = Duration::from_secs(90);
/// What goes over the API server and the controller.
const SOON: Duration = Duration::from_secs(45);
const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const GATEWAY: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec:
  gatewayClassName: ambit-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn the_controller_writes_waypoints_and_nothing_else() -> Result<()> {
    let (cluster, client) = e2e::mesh::installed().await?;
    let user = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:ambit-controller");
    let as_controller = cluster.client_as(&user, &[]).await?;
    Namespace::within(&client, "admission", &[], async |ns| {
        ns.apply(GATEWAY).await?;
        let gateways = dynamic(&client, GATEWAY_API, "Gateway", Some(ns.name())).await?;
        wait_until(gateways, "waypoint", "programmed", START, |gateway| {
            has_condition(gateway, "Programmed", "True")
        })
        .await?;
        ns.deploy(&EchoServer::new("web", "v1")).await?;
        Box::pin(others_objects(&as_controller, ns)).await?;
        Box::pin(of_its_waypoint(&as_controller, ns)).await?;
        Box::pin(what_people_scale(&as_controller, ns)).await?;
        Box::pin(its_own_account(&as_controller)).await?;
        Box::pin(others_status(&as_controller, ns)).await?;
        Box::pin(by_name(&as_controller, ns)).await
    })
    .await
}

async fn others_objects(as_controller: &Client, ns: &Namespace) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(as_controller.clone(), ns.name());
    let scaled = json!({"spec": {"replicas": 0}});
    // The policy is new to an API server that has just been told of it.
    eventually("a foreign Deployment is refused", SOON, async || {
        refused(patch(&deployments, "web-v1", &scaled).await, "label")
    })
    .await?;
    let taken = json!({"metadata": {"labels": {
        "gateway.istio.io/managed": "ambit.mesh-waypoint-controller"}}});
    refused(patch(&deployments, "web-v1", &taken).await, "label")?;
    refused(delete(&deployments, "web-v1").await, "label")?;
    let accounts: Api<ServiceAccount> = Api::namespaced(as_controller.clone(), ns.name());
    let pulled = json!({"imagePullSecrets": [{"name": "stolen"}]});
    refused(patch(&accounts, "web", &pulled).await, "label")?;
    // Nobody else is asked.
    let mine = ns.api::<Deployment>();
    patch(&mine, "web-v1", &scaled)
        .await
        .context("a user's own patch")
}

async fn of_its_waypoint(as_controller: &Client, ns: &Namespace) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(as_controller.clone(), ns.name());
    let name = "waypoint";
    let harmless = json!({"metadata": {"annotations": {"touched": "by the controller"}}});
    let allowed = patch(&deployments, name, &harmless).await;
    allowed.context("its own waypoint")?;
    for (change, why) in [
        (
            container(json!({"image": "docker.io/evil/anything:1"})),
            "image",
        ),
        (container(json!({"command": ["/bin/sh"]})), "command"),
        (
            container(json!({"envFrom": [{"secretRef": {"name": "theirs"}}]})),
            "command",
        ),
        (
            pod(
                json!({"initContainers": [{"name": "first", "image": "docker.io/evil/anything:1"}]}),
            ),
            "image",
        ),
        (pod(json!({"serviceAccountName": "web"})), "account"),
        (pod(json!({"hostNetwork": true})), "namespaces of its own"),
        (
            pod(json!({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]})),
            "mounts",
        ),
        (
            pod(json!({"volumes": [{"name": "theirs", "secret": {"secretName": "theirs"}}]})),
            "mounts",
        ),
        (json!({"metadata": {"ownerReferences": null}}), "owns"),
        (
            json!({"metadata": {"labels": {"gateway.istio.io/managed": null}}}),
            "label",
        ),
    ]
    .into_iter()
    .chain(other_commands_and_tokens())
    {
        let tried = patch(&deployments, name, &change).await;
        refused(tried, why).with_context(|| change.to_string())?;
    }
    Ok(())
}

/// A change of the waypoint's container.
fn container(with: Value) -> Value {
    let mut container = json!({"name": "waypoint"});
    if let (Value::Object(container), Value::Object(with)) = (&mut container, with) {
        container.extend(with);
    }
    pod(json!({"containers": [container]}))
}

/// A change of the waypoint's pods.
#[allow(
    clippy::needless_pass_by_value,
    reason = "they are written where they are used"
)]
fn pod(with: Value) -> Value {
    json!({"spec": {"template": {"spec": with}}})
}

/// The image may be ours and the account of the right name: what else would make another's token known.
fn other_commands_and_tokens() -> Vec<(Value, &'static str)> {
    vec![
        (container(json!({"args": ["--help"]})), "command"),
        (
            container(json!({"lifecycle": {"postStart": {"exec": {"command": ["/bin/sh"]}}}})),
            "command",
        ),
        (
            container(
                json!({"readinessProbe": {"httpGet": null, "exec": {"command": ["/bin/sh"]}}}),
            ),
            "probed",
        ),
        (
            container(json!({"livenessProbe": {"exec": {"command": ["/bin/sh"]}}})),
            "probed",
        ),
        (pod(json!({"automountServiceAccountToken": true})), "token"),
        (pod(json!({"automountServiceAccountToken": null})), "token"),
        (pod(token_for(&json!({}))), "mounts"),
        (pod(token_for(&json!({"audience": "theirs"}))), "mounts"),
    ]
}

/// Volumes with one more token of this kind.
fn token_for(with: &Value) -> Value {
    let mut token = json!({"path": "token"});
    for (key, value) in with.as_object().into_iter().flatten() {
        token[key] = value.clone();
    }
    json!({"volumes": [{"name": "more", "projected": {"sources": [{"serviceAccountToken": token}]}}]})
}

/// Of its own account the controller writes the finalizer. Clouds give rights to accounts by their annotations.
async fn its_own_account(as_controller: &Client) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(as_controller.clone(), SYSTEM_NAMESPACE);
    let name = "ambit-controller";
    let other = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "any", "uid": "any"}]);
    for change in [
        json!({"metadata": {"annotations": {"eks.amazonaws.com/role-arn": "admin"}}}),
        json!({"metadata": {"labels": {"more": "rights"}}}),
        json!({"metadata": {"ownerReferences": other}}),
        json!({"metadata": {"finalizers": ["example.com/theirs"]}}),
        json!({"automountServiceAccountToken": false}),
        json!({"imagePullSecrets": [{"name": "stolen"}]}),
        json!({"secrets": [{"name": "stolen"}]}),
    ] {
        let tried = patch(&accounts, name, &change).await;
        refused(tried, "finalizer").with_context(|| change.to_string())?;
    }
    let let_go =
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["ambit.mesh/uninstall"]}});
    let allowed = patch(&accounts, name, &let_go).await;
    allowed.context("its own finalizer")
}

/// Of what others run it says its conditions, and on pods the annotation. A status is a way to much else: whose an address
/// is, who is ready, and the labels by which pods and namespaces get rights.
async fn others_status(as_controller: &Client, ns: &Namespace) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(as_controller.clone(), ns.name());
    let listed = pods.list(&ListParams::default().labels("app=web")).await?;
    let pod = listed.items.first().context("a pod of web")?.name_any();
    let services: Api<Service> = Api::namespaced(as_controller.clone(), ns.name());
    let namespaces: Api<NamespaceObject> = Api::all(as_controller.clone());
    let condition = |kind: &str| {
        json!({"status": {"conditions": [
            {"type": kind, "status": "True", "reason": "Tried", "message": "in a test", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]}})
    };
    let finalizer = json!({"metadata": {"finalizers": ["example.com/theirs"]}});
    let label =
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    let annotation = |name: &str| json!({"metadata": {"annotations": {name: "enabled"}}});
    for change in [
        condition("ambit.mesh/InMesh"),
        condition("istio.io/WaypointBound"),
        annotation("ambient.istio.io/redirection"),
    ] {
        let allowed = patch_status(&pods, &pod, &change).await;
        allowed.with_context(|| format!("a pod: {change}"))?;
    }
    for (change, why) in [
        (
            json!({"status": {"podIP": "10.96.0.10", "podIPs": [{"ip": "10.96.0.10"}]}}),
            "only its conditions",
        ),
        (
            json!({"status": {"phase": "Failed"}}),
            "only its conditions",
        ),
        (condition("Ready"), "InMesh"),
        (condition("example.com/Theirs"), "InMesh"),
        (annotation("example.com/theirs"), "redirection"),
        (label.clone(), "labels"),
        (finalizer.clone(), "finalizers"),
    ] {
        let tried = patch_status(&pods, &pod, &change).await;
        refused(tried, why).with_context(|| format!("a pod: {change}"))?;
    }

    let allowed = patch_status(&services, "web", &condition("istio.io/WaypointBound")).await;
    allowed.context("a Service's condition")?;
    for (change, why) in [
        (condition("example.com/Theirs"), "InMesh"),
        (finalizer.clone(), "finalizers"),
    ] {
        let tried = patch_status(&services, "web", &change).await;
        refused(tried, why).with_context(|| format!("a Service: {change}"))?;
    }

    let allowed = patch_status(&namespaces, ns.name(), &condition("ambit.mesh/InMesh")).await;
    allowed.context("a Namespace's condition")?;
    for (change, why) in [(label, "labels"), (finalizer, "finalizers")] {
        let tried = patch_status(&namespaces, ns.name(), &change).await;
        refused(tried, why).with_context(|| format!("a Namespace: {change}"))?;
    }
    Ok(())
}

/// What people change of a waypoint is theirs, and the controller goes on writing the rest.
async fn what_people_scale(as_controller: &Client, ns: &Namespace) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(as_controller.clone(), ns.name());
    let scaled = json!({"spec": {"replicas": 5}});
    let mine = ns.api::<Deployment>();
    let allowed = patch(&mine, "waypoint", &scaled).await;
    allowed.context("a user's own patch")?;
    let harmless =
        json!({"metadata": {"annotations": {"touched": "again"}}, "spec": {"replicas": 5}});
    let allowed = patch(&deployments, "waypoint", &harmless).await;
    allowed.context("a waypoint that somebody scaled")
}

/// Where RBAC can bind a create to no name, this does.
async fn by_name(as_controller: &Client, ns: &Namespace) -> Result<()> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
        "name": "ambit-controller"});
    let named = |version: &str, kind: &str, name: &str, namespace: Option<&str>| {
        json!({"apiVersion": version, "kind": kind,
            "metadata": {"name": name, "namespace": namespace}})
    };
    let system = Some(SYSTEM_NAMESPACE);
    let mut binding = named(rbac, "ClusterRoleBinding", "mine", None);
    binding["roleRef"] = role.clone();
    binding["subjects"] =
        json!([{"kind": "ServiceAccount", "name": "web", "namespace": ns.name()}]);
    let mut class = named(GATEWAY_API, "GatewayClass", "another", None);
    class["spec"] = json!({"controllerName": "ambit.mesh/waypoint"});
    for (object, why) in [
        (
            named("v1", "ConfigMap", "theirs", Some(ns.name())),
            "ConfigMaps",
        ),
        (
            named("v1", "ConfigMap", "ambit-accepted-theirs", Some(ns.name())),
            "ConfigMaps",
        ),
        (named("v1", "Secret", "theirs", system), "Secret"),
        (
            named("coordination.k8s.io/v1", "Lease", "theirs", system),
            "Lease",
        ),
        (binding, "role"),
        (class, "classes"),
    ] {
        let kind = object["kind"].as_str().unwrap_or_default();
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let namespace = object["metadata"]["namespace"].as_str();
        let api = dynamic(as_controller, version, kind, namespace).await?;
        let what = serde_json::from_value(object.clone())?;
        let how = kube::api::PostParams {
            dry_run: true,
            ..Default::default()
        };
        let tried = api.create(&how, &what).await.map(drop);
        refused(tried.map_err(Into::into), why).with_context(|| object.to_string())?;
    }
    let settings = dynamic(as_controller, "v1", "ConfigMap", system).await?;
    let how = DeleteParams {
        dry_run: true,
        ..DeleteParams::default()
    };
    let tried = settings.delete("ambit-settings", &how).await.map(drop);
    refused(tried.map_err(Into::into), "ConfigMaps").context("what the policy itself reads")?;
    let allowed = named("v1", "ConfigMap", "ambit-accepted-theirs", system);
    let api = dynamic(as_controller, "v1", "ConfigMap", system).await?;
    let how = kube::api::PostParams {
        dry_run: true,
        ..Default::default()
    };
    let made = api.create(&how, &serde_json::from_value(allowed)?).await?;
    ensure!(made.name_any() == "ambit-accepted-theirs");
    Ok(())
}

/// Nothing is really changed.
pub(super) async fn patch<K>(api: &Api<K>, name: &str, change: &Value) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let how = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    api.patch(name, &how, &Patch::Strategic(change)).await?;
    Ok(())
}

/// Through the status, and nothing is really changed.
async fn patch_status<K>(api: &Api<K>, name: &str, change: &Value) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let how = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    // Conditions are added to those that are there; all else is replaced.
    let patch = match change["status"]["conditions"].is_null() {
        true => Patch::Merge(change),
        false => Patch::Strategic(change),
    };
    api.patch_status(name, &how, &patch).await?;
    Ok(())
}

async fn delete<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let how = DeleteParams {
        dry_run: true,
        ..DeleteParams::default()
    };
    api.delete(name, &how).await?;
    Ok(())
}

/// Refused by the policy for this reason, and not by RBAC.
pub(super) fn refused(tried: Result<()>, why: &str) -> Result<()> {
    match tried {
        Ok(()) => bail!("it was let through, and should be refused: {why}"),
        Err(error) => {
            let said = format!("{error:#}");
            let by_policy = said.contains("ValidatingAdmissionPolicy 'ambit-controller'");
            ensure!(
                by_policy && said.contains(why),
                "not refused for {why:?}: {said}"
            );
            Ok(())
        }
    }
}
