use crate::proto::workload as wds;

use super::*;
use crate::sample::{
    Sample, WAYPOINT, addr, behind_address, behind_waypoint, hbone, id, octets, own, port, serves,
};

/// What a decision comes to, in a line.
fn told(result: Result<Route, Refusal>) -> String {
    match result {
        Err(refusal) => format!("refused: {}", refusal.code()),
        Ok(Route {
            hop: NextHop::Plain(to),
            ..
        }) => format!("plain {to}"),
        Ok(Route {
            hop:
                NextHop::Tunnel {
                    destination,
                    target,
                },
            ..
        }) => {
            format!(
                "tunnel {} {} for {target}",
                destination.addr, destination.expect
            )
        }
    }
}

fn decided(sample: Sample, source: &Pod, dst: &str) -> String {
    tried(sample, source, dst, &[])
}

fn tried(sample: Sample, source: &Pod, dst: &str, tried: &[Uid]) -> String {
    sample.world().look(|world| {
        let record = world.workload(&source.workload).map(|w| &**w);
        told(decide(
            Source {
                pod: source,
                record,
                client: source.addresses[0],
                accepted: addr("192.0.2.8:4000"),
                place: Place::on_node("n1"),
            },
            OrigDst(addr(dst)),
            world,
            tried,
        ))
    })
}

fn client() -> Pod {
    own("client", &["10.0.0.1", "fd00::1"])
}

fn mesh() -> Sample {
    Sample::default()
        .waypoint()
        .service("shop", "10.96.0.1", |_| ())
        .pod("shop-0", "10.0.0.2", |w| {
            serves(w, "shop", 80, 8080);
            hbone(w);
        })
        .service("old", "10.96.0.2", |_| ())
        .pod("old-0", "10.0.0.3", |w| serves(w, "old", 80, 8080))
        .service("empty", "10.96.0.3", |_| ())
        .service("late", "10.96.0.8", |_| ())
        .pod("late-0", "10.0.0.5", |w| {
            serves(w, "late", 80, 8080);
            w.extensions.push(crate::workload::awaited());
        })
        .service("l7", "10.96.0.4", |s| s.waypoint = behind_waypoint())
        .service("l7-by-ip", "10.96.0.5", |s| {
            s.waypoint = behind_address("10.96.9.9");
        })
        .service("lost", "10.96.0.6", |s| {
            s.waypoint = behind_address("10.96.77.77");
        })
        .pod("guarded", "10.0.0.4", |w| {
            w.waypoint = behind_waypoint();
            hbone(w);
        })
        .pod("client", "10.0.0.1", |w| {
            w.addresses.push(octets("fd00::1"));
            serves(w, "own", 80, 8080);
            hbone(w);
        })
        .service("own", "10.96.0.7", |_| ())
}

#[test]
fn every_destination_has_one_way() {
    let shop = id("shop-0");
    let waypoint = id("wp-0");
    let waypoint = |target: &str| format!("tunnel 10.0.9.9:15008 {waypoint} for {target}");
    for (dst, expected) in [
        // A service in the mesh, by its VIP and by a pod's address.
        (
            "10.96.0.1:80",
            format!("tunnel 10.0.0.2:15008 {shop} for 10.0.0.2:8080"),
        ),
        (
            "10.0.0.2:8080",
            format!("tunnel 10.0.0.2:15008 {shop} for 10.0.0.2:8080"),
        ),
        (
            "10.0.0.2:9",
            format!("tunnel 10.0.0.2:15008 {shop} for 10.0.0.2:9"),
        ),
        // One outside of it.
        ("10.96.0.2:80", "plain 10.0.0.3:8080".into()),
        ("10.0.0.3:8080", "plain 10.0.0.3:8080".into()),
        // Nothing that the mesh knows.
        ("192.0.2.1:443", "plain 192.0.2.1:443".into()),
        ("[2001:db8::1]:443", "plain [2001:db8::1]:443".into()),
        // A VIP that is known, and cannot be served.
        ("10.96.0.1:81", "refused: unknown_service_port".into()),
        ("10.96.0.3:80", "refused: no_endpoint".into()),
        // One that is to be in the mesh and is not there: never in plaintext.
        ("10.96.0.8:80", "refused: no_endpoint".into()),
        ("10.0.0.5:8080", "refused: endpoint_not_in_mesh".into()),
        // Behind a waypoint, which is told what was dialled.
        ("10.96.0.4:80", waypoint("10.96.0.4:80")),
        ("10.96.0.5:80", waypoint("10.96.0.5:80")),
        ("10.0.0.4:8080", waypoint("10.0.0.4:8080")),
        ("10.96.0.6:80", "refused: unknown_waypoint".into()),
        // The pod itself: through its service, and its own proxy.
        ("10.96.0.7:80", "plain 10.0.0.1:8080".into()),
        ("10.0.0.1:8080", "plain 10.0.0.1:8080".into()),
        ("10.0.0.1:15001", "refused: own_proxy_port".into()),
        ("[fd00::1]:15006", "refused: own_proxy_port".into()),
        ("127.0.0.1:15001", "refused: own_proxy_port".into()),
        ("127.0.0.2:15008", "refused: own_proxy_port".into()),
        ("[::1]:15001", "refused: own_proxy_port".into()),
        ("0.0.0.0:15053", "refused: own_proxy_port".into()),
        // Whatever the pod has besides what the controller knows of: there the proxy accepted it.
        ("192.0.2.8:4000", "refused: own_proxy_port".into()),
        ("127.0.0.1:8080", "plain 127.0.0.1:8080".into()),
    ] {
        assert_eq!(decided(mesh(), &client(), dst), expected, "{dst}");
    }
}

