//! Finding a pod's namespace, and its node's addresses, on real namespaces (needs root).

mod support;

use std::fs;

use support::net::*;
use ztunnel::capture;
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
fn the_gateways_of_a_pod_are_the_nodes_addresses() {
    let net = Net::new();
    let gateways = net.pod.run(capture::surroundings::gateways).unwrap();
    let gateways: Vec<String> = gateways.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(gateways, [GATE4, GATE6]);
}
