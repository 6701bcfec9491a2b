//! Redirection on real network namespaces (needs root).

mod support;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mesh::verdict::OrigDst;
use support::net::*;
use ztunnel::capture::{self, Difference, Family, HBONE, INBOUND, OUTBOUND, Spec};
use ztunnel::socket::{dial, dial_as, original_dst};

/// Long enough to be sure that a packet that would come has come.
const SILENCE: Duration = Duration::from_millis(150);

#[test]
fn outbound_is_redirected_and_remembers_where_to() {
    let net = Net::new();
    let server = listen(&net.world, 80);
    let ztunnel = ztunnel_listen(&net.pod, OUTBOUND);
    net.install(*BOTH);
    for to in [
        addr(GATE4, 80),
        addr(GATE6, 80),
        addr("192.0.2.10", 443),
        addr("2001:db8::10", 443),
    ] {
        let mut app = connect(&net.pod, to).unwrap();
        let mut captured = accept(&ztunnel);
        assert_eq!(original_dst(&captured).unwrap(), OrigDst(to));
        assert_eq!(peer(&captured), app.local_addr().unwrap());
        assert!(captured.nodelay().unwrap());
        talk(&mut app, &mut captured);
    }
    assert!(try_accept(&server, SILENCE).is_none());
}

#[test]
fn what_ztunnel_dials_is_not_redirected() {
    let net = Net::new();
    let server = listen(&net.world, 80);
    let ztunnel = ztunnel_listen(&net.pod, OUTBOUND);
    net.install(*BOTH);
    for to in [addr(GATE4, 80), addr(GATE6, 80)] {
        let mut dialled = ztunnel_connect(&net.pod, move || dial(to)).unwrap();
        let mut served = accept(&server);
        assert_eq!(peer(&served), dialled.local_addr().unwrap());
        talk(&mut dialled, &mut served);
    }
    assert!(try_accept(&ztunnel, SILENCE).is_none());
}

#[test]
fn inbound_is_redirected_except_to_the_tunnel_port() {
    let net = Net::new();
    let app = listen(&net.pod, 8080);
    let ztunnel = ztunnel_listen(&net.pod, INBOUND);
    let tunnels = ztunnel_listen(&net.pod, HBONE);
    net.install(*BOTH);
    for (from, pod) in [(CLIENT4, POD4), (CLIENT6, POD6)] {
        let mut client = connect_from(&net.world, from, addr(pod, 8080));
        let mut captured = accept(&ztunnel);
        let dst = original_dst(&captured).unwrap();
        assert_eq!(dst, OrigDst(addr(pod, 8080)));
        assert_eq!(peer(&captured).ip().to_string(), from);
        talk(&mut client, &mut captured);

        let mut client = connect(&net.world, addr(pod, HBONE)).unwrap();
        talk(&mut client, &mut accept(&tunnels));
    }
    assert!(try_accept(&app, SILENCE).is_none());

    net.install(Spec {
        bypass_inbound: true,
        ..*BOTH
    });
    for pod in [POD4, POD6] {
        let mut client = connect(&net.world, addr(pod, 8080)).unwrap();
        talk(&mut client, &mut accept(&app));
    }
}

/// B01: a probe that does no more than connect fails where nobody listens, and only there.
#[test]
fn where_nobody_listens_connecting_fails_as_it_does_without_the_mesh() {
    let net = Net::new();
    let ztunnel = ztunnel_listen(&net.pod, INBOUND);
    net.install(*BOTH);
    // Not for others to reach.
    let local = net
        .pod
        .run(|| std::net::TcpListener::bind("127.0.0.1:9999"));
    let _local = local.unwrap().unwrap();
    for _ in 0..2 {
        for pod in [POD4, POD6] {
            for port in [8080, 9999] {
                let refused = connect(&net.world, addr(pod, port)).unwrap_err();
                assert_eq!(
                    refused.kind(),
                    std::io::ErrorKind::ConnectionRefused,
                    "{pod}"
                );
            }
        }
        // It comes, and goes again.
        let _app = listen(&net.pod, 8080);
        for pod in [POD4, POD6] {
            let mut client = connect(&net.world, addr(pod, 8080)).unwrap();
            talk(&mut client, &mut accept(&ztunnel));
        }
    }
}

