//! Addresses of a pod that the mesh does not know as its own, on real network namespaces (needs root).

mod support;

use std::time::Duration;

use mesh::verdict::OrigDst;
use support::net::*;
use ztunnel::capture::{INBOUND, OUTBOUND};
use ztunnel::socket::original_dst;

/// Long enough to be sure that a packet that would come has come.
const SILENCE: Duration = Duration::from_millis(150);

/// What the pod has besides, on `lo` as an alias or on its interface as another network's.
const OTHERS: [(&str, &str); 4] = [
    ("192.0.2.7/32", "lo"),
    ("10.8.0.2/32", "eth0"),
    ("2001:db8::7/128", "lo"),
    ("fd08::2/128", "eth0"),
];

/// A pod with other addresses, to which the world has routes.
fn pod_with_others() -> Net {
    let net = Net::new();
    for (prefix, device) in OTHERS {
        let six = prefix.contains(':');
        let (flag, nodad, pod) = match six {
            true => ("-6 ", " nodad", POD6),
            false => ("", "", POD4),
        };
        ip(&net.pod, &format!("addr add {prefix} dev {device}{nodad}"));
        ip(&net.world, &format!("{flag}route add {prefix} via {pod}"));
    }
    net
}

fn others() -> impl Iterator<Item = &'static str> {
    OTHERS
        .iter()
        .filter_map(|(prefix, _)| prefix.split('/').next())
}

/// B06: whoever knows such an address has it from elsewhere, and no verdict of the mesh fits it.
#[test]
fn what_comes_to_other_addresses_of_the_pod_is_left_alone() {
    let net = pod_with_others();
    let app = listen(&net.pod, 8080);
    let ztunnel = ztunnel_listen(&net.pod, INBOUND);
    net.install(*BOTH);
    for other in others() {
        let mut client = connect(&net.world, addr(other, 8080)).unwrap();
        talk(&mut client, &mut accept(&app));
    }
    assert!(try_accept(&ztunnel, SILENCE).is_none());
    for own in [POD4, POD6] {
        let mut client = connect(&net.world, addr(own, 8080)).unwrap();
        talk(&mut client, &mut accept(&ztunnel));
    }
}

#[test]
fn what_leaves_from_other_addresses_of_the_pod_is_left_alone() {
    let net = pod_with_others();
    let server = listen(&net.world, 80);
    let ztunnel = ztunnel_listen(&net.pod, OUTBOUND);
    let gate = |from: &str| addr(if from.contains(':') { GATE6 } else { GATE4 }, 80);
    // The interface has no link-local address here, and can ask who the gateway is in the name of its own alone.
    for own in [POD4, POD6] {
        let mut app = connect_from(&net.pod, own, gate(own));
        talk(&mut app, &mut accept(&server));
    }
    net.install(*BOTH);
    for other in others() {
        let mut app = connect_from(&net.pod, other, gate(other));
        let mut served = accept(&server);
        assert_eq!(peer(&served).ip().to_string(), other);
        talk(&mut app, &mut served);
    }
    assert!(try_accept(&ztunnel, SILENCE).is_none());
    for own in [POD4, POD6] {
        let mut app = connect_from(&net.pod, own, gate(own));
        let mut captured = accept(&ztunnel);
        assert_eq!(original_dst(&captured).unwrap(), OrigDst(gate(own)));
        talk(&mut app, &mut captured);
    }
}
