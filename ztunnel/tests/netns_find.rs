//! Finding a pod's namespace, and its node's addresses, on real namespaces (needs root).

mod support;

use std::fs;

use support::net::*;
use ztunnel::capture;
use ztunnel::netns::PodNetns;
use ztunnel::pods::find::{FindError, find};

#[test]
fn a_pods_namespace_is_found_by_its_address() {
    const UID: &str = "6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a";
    let (net, inner) = (Net::new(), namespace());
    let proc = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    // A container's own namespace is met first; the host's is process 1's.
    for (pid, ns) in [(1, None), (40, Some(&inner)), (41, Some(&net.pod))] {
        let dir = proc.path().join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        let target = match ns {
            None => "/proc/self/ns/net".into(),
            Some(ns) => {
                let file = ns
                    .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
                    .unwrap();
                let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
                files.push(file);
                fs::write(dir.join("cgroup"), format!("0::/kubepods/pod{UID}/{pid}\n")).unwrap();
                format!("/proc/{}/fd/{fd}", std::process::id())
            }
        };
        std::os::unix::fs::symlink(target, dir.join("ns/net")).unwrap();
    }
    let found = |ips: &[&str]| {
        let ips: Vec<_> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        find(proc.path(), UID, &ips)
    };
    assert_eq!(found(&[POD4]).unwrap().id(), net.pod.id());
    assert_eq!(found(&[POD6]).unwrap().id(), net.pod.id());
    assert_eq!(found(&[]).unwrap().id(), inner.id());
    let foreign = found(&["10.9.9.9"]).unwrap_err();
    assert!(
        matches!(foreign, FindError::ForeignAddresses { .. }),
        "{foreign}"
    );
}

#[test]
fn a_namespace_of_a_containers_own_making_is_not_believed() {
    const UID: &str = "6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a";
    let (net, decoy, other) = (Net::new(), namespace(), namespace());
    // With the pod's address, and met first.
    for ns in [&decoy, &other] {
        ip(ns, &format!("addr add {POD4} dev lo"));
        ip(ns, "link set lo up");
    }
    let proc = tempfile::tempdir().unwrap();
    let at = |path: &str| {
        let path = proc.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    };
    let mut files = Vec::new();
    let mut link = |ns: &PodNetns, path: &str| {
        let file = ns
            .run(|| fs::File::open("/proc/thread-self/ns/net").unwrap())
            .unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        files.push(file);
        let target = format!("/proc/{}/fd/{fd}", std::process::id());
        std::os::unix::fs::symlink(target, at(path)).unwrap();
    };
    for pid in [40, 41] {
        let cgroup = format!("0::/kubepods/pod{UID}/{pid}\n");
        fs::write(at(&format!("{pid}/cgroup")), cgroup).unwrap();
    }
    link(&decoy, "40/ns/net");
    link(&net.pod, "41/ns/net");
    let found = || find(proc.path(), UID, &[POD4.parse().unwrap()]);
    // A runtime that keeps none by name: there is nothing to tell them apart by.
    assert_eq!(found().unwrap().id(), decoy.id());
    fs::write(at("1/root/run/netns/no-namespace"), "").unwrap();
    assert_eq!(found().unwrap().id(), decoy.id());

    link(&net.pod, "1/root/run/netns/cni-1");
    assert_eq!(found().unwrap().id(), net.pod.id());
    // And no process has stayed in the one that the runtime made.
    fs::remove_dir_all(proc.path().join("41")).unwrap();
    assert_eq!(found().unwrap().id(), net.pod.id());
    link(&other, "1/root/run/netns/cni-2");
    let unclear = found().unwrap_err();
    assert!(
        matches!(unclear, FindError::Ambiguous { number: 2, .. }),
        "{unclear}"
    );
}

#[test]
fn the_gateways_of_a_pod_are_the_nodes_addresses() {
    let net = Net::new();
    let gateways = net.pod.run(capture::surroundings::gateways).unwrap();
    let gateways: Vec<String> = gateways.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(gateways, [GATE4, GATE6]);
}
