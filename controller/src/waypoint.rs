//! Keeps GatewayClasses there, and for each Gateway a ServiceAccount, a Service and a Deployment.

pub mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::render::{Mesh, REPLICAS};
use crate::gateway_api::{API_VERSION, GROUP};
use crate::index::changes::{Kind, Notice, Target, WaypointPlan};
use crate::index::names::{CLASSES, CONTROLLER_NAME, Key, MANAGED, MANAGED_BY_US};
use crate::status::{FIELD_MANAGER, Order};

/// Even if nothing changed: someone may have changed what we made.
const AGAIN: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(2);

/// What the deployer is told.
#[derive(Debug)]
pub enum Task {
    /// Run this for that Gateway, or (`None`) nothing.
    Plan(Key, Option<WaypointPlan>),
    /// This class does not exist.
    Class(Arc<str>),
    /// Something made for this Gateway changed or went.
    Child(Key),
}

/// Deploys.
pub struct Deployer {
    client: Client,
    mesh: Mesh,
    plans: BTreeMap<Key, WaypointPlan>,
    due: BTreeMap<Key, Instant>,
    classes: BTreeSet<Arc<str>>,
    /// Names that someone else uses, by Gateway; told once.
    taken: BTreeMap<Key, String>,
    notices: mpsc::Sender<Order>,
}

/// Why a waypoint does not run.
#[derive(Debug, thiserror::Error)]
enum DeployError {
    #[error("a {0} of this name exists and was not made for this Gateway")]
    Taken(&'static str),
    #[error(transparent)]
    Kubernetes(#[from] Box<kube::Error>),
}

// === impl Deployer ===

impl Deployer {
    /// Deploys waypoints of this kind.
    pub fn new(client: Client, mesh: Mesh, notices: mpsc::Sender<Order>) -> Self {
        Self {
            client,
            mesh,
            plans: BTreeMap::new(),
            due: BTreeMap::new(),
            classes: BTreeSet::new(),
            taken: BTreeMap::new(),
            notices,
        }
    }

    /// Runs until nobody has tasks any more.
    pub async fn run(mut self, mut tasks: mpsc::Receiver<Task>) {
        loop {
            let next = self.due.values().min().copied();
            let classes = !self.classes.is_empty();
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                task = tasks.recv() => match task {
                    Some(task) => self.task(task).await,
                    None => return,
                },
                () = wait => self.work().await,
                () = tokio::time::sleep(RETRY), if classes => self.make_classes().await,
            }
        }
    }

    async fn task(&mut self, task: Task) {
        match task {
            Task::Plan(key, Some(plan)) => {
                self.plans.insert(key.clone(), plan);
                self.due.insert(key, Instant::now());
            }
            Task::Plan(key, None) => {
                self.due.remove(&key);
                self.taken.remove(&key);
                // What was made for a Gateway that is gone goes with it: it is the owner. This is for one that stays
                // and is no longer ours.
                if let Some(plan) = self.plans.remove(&key)
                    && let Err(error) = remove(&self.client, &key, &plan).await
                {
                    tracing::warn!(gateway = %key, %error, "what was made for it is left until it is deleted");
                }
            }
            Task::Class(name) => {
                self.classes.insert(name);
                self.make_classes().await;
            }
            Task::Child(key) => {
                if self.plans.contains_key(&key) {
                    self.due
                        .insert(key, Instant::now() + Duration::from_millis(100));
                }
            }
        }
    }

    async fn work(&mut self) {
        let now = Instant::now();
        let due: Vec<Key> = self
            .due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let Some(plan) = self.plans.get(&key).cloned() else {
                continue;
            };
            let again = match deploy(&self.client, &self.mesh, &key, &plan).await {
                Ok(()) => {
                    self.taken.remove(&key);
                    AGAIN
                }
                Err(error) => {
                    self.tell(&key, &plan, &error).await;
                    RETRY
                }
            };
            self.due.insert(key, Instant::now() + again);
        }
    }

    async fn tell(&mut self, key: &Key, plan: &WaypointPlan, error: &DeployError) {
        let note = error.to_string();
        if self.taken.get(key) == Some(&note) {
            return;
        }
        tracing::warn!(gateway = %key, %error, "the waypoint cannot be run");
        self.taken.insert(key.clone(), note.clone());
        let target = Target {
            kind: Kind::Gateway,
            key: key.clone(),
        };
        let reason = "DeploymentFailed".to_owned();
        let notice = Notice {
            target,
            uid: plan.uid.clone(),
            warning: true,
            reason,
            note,
        };
        // The writer lives as long as the process.
        let _ = self.notices.send(Order::Notice(notice)).await;
    }

    async fn make_classes(&mut self) {
        for name in self.classes.clone() {
            match make_class(&self.client, &name).await {
                Ok(()) => drop(self.classes.remove(&name)),
                Err(error) => {
                    tracing::warn!(class = %name, %error, "the GatewayClass cannot be made; trying again");
                }
            }
        }
    }
}

