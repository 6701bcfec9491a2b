//! What others do to a captured pod's rules and routes is heard, and undone (needs root).

mod support;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{
    fabric::{ECHO, Fabric},
    net::{BOTH, Net, PATIENCE, ip},
};
use ztunnel::{
    capture::{self, Own, Spec, Watch},
    netns::PodNetns,
};

/// What breaks redirection: a program and its arguments.
const HARMS: [(&str, &str); 8] = [
    ("nft", "delete table inet ambit"),
    ("nft", "flush ruleset"),
    ("nft", "flush chain inet ambit outbound"),
    ("nft", "insert rule inet ambit outbound accept"),
    ("ip", "rule del pref 32764"),
    ("ip", "-6 rule del pref 32764"),
    ("ip", "route flush table 100"),
    ("ip", "-6 route flush table 100"),
];

fn harm(ns: &PodNetns, (program, args): (&'static str, &'static str)) {
    let run = move || Command::new(program).args(args.split(' ')).status();
    assert!(ns.run(run).unwrap().unwrap().success(), "{args}");
}

#[test]
fn whatever_breaks_redirection_is_news() {
    let net = Net::new();
    let watch = net.pod.run(Watch::begin).unwrap().unwrap();
    let differs = || !net.capture(|| capture::verify(&BOTH)).is_empty();
    let quiet = || while watch.has_news() {};
    net.install(*BOTH);
    assert!(watch.has_news());
    for each in HARMS {
        quiet();
        harm(&net.pod, each);
        assert!(watch.has_news(), "{each:?} is not heard");
        assert!(differs(), "{each:?} does no harm");
        net.install(*BOTH);
        assert!(!differs());
    }
    // Routes go with their interface, and of IPv4's nothing is said.
    quiet();
    ip(&net.pod, "link set lo down");
    assert!(watch.has_news() && differs());

    // Reading is not changing, and what others do in their own namespaces is theirs.
    ip(&net.pod, "link set lo up");
    net.install(*BOTH);
    quiet();
    assert!(!differs());
    ip(&net.world, "route add 192.0.2.0/24 dev lo");
    assert!(!watch.has_news());
}

#[test]
fn more_news_than_there_is_room_for_is_news() {
    let net = Net::new();
    let watch = net.pod.run(Watch::begin).unwrap().unwrap();
    for number in 0..200 {
        ip(&net.pod, &format!("route add 192.0.2.{number} dev lo"));
    }
    assert!(watch.has_news());
    while watch.has_news() {}
    // And it still hears.
    ip(&net.pod, "route del 192.0.2.7 dev lo");
    assert!(watch.has_news());
}

#[test]
fn redirection_that_somebody_breaks_is_repaired_while_others_rest() {
    let fabric = Fabric::new();
    let (a, b) = (fabric.meshed("ra", 0), fabric.meshed("rb", 1));
    let spec = Spec {
        own: Own::of(&[a.v4, a.v6]),
        ..*BOTH
    };
    for each in [HARMS[0], HARMS[6], HARMS[3]] {
        let began = Instant::now();
        harm(&a.ns, each);
        let differs = || a.ns.run(move || capture::verify(&spec)).unwrap().unwrap();
        while !differs().is_empty() {
            assert!(began.elapsed() < PATIENCE, "{each:?}: {:?}", differs());
            thread::park_timeout(Duration::from_millis(20));
        }
        a.ask(b.addr(false, ECHO)).unwrap();
    }
    assert_eq!(fabric.node(0).metric("ambit_redirection_repairs"), 3);
    assert_eq!(fabric.node(1).metric("ambit_redirection_repairs"), 0);
}
