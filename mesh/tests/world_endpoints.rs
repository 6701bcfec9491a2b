//! What a process sees of endpoints outlives every change of the mesh but the end of the endpoint.

#[path = "support/mesh.rs"]
mod told;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::balance::{Ask, Choice, NoEndpoint, Place};
use mesh::names::Uid;
use mesh::proto::workload as wds;
use mesh::service::session_affinity;
use mesh::world::Snapshot;
use mesh::xds::ADDRESS_TYPE;
use told::{Mesh, addr, ip, pod, service};

fn pick(world: &Snapshot, vip: &str, ask: &Ask<'_>) -> Result<Choice, NoEndpoint> {
    let at = addr(vip);
    let service = world.service_at(at).expect("a service");
    world.pick(service, at.port(), ask, &mut fastrand::Rng::new())
}

/// Whom choices fall on.
fn names(mesh: &Mesh, ask: &Ask<'_>) -> BTreeSet<String> {
    mesh.world.look(|world| {
        let rounds = 0..200;
        let chosen = rounds.filter_map(|_| pick(world, "10.96.0.1:80", ask).ok());
        chosen.map(|c| c.workload.name().to_owned()).collect()
    })
}

fn only(mesh: &Mesh, vip: &str) -> Choice {
    let choice = mesh.world.look(|world| pick(world, vip, &Ask::default()));
    choice.expect("an endpoint")
}

