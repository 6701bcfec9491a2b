//! A tunnel as a byte stream, for HTTP inside it.

mod support;

use std::io::ErrorKind;

use hbone::{Error, Meter, Pool, TcpDial, TunnelIo};
use support::{Lab, local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn bytes_and_ends_pass_in_both_directions() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, far) = lab.tunnels().await;
        let (mut near, mut far) = (near.into_io(), far.into_io());
        let question = vec![1; 3 << 20];
        let send = async {
            near.write_all(&question).await.unwrap();
            near.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(send, far.read_to_end(&mut got));
        read.unwrap();
        assert!(got == question);

        far.write_all(b"answer").await.unwrap();
        far.shutdown().await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
    });
}

#[test]
fn a_reset_is_an_error_not_an_end() {
    local(async {
        let mut lab = Lab::new().await;
        for far_has_ended_its_side in [false, true] {
            let (near, far) = lab.tunnels().await;
            let (mut near, mut far) = (near.into_io(), far.into_io());
            if far_has_ended_its_side {
                far.shutdown().await.unwrap();
                assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
            }
            drop(far);
            let error = match far_has_ended_its_side {
                false => near.read(&mut [0; 1]).await.unwrap_err(),
                true => loop {
                    if let Err(error) = near.write(&[0; 4096]).await {
                        break error;
                    }
                    tokio::task::yield_now().await;
                },
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            let inner = error.get_ref().unwrap().downcast_ref::<Error>();
            assert!(matches!(inner, Some(Error::Reset { .. })), "{error}");
        }
    });
}

#[test]
fn a_servers_answer_arrives_even_if_it_leaves_at_once() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, far) = lab.tunnels().await;
        let (mut near, mut far) = (near.into_io(), far.into_io());
        far.write_all(&[7; 50_000]).await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 50_000);
    });
}

#[test]
fn a_tunnel_dropped_unused_is_reset() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, far) = lab.tunnels().await;
        drop(near);
        let error = far.into_io().read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    });
}

/// hyper's upgrades want `Send`, though nothing here leaves its thread. A [`hbone::Tunnel`] stays with
/// its engine.
#[test]
fn streams_may_be_boxed_as_send() {
    fn is_send<T: Send + Unpin + 'static>() {}
    is_send::<TunnelIo>();
    is_send::<Meter>();
    is_send::<Error>();
}

/// A node proxy holds a hundred thousand of these.
#[test]
fn futures_stay_small() {
    local(async {
        let mut lab = Lab::new().await;
        let (near, _far) = lab.tunnels().await;
        let (_app, socket) = support::pair().await;
        let meter = Meter::new();
        let relay = near.relay(socket, &meter);
        let size = std::mem::size_of_val(&relay);
        assert!(size <= 1536, "relay: {size} bytes");
        let request = support::request();
        let pool: &Pool<TcpDial> = &lab.pool;
        let size = std::mem::size_of_val(&pool.open(&lab.to, &request));
        assert!(size <= 2048, "open: {size} bytes");
    });
}
