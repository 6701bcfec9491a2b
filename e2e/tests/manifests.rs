//! What is installed: who may call whom, what the controller may write, and how many there are of it.

#[path = "manifests/admission.rs"]
mod admission;
#[path = "manifests/joining.rs"]
mod joining;
#[path = "manifests/network.rs"]
mod network;

use anyhow::{Context as _, Result, ensure};
use e2e::mesh::{SYSTEM_NAMESPACE, rendered};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use serde::de::DeserializeOwned;
use serde_json::Value;

use network::{End, admits};

const CONTROLLER: &[(&str, &str)] = &[("app.kubernetes.io/name", "ambit-controller")];
const ZTUNNEL: &[(&str, &str)] = &[("app.kubernetes.io/name", "ztunnel")];
const WAYPOINT: &[(&str, &str)] = &[("gateway.istio.io/managed", "ambit.mesh-waypoint-controller")];
const NOBODY: &[(&str, &str)] = &[];

/// Who connects: namespace (none: an address that is no pod's), labels, address.
type From = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static str,
);

const POD: From = ("shop", &[("app", "web")], "10.244.1.7");
const NODE_PROXY: From = (SYSTEM_NAMESPACE, ZTUNNEL, "10.244.1.8");
/// The label alone does not make one.
const LIKE_A_NODE_PROXY: From = ("shop", ZTUNNEL, "10.244.1.9");
const OF_A_GATEWAY: From = ("shop", WAYPOINT, "10.244.2.9");
const SCRAPER: From = ("observability", NOBODY, "10.244.2.10");
const SCRAPER_BY_DEFAULT: From = ("monitoring", NOBODY, "10.244.2.10");
const SCRAPER_ON_A_HOST: From = ("", NOBODY, "172.18.0.10");
const A_NODE: From = ("", NOBODY, "172.18.0.2");
const A_NODE_IPV6: From = ("", NOBODY, "fd00:172:18::2");
const OUTSIDE: From = ("", NOBODY, "192.0.2.1");
const OUTSIDE_IPV6: From = ("", NOBODY, "2001:db8::1");

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn network_policies_let_in_who_is_meant() -> Result<()> {
    let local: Vec<(From, &[i32])> = vec![
        (POD, &[]),
        (NODE_PROXY, &[15012]),
        (LIKE_A_NODE_PROXY, &[]),
        (OF_A_GATEWAY, &[15012]),
        (SCRAPER, &[15020]),
        (SCRAPER_BY_DEFAULT, &[]),
        (SCRAPER_ON_A_HOST, &[15020, 15021]),
        (A_NODE, &[15021]),
        (A_NODE_IPV6, &[15021]),
        (OUTSIDE, &[]),
        (OUTSIDE_IPV6, &[]),
    ];
    let default: Vec<(From, &[i32])> = vec![
        (POD, &[]),
        (NODE_PROXY, &[15012]),
        (OF_A_GATEWAY, &[15012]),
        (SCRAPER, &[]),
        (SCRAPER_BY_DEFAULT, &[15020]),
        (SCRAPER_ON_A_HOST, &[]),
        (A_NODE, &[]),
        (A_NODE_IPV6, &[]),
        (OUTSIDE, &[]),
        (OUTSIDE_IPV6, &[]),
    ];
    for (folder, table) in [("manifests/local", local), ("manifests", default)] {
        let policies: Vec<NetworkPolicy> = kind(&rendered(folder)?, "NetworkPolicy")?;
        ensure!(policies.len() == 2, "{folder}: {}", policies.len());
        for (from, open) in table {
            for (to, open) in [
                (CONTROLLER, open.to_vec()),
                // Nobody asks a node proxy's own pod for discovery.
                (
                    ZTUNNEL,
                    open.iter().copied().filter(|p| *p != 15012).collect(),
                ),
            ] {
                for port in [15000, 15008, 15012, 15020, 15021] {
                    let (from, to) = (end(from)?, end((SYSTEM_NAMESPACE, to, "10.244.1.2"))?);
                    let admitted = admits(&policies, &from, &to, port)?;
                    ensure!(
                        admitted == open.contains(&port),
                        "{folder}: {} {:?} {} to port {port} of {:?}: admitted: {admitted}",
                        from.namespace,
                        from.labels,
                        from.ip,
                        to.labels
                    );
                }
            }
        }
        // Others' pods are others' business.
        ensure!(admits(&policies, &end(OUTSIDE)?, &end(POD)?, 80)?);
    }
    Ok(())
}

