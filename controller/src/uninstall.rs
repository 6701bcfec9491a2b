//! `kubectl delete -k manifests`: keeps the controller's identity and rights until nothing of the mesh is left.
//!
//! Everything that is installed is deleted at once, also what lets the controller clean up. So a running controller keeps
//! * a finalizer on its ServiceAccount, which then stays until the controller takes it off: the last thing it does;
//! * a copy of its ClusterRole and a binding to it, owned by its namespace. Nobody deletes them by name; Kubernetes'
//!   garbage collector does, when the namespace is gone, which is when the ServiceAccount in it is.
//!
//! Assumptions: the API server accepts the token of a service account that is being deleted for a minute, and the
//! controller's pod has as long to end.
//!
//! Caveats: if no controller runs when the mesh is deleted, nobody takes the finalizer off; `manifests/README.md` says how.

pub mod withdraw;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource as _, ResourceExt};
use serde_json::{Value, json};

use crate::reconcile::FIELD_MANAGER;

/// What holds the ServiceAccount back.
pub const FINALIZER: &str = "ambit.mesh/uninstall";
/// How often the account is let go before it is left to people.
const ATTEMPTS: usize = 5;
/// What is tried again is tried after this.
const RETRY: Duration = Duration::from_secs(1);
/// So many looks at the account in a row say that this replica's token is nobody's: then the account is gone. Fewer may be
/// an API server that starts.
const NOBODYS_LOOKS: usize = 3;
/// So many looks in a row that do not find the namespace say that it is gone, likewise.
const ABSENT_LOOKS: usize = 3;
/// So many looks in a row at an account that goes while its namespace stays say that somebody deleted it alone.
const GOES_ALONE_LOOKS: usize = 2;
/// How often identity and rights are looked after: so long after somebody took them away an uninstallation may hang.
const RESYNC: Duration = Duration::from_secs(15);
const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// The controller's own objects.
#[derive(Clone)]
pub struct Installation {
    client: Client,
    namespace: String,
    name: String,
}

/// What identity and rights are after a look.
#[derive(Debug, PartialEq, Eq)]
enum Kept {
    /// Kept; or the mesh is being deleted.
    All,
    /// The account is being deleted, the namespace is not.
    AccountGoes,
}

/// What one look at the namespace says.
#[derive(Debug, PartialEq, Eq)]
enum Presence {
    /// It is there; or nothing can be said.
    There,
    Going,
    Absent,
}

/// What one look at the account says.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It is gone, or nothing of ours holds it back.
    Released,
    /// It is held back; or nothing can be said, because the API server has trouble.
    Held,
    /// Our token is nobody's.
    Nobodys,
    /// We may not look.
    Forbidden,
}

// === impl Installation ===

impl Installation {
    /// The ServiceAccount and the ClusterRole have this name.
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

    fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }

    /// Keeps identity and rights, now and whenever someone takes them away. An account that is deleted alone is let go:
    /// it could not come again before.
    pub async fn guard(self) {
        let mut alone = 0;
        loop {
            let kept = self.keep().await;
            alone = match kept {
                Ok(Kept::AccountGoes) => alone + 1,
                _ => 0,
            };
            if alone == GOES_ALONE_LOOKS {
                tracing::error!(
                    "ServiceAccount {}/{} was deleted and the mesh was not: apply the manifests again, then restart the controller",
                    self.namespace,
                    self.name
                );
            }
            if alone >= GOES_ALONE_LOOKS {
                self.release(&self.client).await;
            }
            let pause = match kept {
                Ok(_) => RESYNC,
                Err(error) => {
                    tracing::warn!(%error, "uninstalling would leave traces: identity and rights are not kept");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Rights first: an account that is held back and may do nothing could never be let go.
    async fn keep(&self) -> kube::Result<Kept> {
        let namespace = self.namespaces().get(&self.namespace).await?;
        if namespace.meta().deletion_timestamp.is_some() {
            return Ok(Kept::All);
        }
        let roles: Api<ClusterRole> = Api::all(self.client.clone());
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let rules = json!(roles.get(&self.name).await?.rules);
        let copy = format!("{}-uninstall", self.name);
        let how = PatchParams::apply(FIELD_MANAGER).force();
        let role = copied_role(&copy, &namespace, &rules);
        roles.patch(&copy, &how, &Patch::Apply(&role)).await?;
        let binding = copied_binding(&copy, &namespace, &self.name);
        bindings.patch(&copy, &how, &Patch::Apply(&binding)).await?;
        self.hold().await
    }

    async fn hold(&self) -> kube::Result<Kept> {
        let Some(account) = self.accounts().get_metadata_opt(&self.name).await? else {
            return Ok(Kept::All);
        };
        if account.meta().deletion_timestamp.is_some() {
            return Ok(Kept::AccountGoes);
        }
        if held(&account) {
            return Ok(Kept::All);
        }
        let all = account
            .finalizers()
            .iter()
            .map(String::as_str)
            .chain([FINALIZER])
            .collect::<Vec<_>>();
        self.set_finalizers(&self.accounts(), &all, account.resource_version())
            .await?;
        Ok(Kept::All)
    }

    /// Whether the mesh is being deleted, rather than the controller restarted or stopped for a while: its namespace goes,
    /// or is not there however often it is looked for. What cannot be asked says nothing; nor does the account, which
    /// somebody may have deleted alone.
    pub async fn leaving(&self) -> bool {
        for look in 1..=ABSENT_LOOKS {
            match presence(&self.namespaces().get_opt(&self.namespace).await) {
                Presence::Going => return true,
                Presence::There => return false,
                Presence::Absent if look == ABSENT_LOOKS => return true,
                Presence::Absent => tokio::time::sleep(RETRY).await,
            }
        }
        false
    }

    /// Waits until the account has been let go, by whichever replica.
    pub async fn released(&self, poll: Duration) {
        let mut nobodys = 0;
        loop {
            match look(&self.accounts().get_metadata_opt(&self.name).await) {
                Look::Released => return,
                Look::Nobodys => nobodys += 1,
                // Rights that are missing say nothing of the account, unless nothing is left that it could belong to.
                Look::Forbidden if self.gone().await => return,
                Look::Forbidden | Look::Held => nobodys = 0,
            }
            if nobodys == NOBODYS_LOOKS {
                return;
            }
            tokio::time::sleep(poll).await;
        }
    }

    /// Whether the mesh's namespace is known not to be there.
    async fn gone(&self) -> bool {
        let namespace = self.namespaces().get_metadata_opt(&self.namespace).await;
        matches!(namespace, Ok(None))
    }

    /// Lets the account go. What follows needs no rights. `client` is the leader's.
    pub async fn release(&self, client: &Client) {
        for attempt in 1..=ATTEMPTS {
            match self.let_go(client).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(%error, attempt, "the finalizer {FINALIZER} cannot be taken off");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn let_go(&self, client: &Client) -> kube::Result<()> {
        let Some(account) = self.accounts().get_metadata_opt(&self.name).await? else {
            return Ok(());
        };
        if !held(&account) {
            return Ok(());
        }
        let rest: Vec<&str> = account
            .finalizers()
            .iter()
            .map(String::as_str)
            .filter(|one| *one != FINALIZER)
            .collect();
        let accounts = Api::namespaced(client.clone(), &self.namespace);
        self.set_finalizers(&accounts, &rest, account.resource_version())
            .await
    }

    async fn set_finalizers(
        &self,
        accounts: &Api<ServiceAccount>,
        all: &[&str],
        version: Option<String>,
    ) -> kube::Result<()> {
        let patch = json!({"metadata": {"finalizers": all, "resourceVersion": version}});
        accounts
            .patch_metadata(&self.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(drop)
    }
}

/// Decides what the answer says.
fn look(account: &kube::Result<Option<PartialObjectMeta<ServiceAccount>>>) -> Look {
    match account {
        Ok(Some(account)) if held(account) => Look::Held,
        Ok(_) => Look::Released,
        Err(kube::Error::Api(status)) if status.code == 401 => Look::Nobodys,
        Err(kube::Error::Api(status)) if status.code == 403 => Look::Forbidden,
        Err(_) => Look::Held,
    }
}

fn copied_role(name: &str, namespace: &Namespace, rules: &Value) -> Value {
    json!({
        "apiVersion": RBAC,
        "kind": "ClusterRole",
        "metadata": metadata(name, namespace),
        "rules": rules,
    })
}

fn copied_binding(name: &str, namespace: &Namespace, account: &str) -> Value {
    json!({
        "apiVersion": RBAC,
        "kind": "ClusterRoleBinding",
        "metadata": metadata(name, namespace),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace.name_any()}],
    })
}

/// Owned by the namespace: they go when it has gone.
fn metadata(name: &str, namespace: &Namespace) -> Value {
    let owner = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "name": namespace.name_any(),
        "uid": namespace.uid().unwrap_or_default(),
    });
    json!({
        "name": name,
        "labels": {"app.kubernetes.io/part-of": "ambit", "app.kubernetes.io/managed-by": "ambit"},
        "ownerReferences": [owner],
    })
}

fn held(account: &PartialObjectMeta<ServiceAccount>) -> bool {
    account.finalizers().iter().any(|one| one == FINALIZER)
}

/// Decides what the answer says.
fn presence(namespace: &kube::Result<Option<Namespace>>) -> Presence {
    match namespace {
        Ok(None) => Presence::Absent,
        Ok(Some(namespace)) if namespace.meta().deletion_timestamp.is_some() => Presence::Going,
        Ok(Some(_)) | Err(_) => Presence::There,
    }
}
