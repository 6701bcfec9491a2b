//! The plugin's side of the CNI specification (0.3.0 to 1.1.0), for a plugin that adds nothing to the result.
//!
//! ADD asks ztunnel and passes the previous plugin's result on unchanged. DEL never fails, or a
//! pod could not be deleted while ztunnel is away. CHECK, GC and STATUS succeed: a STATUS that failed with ztunnel
//! away would make the whole node unready, and pods outside the mesh must start.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::enrolled::Enrolled;
use super::protocol::{self, Answer, Request, Sandbox};
use super::{DEFAULT_ENROLLED, DEFAULT_SOCKET, DEFAULT_SYSTEM_NAMESPACE};

/// Runs the plugin as this process: configuration on standard input, the rest in the environment.
pub fn main() -> ExitCode {
    let env = |name: &str| std::env::var_os(name);
    match run(env, io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs one command. What is refused is written to `stdout` as the specification wants it, and returned.
pub fn run(
    env: impl Fn(&str) -> Option<OsString>,
    mut stdin: impl Read,
    mut stdout: impl Write,
) -> Result<(), Refusal> {
    let mut bytes = Vec::new();
    let read = stdin.read_to_end(&mut bytes);
    let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let version = config["cniVersion"].as_str().unwrap_or("0.3.1").to_owned();
    let result = read
        .map_err(|e| Refusal::undecodable(&e))
        .and_then(|_| command(&env, &bytes));
    let output = match &result {
        Ok(Some(output)) => serde_json::to_vec(output),
        Ok(None) => return Ok(()),
        Err(refusal) => serde_json::to_vec(&refusal.to_json(&version)),
    };
    // Nobody is left to tell when standard output is closed.
    let _ = output
        .map_err(io::Error::from)
        .and_then(|o| stdout.write_all(&o));
    result.map(drop)
}

/// Why a command failed, with the number the specification gives that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The specification's error code.
    pub code: u32,
    /// Shown in the pod's Events.
    pub message: String,
}

/// The plugin's part of the network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default = "default_socket")]
    socket: PathBuf,
    #[serde(default = "default_enrolled")]
    enrolled: PathBuf,
    #[serde(default = "default_system_namespace")]
    system_namespace: String,
    #[serde(default)]
    prev_result: Option<Value>,
}

/// Longer than ztunnel takes to know whether a pod is its own, shorter than the kubelet's patience (2 minutes).
const PATIENCE: Duration = Duration::from_secs(30);
/// A DEL that waits keeps a pod from going.
const DEL_PATIENCE: Duration = Duration::from_secs(2);

const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn command(
    env: &impl Fn(&str) -> Option<OsString>,
    config: &[u8],
) -> Result<Option<Value>, Refusal> {
    let command = variable(env, "CNI_COMMAND")?;
    match command.as_str() {
        "VERSION" => Ok(Some(json!({
            "cniVersion": "1.1.0",
            "supportedVersions": SUPPORTED,
        }))),
        "ADD" => add(env, &parse(config)?).map(Some),
        "DEL" => {
            del(env, config);
            Ok(None)
        }
        "CHECK" | "GC" | "STATUS" => Ok(None),
        other => Err(Refusal::environment(format!("CNI_COMMAND {other:?}"))),
    }
}

fn add(env: &impl Fn(&str) -> Option<OsString>, config: &Config) -> Result<Value, Refusal> {
    let Some(result) = config.prev_result.clone() else {
        return Err(Refusal {
            code: INVALID_CONFIG,
            message: "no prevResult: this plugin must come after the one that makes the network"
                .into(),
        });
    };
    let sandbox = sandbox(env, &result)?;
    // Whatever runs the mesh, and whatever runs the cluster, starts without the mesh.
    let exempt = [config.system_namespace.as_str(), "kube-system", ""];
    if exempt.contains(&sandbox.namespace.as_str()) {
        return Ok(result);
    }
    match protocol::ask(&config.socket, &Request::Add(sandbox.clone()), PATIENCE) {
        Ok(Answer::Proceed) => Ok(result),
        Ok(Answer::Hold { reason }) => Err(Refusal::hold(&sandbox, &reason)),
        Err(error) => match alone(&config.enrolled, &sandbox) {
            None => Ok(result),
            Some(reason) => Err(Refusal::hold(&sandbox, &format!("{reason} ({error})"))),
        },
    }
}

