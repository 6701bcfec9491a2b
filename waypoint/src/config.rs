//! What the process is told by its environment; read once, whole, before any socket is opened.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hbone::{SpiffeId, TrustDomain};
use mesh::names::{CLUSTER_DOMAIN, Network, ServiceName};
use mesh::process::telemetry::LogFormat;

/// More threads than this are a mistake.
const MAX_THREADS: usize = 256;

/// The controller's address where none is given.
const CONTROLLER: &str = "ambit-controller.ambit-system.svc:15012";

/// All that the process must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `POD_NAME`
    pub pod: String,
    /// `POD_NAMESPACE`
    pub namespace: String,
    /// `NODE_NAME`
    pub node: String,
    /// `POD_IP`
    pub ip: IpAddr,
    /// `GATEWAY_NAME`: the Gateway this waypoint stands for, and the name of its service.
    pub gateway: String,
    /// This waypoint's identity: of `SERVICE_ACCOUNT` (the gateway's name), in `TRUST_DOMAIN` (cluster.local).
    pub id: SpiffeId,
    /// `TRUST_DOMAIN`
    pub trust_domain: TrustDomain,
    /// `CLUSTER_ID` (Kubernetes)
    pub cluster: String,
    /// `NETWORK` (empty): the network whose addresses this waypoint can dial.
    pub network: Network,
    /// `CLUSTER_DOMAIN` (cluster.local)
    pub cluster_domain: String,
    /// `XDS_ADDRESS`
    pub xds_address: String,
    /// `CA_ADDRESS`; the same as `XDS_ADDRESS` where not given.
    pub ca_address: String,
    /// `XDS_ROOT_CA`: who the controller must be.
    pub root: PathBuf,
    /// `AUTH_TOKEN`: who we are to the controller.
    pub token: PathBuf,
    /// `CRL_PATH` (none): the file of revocation lists, in PEM. Where it does not exist, nobody is revoked.
    pub revocations: Option<PathBuf>,
    /// `WAYPOINT_WORKER_THREADS`; as many as there are processors.
    pub threads: usize,
    /// `TERMINATION_GRACE_PERIOD_SECONDS` (30) less 5: how long running requests may take after SIGTERM.
    pub drain: Duration,
    /// `LOG_FORMAT`: `text` or `json`.
    pub log_format: LogFormat,
    /// `RUST_LOG` (info)
    pub log_filter: String,
}

/// Why the environment cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// It must be set.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// It cannot be what it should be.
    #[error("{name}={value:?} is not valid: {reason}")]
    Value {
        /// The variable.
        name: &'static str,
        /// What it is set to.
        value: String,
        /// Why not.
        reason: String,
    },
}

struct Environment<'a>(&'a HashMap<String, String>);

// === impl Config ===

