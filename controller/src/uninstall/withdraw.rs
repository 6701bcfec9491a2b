//! Takes everything back that was made in the cluster, once the mesh is being deleted; the replica that leads does.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Client;
use kube::api::{Api, ListParams};
use kube::core::ObjectMeta;
use mesh::xds::client::BACK_WITHIN;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Installation;
use crate::ca::roots::CONFIG_MAP;
use crate::hub::IndexState;
use crate::index::names::{CLASSES, CONTROLLER_NAME, Key, MANAGED, MANAGED_BY_US};
use crate::index::placement::NodeProxyRule;
use crate::lease::Term;
use crate::reconcile::classes;
use crate::reconcile::outcome::Outcome;
use crate::reconcile::roots;
use crate::reconcile::waypoint::{delete, owner};
use crate::waypoint::child::CHILDREN;

/// How long statuses may take to be taken back before the rest is.
const STATUSES: Duration = Duration::from_secs(20);
/// Nodes hear of it on their streams. Those that have none at the moment, also after a long outage, come back within
/// [`BACK_WITHIN`]; the rest is for the word itself.
pub const NODES_HEAR: Duration = BACK_WITHIN.saturating_add(Duration::from_secs(2));
/// How often is looked whether another replica that leads is done, or all node proxies have ended.
const POLL: Duration = Duration::from_secs(1);
/// What could not be taken back is tried again after this ...
const AGAIN: Duration = Duration::from_secs(1);
/// ... and so often; then it is left to people.
const ATTEMPTS: usize = 10;
/// Deletions at once.
const AT_ONCE: usize = 16;
/// Objects asked for at once.
const PAGE: u32 = 500;

/// Cleans up, once.
pub struct Uninstaller {
    /// Writes only while this replica leads.
    pub client: Client,
    /// What holds the controller back until all is done, if it runs in the cluster.
    pub installation: Option<Installation>,
    /// Says when the mesh is being deleted.
    pub state: watch::Receiver<IndexState>,
    /// Whether this replica does it.
    pub term: Term,
    /// Set when it is done.
    pub done: watch::Sender<bool>,
}

/// How a withdrawal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// By us.
    Done,
    /// By another replica.
    ByAnother,
    /// This replica does not lead any more.
    Superseded,
}

// === impl Uninstaller ===

impl Uninstaller {
    /// Waits for the mesh to be deleted, and cleans up.
    pub async fn run(mut self) {
        if self
            .state
            .wait_for(|state| state.uninstalling)
            .await
            .is_err()
        {
            return;
        }
        let heard = Instant::now() + NODES_HEAR;
        let ended = loop {
            match self.turn(heard).await {
                Ended::Superseded => {}
                ended => break ended,
            }
        };
        // Whoever leads may be done before this replica's nodes have heard of it.
        self.nodes_heard(heard).await;
        tracing::info!(?ended, "nothing is left");
        self.done.send_replace(true);
        // It must live: what follows is the signal.
        std::future::pending::<()>().await;
    }

    async fn turn(&mut self, heard: Instant) -> Ended {
        if !self.term.leads() {
            let released = async {
                match &self.installation {
                    Some(installation) => installation.released(POLL).await,
                    None => std::future::pending().await,
                }
            };
            return tokio::select! {
                () = released => Ended::ByAnother,
                () = self.term.changed() => Ended::Superseded,
            };
        }
        tracing::info!("the mesh is being deleted: withdrawing everything that was written");
        let settled = self.state.wait_for(|state| state.writes_settled);
        if !matches!(tokio::time::timeout(STATUSES, settled).await, Ok(Ok(_))) {
            tracing::error!("not every status could be withdrawn in time");
        }
        for attempt in 1..=ATTEMPTS {
            let left = remove_all(&self.client).await;
            if left == 0 {
                break;
            }
            if !self.term.leads() {
                return Ended::Superseded;
            }
            tracing::error!(left, attempt, "not everything is withdrawn");
            tokio::time::sleep(AGAIN).await;
        }
        self.nodes_heard(heard).await;
        if let Some(installation) = &self.installation {
            installation.release(&self.client).await;
        }
        Ended::Done
    }

