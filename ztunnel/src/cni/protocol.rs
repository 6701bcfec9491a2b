//! What the plugin asks ztunnel, and what ztunnel answers: one JSON value each way on one connection.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What happens to a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase")]
pub enum Request {
    /// It is about to start: capture it if it is in the mesh, then answer.
    Add(Sandbox),
    /// It is going away. The answer does not matter.
    Del(Sandbox),
}

/// A pod's sandbox, as the container runtime describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// The pod's UID, where the runtime tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The sandbox's container ID.
    pub container_id: String,
    /// The network namespace's path on the node, empty where it is gone already.
    pub netns: PathBuf,
    /// The addresses that the plugins before us gave the pod.
    pub ips: Vec<IpAddr>,
}

/// What becomes of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// It starts: it is captured, or is none of ours.
    Proceed,
    /// It waits; the kubelet asks again.
    Hold {
        /// Shown in the pod's Events.
        reason: String,
    },
}

/// Longest request or answer that is read.
pub const MAX_MESSAGE: u64 = 64 * 1024;

/// Asks the ztunnel that listens at `socket`, and waits up to `timeout` for each step.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_MESSAGE).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_on_the_wire_are_stable() {
        let sandbox = Sandbox {
            uid: None,
            name: "web-0".into(),
            namespace: "shop".into(),
            container_id: "77".into(),
            netns: "/run/netns/77".into(),
            ips: vec!["10.0.0.7".parse().unwrap()],
        };
        assert_eq!(
            serde_json::to_string(&Request::Add(sandbox)).unwrap(),
            r#"{"command":"add","name":"web-0","namespace":"shop","containerId":"77","netns":"/run/netns/77","ips":["10.0.0.7"]}"#
        );
        let hold: Answer = serde_json::from_str(r#"{"answer":"hold","reason":"no"}"#).unwrap();
        assert_eq!(
            hold,
            Answer::Hold {
                reason: "no".into()
            }
        );
        let proceed = serde_json::to_string(&Answer::Proceed).unwrap();
        assert_eq!(proceed, r#"{"answer":"proceed"}"#);
    }
}