#[test]
fn the_pod_reaches_itself_without_ztunnel() {
    let net = Net::new();
    let app = listen(&net.pod, 8080);
    let ztunnel = [
        ztunnel_listen(&net.pod, OUTBOUND),
        ztunnel_listen(&net.pod, INBOUND),
    ];
    net.install(*BOTH);
    for to in [POD4, POD6, "127.0.0.1", "::1"] {
        let mut client = connect(&net.pod, addr(to, 8080)).unwrap();
        talk(&mut client, &mut accept(&app));
    }
    assert!(ztunnel.iter().all(|l| try_accept(l, SILENCE).is_none()));
}

#[test]
fn probes_of_a_host_that_marks_them_reach_the_pod() {
    let net = Net::new();
    let app = listen(&net.pod, 8080);
    let probes = [capture::PROBE_V4.to_string(), capture::PROBE_V6.to_string()];
    ip(&net.world, &format!("addr add {}/32 dev eth0", probes[0]));
    ip(
        &net.world,
        &format!("addr add {}/128 dev eth0 nodad", probes[1]),
    );
    net.install(*BOTH);
    for (probe, pod) in probes.iter().zip([POD4, POD6]) {
        let mut client = connect_from(&net.world, probe, addr(pod, 8080));
        talk(&mut client, &mut accept(&app));
    }
}

/// One connection each way and family between an app in the pod and the world.
fn plain_pairs(net: &Net) -> Vec<(TcpStream, TcpStream)> {
    let (app, server) = (listen(&net.pod, 8080), listen(&net.world, 80));
    let mut pairs = Vec::new();
    for (pod, gate) in [(POD4, GATE4), (POD6, GATE6)] {
        let inward = connect(&net.world, addr(pod, 8080)).unwrap();
        pairs.push((inward, accept(&app)));
        let outward = connect(&net.pod, addr(gate, 80)).unwrap();
        pairs.push((outward, accept(&server)));
    }
    pairs
}

#[test]
fn a_connection_opened_before_lives_through_everything() {
    let net = Net::new();
    let ztunnel = [
        ztunnel_listen(&net.pod, OUTBOUND),
        ztunnel_listen(&net.pod, INBOUND),
    ];
    let mut pairs = plain_pairs(&net);
    let mut talk_all = || {
        for (a, b) in &mut pairs {
            talk(a, b);
            talk(b, a);
        }
    };
    talk_all();
    for _ in 0..2 {
        net.install(*BOTH);
        talk_all();
        net.install(*BOTH);
        talk_all();
        net.capture(|| capture::stop_redirecting(&BOTH));
        talk_all();
        net.capture(capture::remove);
        talk_all();
    }
    net.install(*BOTH);
    // Silent while it was enrolled, and the end speaks first that did not before.
    for (a, b) in &mut pairs {
        a.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(std::io::Read::read(b, &mut [0; 8]).unwrap(), 0);
    }
    assert!(ztunnel.iter().all(|l| try_accept(l, SILENCE).is_none()));
}

/// ztunnel's connection to the app with the client's address, for both families.
fn spoofed_pairs(net: &Net) -> Vec<(TcpStream, TcpStream)> {
    let app = listen(&net.pod, 8080);
    let families = [(CLIENT4, POD4), (CLIENT6, POD6)];
    let pairs = families.map(|(client, pod)| {
        let (client, to) = (client.parse().unwrap(), addr(pod, 8080));
        let dialled = ztunnel_connect(&net.pod, move || dial_as(client, to)).unwrap();
        let served = accept(&app);
        assert_eq!(peer(&served).ip(), client);
        assert!(peer(&served).port() < 32_768, "{}", peer(&served));
        (dialled, served)
    });
    pairs.into()
}

#[test]
fn the_app_sees_the_client_and_its_replies_come_back_to_ztunnel() {
    let net = Net::new();
    net.install(*BOTH);
    let mut pairs = spoofed_pairs(&net);
    let mut big = vec![7; 1 << 20];
    for (dialled, served) in &mut pairs {
        talk(dialled, served);
        talk(served, dialled);
        // More than fits into one packet, so that acknowledgements loop, too.
        let mut writer = served.try_clone().unwrap();
        let sent = std::thread::spawn(move || {
            std::io::Write::write_all(&mut writer, &vec![7; 1 << 20]).unwrap();
        });
        std::io::Read::read_exact(dialled, &mut big).unwrap();
        sent.join().unwrap();
    }
}

