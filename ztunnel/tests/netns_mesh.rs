//! Two nodes, pods in and out of the mesh, every way from one to another (needs root).

mod support;

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use support::{
    fabric::{ECHO, Fabric, GREETING, SERVER_FIRST, SERVICE, SERVICE_FIRST, exchange},
    log,
    net::{PATIENCE, connect},
    node::TestNode,
};

/// How often a page of metrics is looked at.
const LOOK: Duration = Duration::from_millis(20);

const RECEIVED: &str = "istio_tcp_received_bytes_total{";
const CLOSED: &str = "istio_tcp_connections_closed_total{";

/// Bytes that one [`exchange`] sends.
const LINE: u64 = 5;

#[test]
fn every_pair_talks_and_meshed_pairs_talk_through_a_tunnel() {
    let fabric = Fabric::new();
    let meshed = [
        fabric.pod("ma", 0),
        fabric.pod("mb", 0),
        fabric.pod("mc", 1),
    ];
    let plain = fabric.pod("mplain", 1);
    meshed.iter().for_each(|pod| fabric.enrol(pod));
    let all = [&meshed[0], &meshed[1], &meshed[2], &plain];
    for from in all {
        for to in all.iter().filter(|to| to.name != from.name) {
            for v6 in [false, true] {
                let seen = from.ask(to.addr(v6, ECHO)).unwrap_or_else(|e| {
                    panic!(
                        "{} to {} (v6: {v6}): {e}\n{}",
                        from.name,
                        to.name,
                        log::dump()
                    )
                });
                let expected = if v6 { from.v6 } else { from.v4 };
                assert_eq!(seen, expected, "{} to {}", from.name, to.name);
                assert_eq!(from.listen_to(to.addr(v6, SERVER_FIRST)).unwrap(), GREETING);
            }
        }
    }
    for from in &meshed {
        for to in all {
            for v6 in [false, true] {
                from.ask(to.vip(v6, SERVICE)).unwrap_or_else(|e| {
                    panic!("{} to service {}: {e}\n{}", from.name, to.name, log::dump())
                });
                assert_eq!(from.listen_to(to.vip(v6, SERVICE_FIRST)).unwrap(), GREETING);
            }
        }
    }
    for (from, to) in [(&meshed[0], &meshed[1]), (&meshed[0], &meshed[2])] {
        for direction in ["outbound", "inbound"] {
            let line = log::access("a tunnel between both", |line| {
                line["direction"] == direction
                    && line["src.workload"] == *from.name
                    && line["dst.workload"] == *to.name
                    && line["dst.hbone_addr"] == to.addr(false, ECHO).to_string()
            });
            assert_eq!(line["src.identity"], from.identity().to_string());
            assert_eq!(line["dst.identity"], to.identity().to_string());
            assert_eq!(line["dst.addr"], to.addr(false, hbone::PORT).to_string());
            assert_eq!(line["src.namespace"], "shop");
            assert_eq!(line["bytes_recv"], 5);
            assert!(line["error"].is_null(), "{line}");
        }
    }
    let line = log::access("plaintext let in", |line| {
        line["direction"] == "inbound"
            && line["src.workload"] == *plain.name
            && line["dst.workload"] == *meshed[0].name
    });
    assert!(
        line["src.identity"].is_null() && line["dst.hbone_addr"].is_null(),
        "{line}"
    );
}

#[test]
fn where_nobody_listens_or_nothing_is_known_the_client_hears_so() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.meshed("na", 0), fabric.meshed("nb", 1));
    // Nobody listens on 9: the application's refusal comes through the tunnel as a reset.
    assert!(a.ask(b.addr(false, 9)).is_err());
    let line = log::access("nobody listens", |line| {
        line["direction"] == "outbound"
            && line["src.workload"] == "na"
            && line["dst.hbone_addr"] == b.addr(false, 9).to_string()
    });
    assert_eq!(line["reason"], "dial_failed", "{line}");
    // A port that the service does not have.
    assert!(a.ask(b.vip(false, 9)).is_err());
    log::access("unknown port", |line| {
        line["reason"] == "unknown_service_port"
    });
    // What the mesh does not know passes through.
    let outside = support::net::listen(fabric.bridge(), 9999);
    let stream = connect(&a.ns, "10.9.0.1:9999".parse().unwrap()).unwrap();
    let accepted = support::net::accept(&outside);
    assert_eq!(support::net::peer(&accepted).ip(), a.v4);
    drop((stream, accepted));
    // The mesh's own ports lead nowhere.
    for port in [15001, 15006] {
        assert!(a.ask(b.addr(false, port)).is_err());
    }
}

