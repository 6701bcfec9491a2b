//! Sandboxes that come, go and are told of late, repeatedly or falsely (needs root).

mod support;

use std::{
    fs,
    io::Write,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    thread,
};

use mesh::ports;
use serde_json::json;
use support::{
    fabric::{ECHO, Fabric, TestPod},
    log,
    net::{PATIENCE, connect, ip, listen, namespace, ztunnel_listen},
    node::Outcome,
};
use ztunnel::{
    capture,
    cni::{
        enrolled::Enrolled,
        protocol::{Answer, Request, Sandbox},
        server::Server,
    },
};

fn installed(pod: &TestPod) -> bool {
    pod.ns.run(|| capture::is_installed().unwrap()).unwrap()
}

/// The pod in another namespace, with the same addresses.
fn replaced(pod: &TestPod) -> TestPod {
    let mut new = pod.clone();
    new.ns = namespace();
    ip(&new.ns, "link set lo up");
    for address in [new.v4, new.v6] {
        ip(&new.ns, &format!("addr add {address} dev lo"));
    }
    new
}

/// A sandbox of before, of which nothing is left.
fn of_before(sandbox: &mut Sandbox) {
    sandbox.container_id = "of before".into();
    sandbox.netns = "".into();
}

#[test]
fn the_late_end_of_an_earlier_sandbox_does_not_touch_a_living_pod() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let (pod, client) = (fabric.meshed("la", 0), fabric.meshed("lb", 1));
    // Enrolled while it ran: its sandbox is known by nothing but its namespace.
    let elsewhere = namespace();
    let file = elsewhere
        .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
        .unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let path = format!("/proc/{}/fd/{fd}", std::process::id());
    for _ in 0..2 {
        assert_eq!(node.cni(&pod, Request::Del, of_before), Answer::Proceed);
        let other = |sandbox: &mut Sandbox| sandbox.netns = path.clone().into();
        assert_eq!(node.cni(&pod, Request::Del, other), Answer::Proceed);
        client.ask(pod.addr(false, ECHO)).unwrap();
        assert!(installed(&pod));
    }
    assert_eq!(node.metric("workload_manager_proxies_stopped"), 0);
    // Its own end, with nothing left of it.
    node.remove_process(&pod);
    assert_eq!(node.cni(&pod, Request::Del, of_before), Answer::Proceed);
    node.wait_for(&pod, Outcome::Removed);
    connect(&pod.ns, "127.0.0.1:15008".parse().unwrap()).unwrap_err();
}

#[test]
fn the_newer_of_two_sandboxes_stays_in_the_mesh() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let old = fabric.meshed("na", 0);
    let new = replaced(&old);
    let named =
        |name: &'static str| move |sandbox: &mut Sandbox| sandbox.container_id = name.into();
    assert_eq!(node.cni(&new, Request::Add, named("new")), Answer::Proceed);
    // The old one's end comes after the new one's beginning, and twice; once its namespace is gone already.
    assert_eq!(node.cni(&old, Request::Del, named("old")), Answer::Proceed);
    assert_eq!(node.cni(&old, Request::Del, of_before), Answer::Proceed);
    assert!(installed(&new));
    connect(&new.ns, "127.0.0.1:15008".parse().unwrap()).unwrap();
    connect(&old.ns, "127.0.0.1:15008".parse().unwrap()).unwrap_err();
    // The same sandbox told again is the same.
    assert_eq!(node.cni(&new, Request::Add, named("new")), Answer::Proceed);
    let nameless = |sandbox: &mut Sandbox| {
        sandbox.container_id = "new".into();
        sandbox.uid = None;
    };
    assert_eq!(node.cni(&new, Request::Del, nameless), Answer::Proceed);
    connect(&new.ns, "127.0.0.1:15008".parse().unwrap()).unwrap_err();
}

/// A process of somebody else with a socket that shares one of our ports.
fn intruder(pod: &TestPod, port: u16) -> Child {
    let listener = ztunnel_listen(&pod.ns, port);
    // It waits for its input, which does not come.
    Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(listener))
        .spawn()
        .unwrap()
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn somebody_elses_listener_is_no_successor() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let (a, b) = (fabric.meshed("sa", 0), fabric.meshed("sb", 1));
    let stranger = intruder(&a, ports::OUTBOUND);
    thread::scope(|scope| {
        let old = node.take();
        let leaving = scope.spawn(|| old.leave(PATIENCE));
        log::line("the stranger is seen", |line| {
            let message = line["message"].as_str().unwrap_or_default();
            line["pod"] == "shop/sa" && message.contains("no successor")
        });
        // It still serves.
        b.ask(a.addr(false, ECHO)).unwrap();
        assert!(!leaving.is_finished());
        node.start(&fabric.ca);
        leaving.join().unwrap();
    });
    node.wait_for(&a, Outcome::Enrolled);
    end(stranger);
    b.ask(a.addr(false, ECHO)).unwrap();
}

