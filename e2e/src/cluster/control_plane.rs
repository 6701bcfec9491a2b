//! What runs on the control plane: etcd, the API server, the controller manager, the scheduler.

use std::path::Path;

use super::certs::Pki;
use super::init::Service;
use super::plan::Plan;
use super::programs;

/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;
/// Where etcd listens, for the API server only.
pub(super) const ETCD_PORT: u16 = 2379;

/// The services of the control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    /// Keeps the state, in memory.
    pub etcd: Service,
    /// Serves the API.
    pub api_server: Service,
    /// Need the API server.
    pub rest: [Service; 2],
}

/// The services of a lab's control plane.
pub(super) fn services(tools: &Path, pki: &Pki, plan: Plan) -> ControlPlane {
    ControlPlane {
        etcd: etcd(tools),
        api_server: api_server(tools, pki, plan),
        rest: [controller_manager(tools, pki, plan), scheduler(tools, pki)],
    }
}

fn etcd(tools: &Path) -> Service {
    let client = format!("http://127.0.0.1:{ETCD_PORT}");
    let peer = "http://127.0.0.1:2380";
    // The build calls etcd's binary after its package's folder.
    let arguments = [
        "--name=lab".to_owned(),
        "--data-dir=/run/etcd".to_owned(),
        // Nothing in a lab outlives the machine's memory anyway.
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=lab={peer}"),
    ];
    programs::service(tools, "etcd", "server", arguments)
}

fn api_server(tools: &Path, pki: &Pki, plan: Plan) -> Service {
    let p = |file: &str| pki.path(file);
    let arguments = [
        format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={}", plan.control_plane4()),
        format!("--service-cluster-ip-range={}", plan.services()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--anonymous-auth=true".to_owned(),
        format!("--tls-cert-file={}", p("apiserver.crt")),
        format!("--tls-private-key-file={}", p("apiserver.key")),
        format!("--client-ca-file={}", p("ca.crt")),
        // `exec` and `logs` reach kubelets by address: the lab has no names for nodes.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-certificate-authority={}", p("ca.crt")),
        format!(
            "--kubelet-client-certificate={}",
            p("apiserver-kubelet-client.crt")
        ),
        format!("--kubelet-client-key={}", p("apiserver-kubelet-client.key")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", p("service-account.pub")),
        format!(
            "--service-account-signing-key-file={}",
            p("service-account.key")
        ),
        // No kube-proxy beside the API server: it finds the pods behind webhooks and aggregated APIs itself.
        "--enable-aggregator-routing=true".to_owned(),
        format!("--requestheader-client-ca-file={}", p("front-proxy-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", p("front-proxy-client.crt")),
        format!("--proxy-client-key-file={}", p("front-proxy-client.key")),
    ];
    programs::service(tools, "kube-apiserver", "kube-apiserver", arguments)
}

fn controller_manager(tools: &Path, pki: &Pki, plan: Plan) -> Service {
    let p = |file: &str| pki.path(file);
    let config = p("controller-manager.kubeconfig");
    let arguments = [
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--leader-elect=false".to_owned(),
        // Its own user may do almost nothing; each controller acts as a service account of its own.
        "--use-service-account-credentials=true".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            p("service-account.key")
        ),
        format!("--root-ca-file={}", p("ca.crt")),
        format!("--cluster-signing-cert-file={}", p("ca.crt")),
        format!("--cluster-signing-key-file={}", p("ca.key")),
        // At the default rate it takes five seconds to fetch the tokens of its forty controllers.
        "--kube-api-qps=500".to_owned(),
        "--kube-api-burst=1000".to_owned(),
        // How soon a node that became ready may get pods.
        "--node-monitor-period=1s".to_owned(),
        "--allocate-node-cidrs=false".to_owned(),
        format!("--cluster-cidr={}", plan.pods()),
        format!("--service-cluster-ip-range={}", plan.services()),
    ];
    programs::service(
        tools,
        "kube-controller-manager",
        "kube-controller-manager",
        arguments,
    )
}

fn scheduler(tools: &Path, pki: &Pki) -> Service {
    let config = pki.path("scheduler.kubeconfig");
    let arguments = [
        format!("--kubeconfig={config}"),
        format!("--authentication-kubeconfig={config}"),
        format!("--authorization-kubeconfig={config}"),
        "--leader-elect=false".to_owned(),
    ];
    programs::service(tools, "kube-scheduler", "kube-scheduler", arguments)
}
