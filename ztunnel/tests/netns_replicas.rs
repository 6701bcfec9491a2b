//! A node's stream goes from one replica of the controller to another that knows less (needs root).

mod support;

use mesh::xds::session::Hold;
use support::{
    fabric::{ECHO, Fabric, SERVICE, TestPod, exchange},
    net::connect,
    replica::{Replica, proxy},
    wire::Wire,
};
use ztunnel::capture;

/// What the echo protocol sends: in the clear, the wire shows it.
const PLAIN: &[u8] = b"ping\n";

fn installed(pod: &TestPod) -> bool {
    pod.ns.run(|| capture::is_installed().unwrap()).unwrap()
}

/// Both nodes come to a replica that has never heard of `server`: neither its enrolment nor its address. Its removals
/// are held as `hold` says. Returns how many frames were in the clear from then on until it has caught up.
fn lag(hold: Hold) -> usize {
    let fabric = Fabric::new();
    let (client, server) = (fabric.meshed("la", 0), fabric.meshed("lb", 1));
    let mut proxies = [proxy(), proxy()];
    for (index, proxy) in proxies.iter_mut().enumerate() {
        let knows_all = fabric.replica(index, None);
        let mut session = Replica::open(proxy);
        knows_all.say(&mut session, Hold::Nothing, proxy, fabric.node(index));
    }
    let mut open = connect(&client.ns, server.addr(false, ECHO)).unwrap();
    exchange(&mut open).unwrap();

    let wire = Wire::tap(fabric.bridge(), PLAIN);
    let mut sessions = Vec::new();
    for (index, proxy) in proxies.iter_mut().enumerate() {
        let lags = fabric.replica(index, Some(&server));
        let mut session = Replica::open(proxy);
        lags.say(&mut session, hold, proxy, fabric.node(index));
        sessions.push(session);
    }
    let talk = |open: &mut _| {
        // A pod that is gone takes what is open to it along, soon.
        if hold != Hold::Nothing {
            exchange(open).unwrap();
        }
        for v6 in [false, true] {
            client.ask(server.addr(v6, ECHO)).unwrap();
            let _ = client.ask(server.vip(v6, SERVICE));
        }
        // No pod leaves: its redirection and what is open through it stay.
        assert!(installed(&client) && installed(&server));
    };
    talk(&mut open);
    for (index, (proxy, session)) in proxies.iter_mut().zip(&mut sessions).enumerate() {
        let caught_up = fabric.replica(index, None);
        caught_up.say(session, Hold::Nothing, proxy, fabric.node(index));
    }
    let lagging = wire.end();
    let wire = Wire::tap(fabric.bridge(), PLAIN);
    talk(&mut open);
    assert_eq!(wire.end(), 0, "all is known again");
    lagging
}

#[test]
fn a_replica_that_lags_takes_no_pod_out_and_lets_nothing_out_in_the_clear() {
    // What the hold is for, and proof that the wire would show it.
    assert_ne!(lag(Hold::Nothing), 0);
    for hold in [Hold::Removals, Hold::Known] {
        assert_eq!(lag(hold), 0, "{hold:?}");
    }
}