/// As an EndpointSlice says it, whatever its author wrote.
fn slice(w: &mut wds::Workload, service: &str, target: u16) {
    w.uid = format!("Kubernetes/discovery.k8s.io/EndpointSlice/evil/{service}/x");
    w.namespace = "evil".into();
    w.services.clear();
    serves(w, service, 80, target);
}

#[test]
fn whoever_claims_a_pods_address_takes_nobody_out_of_the_mesh() {
    let claimed = || {
        mesh()
            .service("grab", "10.96.0.8", |_| ())
            .pod("zz-grab", "10.0.0.2", |w| slice(w, "grab", 5432))
            // An address of a service that is a pod's, or its node's.
            .service("grab-pod", "10.0.0.2", |s| {
                s.ports = vec![port(8080, 8080)];
            })
            .service("lb", "10.0.0.50", |_| ())
            .pod("kubelet-like", "10.0.0.50", |w| {
                w.set_network_mode(wds::NetworkMode::HostNetwork);
            })
            .pod("lb-0", "10.0.0.3", |w| serves(w, "lb", 80, 8080))
    };
    let shop = id("shop-0");
    let tunnel = |port: u16| format!("tunnel 10.0.0.2:15008 {shop} for 10.0.0.2:{port}");
    for (dst, expected) in [
        ("10.0.0.2:8080", tunnel(8080)),
        ("10.96.0.1:80", tunnel(8080)),
        // The service of the slice means the pod: its tunnel, its identity.
        ("10.96.0.8:80", tunnel(5432)),
        ("10.0.0.50:80", "plain 10.0.0.3:8080".into()),
        ("10.0.0.50:22", "plain 10.0.0.50:22".into()),
    ] {
        assert_eq!(decided(claimed(), &client(), dst), expected, "{dst}");
    }
}

#[test]
fn a_waypoint_in_another_network_is_not_known_here() {
    let sample = mesh().service("far", "10.96.0.8", |s| {
        s.waypoint = behind_address("10.96.9.9");
        let Some(waypoint) = &mut s.waypoint else {
            return;
        };
        if let Some(wds::gateway_address::Destination::Address(at)) = &mut waypoint.destination {
            at.network = "west".into();
        }
    });
    let refused = decided(sample, &client(), "10.96.0.8:80");
    assert_eq!(refused, "refused: unknown_waypoint");
}