#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn two_controllers_and_never_fewer_than_one() -> Result<()> {
    let all = rendered("manifests")?;
    let deployments: Vec<Deployment> = kind(&all, "Deployment")?;
    let spec = deployments[0].spec.clone().context("no spec")?;
    ensure!(spec.replicas == Some(2), "{:?}", spec.replicas);
    let rolling = spec.strategy.and_then(|strategy| strategy.rolling_update);
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable);
    ensure!(
        unavailable == Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0)),
        "a roll may take {unavailable:?} away"
    );
    let pod = spec.template.spec.context("no pod")?;
    let spread = pod.topology_spread_constraints.unwrap_or_default();
    let over: Vec<_> = spread.iter().map(|one| &*one.topology_key).collect();
    // A second key that nodes lack, as zones may be, would switch off the first one, too.
    ensure!(over == ["kubernetes.io/hostname"], "{over:?}");
    ensure!(
        spread
            .iter()
            .all(|one| one.when_unsatisfiable == "ScheduleAnyway")
    );
    let apart = pod.affinity.and_then(|all| all.pod_anti_affinity);
    let apart = apart.and_then(|all| all.preferred_during_scheduling_ignored_during_execution);
    let over: Vec<_> = apart
        .iter()
        .flatten()
        .map(|one| &*one.pod_affinity_term.topology_key)
        .collect();
    ensure!(over == ["topology.kubernetes.io/zone"], "{over:?}");
    let budgets: Vec<PodDisruptionBudget> = kind(&all, "PodDisruptionBudget")?;
    let budget = budgets.into_iter().next().context("no budget")?;
    let selector = budget
        .spec
        .and_then(|spec| spec.selector)
        .context("no selector")?;
    let labels = spec
        .template
        .metadata
        .and_then(|meta| meta.labels)
        .unwrap_or_default();
    ensure!(
        selector
            .match_labels
            .iter()
            .flatten()
            .all(|(key, value)| labels.get(key) == Some(value)),
        "the budget is about other pods"
    );
    Ok(())
}

/// No wildcard, and nothing that would be worth stealing a token for beyond what each rule's comment says.
#[tokio::test]
#[ignore = "needs the cluster: make e2e"]
async fn rights_are_few() -> Result<()> {
    let all = rendered("manifests")?;
    let roles: Vec<Role> = kind(&all, "Role")?;
    let cluster_roles: Vec<ClusterRole> = kind(&all, "ClusterRole")?;
    let namespaced = roles
        .into_iter()
        .flat_map(|role| role.rules.unwrap_or_default());
    let everywhere = cluster_roles
        .into_iter()
        .flat_map(|role| role.rules.unwrap_or_default());
    let mut seen = 0;
    for (everywhere, rule) in namespaced
        .map(|rule| (false, rule))
        .chain(everywhere.map(|rule| (true, rule)))
    {
        seen += 1;
        let resources = rule.resources.clone().unwrap_or_default();
        for word in [
            &rule.verbs,
            &resources,
            &rule.api_groups.clone().unwrap_or_default(),
        ] {
            ensure!(!word.iter().any(|one| one == "*"), "{rule:?}");
        }
        let forbidden = ["impersonate", "escalate", "bind", "deletecollection"];
        ensure!(
            !rule.verbs.iter().any(|verb| forbidden.contains(&&**verb)),
            "{rule:?}"
        );
        let forbidden = [
            "pods/exec",
            "serviceaccounts/token",
            "nodes/proxy",
            "pods/portforward",
        ];
        ensure!(
            !resources.iter().any(|one| forbidden.contains(&&**one)),
            "{rule:?}"
        );
        let secrets = resources.iter().any(|one| one == "secrets");
        let named = rule
            .resource_names
            .as_ref()
            .is_some_and(|names| !names.is_empty());
        ensure!(
            !secrets || (!everywhere && (named || rule.verbs == ["create"])),
            "Secrets beyond our own: {rule:?}"
        );
    }
    ensure!(seen > 10, "only {seen} rules");
    Ok(())
}

/// The objects of one kind, of a rendered folder.
fn kind<K: DeserializeOwned>(all: &[Value], kind: &str) -> Result<Vec<K>> {
    let these = all.iter().filter(|object| object["kind"] == kind);
    let these: Vec<K> = these
        .map(|object| serde_json::from_value(object.clone()).context("reading an object"))
        .collect::<Result<_>>()?;
    ensure!(!these.is_empty(), "no {kind}");
    Ok(these)
}

fn end((namespace, labels, ip): From) -> Result<End<'static>> {
    Ok(End {
        namespace,
        labels,
        ip: ip.parse()?,
    })
}