/// Whether a pod is held when no ztunnel answers: the reason, or `None` for one that starts.
fn alone(enrolled: &Path, sandbox: &Sandbox) -> Option<String> {
    let Sandbox {
        namespace, name, ..
    } = sandbox;
    match Enrolled::read(enrolled) {
        Ok(list) if !list.enrolled.contains(namespace) => None,
        Ok(_) => Some(format!(
            "ztunnel on this node is not running; pod {namespace}/{name} is in mesh namespace {namespace} and is held until it is back"
        )),
        Err(error) => Some(format!(
            "ztunnel on this node is not running and has not yet learnt which namespaces are in the mesh ({}: {error}); pod {namespace}/{name} is held until it has",
            enrolled.display()
        )),
    }
}

fn del(env: &impl Fn(&str) -> Option<OsString>, config: &[u8]) {
    let Ok(config) = parse(config) else { return };
    let result = config.prev_result.unwrap_or_default();
    if let Ok(sandbox) = sandbox(env, &result) {
        let _ = protocol::ask(&config.socket, &Request::Del(sandbox), DEL_PATIENCE);
    }
}

fn sandbox(env: &impl Fn(&str) -> Option<OsString>, result: &Value) -> Result<Sandbox, Refusal> {
    let args = env("CNI_ARGS").unwrap_or_default();
    let args = args.to_string_lossy();
    let arg = |name: &str| {
        let pairs = args.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
            .find(|value| !value.is_empty())
    };
    Ok(Sandbox {
        uid: arg("K8S_POD_UID"),
        name: arg("K8S_POD_NAME").unwrap_or_default(),
        namespace: arg("K8S_POD_NAMESPACE").unwrap_or_default(),
        container_id: variable(env, "CNI_CONTAINERID")?,
        netns: env("CNI_NETNS").unwrap_or_default().into(),
        ips: addresses(result)?,
    })
}

/// The addresses of a result: `ips[].address`, each with its prefix length.
fn addresses(result: &Value) -> Result<Vec<IpAddr>, Refusal> {
    let none = Vec::new();
    let ips = result["ips"].as_array().unwrap_or(&none);
    let parsed = ips.iter().map(|ip| {
        let address = ip["address"].as_str().unwrap_or_default();
        let address = address.split_once('/').map_or(address, |(ip, _)| ip);
        address.parse().map_err(|_| Refusal {
            code: UNDECODABLE,
            message: format!("prevResult has an address that is none: {ip}"),
        })
    });
    parsed.collect()
}

fn parse(config: &[u8]) -> Result<Config, Refusal> {
    serde_json::from_slice(config).map_err(|e| Refusal::undecodable(&e))
}

fn variable(env: &impl Fn(&str) -> Option<OsString>, name: &str) -> Result<String, Refusal> {
    env(name)
        .and_then(|value| value.into_string().ok())
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Refusal::environment(format!("{name} is missing")))
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn default_enrolled() -> PathBuf {
    DEFAULT_ENROLLED.into()
}

fn default_system_namespace() -> String {
    DEFAULT_SYSTEM_NAMESPACE.into()
}

// === impl Refusal ===

const INVALID_ENVIRONMENT: u32 = 4;
const UNDECODABLE: u32 = 6;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;

impl Refusal {
    fn hold(sandbox: &Sandbox, reason: &str) -> Self {
        let Sandbox {
            namespace, name, ..
        } = sandbox;
        let pod = format!("{namespace}/{name}");
        let message = if reason.contains(&pod) {
            reason.to_owned()
        } else {
            format!("pod {pod} is held: {reason}")
        };
        Self {
            code: TRY_AGAIN_LATER,
            message,
        }
    }

    fn undecodable(error: &dyn std::error::Error) -> Self {
        Self {
            code: UNDECODABLE,
            message: format!("cannot read the network configuration: {error}"),
        }
    }

    fn environment(what: String) -> Self {
        Self {
            code: INVALID_ENVIRONMENT,
            message: what,
        }
    }

    fn to_json(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "code": self.code,
            "msg": format!("ambit: {}", self.message),
        })
    }
}

#[cfg(test)]
mod tests;
