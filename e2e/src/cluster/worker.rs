//! What runs on a worker: containerd, kubelet, kube-proxy, and the configuration they and the CNI plugins read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::certs::Pki;
use super::init::Service;
use super::machine::Machine;
use super::plan::{Plan, Worker};
use super::programs;

/// Where containerd listens, on the worker.
pub(crate) const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// The image that holds a pod's namespaces.
pub(crate) const PAUSE_IMAGE: &str = "docker.io/ambit/pause:local";
/// Where a worker's kubelet looks for pods that nobody asked the API server for.
pub const STATIC_PODS: &str = "/etc/kubernetes/manifests";
/// The CNI plugins of the lab.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];
/// What `statfs` calls an overlay.
const OVERLAYFS: i64 = 0x794c_7630;

/// The services of a worker.
#[derive(Debug)]
pub(crate) struct Services {
    /// Runs containers.
    pub containerd: Service,
    /// Runs pods; needs containerd and the API server.
    pub kubelet: Service,
    /// Makes Services work.
    pub kube_proxy: Service,
}

/// Writes a worker's configuration and says what to run on it.
pub(crate) fn services(
    tools: &Path,
    pki: &Pki,
    plan: Plan,
    worker: &Worker,
    machine: &Machine,
) -> anyhow::Result<Services> {
    let configs = machine.folder.join("config");
    fs::create_dir_all(&configs).with_context(|| format!("making {}", configs.display()))?;
    let write = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let path = configs.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    };
    let json = |value: Value| serde_json::to_string_pretty(&value);

    cni(tools, worker, machine)?;
    let containerd = write("containerd.toml", containerd(snapshotter(&machine.folder)?))?;
    let kubelet = write("kubelet.json", json(kubelet(pki, plan, worker))?)?;
    let kube_proxy = write("kube-proxy.json", json(kube_proxy(pki, plan, worker))?)?;
    let name = &worker.name;
    Ok(Services {
        containerd: programs::service(
            tools,
            "containerd",
            "containerd",
            [format!("--config={}", containerd.display())],
        ),
        kubelet: programs::service(
            tools,
            "kubelet",
            "kubelet",
            [
                format!("--config={}", kubelet.display()),
                format!("--kubeconfig={}", pki.path(&format!("{name}.kubeconfig"))),
                format!("--hostname-override={name}"),
                format!("--node-ip={},{}", worker.ip4, worker.ip6),
                "--root-dir=/var/lib/kubelet".to_owned(),
            ],
        ),
        kube_proxy: programs::service(
            tools,
            "kube-proxy",
            "kube-proxy",
            [format!("--config={}", kube_proxy.display())],
        ),
    })
}

/// Layers are overlays, except where the lab's folder is one itself and cannot carry another.
fn snapshotter(folder: &Path) -> anyhow::Result<&'static str> {
    let kind = nix::sys::statfs::statfs(folder)
        .context("looking at the lab's file system")?
        .filesystem_type();
    Ok(if kind.0 == OVERLAYFS {
        "native"
    } else {
        "overlayfs"
    })
}

fn containerd(snapshotter: &str) -> String {
    let off = [
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.zfs",
        "io.containerd.snapshotter.v1.devmapper",
        "io.containerd.snapshotter.v1.blockfile",
        "io.containerd.snapshotter.v1.erofs",
        "io.containerd.differ.v1.erofs",
        "io.containerd.nri.v1.nri",
        "io.containerd.internal.v1.opt",
        "io.containerd.internal.v1.tracing",
        "io.containerd.tracing.processor.v1.otlp",
    ]
    .map(|plugin| format!("{plugin:?}"))
    .join(", ");
    format!(
        r#"version = 3
disabled_plugins = [{off}]

[grpc]
address = "{CONTAINERD}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
disable_apparmor = true
# The lab has no right to raise its own importance.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "runc"
SystemdCgroup = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
"#
    )
}

fn kubelet(pki: &Pki, plan: Plan, worker: &Worker) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.path("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki.path(&format!("{}-serving.crt", worker.name)),
        "tlsPrivateKeyFile": pki.path(&format!("{}-serving.key", worker.name)),
        "staticPodPath": STATIC_PODS,
        "fileCheckFrequency": "1s",
        "clusterDomain": "cluster.local",
        "clusterDNS": [plan.dns_service()],
        "resolvConf": "/etc/resolv.conf",
        "serializeImagePulls": false,
        // There is no registry to get an image back from, so none is thrown away.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
            "imagefs.inodesFree": "1%",
        },
        "nodeStatusUpdateFrequency": "2s",
    })
}

fn kube_proxy(pki: &Pki, plan: Plan, worker: &Worker) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": pki.path("kube-proxy.kubeconfig")},
        "clusterCIDR": plan.pods(),
        "hostnameOverride": worker.name,
        // These would be written to settings that belong to the whole host.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

/// Installs the CNI plugins and their configuration where a cluster's users expect them.
fn cni(tools: &Path, worker: &Worker, machine: &Machine) -> anyhow::Result<()> {
    for plugin in PLUGINS {
        let at = machine.path("/opt/cni/bin").join(plugin);
        fs::copy(tools.join(plugin), &at)
            .with_context(|| format!("installing {}", at.display()))?;
    }
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": worker.pods4}], [{"subnet": worker.pods6}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let at = machine.path("/etc/cni/net.d/10-lab.conflist");
    fs::write(&at, serde_json::to_string_pretty(&list)?)
        .with_context(|| format!("writing {}", at.display()))
}
