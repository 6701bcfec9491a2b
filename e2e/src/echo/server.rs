//! The echo server: its listeners, and one task per connection.

mod grpc;
mod http;
mod tcp;
mod tls;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::flags::{self, Flags};
use super::orders::Term;
use super::report::{self, Accepted};

// Out of descriptors: the accept errors that pass by waiting.
const EMFILE: i32 = nix::errno::Errno::EMFILE as i32;
const ENFILE: i32 = nix::errno::Errno::ENFILE as i32;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1 and HTTP/2 by prior knowledge, gRPC too.
    Http,
    /// The same; named apart because the fixtures do.
    Grpc,
    /// Bytes come back, after lines that say who answers.
    Tcp,
    /// As [`Speaks::Tcp`], but the lines come before the client says anything.
    ServerFirst,
}

/// One port to listen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// What it speaks.
    pub speaks: Speaks,
    /// The port; 0 chooses a free one.
    pub port: u16,
    /// Inside TLS?
    pub tls: bool,
}

/// What a server is asked to be.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Said as `ServiceVersion=`.
    pub version: String,
    /// The one address to listen on; all, if none.
    pub bind: Option<IpAddr>,
    /// The ports.
    pub listen: Vec<Listen>,
    /// Certificate chain and key in PEM; made up if there are no such files.
    pub cert: Option<(PathBuf, PathBuf)>,
    /// How long to go on serving after SIGTERM.
    pub drain: Duration,
}

impl ServerConfig {
    /// Reads the command line.
    pub(crate) fn from_args(args: Vec<String>) -> Result<Self> {
        let mut flags = Flags::parse(args, &[])?;
        let mut listen = Vec::new();
        for (flag, speaks) in [
            ("port", Speaks::Http),
            ("grpc", Speaks::Grpc),
            ("tcp", Speaks::Tcp),
            ("server-first", Speaks::ServerFirst),
        ] {
            listen.extend(flags.ports(flag)?.into_iter().map(|port| Listen {
                speaks,
                port,
                tls: false,
            }));
        }
        if listen.is_empty() {
            listen.extend(
                [
                    (Speaks::Http, 8080),
                    (Speaks::Grpc, 7070),
                    (Speaks::Tcp, 9090),
                ]
                .map(|(speaks, port)| Listen {
                    speaks,
                    port,
                    tls: false,
                }),
            );
        }
        for port in flags.ports("tls")? {
            let mut named = listen
                .iter_mut()
                .filter(|listen| listen.port == port)
                .peekable();
            ensure!(
                named.peek().is_some(),
                "--tls={port} names no port that is listened on"
            );
            named.for_each(|listen| listen.tls = true);
        }
        let config = Self {
            version: flags.last("version").unwrap_or_default(),
            bind: flags.or("bind", None, |text| flags::ip(text).map(Some))?,
            listen,
            cert: flags
                .last("crt")
                .zip(flags.last("key"))
                .map(|(crt, key)| (crt.into(), key.into())),
            drain: flags.or("drain", Duration::ZERO, flags::duration)?,
        };
        flags.finish()?;
        Ok(config)
    }
}

/// Serves until SIGTERM.
pub(crate) async fn main(config: ServerConfig) -> ExitCode {
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ambit-echo server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: ServerConfig) -> Result<()> {
    let mut term = Term::install().context("signals")?;
    let drain = config.drain;
    let server = Server::bind(config).await?;
    for (listen, addr) in server.addrs() {
        println!(
            "listening speaks={:?} tls={} addr={addr}",
            listen.speaks, listen.tls
        );
    }
    let end = async {
        term.recv().await;
        if !drain.is_zero() {
            println!("draining for {drain:?}");
            tokio::time::sleep(drain).await;
        }
    };
    tokio::select! {
        result = server.serve() => result,
        () = end => Ok(()),
    }
}

/// A server whose ports are bound.
pub struct Server {
    ports: Vec<(Listen, SocketAddr, TcpListener)>,
    who: Arc<report::Server>,
    tls: TlsAcceptor,
}