/// A mesh with a service and one pod behind it.
fn one() -> Mesh {
    let mut mesh = Mesh::new();
    let told = vec![
        service("shop", "10.96.0.1", |_| ()),
        pod("a", &["10.0.0.1"], |_| ()),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    mesh
}

#[test]
fn what_is_seen_of_an_endpoint_lives_as_long_as_it_does() {
    let mut mesh = one();
    let first = only(&mesh, "10.96.0.1:80");
    assert_eq!(first.address, addr("10.0.0.1:8080"));
    let held = first.stats.begin();
    // Another comes and goes, and it changes itself.
    mesh.tell(ADDRESS_TYPE, vec![pod("b", &["10.0.0.2"], |_| ())])
        .unwrap();
    assert_eq!(names(&mesh, &Ask::default()), ["b".to_owned()].into());
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/b");
    let changed = pod("a", &["10.0.0.1"], |w| {
        w.set_tunnel_protocol(wds::TunnelProtocol::Hbone);
    });
    mesh.tell(ADDRESS_TYPE, vec![changed]).unwrap();
    let second = only(&mesh, "10.96.0.1:80");
    assert!(Arc::ptr_eq(&first.stats, &second.stats));
    assert_eq!(second.stats.in_flight(), 1);
    // By another service, too: it is the same port of the same pod.
    let told = vec![
        service("other", "10.96.0.2", |_| ()),
        pod("a", &["10.0.0.1"], |w| {
            let ports = w.services.values().next().cloned().unwrap_or_default();
            w.services
                .insert("ns/other.ns.svc.cluster.local".into(), ports);
        }),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    let other = only(&mesh, "10.96.0.2:80");
    assert!(Arc::ptr_eq(&first.stats, &other.stats));
    // Gone and back it is another.
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/a");
    let gone = mesh
        .world
        .look(|world| pick(world, "10.96.0.1:80", &Ask::default()).map(|_| ()));
    assert_eq!(gone, Err(NoEndpoint::None));
    mesh.tell(ADDRESS_TYPE, vec![pod("a", &["10.0.0.1"], |_| ())])
        .unwrap();
    let third = only(&mesh, "10.96.0.1:80");
    assert_eq!(third.stats.in_flight(), 0);
    drop(held);
    assert_eq!((first.stats.in_flight(), third.stats.in_flight()), (0, 0));
}

#[test]
fn a_name_at_another_address_is_another_pod() {
    let mut mesh = one();
    let now = Instant::now();
    let before = only(&mesh, "10.96.0.1:80");
    before.stats.failed(now, now);
    mesh.tell(ADDRESS_TYPE, vec![pod("a", &["10.0.0.9"], |_| ())])
        .unwrap();
    let after = only(&mesh, "10.96.0.1:80");
    assert_eq!(after.address, addr("10.0.0.9:8080"));
    assert!(before.stats.is_avoided(now) && !after.stats.is_avoided(now));
}

#[test]
fn what_cannot_be_reached_is_avoided_by_every_snapshot() {
    let mut mesh = one();
    mesh.tell(ADDRESS_TYPE, vec![pod("b", &["10.0.0.2"], |_| ())])
        .unwrap();
    let old = mesh.world.snapshot();
    let all = Ask::default();
    assert_eq!(names(&mesh, &all).len(), 2);
    let tried = [Uid::pod("c", "ns", "b")];
    let a = mesh.world.look(|world| {
        let ask = Ask {
            tried: &tried,
            ..all
        };
        pick(world, "10.96.0.1:80", &ask).unwrap()
    });
    let now = Instant::now();
    a.stats.failed(now, now);
    assert_eq!(names(&mesh, &all), ["b".to_owned()].into());
    let sick = |w: &mut wds::Workload| w.set_status(wds::WorkloadStatus::Unhealthy);
    mesh.tell(ADDRESS_TYPE, vec![pod("c", &["10.0.0.3"], sick)])
        .unwrap();
    assert_eq!(names(&mesh, &all), ["b".to_owned()].into());
    let chosen = pick(&old, "10.96.0.1:80", &all).unwrap();
    assert_eq!(chosen.workload.name(), "b");
    // It was reached after all.
    a.stats.reached(now);
    assert_eq!(names(&mesh, &all).len(), 2);
}

#[test]
fn an_old_snapshot_and_the_new_one_choose_each_from_what_it_knows() {
    let mut mesh = one();
    let old = mesh.world.snapshot();
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/a");
    mesh.tell(ADDRESS_TYPE, vec![pod("b", &["10.0.0.2"], |_| ())])
        .unwrap();
    // Neither has built a set yet; what the old one builds is not the new one's.
    let chosen = pick(&old, "10.96.0.1:80", &Ask::default()).unwrap();
    assert_eq!(chosen.workload.name(), "a");
    assert_eq!(names(&mesh, &Ask::default()), ["b".to_owned()].into());
}

#[test]
fn a_service_reaches_as_far_as_it_says() {
    use wds::load_balancing::{Mode, Scope};
    let mut mesh = one();
    let at = |node: &str| {
        let node = node.to_owned();
        move |w: &mut wds::Workload| w.node = node
    };
    let told = vec![
        pod("a", &["10.0.0.1"], at("n1")),
        pod("b", &["10.0.0.2"], at("n2")),
    ];
    mesh.tell(ADDRESS_TYPE, told).unwrap();
    let on = |node: &'static str| Ask {
        place: Place::on_node(node),
        ..Ask::default()
    };
    // The set is there already when the service changes its mind.
    assert_eq!(names(&mesh, &on("n1")).len(), 2);
    for (mode, chosen) in [(Mode::Strict, 0), (Mode::Failover, 2)] {
        let told = service("shop", "10.96.0.1", |s| {
            let mut balancing = wds::LoadBalancing::default();
            balancing.set_mode(mode);
            balancing.routing_preference = vec![Scope::Node.into()];
            s.load_balancing = Some(balancing);
        });
        mesh.tell(ADDRESS_TYPE, vec![told]).unwrap();
        assert_eq!(names(&mesh, &on("n1")), ["a".to_owned()].into());
        assert_eq!(names(&mesh, &on("n2")), ["b".to_owned()].into());
        assert_eq!(names(&mesh, &on("n3")).len(), chosen);
    }
    let strict = service("shop", "10.96.0.1", |s| {
        let mut balancing = wds::LoadBalancing::default();
        balancing.set_mode(Mode::Strict);
        balancing.routing_preference = vec![Scope::Node.into()];
        s.load_balancing = Some(balancing);
    });
    mesh.tell(ADDRESS_TYPE, vec![strict]).unwrap();
    let refused = mesh
        .world
        .look(|world| pick(world, "10.96.0.1:80", &on("n3")).map(|_| ()));
    assert_eq!(refused, Err(NoEndpoint::TooFar));
    // Of a client that nobody can place, as behind a waypoint whose controller is away, none is too far.
    let unplaced = Ask::default();
    let served = mesh
        .world
        .look(|world| pick(world, "10.96.0.1:80", &unplaced).map(|_| ()));
    assert_eq!(served, Ok(()));
}

#[test]
fn a_client_stays_with_its_endpoint_where_the_service_wants_it() {
    let mut mesh = one();
    let sticky = |timeout: Option<Duration>| {
        service("shop", "10.96.0.1", |s| {
            s.extensions = timeout.map(session_affinity).into_iter().collect();
        })
    };
    let others = |names: &[&str]| {
        let pods = names.iter().map(|name| {
            let ip = format!("10.0.0.{}", name.as_bytes()[0]);
            pod(name, &[&ip], |_| ())
        });
        pods.collect::<Vec<_>>()
    };
    mesh.tell(ADDRESS_TYPE, others(&["b", "c"])).unwrap();
    let timeout = Duration::from_secs(10_800);
    let of = |client: &str| Ask {
        client: Some(ip(client)),
        ..Ask::default()
    };
    assert_eq!(names(&mesh, &of("10.0.1.1")).len(), 3);
    mesh.tell(ADDRESS_TYPE, vec![sticky(Some(timeout))])
        .unwrap();
    let clients: Vec<String> = (0..20).map(|client| format!("10.0.1.{client}")).collect();
    let all = |mesh: &Mesh| {
        let each = clients.iter().map(|client| {
            let names = names(mesh, &of(client));
            assert_eq!(names.len(), 1, "{client} has {names:?}");
            names.into_iter().next().unwrap_or_default()
        });
        each.collect::<Vec<_>>()
    };
    let before = all(&mesh);
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    // Who comes takes nobody away from where he was, though a hash would give it some.
    mesh.tell(ADDRESS_TYPE, others(&["d", "e", "f"])).unwrap();
    assert_eq!(all(&mesh), before);
    // Who goes is replaced, for good.
    mesh.forget(ADDRESS_TYPE, "c//Pod/ns/b");
    let after = all(&mesh);
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || before == "b");
    }
    mesh.tell(ADDRESS_TYPE, others(&["b"])).unwrap();
    assert_eq!(all(&mesh), after);
    // One that cannot be reached is replaced, too.
    let lost = mesh
        .world
        .look(|world| pick(world, "10.96.0.1:80", &of("10.0.1.1")).unwrap());
    let now = Instant::now();
    lost.stats.failed(now, now);
    let moved = names(&mesh, &of("10.0.1.1"));
    assert_eq!(moved.len(), 1);
    assert!(!moved.contains(lost.workload.name()));
    // For as long as that lasts: what the client has there is not lost.
    lost.stats.reached(now);
    let back = names(&mesh, &of("10.0.1.1"));
    assert!(
        back.len() == 1 && back.contains(lost.workload.name()),
        "{back:?}"
    );
    // And without the wish it is as before.
    mesh.tell(ADDRESS_TYPE, vec![sticky(None)]).unwrap();
    assert!(names(&mesh, &of("10.0.1.1")).len() > 1);
}

