//! How long a pool keeps its connections: not longer than their age, nor than another needs the place.

mod support;

use std::time::{Duration, SystemTime};

use hbone::{Ended, Error, Identity, PoolLimits, ServerLimits};
use support::{CLIENT, Ca, Lab, Relayed, SERVER, Served, destination, local, request};
use time::OffsetDateTime;

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

/// An identity whose certificate runs out so soon.
fn short(ca: &Ca, id: &str, life: Duration) -> Identity {
    let (chain, key) = ca.leaf(&[id], |params| {
        params.not_after = OffsetDateTime::now_utc() + life;
    });
    Identity::from_pem(&chain, &key, &ca.root).unwrap()
}

fn code(ended: &Ended) -> &'static str {
    match ended {
        Ended::Peer(error) => error.code(),
        ended => panic!("not by its peer: {ended:?}"),
    }
}

/// Until a moment of the day: what runs out then has run out.
async fn until(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left + Duration::from_millis(1)).await;
    }
}

#[test]
fn who_shows_no_newer_certificate_is_cut_off_when_the_last_one_runs_out() {
    const LIFE: Duration = Duration::from_secs(3);
    local(async {
        let mut lab = Lab::new().await;
        lab.client.replace(short(&lab.ca, CLIENT, LIFE));
        let of_client = lab.relayed().await;
        assert_eq!(
            code(&of_client.far_ended.await.unwrap()),
            "peer_certificate_expired"
        );
        lab.client.replace(lab.ca.identity(CLIENT));
        lab.server.replace(short(&lab.ca, SERVER, LIFE));
        let of_server = lab.relayed().await;
        assert_eq!(
            code(&of_server.near_ended.await.unwrap()),
            "peer_certificate_expired"
        );
    });
}

#[test]
fn who_has_been_renewed_proves_it_in_time_and_its_old_tunnels_live_on() {
    const LIFE: Duration = Duration::from_secs(8);
    local(async {
        let mut lab = Lab::new().await;
        let (client, server) = (short(&lab.ca, CLIENT, LIFE), short(&lab.ca, SERVER, LIFE));
        let end = client.not_after().max(server.not_after());
        lab.client.replace(client);
        lab.server.replace(server);
        let old = lab.relayed().await;
        // As certificates are renewed: long before they run out.
        lab.client.replace(lab.ca.identity(CLIENT));
        lab.server.replace(lab.ca.identity(SERVER));
        assert_eq!(lab.served.connections.get(), 1);
        until(end).await;
        // Nobody has asked for a tunnel.
        assert_eq!(lab.served.connections.get(), 2);
        let Relayed {
            mut near, mut far, ..
        } = old;
        support::passes(&mut near, &mut far, b"still here").await;
        assert!(!old.near_ended.is_finished() && !old.far_ended.is_finished());
    });
}
