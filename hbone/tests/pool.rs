//! Connections are shared, dialled once, bounded, forgotten in time, and never trusted to be alive.

mod support;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use hbone::{Dial, Error, Opened, Pool, PoolLimits, Response, ServerLimits, Tunnel};
use support::{CLIENT, Lab, local, raw, request};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;

#[test]
fn a_connection_is_reused() {
    local(async {
        let mut lab = Lab::new().await;
        for _ in 0..5 {
            drop(lab.tunnels().await);
        }
        assert_eq!(lab.served.connections.get(), 1);
    });
}

#[test]
fn many_at_once_dial_once() {
    local(async {
        let mut lab = Lab::new().await;
        let _far = accept_all(&mut lab);
        let opened = open_many(&lab, 50).await;
        assert_eq!(opened.len(), 50);
        assert_eq!(lab.served.connections.get(), 1);
    });
}

#[test]
fn a_full_connection_is_followed_by_another() {
    local(async {
        let limits = PoolLimits {
            max_streams: 10,
            max_connections: 3,
            ..PoolLimits::default()
        };
        let mut lab = Lab::with(limits, ServerLimits::default()).await;
        let _far = accept_all(&mut lab);
        let mut opened = open_many(&lab, 25).await;
        assert_eq!(lab.served.connections.get(), 3);
        opened.extend(open_many(&lab, 5).await);
        assert_eq!(lab.served.connections.get(), 3);
        let error = lab.open().await.unwrap_err();
        assert!(matches!(error, Error::TooManyConnections), "{error}");

        // One that ends makes room.
        opened.pop();
        lab.open().await.unwrap();
        assert_eq!(lab.served.connections.get(), 3);
    });
}

