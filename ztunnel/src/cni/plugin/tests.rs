//! Runs the plugin's commands against no ztunnel and a scripted one.

use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use tempfile::TempDir;

use super::*;

struct Node {
    dir: TempDir,
}

impl Node {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "ambit-cni",
            "socket": self.dir.path().join("cni.sock"),
            "enrolled": self.dir.path().join("namespaces.json"),
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/run/netns/77"}],
                "ips": [{"address": "10.0.0.7/24", "gateway": "10.0.0.1", "interface": 0}, {"address": "fd00::7/64"}],
                "dns": {"nameservers": ["10.96.0.10"]},
            },
        })
    }

    fn enrolled(&self, names: &[&str]) {
        let list = Enrolled::from_iter(names.iter().copied());
        list.write(&self.dir.path().join("namespaces.json"))
            .unwrap();
    }

    /// A ztunnel that gives one answer and returns what it was asked.
    fn ztunnel(&self, answer: &'static str) -> JoinHandle<Request> {
        let listener = UnixListener::bind(self.dir.path().join("cni.sock")).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let request = serde_json::from_reader(&mut stream).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        })
    }

    fn run(&self, command: &str, namespace: &str) -> (Result<(), Refusal>, Value) {
        self.run_with(command, namespace, &self.config())
    }

    fn run_with(
        &self,
        command: &str,
        namespace: &str,
        config: &Value,
    ) -> (Result<(), Refusal>, Value) {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=77;K8S_POD_UID=u-1"
        );
        let env = |name: &str| match name {
            "CNI_COMMAND" => Some(command.into()),
            "CNI_CONTAINERID" => Some("77".into()),
            "CNI_NETNS" => Some("/run/netns/77".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_ARGS" => Some(args.clone().into()),
            _ => None,
        };
        let mut out = Vec::new();
        let result = run(env, config.to_string().as_bytes(), &mut out);
        (result, serde_json::from_slice(&out).unwrap_or_default())
    }
}

#[test]
fn add_asks_and_passes_the_result_on_unchanged() {
    let node = Node::new();
    let ztunnel = node.ztunnel(r#"{"answer":"proceed"}"#);
    let (result, output) = node.run("ADD", "shop");
    assert_eq!(result, Ok(()));
    assert_eq!(output, node.config()["prevResult"]);
    let Request::Add(sandbox) = ztunnel.join().unwrap() else {
        panic!("not an ADD");
    };
    assert_eq!(sandbox.uid.as_deref(), Some("u-1"));
    assert_eq!(sandbox.namespace, "shop");
    assert_eq!(sandbox.netns, Path::new("/run/netns/77"));
    let ips: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    assert_eq!(sandbox.ips, ips);
}

#[test]
fn a_refusal_reaches_the_kubelet_with_pod_and_reason() {
    let node = Node::new();
    let ztunnel = node.ztunnel(r#"{"answer":"hold","reason":"no certificate yet"}"#);
    let (result, output) = node.run("ADD", "shop");
    assert_eq!(result.unwrap_err().code, TRY_AGAIN_LATER);
    assert_eq!(output["code"], 11);
    assert_eq!(output["cniVersion"], "1.0.0");
    assert_eq!(
        output["msg"],
        "ambit: pod shop/web-0 is held: no certificate yet"
    );
    ztunnel.join().unwrap();
}

#[test]
fn without_ztunnel_only_mesh_namespaces_are_held() {
    let node = Node::new();
    node.enrolled(&["shop"]);
    let (result, output) = node.run("ADD", "shop");
    assert_eq!(result.unwrap_err().code, TRY_AGAIN_LATER);
    let message = output["msg"].as_str().unwrap();
    assert!(
        message.contains("pod shop/web-0 is in mesh namespace shop and is held until it is back"),
        "{message}"
    );
    for other in ["default", "kube-system", "ambit-system"] {
        let (result, output) = node.run("ADD", other);
        assert_eq!(result, Ok(()), "{other}");
        assert_eq!(output, node.config()["prevResult"]);
    }
}

#[test]
fn without_ztunnel_and_list_all_but_the_system_are_held() {
    let node = Node::new();
    for garbage in [false, true] {
        if garbage {
            std::fs::write(node.dir.path().join("namespaces.json"), "{").unwrap();
        }
        let (result, output) = node.run("ADD", "default");
        assert!(result.is_err());
        assert!(
            output["msg"]
                .as_str()
                .unwrap()
                .contains("has not yet learnt"),
            "{output}"
        );
        for own in ["kube-system", "ambit-system"] {
            assert_eq!(node.run("ADD", own).0, Ok(()));
        }
    }
}

#[test]
fn a_ztunnel_that_dies_over_the_question_counts_as_none() {
    let node = Node::new();
    node.enrolled(&["shop"]);
    let ztunnel = node.ztunnel("");
    assert!(node.run("ADD", "shop").0.is_err());
    ztunnel.join().unwrap();
    assert_eq!(node.run("ADD", "default").0, Ok(()));
}

#[test]
fn del_never_fails() {
    let node = Node::new();
    assert_eq!(node.run("DEL", "shop").0, Ok(()));
    assert_eq!(node.run_with("DEL", "shop", &json!("garbage")).0, Ok(()));
    let ztunnel = node.ztunnel(r#"{"answer":"hold","reason":"no"}"#);
    assert_eq!(node.run("DEL", "shop"), (Ok(()), Value::Null));
    assert!(matches!(ztunnel.join().unwrap(), Request::Del(_)));
}

#[test]
fn the_other_commands() {
    let node = Node::new();
    let (result, output) = node.run("VERSION", "");
    assert_eq!(result, Ok(()));
    assert!(
        output["supportedVersions"]
            .as_array()
            .unwrap()
            .contains(&json!("1.1.0"))
    );
    for quiet in ["CHECK", "GC", "STATUS"] {
        assert_eq!(node.run(quiet, "shop"), (Ok(()), Value::Null), "{quiet}");
    }
    assert_eq!(
        node.run("BREW", "shop").0.unwrap_err().code,
        INVALID_ENVIRONMENT
    );
}

#[test]
fn bad_configuration_is_refused_by_name() {
    let node = Node::new();
    let mut first = node.config();
    first.as_object_mut().unwrap().remove("prevResult");
    let (result, output) = node.run_with("ADD", "shop", &first);
    assert_eq!(result.unwrap_err().code, INVALID_CONFIG);
    assert!(output["msg"].as_str().unwrap().contains("prevResult"));
    let mut bad = node.config();
    bad["prevResult"]["ips"][0]["address"] = json!("ten");
    assert_eq!(
        node.run_with("ADD", "shop", &bad).0.unwrap_err().code,
        UNDECODABLE
    );
    assert_eq!(
        node.run_with("ADD", "shop", &json!("x"))
            .0
            .unwrap_err()
            .code,
        UNDECODABLE
    );
}
