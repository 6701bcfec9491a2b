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

/// Still held in this mesh, after it was granted in one in which the client is a pod with a tunnel.
fn held(then: Sample) -> [Result<(), &'static str>; 2] {
    let before = mesh(hbone).world();
    let leases = before.look(|world| {
        let client = world.workload_at(AT.parse().unwrap()).unwrap();
        [
            Lease::of_peer(&peer(), world).unwrap(),
            Lease::of_endpoint(client),
        ]
    });
    let then = then.world();
    leases.map(|lease| then.look(|world| lease.holds(world).map_err(|revoked| revoked.code())))
}

#[test]
fn a_lease_ends_with_the_workload_or_its_identity() {
    let gone = [Err("peer_gone"), Err("endpoint_gone")];
    assert_eq!(held(Sample::default()), gone, "deleted");
    let renamed = mesh(|w| w.service_account = "other".into());
    assert_eq!(held(renamed), gone, "the same name, another account");
    let reused = Sample::default().pod("newcomer", AT, hbone);
    assert_eq!(held(reused), gone, "its address is another's");
}

#[test]
fn a_lease_outlives_what_does_not_change_who_is_there() {
    let both = [Ok(()), Ok(())];
    assert_eq!(held(mesh(hbone)), both, "nothing changed");
    assert_eq!(held(mesh(|_| ())), both, "left the mesh");
    let unhealthy = mesh(|w| w.set_status(wds::WorkloadStatus::Unhealthy));
    assert_eq!(held(unhealthy), both, "not ready any more");
}

#[test]
fn what_was_never_known_cannot_go() {
    let nobody = Sample::default().world();
    assert_eq!(nobody.look(|world| Lease::of_peer(&peer(), world)), None);
    let other = Sample::default().pod("other", AT, hbone).world();
    assert_eq!(other.look(|world| Lease::of_peer(&peer(), world)), None);
}