    /// Waits until every node has heard of it, or there is no node proxy any more that could: no new pod starts in a
    /// namespace that is being deleted.
    async fn nodes_heard(&self, by: Instant) {
        let Some(installation) = &self.installation else {
            return tokio::time::sleep_until(by).await;
        };
        let none_left = async {
            while any_node_proxy(&self.client, &installation.namespace).await {
                tokio::time::sleep(POLL).await;
            }
        };
        // An error is the end of the wait.
        let _ = tokio::time::timeout_at(by, none_left).await;
    }
}

/// Whether a node proxy is left in the mesh's namespace. What cannot be asked is there.
async fn any_node_proxy(client: &Client, namespace: &str) -> bool {
    let NodeProxyRule {
        namespace, account, ..
    } = NodeProxyRule::ours(namespace);
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let theirs = format!("spec.serviceAccountName={account}");
    let one = ListParams::default().fields(&theirs).limit(1);
    match pods.list_metadata(&one).await {
        Ok(page) => !page.items.is_empty(),
        Err(error) => {
            tracing::warn!(%error, "node proxies cannot be listed: as if there were some");
            true
        }
    }
}

/// Takes back waypoints, roots and classes. Says how many are left, or could not be asked for.
pub async fn remove_all(client: &Client) -> usize {
    let mut left = 0;
    let managed = ListParams::default().labels(&format!("{MANAGED}={MANAGED_BY_US}"));
    for child in CHILDREN {
        let objects = match list(&child.all(client), managed.clone()).await {
            Ok(objects) => objects,
            Err(error) => {
                tracing::error!(kind = child.kind(), %error, "what was made cannot be listed");
                left += 1;
                continue;
            }
        };
        let deleted = stream::iter(objects).map(|object| async move {
            let key = Key::of(&object);
            if owner(&object).is_none() {
                tracing::warn!(
                    kind = child.kind(),
                    object = %key,
                    "left alone: it has our label and is not owned by a Gateway"
                );
                return 0;
            }
            let outcome = delete(&child.of(client, &key), &object).await;
            remains(&outcome, child.kind(), &key)
        });
        left += sum(deleted).await;
    }
    left + remove_roots(client).await + remove_classes(client).await
}

async fn remove_roots(client: &Client) -> usize {
    let named = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let maps = match list(&Api::<ConfigMap>::all(client.clone()), named).await {
        Ok(maps) => maps,
        Err(error) => {
            tracing::error!(%error, "roots cannot be listed");
            return 1;
        }
    };
    let withdrawn = stream::iter(maps).map(|map| async move {
        let key = Key::of(&map);
        let outcome = roots::withdraw(client, &key.namespace).await;
        remains(&outcome, "ConfigMap", &key)
    });
    sum(withdrawn).await
}

async fn remove_classes(client: &Client) -> usize {
    let classes = classes(client);
    let mut left = 0;
    for name in CLASSES {
        let class = match classes.get_opt(name).await {
            Ok(Some(class)) => class,
            Ok(None) => continue,
            // Gateway API is not installed, or is not any more.
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => {
                left += remains(&error.into(), "GatewayClass", &Key::new("", name));
                continue;
            }
        };
        if class.data["spec"]["controllerName"] == CONTROLLER_NAME {
            let outcome = delete(&classes, &class.metadata).await;
            left += remains(&outcome, "GatewayClass", &Key::new("", name));
        }
    }
    left
}

/// Those of a kind, page by page.
async fn list<K>(api: &Api<K>, mut params: ListParams) -> kube::Result<Vec<ObjectMeta>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    params.limit = Some(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list_metadata(&params).await?;
        all.extend(page.items.into_iter().map(|object| object.metadata));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

fn remains(outcome: &Outcome, kind: &str, key: &Key) -> usize {
    let Outcome::Failed(error) = outcome else {
        return 0;
    };
    tracing::error!(kind, object = %key, %error, "it cannot be withdrawn");
    1
}

async fn sum<S>(deletions: S) -> usize
where
    S: StreamExt,
    S::Item: Future<Output = usize>,
{
    deletions
        .buffer_unordered(AT_ONCE)
        .fold(0, |sum, one| std::future::ready(sum + one))
        .await
}
