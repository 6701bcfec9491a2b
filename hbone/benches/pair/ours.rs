//! The tunnel of this crate, wired as the node proxy wires it: one thread, one `LocalRuntime`.

use std::cell::Cell;
use std::future::Future;
use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::thread;

use hbone::{
    Acceptor, Baggage, Connection, Credentials, CredentialsWriter, Destination, Expect, Forwarded,
    Identity, Incoming, Meter, Pool, PoolLimits, Request, Response, ServerLimits, SpiffeId, Target,
    TcpDial, TraceParent, TrustDomain, Tunnel, credentials,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::certs::{FAR, Pem};
use crate::{Result, child};

/// A target nobody dials: the tunnel is accepted and held, so that it costs no socket.
const HELD: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9));

/// How many tunnels are opened at a time where they are all that is opened; with resumption one
/// after the other, as each continues the session of the one before.
const AT_ONCE: usize = 4;

/// The near end: a pool, and what it opens tunnels for.
struct Near {
    pool: Pool<TcpDial>,
    to: Destination,
    app: SocketAddr,
    far: SpiffeId,
    /// What all clients say about themselves.
    baggage: Baggage,
    /// How many workloads there have been.
    workloads: Cell<usize>,
}

#[derive(Clone, Copy)]
enum Handshake {
    Full,
    Resumed,
}

/// Accepts applications and tunnels each of them through the far end to `app`.
pub(crate) fn near(far: SocketAddr, app: SocketAddr, streams: usize) -> Result<()> {
    local(async move {
        let (_writer, credentials) = identity(&Pem::near()?)?;
        let limits = PoolLimits {
            max_streams: streams,
            ..PoolLimits::default()
        };
        let id: SpiffeId = FAR.parse()?;
        let near: &Near = Box::leak(Box::new(Near {
            pool: Pool::new(credentials, TcpDial, limits),
            to: Destination {
                addr: far,
                expect: Expect::one(id.clone()),
                workload: "uid-of-the-far-end".into(),
            },
            app,
            far: id,
            baggage: baggage("client"),
            workloads: Cell::new(0),
        }));
        spawn_local(async move {
            if let Err(error) = near.obey().await {
                eprintln!("near end: {error}");
            }
        });
        let listener = TcpListener::bind(child::bind()?).await?;
        child::tell(&format!("ready {}", listener.local_addr()?))?;
        loop {
            let (tcp, client) = listener.accept().await?;
            spawn_local(async move {
                if let Some(tunnel) = near.open(client).await {
                    relay(tunnel, tcp);
                }
            });
        }
    })
}

