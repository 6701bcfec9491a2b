//! Ends are exact: FIN is END_STREAM, RST is RST_STREAM, in both directions, one at a time.

mod support;

use hbone::{Ended, Error, Meter, PlainRelay, PoolLimits, ServerLimits, relay_plain};
use support::{Lab, Relayed, ends, is_reset, local, pair, passes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, spawn_local};

/// A tunnel with an application at each end.
async fn relayed() -> (Lab, Relayed) {
    let mut lab = Lab::new().await;
    let tunnel = lab.relayed().await;
    (lab, tunnel)
}

/// The same, after a first word from the client.
async fn talking() -> (Lab, Relayed) {
    let (lab, mut tunnel) = relayed().await;
    passes(&mut tunnel.near, &mut tunnel.far, b"x").await;
    (lab, tunnel)
}

async fn finished(near: JoinHandle<Ended>, far: JoinHandle<Ended>) {
    for ended in [near.await.unwrap(), far.await.unwrap()] {
        assert!(matches!(ended, Ended::Finished), "{ended:?}");
    }
}

fn was_reset(ended: &Ended) {
    let reset = matches!(ended, Ended::Peer(Error::Reset { .. }));
    assert!(reset, "{ended:?}");
}

#[test]
fn half_close_of_the_client_leaves_the_answer_open() {
    local(async {
        let (_lab, mut tunnel) = relayed().await;
        passes(&mut tunnel.near, &mut tunnel.far, b"question").await;
        tunnel.near.shutdown().await.unwrap();
        ends(&mut tunnel.far).await;
        passes(&mut tunnel.far, &mut tunnel.near, b"a late answer").await;
        tunnel.far.shutdown().await.unwrap();
        ends(&mut tunnel.near).await;
        finished(tunnel.near_ended, tunnel.far_ended).await;
        assert_eq!((tunnel.meter.sent(), tunnel.meter.received()), (8, 13));
        assert_eq!(
            (tunnel.far_meter.sent(), tunnel.far_meter.received()),
            (13, 8)
        );
    });
}

#[test]
fn half_close_of_the_server_leaves_the_request_open() {
    local(async {
        let (_lab, mut tunnel) = relayed().await;
        passes(&mut tunnel.far, &mut tunnel.near, b"greeting").await;
        tunnel.far.shutdown().await.unwrap();
        ends(&mut tunnel.near).await;
        passes(&mut tunnel.near, &mut tunnel.far, b"still sending").await;
        tunnel.near.shutdown().await.unwrap();
        ends(&mut tunnel.far).await;
        finished(tunnel.near_ended, tunnel.far_ended).await;
    });
}

#[test]
fn reset_of_the_client_reaches_the_server() {
    local(async {
        let (_lab, mut tunnel) = talking().await;
        tunnel.near.set_zero_linger().unwrap();
        drop(tunnel.near);
        is_reset(&mut tunnel.far).await;
        assert!(matches!(tunnel.near_ended.await.unwrap(), Ended::App(_)));
        was_reset(&tunnel.far_ended.await.unwrap());
    });
}

#[test]
fn reset_of_the_server_reaches_the_client() {
    local(async {
        let (_lab, mut tunnel) = talking().await;
        tunnel.far.set_zero_linger().unwrap();
        drop(tunnel.far);
        is_reset(&mut tunnel.near).await;
        was_reset(&tunnel.near_ended.await.unwrap());
        assert!(matches!(tunnel.far_ended.await.unwrap(), Ended::App(_)));
    });
}

#[test]
fn reset_after_a_half_close_is_a_reset() {
    local(async {
        let (_lab, mut tunnel) = relayed().await;
        tunnel.near.shutdown().await.unwrap();
        ends(&mut tunnel.far).await;
        tunnel.near.set_zero_linger().unwrap();
        drop(tunnel.near);
        was_reset(&tunnel.far_ended.await.unwrap());
        // The end of file was real and stays; what the server sends now is answered by a reset.
        assert!(
            tunnel.far.write_all(b"x").await.is_err()
                || tunnel.far.read(&mut [0; 1]).await.is_err()
        );
    });
}

#[test]
fn a_dropped_relay_resets_both_sides() {
    local(async {
        let (_lab, mut tunnel) = talking().await;
        tunnel.near_ended.abort();
        is_reset(&mut tunnel.near).await;
        is_reset(&mut tunnel.far).await;
        was_reset(&tunnel.far_ended.await.unwrap());
    });
}

