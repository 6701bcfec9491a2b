//! Whether ztunnel goes for good: asks the API server if its DaemonSet stays.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// Where the API server is, and with what to prove oneself there.
#[derive(Debug, Clone)]
pub struct ApiServer {
    /// Its host, as the pod's environment names it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The token and the root, as Kubernetes mounts them in every pod.
    pub account: PathBuf,
}

/// What becomes of this node's ztunnel after this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Another follows.
    Restart,
    /// None follows: the node goes back to what it was.
    ForGood,
}

/// Why the API server did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It cannot be reached, or not be trusted.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// HTTP failed.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// What it said cannot be read.
    #[error("unreadable answer: {0}")]
    Unreadable(String),
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
}

/// A part of the termination grace that leaves enough for the rest.
const PATIENCE: Duration = Duration::from_secs(3);

/// A DaemonSet is a few kilobytes.
const MOST_BYTES: usize = 4 << 20;

impl ApiServer {
    /// Asks whether DaemonSet `name` and its namespace stay: deleted together, the pods may be told before the DaemonSet
    /// is. A server that cannot be asked says nothing about that, and a restart is
    /// the case in which doing nothing is right.
    pub async fn leaving(&self, namespace: &str, name: &str) -> Leaving {
        let space = format!("/api/v1/namespaces/{namespace}");
        let set = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let both = async { tokio::try_join!(self.get(&space), self.get(&set)) };
        let asked = timeout(PATIENCE, both)
            .await
            .unwrap_or(Err(AskError::Timeout));
        let judged =
            asked.and_then(|(space, set)| Ok([judge(space.0, &space.1)?, judge(set.0, &set.1)?]));
        match judged {
            Ok([Leaving::Restart, Leaving::Restart]) => Leaving::Restart,
            Ok(_) => Leaving::ForGood,
            Err(error) => {
                tracing::warn!(%error, "cannot ask the API server whether ztunnel goes for good; it does not, then");
                Leaving::Restart
            }
        }
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), AskError> {
        let token = tokio::fs::read_to_string(self.account.join("token")).await?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let tls = TlsConnector::from(self.tls()?).connect(name, tcp).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let request = Request::get(path)
            .header("host", &self.host)
            .header("accept", "application/json")
            .header("authorization", format!("Bearer {}", token.trim()))
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST_BYTES)
                .collect()
                .await;
            let body = body.map_err(|e| AskError::Unreadable(e.to_string()))?;
            Ok((status, body.to_bytes()))
        };
        tokio::select! {
            answer = exchange => answer,
            Err(error) = connection => Err(error.into()),
        }
    }

    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(self.account.join("ca.crt"))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots
                .add(certificate.map_err(io::Error::other)?)
                .map_err(io::Error::other)?;
        }
        let config = ClientConfig::builder_with_provider(default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// Gone, going, or our right to ask is already gone with everything else of the mesh.
fn judge(status: StatusCode, body: &[u8]) -> Result<Leaving, AskError> {
    match status {
        StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Ok(Leaving::ForGood)
        }
        StatusCode::OK => {
            let object: serde_json::Value =
                serde_json::from_slice(body).map_err(|e| AskError::Unreadable(e.to_string()))?;
            Ok(match object.pointer("/metadata/deletionTimestamp") {
                Some(_) => Leaving::ForGood,
                None => Leaving::Restart,
            })
        }
        other => Err(AskError::Unreadable(format!("status {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_what_the_server_says() {
        let here = br#"{"metadata":{"name":"ztunnel"}}"#;
        let going = br#"{"metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z"}}"#;
        assert_eq!(judge(StatusCode::OK, here).unwrap(), Leaving::Restart);
        assert_eq!(judge(StatusCode::OK, going).unwrap(), Leaving::ForGood);
        for status in [404, 401, 403] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(judge(status, b"").unwrap(), Leaving::ForGood);
        }
        assert!(judge(StatusCode::INTERNAL_SERVER_ERROR, b"").is_err());
        assert!(judge(StatusCode::OK, b"<html>").is_err());
    }

    #[tokio::test]
    async fn who_cannot_be_asked_changes_nothing() {
        let nowhere = ApiServer {
            host: "127.0.0.1".into(),
            port: 1,
            account: "/nonexistent".into(),
        };
        assert_eq!(nowhere.leaving("ns", "ztunnel").await, Leaving::Restart);
    }
}
