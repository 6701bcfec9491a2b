//! Relays that nobody waits for: their ends are told by a call, however they come, and from where the
//! connection may be used.

mod support;

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use hbone::{Ended, Error, Meter, Tunnel};
use support::{Lab, ends, is_reset, local, pair, passes};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// An application whose relay tells its end.
struct Told {
    app: TcpStream,
    meter: Meter,
    end: oneshot::Receiver<Ended>,
}

async fn relay(tunnel: Tunnel) -> Told {
    let (app, socket) = pair().await;
    let (meter, (tell, end)) = (Meter::new(), oneshot::channel());
    tunnel.relay_then(socket, &meter, move |ended| tell.send(ended).unwrap());
    Told { app, meter, end }
}

/// Both ends of a tunnel, after a first word from the client.
async fn talking(lab: &mut Lab) -> (Told, Told) {
    let (near, far) = lab.tunnels().await;
    let (mut near, mut far) = (relay(near).await, relay(far).await);
    passes(&mut near.app, &mut far.app, b"x").await;
    (near, far)
}

fn was_reset(ended: &Ended) {
    let reset = matches!(ended, Ended::Peer(Error::Reset { .. }));
    assert!(reset, "{ended:?}");
}

#[test]
fn both_ends_in_order() {
    local(async {
        let mut lab = Lab::new().await;
        let (mut near, mut far) = talking(&mut lab).await;
        near.app.shutdown().await.unwrap();
        ends(&mut far.app).await;
        passes(&mut far.app, &mut near.app, b"a late answer").await;
        assert!(near.end.try_recv().is_err());
        far.app.shutdown().await.unwrap();
        ends(&mut near.app).await;
        for end in [near.end, far.end] {
            assert!(matches!(end.await.unwrap(), Ended::Finished));
        }
        assert_eq!((near.meter.sent(), near.meter.received()), (1, 13));
        assert_eq!((far.meter.sent(), far.meter.received()), (13, 1));
    });
}

#[test]
fn either_application_resets() {
    local(async {
        let mut lab = Lab::new().await;
        for near_resets in [true, false] {
            let (near, far) = talking(&mut lab).await;
            let (resets, mut other) = match near_resets {
                true => (near, far),
                false => (far, near),
            };
            resets.app.set_zero_linger().unwrap();
            drop(resets.app);
            is_reset(&mut other.app).await;
            assert!(matches!(resets.end.await.unwrap(), Ended::App(_)));
            was_reset(&other.end.await.unwrap());
        }
    });
}

#[test]
fn the_connection_is_lost() {
    local(async {
        let mut lab = Lab::new().await;
        let (mut near, mut far) = talking(&mut lab).await;
        lab.served.crash().await;
        is_reset(&mut near.app).await;
        is_reset(&mut far.app).await;
        for end in [near.end, far.end] {
            assert!(matches!(end.await.unwrap(), Ended::Peer(_)));
        }
    });
}

/// What a thread leaves behind that ends before its connections do.
#[test]
fn the_engine_is_dropped() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let set = LocalSet::new();
    let (mut near, mut far, _lab) = set.block_on(&runtime, async {
        let mut lab = Lab::new().await;
        let (near, far) = talking(&mut lab).await;
        (near, far, lab)
    });
    drop(set);
    for told in [&mut near, &mut far] {
        assert!(matches!(told.end.try_recv().unwrap(), Ended::Peer(_)));
        runtime.block_on(is_reset(&mut told.app));
    }
}

#[test]
fn a_tunnel_that_is_gone_already() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, far) = lab.tunnels().await;
        // Streams of one connection end in the order they are reset in.
        let (marked, marker) = lab.tunnels().await;
        drop(far);
        drop(marker);
        let mut marked = relay(marked).await;
        is_reset(&mut marked.app).await;
        let mut told = relay(near).await;
        was_reset(&told.end.try_recv().unwrap());
        is_reset(&mut told.app).await;
    });
}

#[test]
fn a_call_may_use_the_connection() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, far) = lab.tunnels().await;
        let (kept, other) = lab.tunnels().await;
        let (mut far, mut other) = (relay(far).await, relay(other).await);
        let (app, socket) = pair().await;
        let (tell, told) = oneshot::channel();
        let lab = Rc::new(lab);
        let used = lab.clone();
        near.relay_then(socket, &Meter::new(), move |_| {
            // Resets it.
            drop(kept);
            // Asks for another, and gives up on it.
            let mut cx = Context::from_waker(Waker::noop());
            assert!(pin!(used.open()).poll(&mut cx).is_pending());
            tell.send(()).unwrap();
        });
        app.set_zero_linger().unwrap();
        drop(app);
        told.await.unwrap();
        is_reset(&mut other.app).await;
        is_reset(&mut far.app).await;
        was_reset(&other.end.await.unwrap());
        assert_eq!(lab.served.connections.get(), 1);
    });
}

#[test]
fn a_call_that_panics_ends_nobody_else() {
    local(async {
        let mut lab = Lab::new().await;
        let (mut near, mut far) = talking(&mut lab).await;
        let (unlucky, peer) = lab.tunnels().await;
        let mut peer = relay(peer).await;
        let (app, socket) = pair().await;
        unlucky.relay_then(socket, &Meter::new(), |_| {
            panic!("a panic that is expected")
        });
        app.set_zero_linger().unwrap();
        drop(app);
        is_reset(&mut peer.app).await;
        passes(&mut near.app, &mut far.app, b"still here").await;
    });
}

#[test]
fn calls_are_made_in_order_and_let_go() {
    local(async {
        let mut lab = Lab::new().await;
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut apps = Vec::new();
        for n in 0..3 {
            let (near, far) = lab.tunnels().await;
            let (app, socket) = pair().await;
            let order = order.clone();
            near.relay_then(socket, &Meter::new(), move |_| order.borrow_mut().push(n));
            apps.push((app, far));
        }
        lab.served.crash().await;
        for (app, _) in &mut apps {
            is_reset(app).await;
        }
        // The applications see it during the turn, and the calls are made after it.
        tokio::task::yield_now().await;
        assert_eq!(*order.borrow(), [0, 1, 2]);
        assert_eq!(Rc::strong_count(&order), 1);
    });
}
