//! An attack, with somebody else on the same server and pool who must not notice, and a count of what is left.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use hbone::{
    Destination, Error, Incoming, Meter, Opened, PoolLimits, Request, Response, ServerLimits,
    Tunnel,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::frames::connect;
use super::wire::{PATIENCE, Wire};
use super::{Lab, SERVER, destination, local, pair, request};

/// Where the bystander wants to go.
const BYSTANDER: &str = "10.9.9.9:9";

/// The bystander's pace.
const PACE: Duration = Duration::from_millis(2);

/// How often the count is taken again.
const COUNTED: Duration = Duration::from_millis(10);

/// What becomes of the attacker's requests at the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Apps {
    /// An application that says back what it hears.
    Echo,
    /// The test itself answers them, from `Scene::held`.
    Held,
}

/// How a scene is set.
pub struct Setup {
    pub apps: Apps,
    pub server: ServerLimits,
    pub pool: PoolLimits,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            apps: Apps::Echo,
            server: ServerLimits::default(),
            pool: PoolLimits::default(),
        }
    }
}

impl Setup {
    /// Requests that the test answers itself.
    pub fn held() -> Self {
        Self {
            apps: Apps::Held,
            ..Self::default()
        }
    }

    pub fn server(mut self, change: impl FnOnce(&mut ServerLimits)) -> Self {
        change(&mut self.server);
        self
    }

    pub fn pool(mut self, change: impl FnOnce(&mut PoolLimits)) -> Self {
        change(&mut self.pool);
        self
    }
}

/// A server, a pool, and a port at which the test waits for the pool.
pub struct Scene {
    pub lab: Lab,
    /// Requests that wait for the test.
    pub held: mpsc::UnboundedReceiver<Incoming>,
    trap: TcpListener,
    apps: Rc<Cell<usize>>,
    /// Before the attack.
    before: Census,
}

/// What must be as before once the attack is over.
#[derive(Debug, Default, PartialEq, Eq)]
struct Census {
    /// Sockets that the server holds.
    server: usize,
    /// Sockets that the pool holds to the trap.
    pool: usize,
    /// Connections that are still served.
    connections: usize,
    /// Applications that still talk.
    apps: usize,
}

/// Runs an attack while a bystander's tunnel echoes before, during and after, and counts what is left.
pub fn attacked(setup: Setup, attack: impl AsyncFnOnce(&mut Scene)) {
    local(async {
        let mut scene = Scene::start(setup).await;
        let mut bystander = scene.bystander().await;
        let over = Rc::new(Cell::new(false));
        let stop = over.clone();
        let echoing = spawn_local(async move {
            let (mut pace, mut rounds) = (pace(PACE), 0);
            while !stop.get() {
                round(&mut bystander, "during").await;
                rounds += 1;
                pace.tick().await;
            }
            (bystander, rounds)
        });
        Box::pin(attack(&mut scene)).await;
        over.set(true);
        let (mut bystander, rounds) = echoing.await.unwrap();
        assert!(rounds > 0, "the attack was over too soon to harm anybody");
        round(&mut bystander, "after").await;
        while scene.held.try_recv().is_ok() {}
        scene.settles().await;
    });
}

impl Scene {
    pub async fn start(setup: Setup) -> Self {
        let mut lab = Lab::with(setup.pool, setup.server).await;
        let (keep, held) = mpsc::unbounded_channel();
        let (_nobody, empty) = mpsc::unbounded_channel();
        let mut incoming = std::mem::replace(&mut lab.served.incoming, empty);
        let apps = Rc::new(Cell::new(0));
        let count = apps.clone();
        spawn_local(async move {
            while let Some(next) = incoming.recv().await {
                if setup.apps == Apps::Echo || next.request.target.to_string() == BYSTANDER {
                    spawn_local(echo(next, Counted::one(&count)));
                } else {
                    drop(keep.send(next));
                }
            }
        });
        Self {
            lab,
            held,
            trap: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            apps,
            before: Census::default(),
        }
    }

    /// An echo through a connection of its own.
    pub async fn bystander(&mut self) -> TcpStream {
        let request = Request::to(BYSTANDER.parse().unwrap());
        let opened = self.lab.pool.open(&self.lab.to, &request).await.unwrap();
        let (mut app, socket) = pair().await;
        spawn_local(async move { opened.tunnel.relay(socket, &Meter::new()).await });
        round(&mut app, "before").await;
        self.before = self.census();
        app
    }

