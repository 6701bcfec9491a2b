use super::*;
use crate::proto::workload as wds;
use crate::sample::{Sample, addr, hbone, id};

const AT: &str = "10.0.0.1";

fn mesh(f: impl FnOnce(&mut wds::Workload)) -> Sample {
    Sample::default().pod("client", AT, f)
}

fn peer() -> Peer {
    Peer {
        id: id("client"),
        addr: addr(&format!("{AT}:5000")),
    }
}

/// What becomes of leases in this mesh that were granted in one in which the client is a pod with a tunnel.
fn then(now: Sample) -> [Result<(), &'static str>; 2] {
    let before = mesh(hbone).world();
    let leases = before.look(|world| {
        let client = world.workload_at(AT.parse().unwrap()).unwrap();
        let mut leases = [
            Lease::of_peer(&peer()),
            Lease::of_endpoint(client, AT.parse().unwrap()),
        ];
        for lease in &mut leases {
            lease.judge(world).unwrap();
        }
        leases
    });
    let now = now.world();
    leases.map(|mut lease| now.look(|world| lease.judge(world).map_err(|revoked| revoked.code())))
}

#[test]
fn a_lease_ends_with_the_workload_or_its_identity() {
    let replaced = [Err("peer_replaced"), Err("endpoint_replaced")];
    let gone = [Err("peer_gone"), Err("endpoint_gone")];
    assert_eq!(then(Sample::default()), gone, "deleted");
    let renamed = mesh(|w| w.service_account = "other".into());
    assert_eq!(then(renamed), replaced, "the same name, another account");
    let reused = Sample::default().pod("newcomer", AT, hbone);
    let others = [Err("peer_replaced"), Err("endpoint_gone")];
    assert_eq!(then(reused), others, "its address is another's");
    let moved = Sample::default().pod("client", "10.0.0.2", hbone);
    let elsewhere = [Err("peer_gone"), Err("endpoint_replaced")];
    assert_eq!(then(moved), elsewhere, "of a StatefulSet, come back");
}

#[test]
fn a_lease_outlives_what_does_not_change_who_is_there() {
    let both = [Ok(()), Ok(())];
    assert_eq!(then(mesh(hbone)), both, "nothing changed");
    assert_eq!(then(mesh(|_| ())), both, "left the mesh");
    let unhealthy = mesh(|w| w.set_status(wds::WorkloadStatus::Unhealthy));
    assert_eq!(then(unhealthy), both, "not ready any more");
}

#[test]
fn what_was_never_known_cannot_go_and_what_comes_to_be_known_can() {
    let (nobody, there) = (Sample::default().world(), mesh(hbone).world());
    let other = Sample::default().pod("other", AT, hbone).world();
    let mut lease = Lease::of_peer(&peer());
    for world in [&nobody, &other, &nobody] {
        assert_eq!(world.look(|world| lease.judge(world)), Ok(()));
    }
    // A pod that dialled before its address was told.
    assert_eq!(there.look(|world| lease.judge(world)), Ok(()));
    assert!(
        nobody
            .look(|world| lease.judge(world))
            .unwrap_err()
            .is_gone()
    );
    assert!(
        !other
            .look(|world| lease.judge(world))
            .unwrap_err()
            .is_gone()
    );
}