#[test]
fn the_peers_own_limit_counts() {
    local(async {
        let server = ServerLimits {
            max_streams: 4,
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(PoolLimits::default(), server).await;
        let _far = accept_all(&mut lab);
        // All at once: what the first connection refuses finds a place on others.
        let opened = open_many(&lab, 12).await;
        assert_eq!(lab.served.connections.get(), 3);
        drop(opened);
    });
}

#[test]
fn a_failed_dial_is_told_to_all_and_poisons_nothing() {
    local(async {
        let mut lab = Lab::new().await;
        let dial = Scripted {
            fails: Rc::new(Cell::new(1)),
            dials: Rc::default(),
            gate: Rc::default(),
        };
        let (_writer, credentials) = lab.ca.credentials(CLIENT);
        let pool = Pool::new(credentials, dial.clone(), PoolLimits::default());
        let request = request();
        let all = join_all((0..8).map(|_| pool.open(&lab.to, &request)));
        let (opened, ()) = tokio::join!(all, async { dial.gate.notify_one() });
        for error in opened.into_iter().map(Result::unwrap_err) {
            assert!(matches!(error, Error::Dial { .. }), "{error}");
            assert!(!error.anything_sent() && error.retryable());
        }
        assert_eq!(dial.dials.get(), 1);

        dial.gate.notify_one();
        let _far = accept_all(&mut lab);
        pool.open(&lab.to, &request).await.unwrap();
        assert_eq!(dial.dials.get(), 2);
    });
}

#[test]
fn the_one_who_dials_may_give_up() {
    local(async {
        let mut lab = Lab::new().await;
        let _far = accept_all(&mut lab);
        let dial = Scripted::default();
        let (_writer, credentials) = lab.ca.credentials(CLIENT);
        let pool = Pool::new(credentials, dial.clone(), PoolLimits::default());
        let (first, to) = (pool.clone(), lab.to.clone());
        let first = spawn_local(async move { first.open(&to, &request()).await.map(drop) });
        until(|| dial.dials.get() == 1).await;
        let (second, to) = (pool.clone(), lab.to.clone());
        let second = spawn_local(async move { second.open(&to, &request()).await.map(drop) });
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        dial.gate.notify_one();
        second.await.unwrap().unwrap();
        assert_eq!(dial.dials.get(), 1);
    });
}

#[test]
fn a_dial_that_hangs_is_ended() {
    local(async {
        let lab = Lab::new().await;
        let (_writer, credentials) = lab.ca.credentials(CLIENT);
        let limits = PoolLimits {
            connect_timeout: Duration::from_millis(20),
            ..PoolLimits::default()
        };
        let pool = Pool::new(credentials, Scripted::default(), limits);
        let error = pool.open(&lab.to, &request()).await.unwrap_err();
        assert!(
            matches!(error, Error::DialTimeout(addr) if addr == lab.to.addr),
            "{error}"
        );
    });
}

#[test]
fn a_handshake_that_hangs_is_ended_on_both_sides() {
    local(async {
        let limit = Duration::from_millis(20);
        let pool = PoolLimits {
            handshake_timeout: limit,
            ..PoolLimits::default()
        };
        let server = ServerLimits {
            handshake_timeout: limit,
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(pool, server).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(lab.served.addr).await.unwrap();
        let error = lab.served.errors.recv().await.unwrap();
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
        lab.to.addr = silent.local_addr().unwrap();
        let error = lab.open().await.unwrap_err();
        assert!(matches!(error, Error::HandshakeTimeout(_)), "{error}");
    });
}

#[test]
fn an_answer_that_does_not_come_is_not_awaited_forever() {
    local(async {
        let limits = PoolLimits {
            response_timeout: Duration::from_millis(20),
            ..PoolLimits::default()
        };
        let mut lab = Lab::with(limits, ServerLimits::default()).await;
        let error = lab.open().await.unwrap_err();
        assert!(matches!(error, Error::ResponseTimeout), "{error}");
        // The late answer finds nobody.
        let incoming = lab.served.incoming.recv().await.unwrap();
        drop(incoming.accept(Response::default()));
    });
}

#[test]
fn an_evicted_workload_gets_a_new_connection_and_old_tunnels_finish() {
    local(async {
        let mut lab = Lab::new().await;
        let support::Relayed {
            mut near, mut far, ..
        } = lab.relayed().await;
        lab.pool.evict("somebody else");
        drop(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 1);
        lab.pool.evict("uid-1");
        drop(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 2);
        support::passes(&mut near, &mut far, b"still here").await;
        drop((near, far));
        lab.served.over.recv().await.unwrap();
    });
}

#[test]
fn an_evicted_dial_ends_its_waiters() {
    local(async {
        let lab = Lab::new().await;
        let (_writer, credentials) = lab.ca.credentials(CLIENT);
        let dial = Scripted::default();
        let pool = Pool::new(credentials, dial.clone(), PoolLimits::default());
        let (waiter, to) = (pool.clone(), lab.to.clone());
        let waiter = spawn_local(async move { waiter.open(&to, &request()).await });
        until(|| dial.dials.get() == 1).await;
        pool.evict("uid-1");
        assert!(matches!(
            waiter.await.unwrap().unwrap_err(),
            Error::Draining
        ));
    });
}

#[test]
fn a_draining_pool_opens_nothing_and_lets_tunnels_finish() {
    local(async {
        let mut lab = Lab::new().await;
        let support::Relayed {
            mut near, mut far, ..
        } = lab.relayed().await;
        lab.pool.drain();
        assert!(matches!(lab.open().await.unwrap_err(), Error::Draining));
        support::passes(&mut near, &mut far, b"still here").await;
        drop((near, far));
        lab.served.over.recv().await.unwrap();
    });
}

#[test]
fn a_dropped_pool_closes_its_idle_connections() {
    local(async {
        let Lab {
            pool,
            mut served,
            to,
            ..
        } = {
            let mut lab = Lab::new().await;
            drop(lab.tunnels().await);
            lab
        };
        drop((pool, to));
        served.over.recv().await.unwrap();
    });
}

#[test]
fn an_idle_connection_is_closed() {
    local(async {
        let limits = PoolLimits {
            idle_timeout: Duration::from_millis(20),
            ..PoolLimits::default()
        };
        let mut lab = Lab::with(limits, ServerLimits::default()).await;
        let tunnels = lab.tunnels().await;
        let mut idle_periods = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..5 {
            idle_periods.tick().await;
        }
        assert!(lab.served.over.try_recv().is_err(), "closed while in use");
        drop(tunnels);
        lab.served.over.recv().await.unwrap();
        drop(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 2);
    });
}

#[test]
fn an_idle_client_is_let_go_by_the_server() {
    local(async {
        let limits = ServerLimits {
            idle_timeout: Duration::from_millis(20),
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(PoolLimits::default(), limits).await;
        drop(lab.tunnels().await);
        lab.served.over.recv().await.unwrap();
        drop(lab.tunnels().await);
        assert_eq!(lab.served.connections.get(), 2);
    });
}

#[test]
fn a_draining_server_loses_no_request() {
    local(async {
        let mut lab = Lab::new().await;
        let support::Relayed {
            mut near, mut far, ..
        } = lab.relayed().await;
        for turn in 2..6 {
            // Tells the living connections, whose GOAWAY races with the next requests.
            lab.served.drain.notify_waiters();
            while lab.served.connections.get() < turn {
                drop(lab.tunnels().await);
            }
            assert_eq!(lab.served.connections.get(), turn);
        }
        support::passes(&mut near, &mut far, b"still here").await;
    });
}

#[test]
fn a_connection_that_died_unseen_is_replaced() {
    local(async {
        let mut lab = Lab::new().await;
        drop(lab.tunnels().await);
        lab.served.crash().await;
        // The same address again, as a restarted server has.
        let listener = TcpListener::bind(lab.served.addr).await.unwrap();
        let request = request();
        let revived = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut server = raw::server(tcp, &lab.ca, &h2::server::Builder::new()).await;
            let (_, mut respond) = server.accept().await.unwrap().unwrap();
            let sent = respond
                .send_response(http::Response::new(()), false)
                .unwrap();
            while server.accept().await.is_some() {}
            drop(sent);
        };
        tokio::select! {
            opened = lab.pool.open(&lab.to, &request) => drop(opened.unwrap()),
            () = revived => panic!("the client left"),
        }
    });
}

#[test]
fn a_refused_stream_is_tried_a_few_times_more() {
    local(async {
        let mut lab = Lab::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        lab.to.addr = listener.local_addr().unwrap();
        let asked = Cell::new(0);
        let refuses = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut server = raw::server(tcp, &lab.ca, &h2::server::Builder::new()).await;
            while let Some(Ok((_, mut respond))) = server.accept().await {
                asked.set(asked.get() + 1);
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
            unreachable!("it may have streams to spare soon: the connection is kept");
        };
        let request = request();
        let error = tokio::select! {
            opened = lab.pool.open(&lab.to, &request) => opened.unwrap_err(),
            never = refuses => never,
        };
        assert!(
            matches!(
                error,
                Error::Reset {
                    processed: false,
                    ..
                }
            ),
            "{error}"
        );
        assert!(!error.anything_sent());
        assert_eq!(asked.get(), 5);
    });
}

#[test]
fn a_peer_that_goes_silent_is_noticed_by_both_ends() {
    local(async {
        let (interval, timeout) = (Duration::from_millis(20), Duration::from_millis(100));
        let pool = PoolLimits {
            ping_interval: interval,
            ping_timeout: timeout,
            ..PoolLimits::default()
        };
        let server = ServerLimits {
            ping_interval: interval,
            ping_timeout: timeout,
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(pool, server).await;
        let cut = Rc::new(Notify::new());
        lab.to.addr = severable(lab.served.addr, cut.clone()).await;
        let support::Relayed {
            mut near,
            mut far,
            near_ended,
            ..
        } = lab.relayed().await;
        // Longer than interval and timeout together: pings are answered meanwhile.
        tokio::time::timeout(timeout * 3, lab.served.errors.recv())
            .await
            .unwrap_err();
        support::passes(&mut near, &mut far, b"alive").await;
        cut.notify_one();
        support::is_reset(&mut near).await;
        support::is_reset(&mut far).await;
        let ended = near_ended.await.unwrap();
        assert!(
            matches!(ended, hbone::Ended::Peer(Error::ConnectionLost { .. })),
            "{ended:?}"
        );
        assert!(matches!(
            lab.served.errors.recv().await.unwrap(),
            Error::ConnectionLost { .. }
        ));
    });
}

/// Fails as often as told; each dial waits for the gate.
#[derive(Clone, Default)]
struct Scripted {
    fails: Rc<Cell<usize>>,
    dials: Rc<Cell<usize>>,
    gate: Rc<Notify>,
}

impl Dial for Scripted {
    async fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.dials.set(self.dials.get() + 1);
        self.gate.notified().await;
        match self.fails.get() {
            0 => TcpStream::connect(to).await,
            left => {
                self.fails.set(left - 1);
                Err(io::ErrorKind::ConnectionRefused.into())
            }
        }
    }
}

/// Accepts whatever comes, and keeps it as long as the receiver lives.
fn accept_all(lab: &mut Lab) -> mpsc::UnboundedReceiver<Tunnel> {
    let (keep, kept) = mpsc::unbounded_channel();
    let mut incoming = std::mem::replace(&mut lab.served.incoming, mpsc::unbounded_channel().1);
    spawn_local(async move {
        while let Some(next) = incoming.recv().await {
            let _ = keep.send(next.accept(Response::default()).unwrap());
        }
    });
    kept
}

async fn open_many(lab: &Lab, n: usize) -> Vec<Opened> {
    join_all((0..n).map(|_| lab.open()))
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

/// Lets everybody else run until `done`; the test's own patience bounds it.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::task::yield_now().await;
    }
}

/// A way to `to` that, once cut, carries nothing and says nothing.
async fn severable(to: SocketAddr, cut: Rc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    spawn_local(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect(to).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
            () = cut.notified() => {}
        }
        std::future::pending::<()>().await;
    });
    addr
}