/// Accepts tunnels and relays each of them to whom it asks for.
pub(crate) fn far() -> Result<()> {
    local(async move {
        let (_writer, credentials) = identity(&Pem::far()?)?;
        let limits = ServerLimits::default();
        let acceptor = Acceptor::new(credentials, [TrustDomain::default()], limits);
        let says: &Baggage = Box::leak(Box::new(baggage("server")));
        let listener = TcpListener::bind(child::bind()?).await?;
        child::tell(&format!("ready {}", listener.local_addr()?))?;
        loop {
            let (tcp, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            spawn_local(async move {
                match Box::pin(acceptor.accept(tcp)).await {
                    Ok(connection) => serve(connection, says).await,
                    Err(error) => eprintln!("far end: {error}"),
                }
            });
        }
    })
}

async fn serve(mut connection: Connection, says: &'static Baggage) {
    while let Some(next) = connection.next().await {
        match next {
            Ok(incoming) => drop(spawn_local(async move {
                match accept(incoming, says).await {
                    Some((tunnel, Some(app))) => relay(tunnel, app),
                    Some((tunnel, None)) => drop(spawn_local(hold(tunnel))),
                    None => {}
                }
            })),
            // The near end is ended without ceremony when all is measured.
            Err(_) => return,
        }
    }
}

/// The engine does the rest; what is to be accounted for is kept until the end.
fn relay(tunnel: Tunnel, app: TcpStream) {
    let meter = Meter::new();
    tunnel.relay_then(app, &meter.clone(), move |_| drop(meter));
}

/// Dials the application before the answer, as the node proxy does.
async fn accept(incoming: Incoming, says: &Baggage) -> Option<(Tunnel, Option<TcpStream>)> {
    let Target::Addr(to) = incoming.request.target else {
        return None;
    };
    let app = if to == HELD {
        None
    } else {
        Some(TcpStream::connect(to).await.ok()?)
    };
    let response = Response {
        baggage: says.clone(),
    };
    Some((incoming.accept(response).ok()?, app))
}

/// Keeps a tunnel until the other side ends it. Nobody sends anything: there is no buffer to be cleared.
async fn hold(tunnel: Tunnel) {
    let mut io = tunnel.into_io();
    while matches!(io.read(&mut [0; 64]).await, Ok(1..)) {}
}

// === impl Near ===

impl Near {
    async fn open(&self, client: SocketAddr) -> Option<Tunnel> {
        let request = self.request(client, self.app);
        match self.pool.open(&self.to, &request).await {
            Ok(opened) => Some(opened.tunnel),
            Err(error) => {
                eprintln!("near end: {error}");
                None
            }
        }
    }

    /// Does what the parent asks for beside connections: `tunnels N` opens tunnels to as many
    /// workloads with full handshakes, `resumed N` with resumed ones where there are any, and
    /// `hold N` opens streams without sockets and keeps them.
    async fn obey(&'static self) -> Result<()> {
        let mut orders = orders();
        let mut held = Vec::new();
        while let Some(order) = orders.recv().await {
            let (verb, count) = order.split_once(' ').ok_or("an order is two words")?;
            match (verb, count.parse()?) {
                ("tunnels", count) => self.tunnels(count, Handshake::Full).await?,
                ("resumed", count) => self.tunnels(count, Handshake::Resumed).await?,
                ("hold", count) => {
                    for _ in 0..count {
                        let request = self.request(self.to.addr, HELD);
                        held.push(self.pool.open(&self.to, &request).await?.tunnel);
                    }
                }
                _ => return Err(format!("no such order: {order}").into()),
            }
            child::tell("done")?;
        }
        Ok(())
    }

    async fn tunnels(&'static self, count: usize, handshake: Handshake) -> Result<()> {
        let at_once = match handshake {
            Handshake::Full => AT_ONCE,
            Handshake::Resumed => 1,
        };
        let opening = (0..at_once).map(|first| {
            spawn_local(async move {
                for _ in (first..count).step_by(at_once) {
                    let opened = self.tunnel(handshake).await;
                    opened.map_err(|error| error.to_string())?;
                }
                Ok::<(), String>(())
            })
        });
        for one in opening.collect::<Vec<_>>() {
            one.await??;
        }
        Ok(())
    }

    /// A tunnel to one more workload, whose stream ends at once.
    async fn tunnel(&self, handshake: Handshake) -> Result<()> {
        let n = self.workloads.replace(self.workloads.get() + 1);
        let expect = match handshake {
            // A session is resumed only under the expectation it began with.
            Handshake::Full => {
                let other = format!("spiffe://cluster.local/ns/shop/sa/other-{n}");
                Expect::any_of([self.far.clone(), other.parse()?]).ok_or("no expectation")?
            }
            Handshake::Resumed => self.to.expect.clone(),
        };
        let to = Destination {
            addr: self.to.addr,
            expect,
            workload: format!("uid-{n}").into(),
        };
        let request = self.request(self.to.addr, HELD);
        drop(self.pool.open(&to, &request).await?);
        Ok(())
    }

    /// What the node proxy says in a CONNECT.
    fn request(&self, client: SocketAddr, target: SocketAddr) -> Request {
        Request {
            forwarded: Some(Forwarded { client, host: None }),
            baggage: self.baggage.clone(),
            traceparent: Some(TraceParent::random()),
            ..Request::to(Target::Addr(target))
        }
    }
}

fn baggage(name: &str) -> Baggage {
    let name: Arc<str> = name.into();
    Baggage {
        namespace: Some("shop".into()),
        workload_name: Some(name.clone()),
        service_name: Some(name),
        ..Baggage::default()
    }
}

fn identity(pem: &Pem) -> Result<(CredentialsWriter, Credentials)> {
    let identity = Identity::from_pem(&pem.chain, &pem.key, &pem.root)?;
    Ok(credentials(identity))
}

fn orders() -> mpsc::UnboundedReceiver<String> {
    let (tell, orders) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(|line| line.ok()) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    orders
}

fn local(serve: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    runtime.block_on(serve)
}
