//! DECISION: at which ports has a Service endpoints in the mesh? At all of its TCP ports, or at none where they are too many.
//!
//! Every proxy remembers each workload with each port of the Services that it stands behind: what an author writes once is
//! multiplied by the pods. A part of the ports would look like a Service that works, until somebody dials the others. So
//! the Service has its ports and nobody behind them: what dials one is refused with its name, at each of its addresses, and
//! nothing of it becomes plaintext.

use std::ops::Deref;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh::proto::workload::{self as wire, AppProtocol};

/// The TCP ports of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index) struct Ports(Box<[ServicePort]>);

/// A TCP port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index) struct ServicePort {
    pub(in crate::index) name: String,
    pub(in crate::index) port: u16,
    pub(in crate::index) target: TargetPort,
    pub(in crate::index) protocol: AppProtocol,
}

/// Where a port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index) enum TargetPort {
    Number(u16),
    /// Each pod says which number it is.
    Name(String),
}

/// TCP ports of one Service: load balancers take at most some 50 to 100, and a workload remembers each in some ten bytes.
pub(in crate::index) const MAX_SERVICE_PORTS: usize = 256;

// === impl Ports ===

impl Ports {
    pub(super) fn parse(ports: &[core::ServicePort]) -> Self {
        Self(ports.iter().filter_map(ServicePort::parse).collect())
    }

    /// Those at which it has endpoints.
    pub(in crate::index) fn served(&self) -> &[ServicePort] {
        match self.0.len() {
            0..=MAX_SERVICE_PORTS => &self.0,
            _ => &[],
        }
    }

    /// What is to be said of a Service that has none, behind its name.
    pub(in crate::index) fn refusal(&self) -> Option<String> {
        let count = self.0.len();
        (count > MAX_SERVICE_PORTS).then(|| {
            format!(
                "has {count} TCP ports: one that has more than {MAX_SERVICE_PORTS} has no endpoints in the mesh, where connections to it are refused"
            )
        })
    }
}

impl Deref for Ports {
    type Target = [ServicePort];

    fn deref(&self) -> &[ServicePort] {
        &self.0
    }
}

// === impl ServicePort ===

impl ServicePort {
    /// `None` for what is not TCP: the mesh does not carry it.
    fn parse(port: &core::ServicePort) -> Option<Self> {
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            return None;
        }
        let number = u16::try_from(port.port).ok()?;
        let name = port.name.clone().unwrap_or_default();
        let target = match &port.target_port {
            Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
            Some(IntOrString::Int(target)) if *target != 0 => {
                TargetPort::Number(u16::try_from(*target).ok()?)
            }
            _ => TargetPort::Number(number),
        };
        let protocol = app_protocol(port.app_protocol.as_deref(), &name);
        Some(Self {
            name,
            port: number,
            target,
            protocol,
        })
    }

    pub(super) fn wire(&self) -> wire::Port {
        let target_port = match self.target {
            TargetPort::Number(number) => number.into(),
            TargetPort::Name(_) => 0,
        };
        wire::Port {
            service_port: self.port.into(),
            target_port,
            app_protocol: self.protocol.into(),
        }
    }
}

/// What is spoken on a port: what `appProtocol` says, else what the name begins with, else not known.
fn app_protocol(declared: Option<&str>, name: &str) -> AppProtocol {
    let word = declared
        .unwrap_or_else(|| name.split('-').next().unwrap_or_default())
        .to_ascii_lowercase();
    match word.as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        // Protocols in which the server speaks first, and others that are surely not HTTP.
        "tcp" | "mysql" | "mongo" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}
