//! What an update changed is told to whoever asked before it, by name; and nothing else is.

#[path = "support/mesh.rs"]
mod told;

use futures_util::FutureExt as _;
use mesh::names::Uid;
use mesh::proto::node;
use mesh::world::{Changed, Changes};
use mesh::xds::{ADDRESS_TYPE, ENROLLED_NAMESPACE_TYPE, ROUTE_TYPE};
use prost::Message as _;
use told::{Mesh, ip, pod, service};

/// What the next update changed, of which there must be one.
fn next(changes: &mut Changes) -> Changed {
    let next = changes.next().now_or_never();
    let next = next.expect("nothing was told").expect("nobody writes");
    Changed::clone(&next)
}

fn names(changed: &Changed) -> (Vec<String>, Vec<String>) {
    let workloads = changed.workloads().map(Uid::to_string).collect();
    let addresses = changed.addresses().map(|ip| ip.to_string()).collect();
    (workloads, addresses)
}

#[test]
fn what_changed_is_named() {
    let mut mesh = Mesh::new();
    let before = pod("before", &["10.0.0.9"], |_| ());
    mesh.tell(ADDRESS_TYPE, vec![before]).unwrap();
    let mut changes = mesh.world.changes().unwrap();
    assert!(changes.next().now_or_never().is_none(), "it came before");

    let one = pod("a", &["10.0.0.1", "fd00::1"], |_| ());
    mesh.tell(
        ADDRESS_TYPE,
        vec![one, service("shop", "10.96.0.1", |_| ())],
    )
    .unwrap();
    let told = next(&mut changes);
    let both = vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()];
    assert_eq!(names(&told), (vec!["c//Pod/ns/a".into()], both));
    assert!(!told.is_everything() && !told.enrolments());

    // It has moved: those that it had, and those that it has.
    let moved = pod("a", &["10.0.0.2"], |_| ());
    mesh.tell(ADDRESS_TYPE, vec![moved]).unwrap();
    let (_, addresses) = names(&next(&mut changes));
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.2", "fd00::1"]);

    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/a");
    let (workloads, addresses) = names(&next(&mut changes));
    assert_eq!(
        (workloads.len(), &*addresses),
        (1, &["10.0.0.2".to_owned()][..])
    );
    mesh.world
        .look(|world| assert!(world.workload_at(ip("10.0.0.2")).is_none()));
}

#[test]
fn only_enrolments_wake_those_who_wait_for_them() {
    let mut mesh = Mesh::new();
    let mut changes = mesh.world.changes().unwrap();
    let one = pod("a", &["10.0.0.1"], |_| ());
    mesh.tell(ADDRESS_TYPE, vec![one]).unwrap();
    mesh.forget(ROUTE_TYPE, "ns/none");
    assert!(changes.enrolments().now_or_never().is_none());
    let namespace = node::EnrolledNamespace { name: "ns".into() };
    let told = vec![("ns".to_owned(), namespace.encode_to_vec().into())];
    mesh.tell(ENROLLED_NAMESPACE_TYPE, told).unwrap();
    assert_eq!(changes.enrolments().now_or_never(), Some(true));
    mesh.forget(ENROLLED_NAMESPACE_TYPE, "ns");
    assert_eq!(changes.enrolments().now_or_never(), Some(true));
}

#[test]
fn who_cannot_be_told_all_by_name_is_told_that_all_is_different() {
    let mut mesh = Mesh::new();
    let mut changes = mesh.world.changes().unwrap();
    let many = |from: u32, to: u32| {
        let name = |number| format!("p{number}");
        let ip = |number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
        (from..to)
            .map(|number| pod(&name(number), &[&ip(number)], |_| ()))
            .collect::<Vec<_>>()
    };
    mesh.tell(ADDRESS_TYPE, many(0, 2000)).unwrap();
    let told = next(&mut changes);
    assert!(told.is_everything() && names(&told).0.is_empty());
    // And who is far behind.
    for number in 0..200 {
        mesh.tell(ADDRESS_TYPE, many(number, number + 1)).unwrap();
    }
    assert!(next(&mut changes).is_everything());
    assert!(!next(&mut changes).is_everything(), "what is left is told");

    drop(mesh.writer);
    while let Some(told) = changes.next().now_or_never().unwrap() {
        assert!(!told.is_everything());
    }
    assert!(mesh.world.changes().is_none());
}