impl Server {
    /// Binds every port, or none.
    pub async fn bind(config: ServerConfig) -> Result<Self> {
        let hostname = nix::unistd::gethostname()
            .context("host name")?
            .to_string_lossy()
            .into_owned();
        let tls = tls::acceptor(config.cert.as_ref(), &hostname)?;
        let mut ports = Vec::with_capacity(config.listen.len());
        for listen in config.listen {
            let listener = bind(config.bind, listen.port)
                .await
                .with_context(|| format!("port {}", listen.port))?;
            ports.push((listen, listener.local_addr()?, listener));
        }
        Ok(Self {
            ports,
            who: Arc::new(report::Server {
                version: config.version,
                hostname,
            }),
            tls,
        })
    }

    /// What is listened on, in the order asked for.
    pub fn addrs(&self) -> Vec<(Listen, SocketAddr)> {
        self.ports
            .iter()
            .map(|(listen, addr, _)| (*listen, *addr))
            .collect()
    }

    /// Serves for ever; a listener that ends is an error.
    pub async fn serve(self) -> Result<()> {
        let mut listeners = JoinSet::new();
        for (listen, addr, listener) in self.ports {
            listeners.spawn(accept(
                listen,
                addr.port(),
                listener,
                self.who.clone(),
                self.tls.clone(),
            ));
        }
        match listeners.join_next().await {
            Some(ended) => Err(ended.context("a listener died")?),
            None => std::future::pending().await,
        }
    }
}

/// Both families where the machine has both.
async fn bind(at: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    match at {
        Some(ip) => TcpListener::bind((ip, port)).await,
        None => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
            Ok(listener) => Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
            Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        },
    }
}

async fn accept(
    listen: Listen,
    port: u16,
    listener: TcpListener,
    who: Arc<report::Server>,
    tls: TlsAcceptor,
) -> anyhow::Error {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let accepted = Accepted {
                    server: who.clone(),
                    port,
                    peer: peer.ip().to_canonical(),
                };
                tokio::spawn(connection(listen, stream, accepted, tls.clone()));
            }
            Err(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                eprintln!("accept on {port}: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return anyhow::Error::new(error).context(format!("accept on {port}")),
        }
    }
}

async fn connection(listen: Listen, stream: TcpStream, accepted: Accepted, tls: TlsAcceptor) {
    let (peer, port) = (accepted.peer, accepted.port);
    let _ = stream.set_nodelay(true);
    let result = if listen.tls {
        match tls.accept(stream).await {
            Ok(stream) => speak(listen.speaks, stream, accepted).await,
            Err(error) => Err(anyhow::Error::new(error).context("TLS")),
        }
    } else {
        speak(listen.speaks, stream, accepted).await
    };
    if let Err(error) = result {
        eprintln!("connection from {peer} to {port}: {error:#}");
    }
}

async fn speak<S>(speaks: Speaks, stream: S, accepted: Accepted) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match speaks {
        Speaks::Http | Speaks::Grpc => http::serve(stream, accepted).await,
        Speaks::Tcp => Ok(tcp::serve(stream, &accepted, false).await?),
        Speaks::ServerFirst => Ok(tcp::serve(stream, &accepted, true).await?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<ServerConfig> {
        ServerConfig::from_args(line.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn takes_the_fixtures_command_line() {
        let line = "--tcp=9090 --port=8080 --grpc=7070 --port=8443 --tls=8443 --crt=/cert.crt --key=/cert.key";
        let config = parse(line).expect("as the fixture passes it");
        let ports: Vec<_> = config
            .listen
            .iter()
            .map(|l| (l.speaks, l.port, l.tls))
            .collect();
        let expected = [
            (Speaks::Http, 8080, false),
            (Speaks::Http, 8443, true),
            (Speaks::Grpc, 7070, false),
            (Speaks::Tcp, 9090, false),
        ];
        assert_eq!(ports, expected);
        assert_eq!(config.cert, Some(("/cert.crt".into(), "/cert.key".into())));
    }

    #[test]
    fn has_defaults_and_refuses_nonsense() {
        let ports: Vec<_> = parse("")
            .expect("defaults")
            .listen
            .iter()
            .map(|l| l.port)
            .collect();
        assert_eq!(ports, [8080, 7070, 9090]);
        for bad in ["--tls=1", "--port=x", "--bind=y", "stray", "--prt=1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
