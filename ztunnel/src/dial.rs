//! Connections that ztunnel opens in a pod's network namespace, so that the node's network sees the pod.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use hbone::Dial;
use tokio::net::TcpStream;

use crate::{netns::PodNetns, socket};

/// Dials from the pod's own namespace, so that the node's network sees the pod.
#[derive(Clone)]
pub(crate) struct PodDial(pub(crate) PodNetns);

// === impl PodNetns ===

impl PodNetns {
    /// Connects from inside the namespace, marked so that the connection is not captured again.
    pub(crate) async fn connect(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> io::Result<TcpStream> {
        let stream = self
            .call(move || match from {
                Some(from) => socket::dial_as(from, to),
                None => socket::dial(to),
            })
            .await??;
        socket::connected(stream).await
    }
}

impl Dial for PodDial {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect(to, None).await
    }
}
