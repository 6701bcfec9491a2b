//! A connection that was granted ends when what it stands on goes, and only then (needs root).

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{
    fabric::{ECHO, Fabric, TestPod, exchange},
    log,
    net::{accept, connect, listen},
};

/// A connection whose lease has ended ends within a second; on a machine that is busy with other things, long before the
/// tunnel's pings would find out anything.
const AT_ONCE: Duration = Duration::from_secs(10);

fn open(client: &TestPod, server: &TestPod) -> TcpStream {
    let mut stream = connect(&client.ns, server.addr(false, ECHO)).unwrap();
    exchange(&mut stream).unwrap();
    stream
}

/// Waits for the end of a connection on which nothing is said: a reset, which nobody takes for an orderly end.
fn ends(mut stream: TcpStream) {
    let began = Instant::now();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
}

/// Asks until the answer is yes: of what a node does only as its file is read again.
fn wait_for(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < AT_ONCE);
    }
}

fn logged(workload: &str, direction: &str, reason: &str) {
    log::access(reason, |line| {
        line["src.workload"] == workload
            && line["direction"] == direction
            && line["reason"] == reason
    });
}

#[test]
fn a_peer_whose_identity_is_gone_from_its_address_is_cut_off_and_others_are_not() {
    let fabric = Fabric::new();
    let (peer, other) = (fabric.meshed("pa", 0), fabric.meshed("pb", 0));
    let server = fabric.meshed("pc", 1);
    let (cut, mut lives) = (open(&peer, &server), open(&other, &server));
    // The mesh knows another at its address now, who has not proven anything.
    fabric.mistake(&peer, &other);
    ends(cut);
    logged("pa", "inbound", "peer_replaced");
    exchange(&mut lives).unwrap();
    // A fresh one is judged from what is known now: nobody is expected there.
    exchange(&mut open(&other, &server)).unwrap();
}

#[test]
fn a_connection_to_a_pod_that_is_gone_ends_and_others_of_its_client_do_not() {
    let fabric = Fabric::new();
    let client = fabric.meshed("ea", 0);
    let (gone, stays) = (fabric.meshed("eb", 1), fabric.meshed("ec", 1));
    let (cut, mut lives) = (open(&client, &gone), open(&client, &stays));
    fabric.delete(&gone);
    ends(cut);
    logged("ea", "outbound", "endpoint_gone");
    exchange(&mut lives).unwrap();
}

/// Outside the mesh, a pod is gone or another just the same.
#[test]
fn a_plain_connection_to_a_pod_that_is_gone_or_another_ends_and_others_do_not() {
    let fabric = Fabric::new();
    let client = fabric.meshed("la", 0);
    let [gone, replaced, stays] = ["lb", "lc", "ld"].map(|name| fabric.pod(name, 1));
    let open = |server| open(&client, server);
    let (of_gone, of_replaced, mut lives) = (open(&gone), open(&replaced), open(&stays));
    fabric.delete(&gone);
    ends(of_gone);
    logged("la", "outbound", "endpoint_gone");
    fabric.mistake(&replaced, &stays);
    ends(of_replaced);
    logged("la", "outbound", "endpoint_replaced");
    exchange(&mut lives).unwrap();
    // It joins the mesh: who was there is still there.
    fabric.enrol(&stays);
    exchange(&mut lives).unwrap();
}

#[test]
fn what_a_plain_pod_has_said_before_it_went_is_read_to_its_end() {
    // More than the sockets on the way hold.
    const SAID: usize = 32 << 20;
    let fabric = Fabric::new();
    let (client, server) = (fabric.meshed("va", 0), fabric.pod("vb", 1));
    let silent = open(&client, &server);
    let listener = listen(&server.ns, 4000);
    let mut download = connect(&client.ns, server.addr(false, 4000)).unwrap();
    let mut speaks = accept(&listener);
    let speaking = std::thread::spawn(move || {
        speaks.write_all(&vec![7; SAID]).unwrap();
    });
    download.peek(&mut [0]).unwrap();
    fabric.delete(&server);
    ends(silent);
    // The client reads only now, and slowly enough for others to think that nothing moves any more.
    let mut all = Vec::new();
    download.read_to_end(&mut all).unwrap();
    speaking.join().unwrap();
    assert_eq!(all.len(), SAID);
}