    /// A TCP connection to the server.
    pub async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.lab.served.addr).await.unwrap()
    }

    /// A client past TLS that has said nothing yet.
    pub async fn silent(&self) -> Wire {
        Wire::client(self.tcp().await, &self.lab.ca).await
    }

    /// A client that has exchanged settings.
    pub async fn client(&self) -> Wire {
        let mut wire = self.silent().await;
        wire.greet(&[]).await;
        wire
    }

    /// A client with a tunnel on stream 1.
    pub async fn tunnel(&self) -> Wire {
        let mut wire = self.client().await;
        wire.send(&connect(1)).await;
        wire.expect_status(1, 200).await;
        wire
    }

    /// The same where the application is [`held`](Setup::held), and its side of the tunnel.
    pub async fn held_tunnel(&mut self) -> (Wire, Tunnel) {
        let mut wire = self.client().await;
        wire.send(&connect(1)).await;
        let tunnel = self.incoming().await.accept(Response::default()).unwrap();
        wire.expect_status(1, 200).await;
        (wire, tunnel)
    }

    /// The next request that waits for the test.
    pub async fn incoming(&mut self) -> Incoming {
        let next = timeout(PATIENCE, self.held.recv()).await;
        next.expect("no request comes").unwrap()
    }

    /// The next failure of a connection at the server.
    pub async fn error(&mut self) -> Error {
        let next = timeout(PATIENCE, self.lab.served.errors.recv()).await;
        next.expect("no connection fails").unwrap()
    }

    /// Where the pool is trapped.
    pub fn trap(&self) -> Destination {
        destination(self.trap.local_addr().unwrap(), SERVER)
    }

    /// A tunnel that the pool wants from the trap.
    pub fn wants(&self) -> JoinHandle<Result<Opened, Error>> {
        let (pool, to) = (self.lab.pool.clone(), self.trap());
        spawn_local(async move { pool.open(&to, &request()).await })
    }

    /// The pool's next connection to the trap, before TLS.
    pub async fn caught(&self) -> TcpStream {
        let next = timeout(PATIENCE, self.trap.accept()).await;
        next.expect("the pool does not come").unwrap().0
    }

    /// A server past TLS that has said nothing yet, and the tunnel that the pool wants of it.
    pub async fn silent_server(&self) -> (Wire, JoinHandle<Result<Opened, Error>>) {
        let wanted = self.wants();
        let wire = Wire::server(self.caught().await, &self.lab.ca).await;
        (wire, wanted)
    }

    /// A server that has exchanged settings and been asked for a tunnel on stream 1.
    pub async fn server(
        &self,
        settings: &[(u16, u32)],
    ) -> (Wire, JoinHandle<Result<Opened, Error>>) {
        let (mut wire, wanted) = self.silent_server().await;
        wire.greet(settings).await;
        wire.expect_headers(1).await;
        (wire, wanted)
    }

    fn census(&self) -> Census {
        let trap = self.trap.local_addr().unwrap().port();
        let served = self.lab.served.addr.port();
        Census {
            server: sockets(Some(served), None),
            pool: sockets(None, Some(trap)),
            connections: self.lab.served.living(),
            apps: self.apps.get(),
        }
    }

    /// Waits until nothing is left of the attack, whether or not the attacker has left.
    pub async fn settles(&self) {
        let (mut pace, start) = (pace(COUNTED), Instant::now());
        while self.census() != self.before {
            assert!(
                start.elapsed() < PATIENCE,
                "something is left: {:?}, before it was {:?}",
                self.census(),
                self.before
            );
            pace.tick().await;
        }
    }
}

/// Sockets of this process that are no listeners, by their ports.
///
/// Others on this host may have the same ports at other addresses.
fn sockets(local: Option<u16>, remote: Option<u16>) -> usize {
    const LISTEN: &str = "0A";
    let is = |text: &str, port: Option<u16>| {
        port.is_none_or(|port| text.ends_with(&format!(":{port:04X}")))
    };
    let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = format!(":{:04X} ", local.or(remote).unwrap());
    // There may be thousands of others, most of them gone and forgotten.
    let rows = table.lines().filter(|row| row.contains(&port));
    let ours = own_sockets();
    rows.map(|row| row.split_whitespace().collect::<Vec<_>>())
        .filter(|row| row[3] != LISTEN && ours.contains(row[9]))
        .filter(|row| is(row[1], local) && is(row[2], remote))
        .count()
}

/// The inodes of this process's sockets.
fn own_sockets() -> HashSet<String> {
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    // What was closed meanwhile leads nowhere.
    let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: PathBuf| {
        let name = link.to_str()?.strip_prefix("socket:[")?;
        Some(name.strip_suffix(']')?.to_owned())
    };
    links.filter_map(inode).collect()
}

/// Ticks that leave time for others even when each of them takes long.
fn pace(period: Duration) -> Interval {
    let mut pace = interval(period);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// One echo through a bystander's tunnel.
pub async fn round(app: &mut TcpStream, when: &str) {
    let echo = async {
        app.write_all(b"still here?").await?;
        app.read_exact(&mut [0; 11]).await
    };
    let echoed = timeout(PATIENCE, echo).await;
    assert!(
        matches!(echoed, Ok(Ok(_))),
        "the bystander suffers {when} the attack: {echoed:?}"
    );
}

/// One more, until dropped.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn one(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An application behind the server that says back what it hears.
async fn echo(incoming: Incoming, _counted: Counted) {
    // Fails where the client has gone meanwhile.
    let Ok(tunnel) = incoming.accept(Response::default()) else {
        return;
    };
    let (mut app, socket) = pair().await;
    let app = spawn_local(async move {
        let (mut read, mut write) = app.split();
        let copied = copy(&mut read, &mut write).await;
        copied.and(write.shutdown().await)
    });
    tunnel.relay(socket, &Meter::new()).await;
    let _ = app.await;
}
