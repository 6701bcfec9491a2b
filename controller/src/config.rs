//! The controller's configuration: arguments or environment, read once before anything starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use mesh::names::Network;

use crate::ca::authorize::Rules;
use crate::index::Settings;
use crate::index::placement::NodeProxyRule;

/// The control plane of the mesh.
#[derive(Debug, Clone, Parser)]
#[command(name = "controller", version)]
pub struct Config {
    /// Where discovery and certificates are served.
    #[arg(long, env = "LISTEN", default_value = "[::]:15012")]
    pub listen: SocketAddr,
    /// Where metrics and state are served.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "[::]:15020")]
    pub admin_listen: SocketAddr,
    /// Where readiness is served.
    #[arg(long, env = "READY_LISTEN", default_value = "[::]:15021")]
    pub ready_listen: SocketAddr,
    /// The namespace of the controller: its Secret, its proxies.
    #[arg(long, env = "POD_NAMESPACE", default_value = "ambit-system")]
    pub namespace: String,
    /// The controller's pod, for Events.
    #[arg(long, env = "POD_NAME", default_value = "ambit-controller")]
    pub pod_name: String,
    /// The name of the controller's ServiceAccount and ClusterRole, if it runs in the cluster:
    /// `kubectl delete` then waits until the controller has cleaned up.
    #[arg(long, env = "INSTALLED_AS")]
    pub installed_as: Option<String>,
    /// The trust domain of every identity.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: hbone::TrustDomain,
    /// The domain of service names.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The cluster's name in UIDs.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The name of the network in which pods and Services have their addresses; empty: it has none. Node proxies need the
    /// same.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Namespaces whose pods are never enrolled.
    #[arg(
        long,
        env = "EXCLUDED_NAMESPACES",
        default_value = "kube-system",
        value_delimiter = ','
    )]
    pub excluded_namespaces: Vec<String>,
    /// Node proxies beside our own: pods that see their node's pods and ask for certificates on their behalf.
    /// `namespace/account`, or `namespace/account/Kind/name` of what owns them.
    #[arg(long, env = "TRUSTED_NODE_PROXIES", value_delimiter = ',')]
    pub trusted_node_proxies: Vec<NodeProxyRule>,
    /// Sign for every pod its own identity, not only for waypoints: for sidecars and for clients that speak HBONE themselves.
    #[arg(long, env = "ALLOW_SELF_ISSUE", default_value_t = false)]
    pub allow_self_issue: bool,
    /// Prefixes (`example.com/`) of labels and annotations that a Gateway may pass on to its waypoint, beside those without
    /// any prefix, `app.kubernetes.io/` and `prometheus.io/`.
    #[arg(long, env = "GATEWAY_METADATA_PREFIXES", value_delimiter = ',')]
    pub gateway_metadata_prefixes: Vec<String>,
    /// Let pods of the mesh speak plaintext to a pod that is to be in the mesh and that its node has not got there. Without
    /// it they refuse to, and say so.
    #[arg(long, env = "PLAINTEXT_TO_AWAITED", default_value_t = false)]
    pub plaintext_to_awaited: bool,
    /// Keep pods from a node that joins, by the taint `ambit.mesh/not-ready`, until its ztunnel serves it.
    #[arg(long, env = "TAINT_JOINING_NODES", default_value_t = true, action = clap::ArgAction::Set)]
    pub taint_joining_nodes: bool,
    /// Names under which proxies may look for the controller, beside those of its own Service.
    #[arg(long, env = "SERVER_NAMES", value_delimiter = ',')]
    pub server_names: Vec<String>,
    /// The image of the waypoints.
    #[arg(
        long,
        env = "AMBIT_WAYPOINT_IMAGE",
        default_value = "ghcr.io/ambit-mesh/waypoint:latest"
    )]
    pub waypoint_image: String,
    /// When it is pulled.
    #[arg(
        long,
        env = "AMBIT_WAYPOINT_PULL_POLICY",
        default_value = "IfNotPresent"
    )]
    pub waypoint_pull_policy: String,
    /// The file of certificate revocation lists, in PEM; published for waypoints beside the roots.
    #[arg(long, env = "CRL_PATH")]
    pub revocations: Option<PathBuf>,
    /// Where waypoints find the controller.
    #[arg(long, env = "XDS_ADDRESS")]
    pub xds_address: Option<String>,
    /// `text` or `json`.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: mesh::process::telemetry::LogFormat,
    /// What is logged.
    #[arg(
        long,
        env = "RUST_LOG",
        default_value = "info,kube_client=warn,tower=warn"
    )]
    pub log_filter: String,
}

/// The name of the controller's Service.
pub const SERVICE: &str = "ambit-controller";
/// The port of discovery and certificates.
pub const PORT: u16 = 15012;