#[test]
fn a_refused_spoofed_connection_says_so_at_once() {
    let net = Net::new();
    net.install(*BOTH);
    for (client, pod) in [(CLIENT4, POD4), (CLIENT6, POD6)] {
        let (client, to) = (client.parse().unwrap(), addr(pod, 9));
        let error = ztunnel_connect(&net.pod, move || dial_as(client, to)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn many_spoofed_connections_do_not_meet_the_clients_own() {
    let net = Net::new();
    let app = listen(&net.pod, 8080);
    let ztunnel = ztunnel_listen(&net.pod, INBOUND);
    net.install(*BOTH);
    let to = addr(POD4, 8080);
    let client = CLIENT4.parse().unwrap();
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut own = connect_from(&net.world, CLIENT4, to);
        let mut captured = accept(&ztunnel);
        talk(&mut own, &mut captured);
        let mut dialled = ztunnel_connect(&net.pod, move || dial_as(client, to)).unwrap();
        let mut served = accept(&app);
        talk(&mut dialled, &mut served);
        held.push((own, captured, dialled, served));
    }
}

#[test]
fn a_captured_connection_lives_on_after_redirection_stops() {
    let net = Net::new();
    let server = listen(&net.world, 80);
    let outward = ztunnel_listen(&net.pod, OUTBOUND);
    let inward = ztunnel_listen(&net.pod, INBOUND);
    let _app = listen(&net.pod, 8082);
    net.install(*BOTH);
    let mut pairs = spoofed_pairs(&net);
    for (pod, gate) in [(POD4, GATE4), (POD6, GATE6)] {
        let app = connect(&net.pod, addr(gate, 80)).unwrap();
        pairs.push((app, accept(&outward)));
        let client = connect(&net.world, addr(pod, 8082)).unwrap();
        pairs.push((client, accept(&inward)));
    }
    net.capture(|| capture::stop_redirecting(&BOTH));
    drop((outward, inward));
    for (a, b) in &mut pairs {
        talk(a, b);
        talk(b, a);
    }
    let app = listen(&net.pod, 8081);
    for (pod, gate) in [(POD4, GATE4), (POD6, GATE6)] {
        let mut fresh = connect(&net.pod, addr(gate, 80)).unwrap();
        talk(&mut fresh, &mut accept(&server));
        let mut fresh = connect(&net.world, addr(pod, 8081)).unwrap();
        talk(&mut fresh, &mut accept(&app));
    }
    for (a, b) in &mut pairs {
        talk(b, a);
        a.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(std::io::Read::read(b, &mut [0; 8]).unwrap(), 0);
    }
    net.install(*BOTH);
    assert_eq!(net.capture(|| capture::verify(&BOTH)), []);
}

#[test]
fn nothing_is_left_behind() {
    let net = Net::new();
    let rules = |net: &Net| {
        [
            "rule",
            "-6 rule",
            "route show table all",
            "-6 route show table all",
        ]
        .map(|what| ip_output(&net.pod, what))
    };
    let before = rules(&net);
    for _ in 0..2 {
        net.install(*BOTH);
        assert!(net.capture(capture::is_installed));
        assert_ne!(rules(&net), before);
        net.capture(capture::remove);
        assert!(!net.capture(capture::is_installed));
        assert_eq!(rules(&net), before);
        assert_eq!(
            net.capture(|| capture::verify(&BOTH))[0],
            Difference::NoTable
        );
        // What is not there can be removed.
        net.capture(capture::remove);
    }
}

#[test]
fn what_was_tracked_is_forgotten_with_the_table() {
    let net = Net::new();
    let ztunnel = ztunnel_listen(&net.pod, OUTBOUND);
    let server = listen(&net.world, 80);
    let to = addr(GATE4, 80);
    let from = addr(POD4, 40_000);
    let dial = move || {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        // Closes with a reset, so that the same port can be used again at once.
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        TcpStream::from(socket)
    };
    // Seen by our connection tracking, and closed while that is away.
    let mut early = net.pod.run(dial).unwrap();
    let mut served = accept(&server);
    net.install(*BOTH);
    talk(&mut early, &mut served);
    net.capture(capture::remove);
    drop((early, served));
    net.install(*BOTH);
    let _again = net.pod.run(dial).unwrap();
    let captured = accept(&ztunnel);
    assert_eq!(original_dst(&captured).unwrap(), OrigDst(to));
}

#[test]
fn differences_are_found_and_repaired() {
    let net = Net::new();
    let verify = || net.capture(|| capture::verify(&BOTH));
    assert_eq!(
        verify(),
        [
            Difference::NoTable,
            Difference::RoutingRule(Family::V4),
            Difference::Route(Family::V4),
            Difference::RoutingRule(Family::V6),
            Difference::Route(Family::V6),
        ]
    );
    net.install(*BOTH);
    assert_eq!(verify(), []);
    for (harm, difference) in [
        ("rule del pref 32764", Difference::RoutingRule(Family::V4)),
        (
            "-6 rule del pref 32764",
            Difference::RoutingRule(Family::V6),
        ),
        ("route flush table 100", Difference::Route(Family::V4)),
        ("-6 route flush table 100", Difference::Route(Family::V6)),
    ] {
        ip(&net.pod, harm);
        assert_eq!(verify(), [difference], "{harm}");
        net.install(*BOTH);
        assert_eq!(verify(), []);
    }
    let others = [
        Spec {
            bypass_inbound: true,
            ..*BOTH
        },
        Spec {
            ipv6: false,
            ..*BOTH
        },
    ];
    for other in others {
        net.install(other);
        assert_eq!(net.capture(move || capture::verify(&other)), []);
        assert!(!verify().is_empty());
    }
    net.capture(|| capture::stop_redirecting(&BOTH));
    let emptied = |chain: &str| Difference::Rules {
        chain: chain.into(),
        index: 0,
    };
    assert_eq!(verify(), [emptied("outbound"), emptied("inbound")]);
    net.install(*BOTH);
    assert_eq!(verify(), []);
}

#[test]
fn a_pod_without_ipv6_is_captured_in_ipv4() {
    let net = Net::with(|pod| {
        let off = pod.run(|| {
            for which in ["all", "default", "lo"] {
                let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
                fs::write(path, "1").unwrap();
            }
        });
        off.unwrap();
    });
    let families = net.pod.run(capture::families).unwrap();
    assert!(families.ipv4 && !families.ipv6);
    let spec = Spec::for_families(families, BOTH.own, false);
    let outward = ztunnel_listen(&net.pod, OUTBOUND);
    let inward = ztunnel_listen(&net.pod, INBOUND);
    let _app = listen(&net.pod, 8080);
    net.install(spec);
    assert_eq!(net.capture(move || capture::verify(&spec)), []);
    let to = addr("192.0.2.10", 80);
    let mut app = connect(&net.pod, to).unwrap();
    let mut captured = accept(&outward);
    assert_eq!(original_dst(&captured).unwrap(), OrigDst(to));
    talk(&mut app, &mut captured);
    let mut client = connect(&net.world, addr(POD4, 8080)).unwrap();
    talk(&mut client, &mut accept(&inward));
    net.capture(move || capture::stop_redirecting(&spec));
    talk(&mut app, &mut captured);
    net.capture(capture::remove);
}

/// Fresh connections, one after another, while redirection comes and goes: each is served by someone.
#[test]
fn no_connection_fails_while_rules_change() {
    let net = Net::new();
    let listeners = [
        listen(&net.world, 80),
        listen(&net.pod, 8080),
        ztunnel_listen(&net.pod, OUTBOUND),
        ztunnel_listen(&net.pod, INBOUND),
    ];
    let served: Arc<[AtomicUsize; 4]> = Arc::default();
    for (i, listener) in listeners.into_iter().enumerate() {
        let served = Arc::clone(&served);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // The end of the test ends the listener's namespace, not this thread.
                let Ok(mut stream) = stream else { return };
                let _ = std::io::Write::write_all(&mut stream, b"hello");
                served[i].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let done = Arc::new(AtomicBool::new(false));
    let clients = [
        (net.pod.clone(), addr(GATE4, 80)),
        (net.pod.clone(), addr(GATE6, 80)),
        (net.world.clone(), addr(POD4, 8080)),
        (net.world.clone(), addr(POD6, 8080)),
    ]
    .map(|(ns, to): (_, SocketAddr)| {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let mut stream = connect(&ns, to).unwrap_or_else(|e| panic!("{to}: {e}"));
                let mut hello = [0; 5];
                std::io::Read::read_exact(&mut stream, &mut hello)
                    .unwrap_or_else(|e| panic!("{to} after {count}: {e}"));
                count += 1;
            }
            count
        })
    });
    let enough = |i: usize, n: usize| served[i].load(Ordering::Relaxed) >= n;
    for round in 1..=10 {
        net.install(*BOTH);
        while !(enough(2, round * 10) && enough(3, round * 10)) {
            std::thread::yield_now();
        }
        net.capture(|| capture::stop_redirecting(&BOTH));
        while !(enough(0, round * 10) && enough(1, round * 10)) {
            std::thread::yield_now();
        }
    }
    done.store(true, Ordering::Relaxed);
    let counts = clients.map(|client| client.join().unwrap());
    assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
}
