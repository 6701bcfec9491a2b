//! The controller's replicas: which one holds the Lease, and what can befall one.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams};
use nix::sys::signal::Signal;

use crate::cluster::Cluster;
use crate::mesh::{SYSTEM_NAMESPACE, kubectl};
use crate::probe::{PodRef, eventually};

/// The Lease's name, and the Deployment's.
pub const CONTROLLER: &str = "ambit-controller";
/// Sends a signal to every process of a pod, which is found by its name in their environment.
const SIGNAL: &str = r#"
for process in /proc/[0-9]*; do
  if tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qx "POD_NAME=$1"; then
    kill "-$2" "${process#/proc/}" && found=yes
  fi
done
[ "$found" = yes ]"#;

/// One pod of the controller.
#[derive(Clone)]
pub struct Replica {
    /// The pod.
    pub pod: PodRef,
    /// The node it runs on.
    pub node: String,
    ips: Vec<IpAddr>,
}

/// Who writes, as the Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The holder's own name for itself, which begins with its pod's; empty if there is none.
    pub holder: String,
    /// How often it changed hands.
    pub transitions: i32,
}

/// The replicas that are ready and not on their way out.
pub async fn ready(client: &Client) -> Result<Vec<Replica>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/name=ambit-controller");
    let all = pods.list(&selector).await?.items;
    let usable = all.into_iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none()
            && crate::probe::has_condition(pod, "Ready", "True")
    });
    usable.map(|pod| replica(client, &pod)).collect()
}

fn replica(client: &Client, pod: &Pod) -> Result<Replica> {
    let name = pod.metadata.name.as_deref().context("a pod without name")?;
    let spec = pod.spec.as_ref().context("a pod without spec")?;
    let status = pod.status.clone().unwrap_or_default();
    let ips = status.pod_ips.unwrap_or_default();
    Ok(Replica {
        pod: PodRef::new(client, SYSTEM_NAMESPACE, name),
        node: spec.node_name.clone().context("a pod without node")?,
        ips: ips
            .iter()
            .map(|ip| ip.ip.parse().with_context(|| ip.ip.clone()))
            .collect::<Result<_>>()?,
    })
}

/// What the Lease says now.
pub async fn leadership(client: &Client) -> Result<Leadership> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let spec = leases.get(CONTROLLER).await.context("the Lease")?.spec;
    let spec = spec.unwrap_or_default();
    Ok(Leadership {
        holder: spec.holder_identity.unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or_default(),
    })
}

/// Waits until the wanted number is ready and one of them holds the Lease; that one, and the others.
pub async fn wait_led(
    client: &Client,
    count: usize,
    within: Duration,
) -> Result<(Replica, Vec<Replica>)> {
    eventually("a leader among the replicas", within, async || {
        let mut all = ready(client).await?;
        ensure!(all.len() == count, "{} are ready, not {count}", all.len());
        let holder = leadership(client).await?.holder;
        let leads = all.iter().position(|one| one.is(&holder));
        let leads = leads.with_context(|| format!("the Lease is held by {holder:?}"))?;
        let leader = all.remove(leads);
        Ok((leader, all))
    })
    .await
}

/// Has all of them replaced, one after another, and does not wait for it.
pub fn roll(cluster: &Cluster) -> Result<()> {
    let deployment = format!("deployment/{CONTROLLER}");
    let args = ["-n", SYSTEM_NAMESPACE, "rollout", "restart", &deployment];
    kubectl(cluster, &args).map(drop)
}

impl Replica {
    /// Is this the Lease's holder?
    pub fn is(&self, holder: &str) -> bool {
        holder.starts_with(self.pod.name())
    }

    /// Sends a signal to its processes; SIGSTOP and SIGCONT make it hang and go on.
    pub fn signal(&self, cluster: &Cluster, signal: Signal) -> Result<()> {
        let number = (signal as i32).to_string();
        let name = self.pod.name();
        let sent = cluster.node_exec(&self.node, &["sh", "-c", SIGNAL, "signal", name, &number]);
        sent.map(drop)
            .with_context(|| format!("{signal} to {name} on {}", self.node))
    }

    /// Cuts the way between it and the API server, silently, or mends it. Proxies still reach it.
    pub fn cut_off(&self, cluster: &Cluster, cut: bool) -> Result<()> {
        let server = cluster.api_server();
        let mut script = "table inet ambit-e2e-cut\ndelete table inet ambit-e2e-cut\n".to_owned();
        if cut {
            script += "table inet ambit-e2e-cut {\nchain forward {\n";
            script += "type filter hook forward priority -300; policy accept;\n";
            for ip in self
                .ips
                .iter()
                .filter(|ip| ip.is_ipv4() == server.is_ipv4())
            {
                let family = if ip.is_ipv4() { "ip" } else { "ip6" };
                let (server, port) = (server.ip(), server.port());
                script +=
                    &format!("{family} saddr {ip} {family} daddr {server} tcp dport {port} drop\n");
                script +=
                    &format!("{family} saddr {server} {family} daddr {ip} tcp sport {port} drop\n");
            }
            script += "}\n}\n";
        }
        let load = r#"printf '%s' "$1" | nft -f -"#;
        cluster
            .node_exec(&self.node, &["sh", "-c", load, "cut", &script])
            .map(drop)
    }

    /// Deletes its pod: at once and by force, or in good order.
    pub async fn delete(&self, by_force: bool) -> Result<()> {
        let how = if by_force {
            DeleteParams::default().grace_period(0)
        } else {
            DeleteParams::default()
        };
        self.pod.api().delete(self.pod.name(), &how).await?;
        Ok(())
    }
}
