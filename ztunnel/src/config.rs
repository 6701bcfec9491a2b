//! The program's configuration: the environment, parsed once and whole, before anything is opened.

use std::{
    collections::BTreeMap, fmt, net::IpAddr, num::NonZeroUsize, path::PathBuf, str::FromStr,
    sync::Arc, time::Duration,
};

use hbone::TrustDomain;
use mesh::{names::Network, process::telemetry::LogFormat};

/// The exit code of a program that was told nonsense (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;

/// Everything that the environment can say.
#[derive(Debug, Clone)]
pub struct Config {
    /// `NODE_NAME` (required): the Kubernetes node this ztunnel serves.
    pub node: Arc<str>,
    /// `POD_NAME` (required): ztunnel's own pod.
    pub pod_name: Arc<str>,
    /// `POD_NAMESPACE` (required): the namespace of ztunnel's own pod.
    pub pod_namespace: Arc<str>,
    /// `POD_IP` (required): the address of ztunnel's own pod.
    pub pod_ip: IpAddr,
    /// `XDS_ADDRESS` (default `ambit-controller.ambit-system.svc:15012`): where the mesh is announced, `host:port`.
    pub xds_address: String,
    /// `CA_ADDRESS` (default: `XDS_ADDRESS`): where certificates are signed, `host:port`.
    pub ca_address: String,
    /// `XDS_ROOT_CA` (default `/var/run/secrets/ambit/root/root-cert.pem`): the root that both addresses must prove.
    pub root_ca: PathBuf,
    /// `AUTH_TOKEN` (default `/var/run/secrets/tokens/istio-token`): path of the bound service-account token.
    pub token: PathBuf,
    /// `CRL_PATH` (default: none): the file of revocation lists, in PEM. Where it does not exist, nobody is revoked.
    pub revocations: Option<PathBuf>,
    /// `CLUSTER_ID` (default `Kubernetes`): the cluster's name in workload uids and metrics.
    pub cluster: Arc<str>,
    /// `NETWORK` (default: the one without a name): the network whose addresses this node's pods can dial.
    pub network: Network,
    /// `TRUST_DOMAIN` (default `cluster.local`): what the identities of this node's pods begin with.
    pub trust_domain: TrustDomain,
    /// `LOG_FORMAT` (`plain` or `json`, default `plain`).
    pub log_format: LogFormat,
    /// `RUST_LOG` (default `info`): what is logged, as tracing-subscriber's filter directives.
    pub log_filter: String,
    /// `ZTUNNEL_WORKER_THREADS`: data-plane threads, as a number, a share of the cores (`50%`) or `0` for all cores
    /// (default: a quarter of the cores, at least two, never more than there are).
    pub workers: NonZeroUsize,
    /// `TERMINATION_GRACE_PERIOD_SECONDS` (default 30): what the pod's manifest grants between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Where things lie on the node.
    pub paths: Paths,
}

/// Where things lie on the node, as this process sees it.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `CNI_SOCKET` (default `/run/ambit/cni.sock`): the socket on which the CNI plugin asks.
    pub cni_socket: PathBuf,
    /// `STATE_DIR` (default `/var/lib/ambit`): what the CNI plugin may read while ztunnel is away.
    pub state: PathBuf,
    /// `CNI_BIN_DIR` (default `/host/opt/cni/bin`): where the node keeps CNI plugins.
    pub cni_bin: PathBuf,
    /// `CNI_CONF_DIR` (default `/host/etc/cni/net.d`): where the node keeps its CNI configuration.
    pub cni_conf: PathBuf,
    /// `PROC_ROOT` (default `/proc`): the node's process table (ztunnel shares the host's PID namespace).
    pub proc: PathBuf,
}

/// Why the environment is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidConfig {
    /// A variable without a default is absent or empty.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A variable cannot be read as what it should be.
    #[error("{name}={value:?}: {reason}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with that.
        reason: String,
    },
}

// === impl Config ===

impl Config {
    /// Reads the environment given as a map, with `cores` cores to share out.
    pub fn from_env(
        env: &BTreeMap<String, String>,
        cores: NonZeroUsize,
    ) -> Result<Self, InvalidConfig> {
        let env = Env(env);
        let xds_address = env
            .text("XDS_ADDRESS")
            .unwrap_or("ambit-controller.ambit-system.svc:15012")
            .to_owned();
        check_address("XDS_ADDRESS", &xds_address)?;
        let ca_address = env.text("CA_ADDRESS").unwrap_or(&xds_address).to_owned();
        check_address("CA_ADDRESS", &ca_address)?;
        Ok(Self {
            node: env.required("NODE_NAME")?.into(),
            pod_name: env.required("POD_NAME")?.into(),
            pod_namespace: env.required("POD_NAMESPACE")?.into(),
            pod_ip: parse("POD_IP", env.required("POD_IP")?)?,
            xds_address,
            ca_address,
            root_ca: env.path("XDS_ROOT_CA", "/var/run/secrets/ambit/root/root-cert.pem"),
            token: env.path("AUTH_TOKEN", "/var/run/secrets/tokens/istio-token"),
            revocations: env.text("CRL_PATH").map(PathBuf::from),
            cluster: env.text("CLUSTER_ID").unwrap_or("Kubernetes").into(),
            network: env.text("NETWORK").unwrap_or_default().into(),
            trust_domain: env.parsed("TRUST_DOMAIN")?.unwrap_or_default(),
            log_format: env.parsed("LOG_FORMAT")?.unwrap_or_default(),
            log_filter: env.text("RUST_LOG").unwrap_or("info").to_owned(),
            workers: workers(env.text("ZTUNNEL_WORKER_THREADS"), cores)?,
            grace: Duration::from_secs(
                env.parsed("TERMINATION_GRACE_PERIOD_SECONDS")?
                    .unwrap_or(30),
            ),
            paths: Paths {
                cni_socket: env.path("CNI_SOCKET", "/run/ambit/cni.sock"),
                state: env.path("STATE_DIR", "/var/lib/ambit"),
                cni_bin: env.path("CNI_BIN_DIR", "/host/opt/cni/bin"),
                cni_conf: env.path("CNI_CONF_DIR", "/host/etc/cni/net.d"),
                proc: env.path("PROC_ROOT", "/proc"),
            },
        })
    }
}

