//! The plugin as a process, against the server that ztunnel runs, as a container runtime would call it.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use ztunnel::cni::enrolled::Enrolled;
use ztunnel::cni::install::{Installed, Installer, Left};
use ztunnel::cni::protocol::{Answer, Request};
use ztunnel::cni::server::Server;

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

struct Node {
    dir: TempDir,
    installer: Installer,
}

impl Node {
    /// A node with the plugin installed.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("net.d")).unwrap();
        std::fs::write(at("net.d/10-pods.conflist"), CONFIG).unwrap();
        let installer = Installer {
            program: env!("CARGO_BIN_EXE_ztunnel").into(),
            socket: at("run/cni.sock"),
            enrolled: at("lib/namespaces.json"),
            ..Installer::new(at("net.d"), at("bin"))
        };
        assert!(matches!(
            installer.ensure().unwrap(),
            Installed::Ready { .. }
        ));
        Self { dir, installer }
    }

    /// What a runtime gives the plugin: its own entry, with the list's name and version and the last result.
    fn config(&self) -> Value {
        let list = std::fs::read(self.dir.path().join("net.d/10-pods.conflist")).unwrap();
        let list: Value = serde_json::from_slice(&list).unwrap();
        let mut config = list["plugins"][1].clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        config["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.7/24"}]});
        config
    }

    fn run(&self, command: &str) -> Output {
        run(
            &self.installer.bin_dir.join("ambit-cni"),
            command,
            &self.config(),
        )
    }
}

fn run(program: &Path, command: &str, config: &Value) -> Output {
    let mut child = Command::new(program)
        .env_clear()
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "77"),
            ("CNI_NETNS", "/run/netns/77"),
            ("CNI_IFNAME", "eth0"),
            (
                "CNI_ARGS",
                "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
            ),
            ("CNI_PATH", "/opt/cni/bin"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(config.to_string().as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_starts_or_waits_as_ztunnel_says() {
    let node = Node::new();
    let server = Server::bind(&node.installer.socket).unwrap();
    let mode = std::fs::metadata(&node.installer.socket)
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let (tx, mut asked) = mpsc::unbounded_channel();
    let answers = [
        Answer::Proceed,
        Answer::Hold {
            reason: "no certificate yet".into(),
        },
        Answer::Proceed,
    ];
    let answers = parking_lot::Mutex::new(answers.into_iter());
    tokio::spawn(server.run(async move |request| {
        tx.send(request).unwrap();
        answers.lock().next().unwrap()
    }));
    let node = std::sync::Arc::new(node);
    let run = async |command: &'static str| {
        let node = node.clone();
        tokio::task::spawn_blocking(move || node.run(command))
            .await
            .unwrap()
    };

    let started = run("ADD").await;
    assert!(started.status.success());
    assert_eq!(json_of(&started), node.config()["prevResult"]);
    let Some(Request::Add(sandbox)) = asked.recv().await else {
        panic!("not an ADD");
    };
    assert_eq!(
        (sandbox.name.as_str(), sandbox.namespace.as_str()),
        ("web-0", "shop")
    );

    let held = run("ADD").await;
    assert!(!held.status.success());
    assert_eq!(
        json_of(&held)["msg"],
        "ambit: pod shop/web-0 is held: no certificate yet"
    );

    let deleted = run("DEL").await;
    assert!(deleted.status.success() && deleted.stdout.is_empty());
    asked.recv().await.unwrap();
    assert!(matches!(asked.recv().await, Some(Request::Del(_))));

    // A successor takes the path over without a gap.
    let successor = Server::bind(&node.installer.socket).unwrap();
    tokio::spawn(successor.run(async |_| Answer::Proceed));
    assert!(run("ADD").await.status.success());
    assert!(asked.is_empty());
}

#[test]
fn without_ztunnel_the_nodes_list_decides() {
    let node = Node::new();
    let unknown = node.run("ADD");
    assert!(!unknown.status.success());
    assert_eq!(json_of(&unknown)["code"], 11);
    let list = |names: &[&str]| {
        Enrolled::from_iter(names.iter().copied())
            .write(&node.installer.enrolled)
            .unwrap();
    };
    list(&["other"]);
    assert!(node.run("ADD").status.success());
    list(&["other", "shop"]);
    let held = node.run("ADD");
    assert!(!held.status.success());
    let message = json_of(&held)["msg"].to_string();
    assert!(
        message.contains("ztunnel on this node is not running; pod shop/web-0"),
        "{message}"
    );
    assert!(node.run("DEL").status.success());
}

#[test]
fn a_runtime_that_replays_a_pods_configuration_can_end_it_after_the_mesh_is_gone() {
    let mut node = Node::new();
    let cached = node.config();
    let program = node.installer.bin_dir.join("ambit-cni");
    let socket = node.dir.path().join("crio.sock");
    std::fs::write(&socket, "").unwrap();
    node.installer.replaying = vec![socket];
    assert_eq!(node.installer.uninstall().unwrap(), Left::Program);
    let list = std::fs::read(node.dir.path().join("net.d/10-pods.conflist")).unwrap();
    let list: Value = serde_json::from_slice(&list).unwrap();
    assert_eq!(list, serde_json::from_str::<Value>(CONFIG).unwrap());
    assert!(!node.installer.enrolled.exists() && !node.installer.socket.exists());

    let mut newer = cached.clone();
    newer["cniVersion"] = json!("1.1.0");
    newer["cni.dev/valid-attachments"] = json!([{"containerID": "77", "ifname": "eth0"}]);
    let mut without_result = cached.clone();
    without_result.as_object_mut().unwrap().remove("prevResult");
    for config in [&cached, &newer, &without_result] {
        for command in ["DEL", "CHECK", "GC", "STATUS"] {
            let output = run(&program, command, config);
            assert!(output.status.success(), "{command}");
            assert!(output.stdout.is_empty(), "{command}");
        }
    }

    node.installer.replaying = vec![node.dir.path().join("none.sock")];
    assert_eq!(node.installer.uninstall().unwrap(), Left::Nothing);
    assert!(!program.exists());
}

#[test]
fn the_program_is_the_plugin_by_argument_too() {
    let output = Command::new(env!("CARGO_BIN_EXE_ztunnel"))
        .arg("cni")
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(json_of(&output)["cniVersion"], "1.1.0");
}