/// A set is built from the one before: it must be the one that would be built from nothing.
#[test]
fn whatever_changes_choices_fall_on_all_who_may_be_chosen_and_nobody_else() {
    let mut mesh = one();
    let mut roll = fastrand::Rng::with_seed(7);
    for step in 0..300 {
        let name = ["a", "b", "c", "d", "e"][roll.usize(..5)];
        match roll.u8(..4) {
            0 => mesh.forget(ADDRESS_TYPE, &format!("c//Pod/ns/{name}")),
            what => {
                let address = format!("10.0.{}.1", name.as_bytes()[0]);
                let told = pod(name, &[&address], |w| {
                    if what == 1 {
                        w.set_status(wds::WorkloadStatus::Unhealthy);
                    }
                    if what == 2 {
                        // Not on this port any more.
                        w.services.clear();
                    }
                });
                mesh.tell(ADDRESS_TYPE, vec![told]).unwrap();
            }
        }
        // Sometimes several changes pass without a choice.
        if roll.bool() {
            continue;
        }
        let expected: BTreeSet<String> = mesh.world.look(|world| {
            let service = "ns/shop.ns.svc.cluster.local".parse().unwrap();
            let healthy = world.endpoints(&service, 80).filter(|e| e.healthy);
            healthy.map(|e| e.workload.name().to_owned()).collect()
        });
        assert_eq!(names(&mesh, &Ask::default()), expected, "step {step}");
    }
}