// === impl Env ===

struct Env<'a>(&'a BTreeMap<String, String>);

impl<'a> Env<'a> {
    /// An empty variable counts as absent: manifests cannot always leave one out.
    fn text(&self, name: &str) -> Option<&'a str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<&'a str, InvalidConfig> {
        self.text(name).ok_or(InvalidConfig::Missing(name))
    }

    fn path(&self, name: &str, default: &str) -> PathBuf {
        PathBuf::from(self.text(name).unwrap_or(default))
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, InvalidConfig> {
        self.text(name).map(|v| parse(name, v)).transpose()
    }
}

fn parse<T: FromStr<Err: fmt::Display>>(
    name: &'static str,
    value: &str,
) -> Result<T, InvalidConfig> {
    value
        .parse()
        .map_err(|e: T::Err| invalid(name, value, e.to_string()))
}

fn invalid(name: &'static str, value: &str, reason: impl Into<String>) -> InvalidConfig {
    InvalidConfig::Invalid {
        name,
        value: value.to_owned(),
        reason: reason.into(),
    }
}

fn check_address(name: &'static str, value: &str) -> Result<(), InvalidConfig> {
    match value.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => {
            Ok(())
        }
        _ => Err(invalid(name, value, "expected host:port")),
    }
}

/// Two, so that one busy pod leaves the others a core; a quarter, because the node is the pods'.
fn workers(asked: Option<&str>, cores: NonZeroUsize) -> Result<NonZeroUsize, InvalidConfig> {
    const NAME: &str = "ZTUNNEL_WORKER_THREADS";
    /// More threads than this is a typing error: listeners multiply by pods and threads.
    const MOST: usize = 256;
    let Some(text) = asked else {
        let quarter = cores.get().div_ceil(4).max(2).min(cores.get());
        return Ok(NonZeroUsize::new(quarter).unwrap_or(NonZeroUsize::MIN));
    };
    if let Some(share) = text.strip_suffix('%') {
        let share: usize = parse(NAME, share)?;
        if !(1..=100).contains(&share) {
            return Err(invalid(NAME, text, "a share of the cores is 1% to 100%"));
        }
        let share = (cores.get() * share).div_ceil(100);
        return Ok(NonZeroUsize::new(share).unwrap_or(NonZeroUsize::MIN));
    }
    let number: usize = parse(NAME, text)?;
    if number > MOST {
        return Err(invalid(NAME, text, format!("at most {MOST}")));
    }
    Ok(NonZeroUsize::new(number).unwrap_or(cores))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(extra: &[(&str, &str)]) -> BTreeMap<String, String> {
        [
            ("NODE_NAME", "n1"),
            ("POD_NAME", "ztunnel-x"),
            ("POD_NAMESPACE", "ambit-system"),
            ("POD_IP", "10.0.0.9"),
        ]
        .iter()
        .chain(extra)
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
    }

    fn read(extra: &[(&str, &str)]) -> Result<Config, InvalidConfig> {
        Config::from_env(&env(extra), NonZeroUsize::new(16).unwrap())
    }

    #[test]
    fn defaults() {
        let config = read(&[("CLUSTER_ID", "")]).unwrap();
        assert_eq!(&*config.cluster, "Kubernetes");
        assert_eq!(config.workers.get(), 4);
        assert_eq!(config.ca_address, config.xds_address);
        assert_eq!(config.grace, Duration::from_secs(30));
        assert_eq!(
            config.paths.cni_socket,
            PathBuf::from("/run/ambit/cni.sock")
        );
    }

    #[test]
    fn worker_threads() {
        for (text, threads) in [("3", 3), ("0", 16), ("50%", 8), ("1%", 1)] {
            let config = read(&[("ZTUNNEL_WORKER_THREADS", text)]).unwrap();
            assert_eq!(config.workers.get(), threads, "{text}");
        }
    }

    #[test]
    fn refusals_name_the_variable() {
        let mut empty = env(&[]);
        empty.remove("NODE_NAME");
        let missing = Config::from_env(&empty, NonZeroUsize::MIN).unwrap_err();
        assert_eq!(missing, InvalidConfig::Missing("NODE_NAME"));
        for (name, value) in [
            ("POD_IP", "ten"),
            ("XDS_ADDRESS", "controller"),
            ("CA_ADDRESS", ":15012"),
            ("ZTUNNEL_WORKER_THREADS", "many"),
            ("ZTUNNEL_WORKER_THREADS", "101%"),
            ("ZTUNNEL_WORKER_THREADS", "9999"),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "-1"),
            ("TRUST_DOMAIN", "Not A Domain"),
            ("LOG_FORMAT", "xml"),
        ] {
            let text = read(&[(name, value)]).unwrap_err().to_string();
            assert!(text.starts_with(name) && text.contains(value), "{text}");
        }
    }
}