impl Config {
    /// Reads the environment; nothing is used where something is wrong.
    pub fn from_env(variables: &HashMap<String, String>) -> Result<Self, InvalidConfig> {
        let env = Environment(variables);
        let namespace = env.required("POD_NAMESPACE")?;
        let gateway = env.required("GATEWAY_NAME")?;
        let trust_domain = env.parsed("TRUST_DOMAIN", TrustDomain::default())?;
        let account = env.or("SERVICE_ACCOUNT", &gateway);
        let id = SpiffeId::for_service_account(&trust_domain, &namespace, &account)
            .map_err(|error| invalid("SERVICE_ACCOUNT", &account, error))?;
        let xds_address = env.or("XDS_ADDRESS", CONTROLLER);
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = env.parsed("WAYPOINT_WORKER_THREADS", processors)?;
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(invalid(
                "WAYPOINT_WORKER_THREADS",
                &threads.to_string(),
                "not between 1 and 256",
            ));
        }
        let grace: u64 = env.parsed("TERMINATION_GRACE_PERIOD_SECONDS", 30)?;
        let config = Self {
            pod: env.required("POD_NAME")?,
            node: env.required("NODE_NAME")?,
            ip: env.required("POD_IP").and_then(|ip| parse("POD_IP", &ip))?,
            cluster: env.or("CLUSTER_ID", "Kubernetes"),
            network: env.or("NETWORK", "").as_str().into(),
            cluster_domain: env.or("CLUSTER_DOMAIN", CLUSTER_DOMAIN),
            ca_address: env.or("CA_ADDRESS", &xds_address),
            root: env
                .or("XDS_ROOT_CA", "/var/run/secrets/ambit/root/root-cert.pem")
                .into(),
            token: env
                .or("AUTH_TOKEN", "/var/run/secrets/tokens/istio-token")
                .into(),
            revocations: env.get("CRL_PATH").map(PathBuf::from),
            drain: Duration::from_secs(grace.saturating_sub(5).max(1)),
            log_format: env.parsed("LOG_FORMAT", LogFormat::default())?,
            log_filter: env.or("RUST_LOG", "info"),
            namespace,
            gateway,
            id,
            trust_domain,
            xds_address,
            threads,
        };
        config.addresses()?;
        Ok(config)
    }

    /// This waypoint's own service.
    pub fn service(&self) -> ServiceName {
        let Self {
            namespace,
            gateway,
            cluster_domain,
            ..
        } = self;
        ServiceName {
            namespace: Arc::from(namespace.as_str()),
            hostname: Arc::from(format!("{gateway}.{namespace}.svc.{cluster_domain}")),
        }
    }

    fn addresses(&self) -> Result<(), InvalidConfig> {
        for (name, address) in [
            ("XDS_ADDRESS", &self.xds_address),
            ("CA_ADDRESS", &self.ca_address),
        ] {
            let port = address
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            if !matches!(port, Some((host, Ok(1..))) if !host.is_empty()) {
                return Err(invalid(name, address, "not host:port"));
            }
        }
        Ok(())
    }
}

// === impl Environment ===

impl Environment<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<String, InvalidConfig> {
        self.get(name)
            .map(str::to_owned)
            .ok_or(InvalidConfig::Missing(name))
    }

    fn or(&self, name: &'static str, default: &str) -> String {
        self.get(name).unwrap_or(default).to_owned()
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        &self,
        name: &'static str,
        default: T,
    ) -> Result<T, InvalidConfig> {
        self.get(name)
            .map_or(Ok(default), |value| parse(name, value))
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &'static str,
    value: &str,
) -> Result<T, InvalidConfig> {
    value.parse().map_err(|error| invalid(name, value, error))
}

fn invalid(name: &'static str, value: &str, reason: impl std::fmt::Display) -> InvalidConfig {
    InvalidConfig::Value {
        name,
        value: value.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(change: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
        let all = [
            ("POD_NAME", "waypoint-1"),
            ("POD_NAMESPACE", "shop"),
            ("NODE_NAME", "node-1"),
            ("POD_IP", "10.0.0.9"),
            ("GATEWAY_NAME", "waypoint"),
        ];
        let all = all
            .iter()
            .chain(change)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::from_env(&all.collect())
    }

    #[test]
    fn what_is_not_given_has_a_default() {
        let config = env(&[]).expect("valid");
        assert_eq!(
            config.id.to_string(),
            "spiffe://cluster.local/ns/shop/sa/waypoint"
        );
        assert_eq!(
            config.service().to_string(),
            "shop/waypoint.shop.svc.cluster.local"
        );
        assert_eq!(config.ca_address, config.xds_address);
        assert_eq!(config.drain, Duration::from_secs(25));
        assert!(config.threads >= 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (("POD_IP", ""), "POD_IP is not set"),
            (("POD_IP", "here"), "POD_IP=\"here\""),
            (("TRUST_DOMAIN", "A B"), "TRUST_DOMAIN="),
            (("SERVICE_ACCOUNT", "a/b"), "SERVICE_ACCOUNT="),
            (("XDS_ADDRESS", "nowhere"), "XDS_ADDRESS=\"nowhere\""),
            (
                ("WAYPOINT_WORKER_THREADS", "0"),
                "WAYPOINT_WORKER_THREADS=\"0\"",
            ),
            (("LOG_FORMAT", "xml"), "LOG_FORMAT=\"xml\""),
        ];
        for (change, said) in cases {
            let error = env(&[change]).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