/// One that leaves still serves; one that comes up refuses at once. Past them there is no way.
#[test]
fn where_no_waypoint_instance_is_healthy_each_is_tried_once() {
    let unhealthy = || {
        ["wp-1", "wp-2"].into_iter().enumerate().fold(
            Sample::default()
                .service(WAYPOINT, "10.96.9.9", |s| {
                    s.ports = vec![port(15008, 15008)];
                })
                .service("l7", "10.96.0.4", |s| s.waypoint = behind_waypoint())
                .pod("client", "10.0.0.1", hbone),
            |sample, (at, name)| {
                sample.pod(name, &format!("10.0.9.{at}"), |w| {
                    serves(w, WAYPOINT, 15008, 15008);
                    w.status = wds::WorkloadStatus::Unhealthy.into();
                })
            },
        )
    };
    let (mut seen, mut before) = (Vec::new(), Vec::new());
    let mut next = |before: &[Uid]| {
        let way = tried(unhealthy(), &client(), "10.96.0.4:80", before);
        let name = ["wp-1", "wp-2"]
            .into_iter()
            .find(|name| way.contains(&id(name).to_string()))
            .unwrap_or_else(|| panic!("{way}"));
        seen.push(name);
        Uid::pod("Kubernetes", "ns", name)
    };
    before.push(next(&before));
    before.push(next(&before));
    // The mesh knows no other: the one who asks takes it for the end.
    assert!(before.contains(&next(&before)));
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn a_waypoint_does_not_go_through_itself() {
    let waypoint = own("wp-0", &["10.0.9.9"]);
    let sample = mesh().pod("l7-0", "10.0.0.5", |w| serves(w, "l7", 80, 8080));
    assert_eq!(
        decided(sample, &waypoint, "10.96.0.4:80"),
        "plain 10.0.0.5:8080"
    );
    let guarded = format!("tunnel 10.0.0.4:15008 {} for 10.0.0.4:8080", id("guarded"));
    assert_eq!(decided(mesh(), &waypoint, "10.0.0.4:8080"), guarded);
}

#[test]
fn what_tunnels_itself_is_not_tunnelled_again() {
    let gateway = own("gateway", &["10.0.0.8"]);
    let sample = mesh().pod("gateway", "10.0.0.8", |w| w.native_tunnel = true);
    assert_eq!(
        decided(sample, &gateway, "10.0.0.2:15008"),
        "plain 10.0.0.2:15008"
    );
}

#[test]
fn a_source_without_a_record_goes_its_way_all_the_same() {
    let stranger = own("stranger", &["10.0.0.99"]);
    let shop = format!("tunnel 10.0.0.2:15008 {} for 10.0.0.2:8080", id("shop-0"));
    assert_eq!(decided(mesh(), &stranger, "10.96.0.1:80"), shop);
}

#[test]
fn a_service_may_be_proven_by_its_alternative_names() {
    let sample = Sample::default()
        .service("shop", "10.96.0.1", |s| {
            s.subject_alt_names = vec![id("alias").to_string()];
        })
        .pod("shop-0", "10.0.0.2", |w| {
            serves(w, "shop", 80, 8080);
            hbone(w);
        });
    let told = decided(sample, &client(), "10.96.0.1:80");
    assert!(
        told.contains(id("alias").as_str()) && told.contains(id("shop-0").as_str()),
        "{told}"
    );
}

#[test]
fn an_endpoint_that_failed_is_not_tried_while_there_is_another() {
    let two = || mesh().pod("old-1", "10.0.0.6", |w| serves(w, "old", 80, 8080));
    let uid = |name| Uid::pod("Kubernetes", "ns", name);
    for _ in 0..20 {
        let first = [uid("old-0")];
        assert_eq!(
            tried(two(), &client(), "10.96.0.2:80", &first),
            "plain 10.0.0.6:8080"
        );
    }
    let both = [uid("old-0"), uid("old-1")];
    assert!(tried(two(), &client(), "10.96.0.2:80", &both).starts_with("plain "));
}

#[test]
fn a_service_that_stays_on_its_node_has_no_endpoint_elsewhere() {
    use wds::load_balancing::{Mode, Scope};
    let sample = |mode: Mode, nodes: &[&str]| {
        let service = Sample::default().service("agent", "10.96.0.1", |s| {
            let mut balancing = wds::LoadBalancing::default();
            balancing.set_mode(mode);
            balancing.routing_preference = vec![Scope::Node.into()];
            s.load_balancing = Some(balancing);
        });
        nodes.iter().fold(service, |sample, node| {
            sample.pod(node, &format!("10.0.1.{}", &node[1..]), |w| {
                w.node = (*node).to_owned();
                serves(w, "agent", 80, 8080);
            })
        })
    };
    for (mode, nodes, expected) in [
        (Mode::Strict, &["n2"][..], "refused: no_endpoint"),
        (Mode::Strict, &["n1", "n2"], "plain 10.0.1.1:8080"),
        (Mode::Failover, &["n2"], "plain 10.0.1.2:8080"),
        (Mode::Failover, &["n1", "n2"], "plain 10.0.1.1:8080"),
    ] {
        for _ in 0..20 {
            let decided = decided(sample(mode, nodes), &client(), "10.96.0.1:80");
            assert_eq!(decided, expected, "{mode:?} {nodes:?}");
        }
    }
}

#[test]
fn the_dialled_family_is_kept_where_the_endpoint_has_it() {
    let sample = || {
        Sample::default()
            .service("dual", "fd96::1", |_| ())
            .pod("dual-0", "10.0.0.2", |w| {
                w.addresses.push(octets("fd00::2"));
                serves(w, "dual", 80, 8080);
            })
            .service("four", "fd96::2", |_| ())
            .pod("four-0", "10.0.0.3", |w| serves(w, "four", 80, 8080))
    };
    assert_eq!(
        decided(sample(), &client(), "[fd96::1]:80"),
        "plain [fd00::2]:8080"
    );
    assert_eq!(
        decided(sample(), &client(), "[fd96::2]:80"),
        "plain 10.0.0.3:8080"
    );
}