// === impl Config ===

impl Config {
    /// For the index.
    pub fn settings(&self) -> Settings {
        Settings {
            trust_domain: self.trust_domain.as_str().to_owned(),
            cluster_domain: self.cluster_domain.clone(),
            cluster_id: self.cluster_id.as_str().into(),
            network: self.network(),
            excluded_namespaces: self.excluded_namespaces.clone(),
            system_namespace: self.namespace.clone(),
            node_proxies: self.node_proxies(),
            passed_on_prefixes: self.gateway_metadata_prefixes.clone(),
            taint_joining_nodes: self.taint_joining_nodes,
            plaintext_to_awaited: self.plaintext_to_awaited,
        }
    }

    /// The network of the cluster's addresses.
    pub fn network(&self) -> Network {
        self.network.as_str().into()
    }

    /// For certificates.
    pub fn rules(&self) -> Rules {
        Rules {
            trust_domain: self.trust_domain.clone(),
            allow_self_issue: self.allow_self_issue,
        }
    }

    /// Which pods are node proxies: ours, and those that were named.
    pub fn node_proxies(&self) -> Vec<NodeProxyRule> {
        std::iter::once(NodeProxyRule::ours(&self.namespace))
            .chain(self.trusted_node_proxies.iter().cloned())
            .collect()
    }

    /// The names in the server's certificate. Proxies made for other control planes look for `istiod`.
    pub fn dns_names(&self) -> Vec<String> {
        let namespace = &self.namespace;
        let ours = [
            SERVICE.to_owned(),
            format!("{SERVICE}.{namespace}"),
            format!("{SERVICE}.{namespace}.svc"),
            format!("{SERVICE}.{namespace}.svc.{}", self.cluster_domain),
            "istiod.istio-system.svc".to_owned(),
            format!("istiod.{namespace}.svc"),
            "localhost".to_owned(),
        ];
        ours.into_iter()
            .chain(
                self.server_names
                    .iter()
                    .filter(|name| !name.is_empty())
                    .cloned(),
            )
            .collect()
    }

    /// Where waypoints find the controller.
    pub fn xds_address(&self) -> String {
        self.xds_address
            .clone()
            .unwrap_or_else(|| format!("{SERVICE}.{}.svc:{PORT}", self.namespace))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn with(arguments: &[&str]) -> Result<Config, clap::Error> {
        Config::try_parse_from(["controller"].iter().chain(arguments))
    }

    #[test]
    fn ours_are_node_proxies_and_whoever_is_named() {
        let config = with(&[]).expect("the defaults");
        let ours = NodeProxyRule::ours("ambit-system");
        assert_eq!(config.node_proxies(), config.settings().node_proxies);
        assert_eq!(config.node_proxies(), std::slice::from_ref(&ours));
        assert!(!config.rules().allow_self_issue);

        let config = with(&["--trusted-node-proxies=istio-system/ztunnel,a/b/DaemonSet/c"]);
        let named = config.expect("two rules").settings().node_proxies;
        let parse = |rule: &str| -> NodeProxyRule { rule.parse().expect("a rule") };
        let others = [parse("istio-system/ztunnel"), parse("a/b/DaemonSet/c")];
        assert_eq!(named, [&[ours], &others[..]].concat());

        // One bad rule, and nothing starts.
        for bad in ["a/b,c", "a/b/DaemonSet"] {
            let refused = with(&[&format!("--trusted-node-proxies={bad}")]);
            assert!(refused.is_err(), "{bad}");
        }
    }

    #[test]
    fn who_may_have_a_certificate_is_as_it_was_set() {
        let config = with(&["--allow-self-issue", "--trust-domain=example.org"]);
        let rules = config.expect("read").rules();
        assert!(rules.allow_self_issue);
        assert_eq!(rules.trust_domain.as_str(), "example.org");
    }

    #[test]
    fn what_is_dangerous_is_set_under_the_names_of_the_manual() {
        let command = Config::command();
        for (argument, variable) in [
            ("trusted_node_proxies", "TRUSTED_NODE_PROXIES"),
            ("allow_self_issue", "ALLOW_SELF_ISSUE"),
        ] {
            let mut all = command.get_arguments();
            let found = all.find(|one| one.get_id() == argument);
            let env = found.and_then(clap::Arg::get_env);
            assert_eq!(env, Some(variable.as_ref()), "{argument}");
        }
    }

    #[test]
    fn the_network_has_no_name_unless_it_is_given_one() {
        let settings = |arguments: &[&str]| {
            let config = Config::try_parse_from(arguments).expect("readable");
            config.settings()
        };
        assert_eq!(settings(&["controller"]).network, Network::default());
        let named = settings(&["controller", "--network", "east"]);
        assert_eq!(named.network, Network::from("east"));
    }
}