#[test]
fn a_pods_own_listener_on_our_port_is_named() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    // One that shares the port, and one that leaves no room.
    let (sharing, alone) = (fabric.pod("pa", 0), fabric.pod("pb", 0));
    let stranger = intruder(&sharing, hbone::PORT);
    let listener = listen(&alone.ns, ports::INBOUND);
    node.adopt(&sharing, stranger.id());
    node.adopt(&alone, std::process::id());
    for (pod, port, process) in [
        (&sharing, "15008", "(cat)"),
        (&alone, "15006", "(netns_sandbox"),
    ] {
        fabric.label(pod);
        let report = node.wait_for(pod, Outcome::Failed);
        assert_eq!(report.reason, "PortTaken");
        let message = &report.message;
        assert!(message.contains(port), "{message}");
        assert!(message.contains(process), "{message}");
        assert!(!installed(pod));
    }
    // And it goes in when that has ended.
    end(stranger);
    drop(listener);
    node.wait_for(&sharing, Outcome::Enrolled);
    node.wait_for(&alone, Outcome::Enrolled);
}

#[test]
fn an_intruder_on_our_port_is_named_and_the_pod_stays_in_the_mesh() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let pod = fabric.meshed("ia", 0);
    let stranger = intruder(&pod, ports::INBOUND);
    node.adopt(&pod, stranger.id());
    log::line("the intruder is named", |line| {
        let intruder = line["intruder"].as_str().unwrap_or_default();
        line["pod"] == "shop/ia" && intruder.contains("(cat)") && intruder.contains("15006")
    });
    // Nor does a ztunnel that starts meanwhile, and finds it there, leave the pod to it.
    let old = node.take();
    node.start(&fabric.ca);
    node.wait_for(&pod, Outcome::Enrolled);
    end(stranger);
    assert!(installed(&pod));
    assert_eq!(node.metric("workload_manager_pending_proxy_count"), 0);
    assert_eq!(node.metric("workload_manager_active_proxy_count"), 1);
    assert_eq!(node.metric("workload_manager_proxies_started"), 1);
    old.stop();
}

#[test]
fn a_namespace_that_is_not_the_pods_is_refused_by_name() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    let (pod, other) = (fabric.start_pod("xa", 0), fabric.start_pod("xb", 0));
    fabric.label(&pod);
    fabric.announce(&pod);
    // Enrolled where it runs; the ADD that follows is a lie.
    node.wait_for(&pod, Outcome::Enrolled);
    let held = |differ: &dyn Fn(&mut Sandbox)| match node.cni(&pod, Request::Add, differ) {
        Answer::Hold { reason } => reason,
        Answer::Proceed => panic!("believed"),
    };
    let host = held(&|sandbox| sandbox.netns = "/proc/self/ns/net".into());
    assert!(host.contains("the host's own"), "{host}");
    let gone = held(&|sandbox| sandbox.netns = "/run/netns/none".into());
    assert!(gone.contains("/run/netns/none"), "{gone}");
    // The place of another, under this pod's name.
    let mut mistaken = pod.clone();
    mistaken.ns = other.ns.clone();
    let Answer::Hold { reason } = node.cni_add(&mistaken) else {
        panic!("believed")
    };
    assert!(reason.contains(&pod.v4.to_string()), "{reason}");
    assert!(reason.contains(&other.v4.to_string()), "{reason}");
    assert!(!installed(&other) && installed(&pod));
}

#[test]
fn a_static_pod_is_known_by_its_name() {
    let fabric = Fabric::new();
    let node = fabric.node(0);
    // The mirror that the API server shows has another UID than the kubelet's pod.
    let pod = fabric.start_pod("st", 0);
    fabric.announce(&pod);
    let of_file = |sandbox: &mut Sandbox| {
        sandbox.uid = Some("0a1b2c3d4e5f60718293a4b5c6d7e8f9".into());
    };
    assert_eq!(node.cni(&pod, Request::Add, of_file), Answer::Proceed);
    assert!(!installed(&pod));
    let unlike = |sandbox: &mut Sandbox| {
        sandbox.uid = Some("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9".into());
    };
    node.connected(false);
    let held = node.cni(&pod, Request::Add, unlike);
    assert!(matches!(held, Answer::Hold { .. }), "{held:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_root_is_answered_whatever_the_sockets_mode() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, program) = (dir.path().join("cni.sock"), dir.path().join("ambit-cni"));
    fs::copy(env!("CARGO_BIN_EXE_ztunnel"), &program).unwrap();
    let list = dir.path().join("namespaces.json");
    Enrolled::from_iter(["shop"]).write(&list).unwrap();
    let server = Server::bind(&socket).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&socket, 0o666), (&list, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    tokio::spawn(server.run(async |_| Answer::Proceed));
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "ambit-cni",
        "socket": socket,
        "enrolled": list,
        "prevResult": {"cniVersion": "1.0.0", "ips": []},
    });
    let ask = move |user: u32| {
        let mut child = Command::new(&program)
            .env_clear()
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", "77")
            .env("CNI_NETNS", "/run/netns/77")
            .env("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
            .uid(user)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(config.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let asked = tokio::task::spawn_blocking(move || (ask(65534), ask(0)));
    let (user, root) = asked.await.unwrap();
    assert!(user.contains("only root may"), "{user}");
    assert!(!root.contains("msg"), "{root}");
}