/// A Job that uploads, closes and exits; a server that answers, closes and exits.
#[test]
fn what_a_pod_has_said_before_it_went_is_read_to_its_end() {
    const SAID: usize = 1 << 20;
    let fabric = Fabric::new();
    let (job, server) = (fabric.meshed("ja", 0), fabric.meshed("jb", 1));
    let silent = open(&job, &server);
    let listener = listen(&server.ns, 4000);
    let mut upload = connect(&job.ns, server.addr(false, 4000)).unwrap();
    let mut reads = accept(&listener);
    upload.set_write_timeout(Some(AT_ONCE)).unwrap();
    upload.write_all(&vec![7; SAID]).unwrap();
    drop(upload);
    // Something of it is there before the pod is gone, and only then is the rest read.
    reads.peek(&mut [0]).unwrap();
    fabric.delete(&job);
    // The node has heard of it: a connection of the same pod that is silent has ended.
    ends(silent);
    let mut all = Vec::new();
    reads.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), SAID);
}

#[test]
fn a_peer_whose_certificate_runs_out_is_cut_off_and_others_are_not() {
    // Longer than it takes to enrol a pod and to connect.
    const LIFE: i64 = 8;
    let fabric = Fabric::new();
    let (other, server) = (fabric.meshed("xa", 0), fabric.meshed("xb", 1));
    fabric.ca.sign_for(LIFE);
    let client = fabric.meshed("xc", 0);
    let (cut, mut lives) = (open(&client, &server), open(&other, &server));
    fabric.ca.refuse(&client.identity());
    ends(cut);
    logged("xc", "inbound", "peer_certificate_expired");
    exchange(&mut lives).unwrap();
}

/// A node that hears of a revoked peer cuts it off, whichever side the peer is on, and lets it in no more.
#[test]
fn a_peer_whose_certificate_is_revoked_is_cut_off_and_others_are_not() {
    let fabric = Fabric::new();
    let (client, other) = (fabric.meshed("ra", 0), fabric.meshed("rb", 0));
    let server = fabric.meshed("rc", 1);
    let (cut, mut lives) = (open(&client, &server), open(&other, &server));
    fabric.node(1).revoke(&fabric.ca.revoke(&client.identity()));
    ends(cut);
    logged("ra", "inbound", "peer_revoked");
    exchange(&mut lives).unwrap();
    // It dials anew, and is not let in.
    client.ask(server.addr(false, ECHO)).unwrap_err();
    // The other's node hears of the server.
    fabric.node(0).revoke(&fabric.ca.revoke(&server.identity()));
    ends(lives);
    logged("rb", "outbound", "peer_revoked");
    // Nobody is revoked any more.
    for node in [0, 1] {
        fabric.node(node).revoke("");
    }
    wait_for(|| client.ask(server.addr(false, ECHO)).is_ok());
}

#[test]
fn what_does_not_change_who_is_there_ends_nothing() {
    let fabric = Fabric::new();
    let (client, server) = (fabric.meshed("sa", 0), fabric.meshed("sb", 1));
    let mut lives = open(&client, &server);
    // Others come, and one of the two ends leaves the mesh: what is open through its proxy lives on.
    let newcomer = fabric.meshed("sc", 1);
    exchange(&mut open(&client, &newcomer)).unwrap();
    fabric.take_out(&server);
    exchange(&mut lives).unwrap();
    fabric.enrol(&server);
    exchange(&mut lives).unwrap();
    exchange(&mut open(&client, &server)).unwrap();
}
