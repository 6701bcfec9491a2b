//! A pod of a node, and whether it shall be in the mesh.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::proto::node as wire;
use crate::workload::{self, InvalidWorkload};

/// A pod's Kubernetes UID.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

/// What the controller wishes of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The pod.
    pub uid: PodUid,
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account; empty where a pod that is left alone has none (a static pod).
    pub service_account: Arc<str>,
    /// Its addresses, once it has some.
    pub addresses: Vec<IpAddr>,
    /// In the mesh; otherwise left alone.
    pub capture: bool,
    /// Plaintext that arrives is not redirected.
    pub bypass_inbound: bool,
}

/// Why an enrolment is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnrolment {
    /// A field that must be there is empty.
    #[error("no {0}")]
    Missing(&'static str),
    /// Neither in nor out.
    #[error("capture is neither in nor out: {0}")]
    Capture(i32),
    /// An address.
    #[error(transparent)]
    Address(#[from] InvalidWorkload),
}

// === impl PodUid ===

impl PodUid {
    /// As Kubernetes writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Enrolment ===

impl TryFrom<wire::Enrolment> for Enrolment {
    type Error = InvalidEnrolment;

    fn try_from(from: wire::Enrolment) -> Result<Self, Self::Error> {
        for (what, text) in [
            ("uid", &from.uid),
            ("name", &from.name),
            ("namespace", &from.namespace),
        ] {
            if text.is_empty() {
                return Err(InvalidEnrolment::Missing(what));
            }
        }
        let capture = match wire::Capture::try_from(from.capture) {
            Ok(wire::Capture::In) => true,
            Ok(wire::Capture::Out) => false,
            _ => return Err(InvalidEnrolment::Capture(from.capture)),
        };
        if capture && from.service_account.is_empty() {
            return Err(InvalidEnrolment::Missing("service account"));
        }
        Ok(Self {
            uid: PodUid::from(&*from.uid),
            name: from.name.into(),
            namespace: from.namespace.into(),
            service_account: from.service_account.into(),
            addresses: workload::addresses(&from.addresses)?,
            capture,
            bypass_inbound: from.bypass_inbound,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pod_that_is_left_alone_may_have_no_account() {
        let of = |capture: wire::Capture| wire::Enrolment {
            uid: "u".to_owned(),
            name: "a".to_owned(),
            namespace: "shop".to_owned(),
            capture: capture.into(),
            ..Default::default()
        };
        assert_eq!(
            Enrolment::try_from(of(wire::Capture::In)),
            Err(InvalidEnrolment::Missing("service account"))
        );
        let left_alone = Enrolment::try_from(of(wire::Capture::Out)).expect("a static pod");
        assert!(!left_alone.capture);
    }
}
