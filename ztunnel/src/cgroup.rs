//! Which pod a process belongs to: the kubelet names a pod's cgroup after its UID.

/// The pod in a process's cgroup file: `…/pod<uid>/…` (cgroupfs) or `…-pod<uid_with_underscores>.slice/…` (systemd).
pub(crate) fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.split('/'))
        .find_map(|name| {
            let name = name.strip_suffix(".slice").unwrap_or(name);
            let uid = match name.strip_prefix("pod") {
                Some(uid) => uid,
                None => name.rsplit_once("-pod")?.1,
            };
            is_uid(uid).then(|| uid.replace('_', "-"))
        })
}

/// A UUID, or the 32 digits that name a static pod.
fn is_uid(s: &str) -> bool {
    let digits = s.bytes().filter(u8::is_ascii_hexdigit).count();
    let rest = s.bytes().filter(|b| matches!(b, b'-' | b'_')).count();
    digits == 32 && digits + rest == s.len()
}

/// Whether a UID names a static pod: it is the digest of its file.
pub(crate) fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a";

    #[test]
    fn knows_every_way_a_cgroup_names_a_pod() {
        let names = [
            "0::/kubepods/burstable/pod6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a/0123abcd\n",
            "0::/kubepods/pod6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a\n",
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod6f3c0a4e_1b7d_4a55_9d21_0d5d3c1f2b9a.slice/cri-containerd-77.scope\n",
            "12:pids:/user.slice\n11:memory:/kubepods/besteffort/pod6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a/77\n",
            "0::/../../burstable/pod6f3c0a4e-1b7d-4a55-9d21-0d5d3c1f2b9a/77:extra\n",
        ];
        for name in names {
            assert_eq!(pod_uid(name).as_deref(), Some(UID), "{name}");
        }
        let fixed = "0::/kubepods/pod0a1b2c3d4e5f60718293a4b5c6d7e8f9/77\n";
        assert_eq!(pod_uid(fixed).unwrap(), "0a1b2c3d4e5f60718293a4b5c6d7e8f9");
        assert!(is_static("0a1b2c3d4e5f60718293a4b5c6d7e8f9") && !is_static(UID));
    }

    #[test]
    fn takes_nothing_else_for_a_pod() {
        for name in [
            "0::/\n",
            "",
            "0::/podman/6f3c0a4e\n",
            "0::/system.slice/pods.service\n",
            "0::/kubepods/podding/zzz\n",
            "0::/kubepods/pod6f3c0a4e-1b7d/77\n",
        ] {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }
}