async fn deploy(
    client: &Client,
    mesh: &Mesh,
    gateway: &Key,
    plan: &WaypointPlan,
) -> Result<(), DeployError> {
    let mut replicas = REPLICAS;
    for (plural, kind) in [
        ("deployments", "Deployment"),
        ("services", "Service"),
        ("serviceaccounts", "ServiceAccount"),
    ] {
        let there = children(client, plural, Some(gateway))
            .get_opt(&gateway.name)
            .await
            .map_err(Box::new)?;
        let Some(there) = there else { continue };
        let managed = there
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(MANAGED));
        if managed.map(String::as_str) != Some(MANAGED_BY_US) {
            return Err(DeployError::Taken(kind));
        }
        if let Some(scaled) = there.data["spec"]["replicas"].as_i64() {
            // Someone may have scaled it; that is theirs to say.
            replicas = scaled;
        }
    }
    let how = PatchParams::apply(FIELD_MANAGER).force();
    for (plural, object) in render::all(mesh, gateway, plan, replicas) {
        let api = children(client, plural, Some(gateway));
        api.patch(&gateway.name, &how, &Patch::Apply(&object))
            .await
            .map_err(Box::new)?;
    }
    tracing::debug!(%gateway, "waypoint applied");
    Ok(())
}

async fn make_class(client: &Client, name: &str) -> kube::Result<()> {
    let api = classes(client);
    let class = json!({
        "apiVersion": API_VERSION,
        "kind": "GatewayClass",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "ambit"}},
        "spec": {
            "controllerName": CONTROLLER_NAME,
            "description": "L7 proxy for what names it with istio.io/use-waypoint",
        },
    });
    let class: DynamicObject = serde_json::from_value(class).map_err(kube::Error::SerdeError)?;
    match api.create(&kube::api::PostParams::default(), &class).await {
        Ok(_) => Ok(()),
        // Someone was faster. If it is another controller's, it stays that.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes back what was made for one Gateway, and nothing of the same name.
async fn remove(client: &Client, gateway: &Key, plan: &WaypointPlan) -> kube::Result<()> {
    for plural in ["deployments", "services", "serviceaccounts"] {
        let api = children(client, plural, Some(gateway));
        let Some(there) = api.get_metadata_opt(&gateway.name).await? else {
            continue;
        };
        let owners = there.metadata.owner_references.unwrap_or_default();
        if owners.iter().any(|owner| *owner.uid == *plan.uid) {
            gone(api.delete(&gateway.name, &DeleteParams::default()).await)?;
        }
    }
    Ok(())
}

/// Takes back what was made: waypoints and classes.
pub async fn remove_all(client: &Client) -> kube::Result<()> {
    let managed = ListParams::default().labels(&format!("{MANAGED}={MANAGED_BY_US}"));
    for plural in ["deployments", "services", "serviceaccounts"] {
        for child in children(client, plural, None)
            .list_metadata(&managed)
            .await?
        {
            let key = Key::of(&child.metadata);
            gone(
                children(client, plural, Some(&key))
                    .delete(&key.name, &DeleteParams::default())
                    .await,
            )?;
        }
    }
    for name in CLASSES {
        let class = classes(client)
            .get_opt(name)
            .await
            .or_else(|error| absent(error).map(|()| None))?;
        if class.is_some_and(|class| class.data["spec"]["controllerName"] == CONTROLLER_NAME) {
            gone(classes(client).delete(name, &DeleteParams::default()).await)?;
        }
    }
    Ok(())
}

/// Says which Gateways' children of one kind changed.
pub async fn watch_children<K>(client: Client, tasks: mpsc::Sender<Task>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().labels(&format!("{MANAGED}={MANAGED_BY_US}"));
    let api: Api<PartialObjectMeta<K>> = Api::all(client);
    let mut watch = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = watch.next().await {
        let object = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => object,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(kind = %K::plural(&()), %error, "watch failed; trying again");
                continue;
            }
        };
        if tasks
            .send(Task::Child(Key::of(&object.metadata)))
            .await
            .is_err()
        {
            return;
        }
    }
}

fn gone<T>(deleted: kube::Result<T>) -> kube::Result<()> {
    deleted.map(drop).or_else(absent)
}

fn absent(error: kube::Error) -> kube::Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error),
    }
}

fn classes(client: &Client) -> Api<DynamicObject> {
    Api::all_with(
        client.clone(),
        &resource(GROUP, "GatewayClass", "gatewayclasses"),
    )
}

fn children(client: &Client, plural: &str, of: Option<&Key>) -> Api<DynamicObject> {
    let resource = match plural {
        "deployments" => resource("apps", "Deployment", plural),
        "services" => resource("", "Service", plural),
        _ => resource("", "ServiceAccount", plural),
    };
    match of {
        Some(key) => Api::namespaced_with(client.clone(), &key.namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

fn resource(group: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = if group.is_empty() {
        "v1".to_owned()
    } else {
        format!("{group}/v1")
    };
    ApiResource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}
