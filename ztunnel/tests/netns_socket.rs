//! Sockets born in a pod's namespace and served outside of it (needs root).

mod support;

use std::io;
use std::time::Duration;

use mesh::verdict::OrigDst;
use support::net::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use ztunnel::capture::{self, OUTBOUND};
use ztunnel::netns::PodNetns;
use ztunnel::socket::{self, connected, dial, dial_as, original_dst};

#[tokio::test]
async fn a_runtime_outside_serves_sockets_of_the_pod() {
    let net = Net::new();
    let listeners = net.pod.call(|| {
        let families = capture::families();
        [(); 2].map(|()| socket::listen(families, 8080))
    });
    // One port, a listener for each core.
    let listeners = listeners.await.unwrap();
    let [a, b] = listeners.map(|l| TcpListener::from_std(l.unwrap()).unwrap());
    for (from, to) in [(CLIENT4, addr(POD4, 8080)), (CLIENT6, addr(POD6, 8080))] {
        let from = from.parse().unwrap();
        let started = net.pod.call(move || dial_as(from, to)).await.unwrap();
        // Nobody tags the connection here, so the reply goes out and does not come back.
        let lost = tokio::time::timeout(Duration::from_millis(100), connected(started.unwrap()));
        assert!(lost.await.is_err());

        net.install(*BOTH);
        let started = net.pod.call(move || dial_as(from, to)).await.unwrap();
        let accept = async {
            tokio::select! { x = a.accept() => x.unwrap(), x = b.accept() => x.unwrap() }
        };
        let (dialled, (mut served, peer)) = tokio::join!(connected(started.unwrap()), accept);
        assert_eq!(peer.ip().to_canonical(), from);
        served.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        dialled.unwrap().read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        net.capture(capture::remove);
    }
}

#[tokio::test]
async fn a_refused_connection_is_an_error() {
    let net = Net::new();
    for to in [addr(GATE4, 9), addr(GATE6, 9)] {
        let started = net.pod.call(move || dial(to)).await.unwrap();
        let error = connected(started.unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_connection_to_our_own_port_is_seen_as_such() {
    let net = Net::new();
    let ztunnel = ztunnel_listen(&net.pod, OUTBOUND);
    net.install(*BOTH);
    for to in [addr(POD4, OUTBOUND), addr("::1", OUTBOUND)] {
        let _app = connect(&net.pod, to).unwrap();
        let accepted = accept(&ztunnel);
        assert_eq!(original_dst(&accepted).unwrap(), OrigDst(to));
    }
}

#[test]
fn a_visit_moves_nobody_else_and_survives_a_panic() {
    let home = PodNetns::current().unwrap().id();
    let net = Net::new();
    let there = net.pod.run(|| PodNetns::current().unwrap().id()).unwrap();
    assert_eq!(there, net.pod.id());
    assert_eq!(PodNetns::current().unwrap().id(), home);
    let died = net.pod.run(|| panic!("a test's"));
    assert!(died.is_err());
    // A visit from within a visit.
    let (pod, world) = (net.pod.clone(), net.world.clone());
    let nested = net.pod.run(move || {
        let there = world.run(|| PodNetns::current().unwrap().id()).unwrap();
        (there, PodNetns::current().unwrap().id())
    });
    assert_eq!(nested.unwrap(), (net.world.id(), pod.id()));
    assert_eq!(PodNetns::current().unwrap().id(), home);
}
