//! The real server on loopback, as the program has it but for Kubernetes: what it lives on is the caller's.
//!
//! A test file, or a bench, takes it with `#[path = "support/server.rs"] mod server;`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use controller::ca::Certificates;
use controller::ca::authority::Authority;
use controller::ca::authorize::Rules;
use controller::discovery::authenticate::Authenticate;
use controller::discovery::refusals::Refusals;
use controller::discovery::snapshot::Snapshot;
use controller::discovery::{Discovery, Streams};
use controller::index::Input;
use controller::metrics::Metrics;
use controller::server;
use hbone::TrustDomain;
use mesh::control::Control;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// As which it is certified.
pub const NAME: &str = "ambit-controller.ambit-system.svc";

/// What a server lives on.
pub struct Parts {
    pub authenticate: Arc<dyn Authenticate>,
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    pub index: mpsc::Sender<Input>,
    pub metrics: Metrics,
}

/// A server that runs as long as its runtime.
pub struct Served {
    pub address: SocketAddr,
    /// Its root, and the tokens of its callers.
    files: TempDir,
}

impl Parts {
    /// Both services, which look at the same.
    pub fn discovery(self) -> Discovery {
        Discovery {
            authenticate: self.authenticate,
            snapshots: self.snapshots,
            index: self.index,
            refusals: Refusals::new(self.metrics.clone()),
            metrics: self.metrics,
            streams: Streams::default(),
        }
    }

    /// Serves from now on.
    pub async fn serve(self) -> io::Result<Served> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let authority = Authority::ephemeral("cluster.local").map_err(io::Error::other)?;
        let authority = Arc::new(authority);
        let files = tempfile::tempdir()?;
        std::fs::write(files.path().join("root.pem"), authority.roots())?;
        let discovery = self.discovery();
        let certificates = Certificates {
            authenticate: discovery.authenticate.clone(),
            rules: Arc::new(Rules {
                trust_domain: TrustDomain::default(),
                allow_self_issue: false,
            }),
            snapshots: discovery.snapshots.clone(),
            authority: authority.clone(),
            refusals: discovery.refusals.clone(),
            metrics: discovery.metrics.clone(),
        };
        let names = vec![NAME.to_owned()];
        tokio::spawn(server::serve(
            listener,
            authority,
            names,
            discovery,
            certificates,
        ));
        Ok(Served { address, files })
    }
}

impl Served {
    /// The way there with a token.
    pub fn control(&self, token: &str) -> io::Result<Control> {
        let file = self.files.path().join(token);
        std::fs::write(&file, token)?;
        Ok(Control {
            address: self.address.to_string(),
            server_name: Some(NAME.to_owned()),
            roots: self.files.path().join("root.pem"),
            token: Some(file),
        })
    }
}
