//! Callers of the controller: tokens as kubelet would mount them, and the ways to ask for certificates and resources.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use e2e::cluster::Cluster;
use e2e::cluster::machine::Machine;
use e2e::mesh::SYSTEM_NAMESPACE;
use e2e::probe::PodRef;
use e2e::replicas;
use futures_util::StreamExt as _;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use mesh::ca::{CaError, Caller, CertificateClient};
use mesh::control::Control;
use mesh::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use mesh::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh::xds::node::NodeInfo;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

/// The controller's first answer, or its refusal.
const ANSWER: Duration = Duration::from_secs(10);
/// TCP between the machines of the lab, its listener's queue being full for a moment.
const DIAL: Duration = Duration::from_secs(5);

pub fn identity(namespace: &str, account: &str) -> Result<hbone::SpiffeId> {
    Ok(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse()?)
}

pub fn is_denied(asked: Result<hbone::Identity, CaError>, reason: &str) -> Result<()> {
    match asked {
        Err(error) if error.code() == "permission_denied" && error.to_string().contains(reason) => {
            println!("certificate: {error}");
            Ok(())
        }
        Err(error) => bail!("refused, but not because {reason:?}: {error}"),
        Ok(_) => bail!("signed, although {reason:?}"),
    }
}

/// The ztunnel on a pod's node.
pub async fn ztunnel_of(pod: &PodRef) -> Result<PodRef> {
    let node = pod.get().await?.spec.and_then(|spec| spec.node_name);
    let node = node.context("a pod without node")?;
    let client = pod.api().clone().into_client();
    system_pod(&client, "ztunnel", &format!("spec.nodeName={node}")).await
}

pub async fn system_pod(client: &Client, name: &str, fields: &str) -> Result<PodRef> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let selector = format!("app.kubernetes.io/name={name}");
    let which = ListParams::default().labels(&selector).fields(fields);
    let all = pods.list(&which).await?;
    let pod = all
        .items
        .into_iter()
        .find(|pod| pod.metadata.deletion_timestamp.is_none());
    let found = pod.and_then(|pod| pod.metadata.name);
    let found = found.with_context(|| format!("no pod of {name} ({fields})"))?;
    Ok(PodRef::new(client, SYSTEM_NAMESPACE, &found))
}

/// A token for the mesh as the kubelet would mount it into this pod.
pub async fn token(pod: &PodRef, account: &str) -> Result<String> {
    let metadata = pod.get().await?.metadata;
    let asked = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec!["istio-ca".to_owned()],
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: metadata.name,
                uid: metadata.uid,
            }),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> =
        Api::namespaced(pod.api().clone().into_client(), pod.namespace());
    let given = accounts
        .create_token_request(account, &PostParams::default(), &asked)
        .await?;
    Ok(given.status.context("no token")?.token)
}

/// One replica of the controller, reached from the host through the network of a node.
pub struct Controller {
    pub pod: PodRef,
    /// Where it serves, as the cluster sees it.
    pub serves: SocketAddr,
    address: SocketAddr,
    files: Arc<TempDir>,
}

impl Controller {
    /// Any replica that is ready, reached from the first node.
    pub async fn reach(cluster: &Cluster, client: &Client) -> Result<Self> {
        let replica = replicas::ready(client).await?.pop();
        let pod = replica.context("no controller is ready")?.pod;
        let ip = pod
            .ips()
            .await?
            .into_iter()
            .next()
            .context("a controller without address")?;
        let serves = SocketAddr::new(ip, 15012);
        let files = TempDir::new()?;
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let roots = maps.get("ambit-ca-root-cert").await?.data;
        let roots = roots.unwrap_or_default().remove("root-cert.pem");
        std::fs::write(files.path().join("roots"), roots.context("no roots")?)?;
        let from = &cluster.nodes.first().context("no node")?.machine;
        Ok(Self {
            pod,
            serves,
            address: way(from, serves).await?,
            files: Arc::new(files),
        })
    }

    /// The same replica, reached from another node: the caller has another address.
    pub async fn reached_from(&self, from: &Machine) -> Result<Self> {
        Ok(Self {
            pod: self.pod.clone(),
            serves: self.serves,
            address: way(from, self.serves).await?,
            files: self.files.clone(),
        })
    }

    /// A client that shows this token.
    pub fn client(&self, token: &str, caller: Caller) -> Result<CertificateClient> {
        let control = Control {
            token: Some(self.file(token)?),
            ..self.control()
        };
        Ok(CertificateClient::new(control, "Kubernetes", caller))
    }

    /// The way there, without a token.
    pub fn control(&self) -> Control {
        Control {
            address: self.address.to_string(),
            server_name: Some(format!("ambit-controller.{SYSTEM_NAMESPACE}.svc")),
            roots: self.files.path().join("roots"),
            token: None,
        }
    }

    /// A file of its own, because the client reads it at each use.
    fn file(&self, token: &str) -> Result<PathBuf> {
        let (_, path) = tempfile::NamedTempFile::new_in(self.files.path())?.keep()?;
        std::fs::write(&path, token)?;
        Ok(path)
    }

    /// What is answered to the first request for a type, shown this token.
    pub async fn discover(
        &self,
        token: &str,
        who: NodeInfo,
        type_url: &str,
    ) -> Result<Result<DeltaDiscoveryResponse, tonic::Status>> {
        let channel = self.control().connect().await?;
        let asked = DeltaDiscoveryRequest {
            node: Some(who.to_proto()),
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..DeltaDiscoveryRequest::default()
        };
        // It stays open: the answer is what ends this, not us.
        let asked =
            futures_util::stream::once(async { asked }).chain(futures_util::stream::pending());
        let mut request = tonic::Request::new(asked);
        let shown = format!("Bearer {token}").parse().context("a token")?;
        request.metadata_mut().insert("authorization", shown);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let answer = async {
            let stream = client.delta_aggregated_resources(request).await?;
            let first = stream.into_inner().message().await?;
            first.ok_or_else(|| tonic::Status::ok("the stream ended without an answer"))
        };
        let answer = tokio::time::timeout(ANSWER, answer).await;
        answer.with_context(|| format!("no answer within {ANSWER:?}"))
    }
}

/// An address on the host that leads there from a node's network.
async fn way(from: &Machine, to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(tunnel(listener, from.clone(), to));
    Ok(address)
}

/// Brings each connection there, from a node's network.
async fn tunnel(listener: TcpListener, from: Machine, to: SocketAddr) {
    while let Ok((mut near, _)) = listener.accept().await {
        let from = from.clone();
        tokio::spawn(async move {
            let dialled = tokio::task::spawn_blocking(move || dial(&from, to)).await??;
            let mut far = TcpStream::from_std(dialled)?;
            tokio::io::copy_bidirectional(&mut near, &mut far).await?;
            anyhow::Ok(())
        });
    }
}

/// A connection that begins in a node's network.
pub fn dial(from: &Machine, to: SocketAddr) -> Result<std::net::TcpStream> {
    from.in_network(|| {
        let stream = std::net::TcpStream::connect_timeout(&to, DIAL)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    })
}