#[test]
fn a_lost_connection_is_a_reset() {
    local(async {
        let (mut lab, mut tunnel) = talking().await;
        lab.served.crash().await;
        is_reset(&mut tunnel.near).await;
        is_reset(&mut tunnel.far).await;
        assert!(matches!(tunnel.near_ended.await.unwrap(), Ended::Peer(_)));
        assert!(matches!(tunnel.far_ended.await.unwrap(), Ended::Peer(_)));
    });
}

#[test]
fn plain_relay_passes_half_closes_on() {
    local(async {
        let ((mut near, a), (mut far, b)) = (pair().await, pair().await);
        let meter = Meter::new();
        let counted = meter.clone();
        let ended = spawn_local(async move { relay_plain(a, b, &counted).await });
        passes(&mut near, &mut far, b"question").await;
        near.shutdown().await.unwrap();
        ends(&mut far).await;
        passes(&mut far, &mut near, b"answer").await;
        far.shutdown().await.unwrap();
        ends(&mut near).await;
        assert!(matches!(ended.await.unwrap(), Ended::Finished));
        assert_eq!((meter.sent(), meter.received()), (8, 6));
    });
}

#[test]
fn plain_relay_says_what_waits_for_the_application() {
    local(async {
        let ((mut near, a), (mut far, b)) = (pair().await, pair().await);
        let mut relay = PlainRelay::new(a, b, &Meter::new());
        assert!(!relay.waits_for_app());
        // More than the sockets hold of an application that does not read.
        let said = vec![7; 16 << 20];
        let speaking = spawn_local(async move {
            far.write_all(&said).await.unwrap();
            far.shutdown().await.unwrap();
            far
        });
        while !relay.waits_for_app() {
            assert!(futures_util::poll!(&mut relay).is_pending());
            tokio::task::yield_now().await;
        }
        let reading = async {
            let mut got = Vec::new();
            near.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), 16 << 20);
        };
        tokio::select! {
            ended = &mut relay => panic!("{ended:?}"),
            () = reading => {}
        }
        // Its end, too.
        assert!(relay.waits_for_app());
        drop((near, speaking.await.unwrap()));
    });
}

#[test]
fn plain_relay_passes_resets_on() {
    local(async {
        for near_resets in [true, false] {
            let ((mut near, a), (mut far, b)) = (pair().await, pair().await);
            let ended = spawn_local(async move { relay_plain(a, b, &Meter::new()).await });
            passes(&mut near, &mut far, b"x").await;
            let (resets, mut other) = if near_resets {
                (near, far)
            } else {
                (far, near)
            };
            resets.set_zero_linger().unwrap();
            drop(resets);
            is_reset(&mut other).await;
            let ended = ended.await.unwrap();
            assert_eq!(matches!(ended, Ended::App(_)), near_resets, "{ended:?}");
            assert_eq!(
                matches!(ended, Ended::Peer(Error::Reset { .. })),
                !near_resets
            );
        }
    });
}

#[test]
fn a_server_that_says_all_and_goes_ends_in_order() {
    local(async {
        let mut lab = Lab::new().await;
        // More than once: whether the end or the engine's reset is seen first is a race.
        for _ in 0..50 {
            let (near, far) = lab.tunnels().await;
            let (mut app, socket) = support::pair().await;
            let ended = spawn_local(async move { near.relay(socket, &Meter::new()).await });
            app.write_all(b"question").await.unwrap();
            let mut far = far.into_io();
            far.read_exact(&mut [0; 8]).await.unwrap();
            // As an HTTP server does that closes: it does not wait for its client's end.
            let answer = vec![7; 200_000];
            far.write_all(&answer).await.unwrap();
            far.shutdown().await.unwrap();
            drop(far);
            let mut got = Vec::new();
            app.read_to_end(&mut got).await.unwrap();
            assert!(got == answer);
            app.write_all(b"unheard").await.unwrap();
            drop(app);
            let ended = ended.await.unwrap();
            assert!(matches!(ended, Ended::Finished), "{ended:?}");
        }
    });
}

#[test]
fn a_client_that_does_not_end_is_stopped() {
    local(async {
        let limits = ServerLimits {
            ping_interval: std::time::Duration::from_millis(50),
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(PoolLimits::default(), limits).await;
        let (near, far) = lab.tunnels().await;
        let (mut near, mut far) = (near.into_io(), far.into_io());
        far.shutdown().await.unwrap();
        drop(far);
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
        // Two windows full, into a void.
        let chunk = vec![0; 1 << 16];
        let stopped = async {
            for _ in 0..32 {
                near.write_all(&chunk).await?;
            }
            Ok::<(), std::io::Error>(())
        };
        assert!(stopped.await.is_err());
    });
}
