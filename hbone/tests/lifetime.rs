//! How long a pool keeps its connections: not longer than their age, nor than another needs the place.

mod support;

use std::time::Duration;

use hbone::{Error, PoolLimits, ServerLimits};
use support::{Lab, SERVER, Served, destination, local, request};

#[test]
fn an_aged_connection_takes_no_new_streams_and_keeps_its_old_ones() {
    local(async {
        let limits = PoolLimits {
            max_age: Some(Duration::from_millis(1)),
            ..PoolLimits::default()
        };
        let mut lab = Lab::with(limits, ServerLimits::default()).await;
        let old = lab.relayed().await;
        let mut fresh = Vec::new();
        // Each has hardly begun when its time is over.
        while lab.served.connections.get() < 3 {
            fresh.push(lab.tunnels().await);
            tokio::task::yield_now().await;
        }
        let (mut near, mut far) = (old.near, old.far);
        support::passes(&mut near, &mut far, b"still here").await;
    });
}

#[test]
fn a_server_sends_an_aged_connection_away_in_peace() {
    local(async {
        let limits = ServerLimits {
            max_age: Some(Duration::from_millis(1)),
            ..ServerLimits::default()
        };
        let mut lab = Lab::with(PoolLimits::default(), limits).await;
        while lab.served.connections.get() < 3 {
            drop(lab.tunnels().await);
            tokio::task::yield_now().await;
        }
        // In order: no error was told.
        lab.served.over.recv().await.unwrap();
        assert!(lab.served.errors.try_recv().is_err());
    });
}

#[test]
fn a_full_pool_gives_up_what_nobody_uses() {
    local(async {
        let limits = PoolLimits {
            max_connections: 1,
            ..PoolLimits::default()
        };
        let mut lab = Lab::with(limits, ServerLimits::default()).await;
        let (_writer, credentials) = lab.ca.credentials(SERVER);
        let acceptor = hbone::Acceptor::new(
            credentials,
            [hbone::TrustDomain::default()],
            ServerLimits::default(),
        );
        let mut other = Served::start(acceptor).await;
        let there = destination(other.addr, SERVER);
        let used = lab.tunnels().await;
        let request = request();
        let error = lab.pool.open(&there, &request).await.unwrap_err();
        assert!(matches!(error, Error::TooManyConnections), "{error}");
        drop(used);
        let accepting = async {
            other
                .incoming
                .recv()
                .await
                .unwrap()
                .accept(Default::default())
        };
        let opening = async {
            loop {
                // The far side's reset is still on its way at first.
                match lab.pool.open(&there, &request).await {
                    Err(Error::TooManyConnections) => tokio::task::yield_now().await,
                    opened => break opened,
                }
            }
        };
        let (opened, accepted) = tokio::join!(opening, accepting);
        drop((opened.unwrap(), accepted.unwrap()));
        lab.served.over.recv().await.unwrap();
    });
}