/// S4: `oif lo` is not redirected, so such a connection reaches the listener itself, and would be dialled again and again.
#[test]
fn a_pod_that_dials_its_own_proxy_is_refused_once_whatever_address_names_it() {
    let fabric = Fabric::new();
    let pod = fabric.meshed("la", 0);
    for to in ["127.0.0.1:15001", "127.0.0.2:15001", "[::1]:15001"] {
        let to: std::net::SocketAddr = to.parse().unwrap();
        assert!(pod.ask(to).is_err(), "{to}");
        let refused = |line: &serde_json::Value| {
            line["src.workload"] == "la" && line["dst.addr"] == to.to_string()
        };
        let line = log::access("refused", refused);
        assert_eq!(line["reason"], "own_proxy_port", "{to}");
    }
    let node = fabric.node(pod.node);
    assert_eq!(node.metric("istio_tcp_connections_failed_total"), 3);
}

#[test]
fn another_identity_than_expected_is_refused_and_both_are_named() {
    let fabric = Fabric::new();
    let (client, server) = (fabric.meshed("ida", 0), fabric.meshed("idb", 1));
    let former = fabric.pod("idc", 1);
    client.ask(server.addr(false, ECHO)).unwrap();
    // As when an address has a new owner and the client's node has not heard of it.
    fabric.mistake(&server, &former);
    assert!(client.ask(server.addr(false, ECHO)).is_err());
    let line = log::access("refused", |line| {
        line["src.workload"] == "ida" && line["reason"] == "unexpected_identity"
    });
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(&server.identity().to_string()), "{error}");
    assert!(error.contains(&former.identity().to_string()), "{error}");
}

#[test]
fn bytes_of_an_open_connection_are_counted_while_it_is_open() {
    let fabric = Fabric::new();
    let (client, server) = (fabric.meshed("oa", 0), fabric.meshed("ob", 1));
    let mut open = connect(&client.ns, server.addr(false, ECHO)).unwrap();
    exchange(&mut open).unwrap();
    let nodes = [client.node, server.node].map(|node| fabric.node(node));
    for node in nodes {
        becomes(node, RECEIVED, LINE);
        assert_eq!(node.metric(CLOSED), 0);
    }
    exchange(&mut open).unwrap();
    drop(open);
    for node in nodes {
        becomes(node, CLOSED, 1);
    }
}

/// Waits until a metric is at least that.
fn becomes(node: &TestNode, metric: &str, least: u64) {
    let deadline = Instant::now() + PATIENCE;
    while node.metric(metric) < least {
        assert!(Instant::now() < deadline, "{metric} never becomes {least}");
        std::thread::park_timeout(LOOK);
    }
}

#[test]
fn garbage_on_the_tunnel_port_harms_nobody_else() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.meshed("ga", 0), fabric.meshed("gb", 1));
    let mut living = connect(&a.ns, b.addr(false, ECHO)).unwrap();
    exchange(&mut living).unwrap();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[0x16, 3, 1, 0xff, 0xff, 1],
    ] {
        let mut stream = connect(fabric.bridge(), b.addr(false, hbone::PORT)).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    let line = log::access("garbage refused", |line| {
        line["dst.workload"] == "gb" && line["reason"] == "tls_failed"
    });
    assert!(line["error"].is_string());
    exchange(&mut living).unwrap();
    a.ask(b.addr(true, ECHO)).unwrap();
}
