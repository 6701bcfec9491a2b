use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::balance::{Circle, Family, Place, Readiness, StatsTable};
use crate::names::Uid;
use crate::proto::workload as wire;
use crate::workload::Workload;
use crate::workload::interner::Interner;

/// Endpoints named after where they are: `node/zone` and a number; what is said of them stands behind.
fn sets(names: &[&str]) -> PortSets {
    let (table, mut interner) = (StatsTable::default(), Interner::default());
    let members = names.iter().map(|name| {
        let mut said = name.split(' ');
        let uid = said.next().expect("a name");
        let mut place = uid.split('/');
        let said: Vec<&str> = said.collect();
        let (v4, v6) = (vec![10, 0, 0, 1], vec![0xfd; 16]);
        let mut from = wire::Workload {
            uid: uid.to_owned(),
            namespace: "ns".to_owned(),
            node: place.next().unwrap_or_default().to_owned(),
            addresses: vec![if said.contains(&"six") { v6 } else { v4 }.into()],
            locality: Some(wire::Locality {
                region: "r".to_owned(),
                zone: place.next().unwrap_or_default().to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        if said.contains(&"sick") {
            from.set_status(wire::WorkloadStatus::Unhealthy);
        }
        let workload = Workload::decode(from, &mut interner).expect("a workload");
        let stats = table.of(&workload.uid, 80);
        Arc::new(Member::new(&workload.into(), 80, stats))
    });
    PortSets::new(members.collect())
}

fn here() -> Ask<'static> {
    Ask {
        place: Place {
            node: "n1",
            zone: "z1",
            region: "r",
        },
        ..Ask::default()
    }
}

/// How often each endpoint is chosen in 10 000 rounds.
fn counts(sets: &PortSets, reach: &Reach, ask: &Ask<'_>, now: Instant) -> BTreeMap<String, u32> {
    let mut roll = fastrand::Rng::with_seed(7);
    let mut counts = BTreeMap::new();
    for _ in 0..10_000 {
        if let Some(member) = pick(sets, reach, ask, now, How::TwoAtRandom(&mut roll)) {
            *counts.entry(member.workload.uid.to_string()).or_default() += 1;
        }
    }
    counts
}

fn chosen(sets: &PortSets, reach: &Reach, ask: &Ask<'_>, now: Instant) -> Vec<String> {
    counts(sets, reach, ask, now).into_keys().collect()
}

fn stats<'a>(sets: &'a PortSets, uid: &str) -> &'a Arc<crate::balance::EndpointStats> {
    let all = sets.all();
    let mut members = (0..all.len(Readiness::Any)).filter_map(|at| all.member(at));
    let member = members.find(|member| member.workload.uid.as_str() == uid);
    &member.expect("an endpoint").stats
}

fn reach(circles: &[Circle]) -> Reach {
    use wire::load_balancing::{Mode, Scope};
    let mut from = wire::LoadBalancing::default();
    let scopes = circles.iter().map(|circle| match circle {
        Circle::Node => Scope::Node,
        Circle::Zone => Scope::Zone,
        Circle::Region => Scope::Region,
        Circle::Everywhere => Scope::Network,
    });
    from.routing_preference = scopes.map(i32::from).collect();
    let everywhere = circles.contains(&Circle::Everywhere);
    from.set_mode(if everywhere {
        Mode::Failover
    } else {
        Mode::Strict
    });
    Reach::decode(&from).expect("a reach")
}

#[test]
fn traffic_goes_where_kube_proxy_sends_it() {
    use Circle::{Everywhere, Node, Zone};
    let cluster = reach(&[Everywhere]);
    let local = reach(&[Node]);
    let same_zone = reach(&[Zone, Everywhere]);
    let same_node = reach(&[Node, Zone, Everywhere]);
    let spread = ["n1/z1/a", "n2/z1/b", "n3/z2/c"];
    let unready_here = ["n1/z1/a sick", "n2/z1/b", "n3/z2/c"];
    let away = ["n3/z2/c", "n4/z2/d"];
    let unready = ["n1/z1/a sick", "n3/z2/c sick"];
    for (what, reach, endpoints, expected) in [
        (
            "cluster",
            &cluster,
            &spread[..],
            &["n1/z1/a", "n2/z1/b", "n3/z2/c"][..],
        ),
        ("cluster", &cluster, &unready_here, &["n2/z1/b", "n3/z2/c"]),
        ("cluster", &cluster, &unready, &[]),
        ("local", &local, &spread, &["n1/z1/a"]),
        // Somebody else's node is not asked, whatever it costs.
        ("local", &local, &unready_here, &[]),
        ("local", &local, &away, &[]),
        ("zone", &same_zone, &spread, &["n1/z1/a", "n2/z1/b"]),
        ("zone", &same_zone, &unready_here, &["n2/z1/b"]),
        ("zone", &same_zone, &away, &["n3/z2/c", "n4/z2/d"]),
        ("node", &same_node, &spread, &["n1/z1/a"]),
        ("node", &same_node, &unready_here, &["n2/z1/b"]),
        ("node", &same_node, &away, &["n3/z2/c", "n4/z2/d"]),
    ] {
        let sets = sets(endpoints);
        let chosen = chosen(&sets, reach, &here(), Instant::now());
        assert_eq!(chosen, expected, "{what} {endpoints:?}");
    }
}

#[test]
fn nobody_is_near_whose_place_is_not_known() {
    let sets = sets(&["/z1/a", "n1//b"]);
    let nowhere = Ask::default();
    let now = Instant::now();
    let same_node = reach(&[Circle::Node, Circle::Zone, Circle::Everywhere]);
    assert_eq!(chosen(&sets, &same_node, &nowhere, now), ["/z1/a", "n1//b"]);
    assert!(chosen(&sets, &reach(&[Circle::Node]), &nowhere, now).is_empty());
    // One whose zone is not known has its node all the same.
    let on_node = Ask {
        place: Place::on_node("n1"),
        ..nowhere
    };
    assert_eq!(chosen(&sets, &same_node, &on_node, now), ["n1//b"]);
}

#[test]
fn where_nobody_is_ready_whoever_is_there_can_be_asked_for() {
    let sets = sets(&["n1/z1/a sick", "n2/z2/b"]);
    let any = Ask {
        readiness: Readiness::Any,
        ..here()
    };
    let now = Instant::now();
    let everywhere = Reach::default();
    assert_eq!(
        chosen(&sets, &everywhere, &any, now),
        ["n1/z1/a", "n2/z2/b"]
    );
    assert_eq!(
        chosen(&sets, &reach(&[Circle::Node]), &any, now),
        ["n1/z1/a"]
    );
}

#[test]
fn without_load_every_endpoint_has_the_same_share() {
    for n in [1, 2, 3, 10] {
        let names: Vec<String> = (0..n).map(|at| format!("n/z/{at}")).collect();
        let sets = sets(&names.iter().map(|name| &**name).collect::<Vec<_>>());
        let counts = counts(&sets, &Reach::default(), &here(), Instant::now());
        let share = 10_000 / n;
        assert_eq!(counts.len(), n as usize);
        for count in counts.values() {
            assert!(
                count.abs_diff(share) <= share / 8,
                "{count} of {share} among {n}"
            );
        }
    }
}

#[test]
fn the_busiest_is_never_chosen_where_there_is_another() {
    let sets = sets(&["n/z/a", "n/z/b", "n/z/c"]);
    let held = stats(&sets, "n/z/b").begin();
    let now = Instant::now();
    assert_eq!(
        chosen(&sets, &Reach::default(), &here(), now),
        ["n/z/a", "n/z/c"]
    );
    drop(held);
    assert_eq!(chosen(&sets, &Reach::default(), &here(), now).len(), 3);
    // Twice as much to do for one that is four times as fast is less.
    let [_a, _b, _c, _c2] =
        ["n/z/a", "n/z/b", "n/z/c", "n/z/c"].map(|uid| stats(&sets, uid).begin());
    stats(&sets, "n/z/c").answered(Duration::from_millis(1));
    for slow in ["n/z/a", "n/z/b"] {
        stats(&sets, slow).answered(Duration::from_millis(4));
    }
    let counts = counts(&sets, &Reach::default(), &here(), now);
    // In two of three pairs.
    assert!(counts["n/z/c"].abs_diff(6_667) < 200, "{counts:?}");
}

#[test]
fn what_failed_is_avoided_for_a_moment_by_everybody_unless_nobody_else_is_left() {
    let sets = sets(&["n1/z1/a", "n2/z1/b", "n3/z2/c"]);
    let now = Instant::now();
    let all = Reach::default();
    stats(&sets, "n1/z1/a").failed(now, now);
    assert_eq!(chosen(&sets, &all, &here(), now), ["n2/z1/b", "n3/z2/c"]);
    // The next circle, before what has just failed.
    let same_node = reach(&[Circle::Node, Circle::Zone, Circle::Everywhere]);
    assert_eq!(chosen(&sets, &same_node, &here(), now), ["n2/z1/b"]);
    // Nobody else may be asked.
    let local = reach(&[Circle::Node]);
    assert_eq!(chosen(&sets, &local, &here(), now), ["n1/z1/a"]);
    for uid in ["n2/z1/b", "n3/z2/c"] {
        stats(&sets, uid).failed(now, now);
    }
    assert_eq!(chosen(&sets, &all, &here(), now).len(), 3);
    let later = now + Duration::from_secs(2);
    assert_eq!(chosen(&sets, &same_node, &here(), later), ["n1/z1/a"]);
}

#[test]
fn what_was_tried_comes_last() {
    let sets = sets(&["n1/z1/a", "n2/z1/b", "n3/z2/c"]);
    let now = Instant::now();
    stats(&sets, "n3/z2/c").failed(now, now);
    let tried = ["n1/z1/a", "n2/z1/b", "n3/z2/c"].map(Uid::from);
    let after = |n: usize| Ask {
        tried: &tried[..n],
        ..here()
    };
    let all = Reach::default();
    assert_eq!(chosen(&sets, &all, &after(1), now), ["n2/z1/b"]);
    // Untried for this client, if only lately for another.
    assert_eq!(chosen(&sets, &all, &after(2), now), ["n3/z2/c"]);
    assert_eq!(chosen(&sets, &all, &after(3), now).len(), 3);
}

#[test]
fn the_family_asked_for_comes_first() {
    let sets = sets(&["n/z/four", "n/z/six six", "n/z/sick-six six sick"]);
    let now = Instant::now();
    let of = |family| Ask {
        family: Some(family),
        ..here()
    };
    let all = Reach::default();
    assert_eq!(chosen(&sets, &all, &of(Family::V4), now), ["n/z/four"]);
    assert_eq!(chosen(&sets, &all, &of(Family::V6), now), ["n/z/six"]);
    stats(&sets, "n/z/six").failed(now, now);
    assert_eq!(chosen(&sets, &all, &of(Family::V6), now), ["n/z/four"]);
}

#[test]
fn a_choice_is_made_however_many_have_failed() {
    let names: Vec<String> = (0..1000).map(|at| format!("n/z/{at}")).collect();
    let sets = sets(&names.iter().map(|name| &**name).collect::<Vec<_>>());
    let now = Instant::now();
    for name in &names[1..] {
        stats(&sets, name).failed(now, now);
    }
    assert_eq!(chosen(&sets, &Reach::default(), &here(), now), ["n/z/0"]);
}

/// Which endpoint each of 1 000 clients has.
fn kept(sets: &PortSets, reach: &Reach) -> Vec<String> {
    let now = Instant::now();
    let clients = (0..1000u32).map(|client| IpAddr::from(client.to_be_bytes()));
    let chosen = clients.filter_map(|client| {
        let member = pick(sets, reach, &here(), now, How::Hashed(client))?;
        Some(member.workload.uid.to_string())
    });
    chosen.collect()
}

#[test]
fn a_client_has_the_same_endpoint_in_every_process_and_loses_it_only_with_it() {
    let all = ["n1/z1/a", "n2/z1/b", "n3/z2/c", "n4/z2/d"];
    let before = kept(&sets(&all), &Reach::default());
    assert_eq!(before, kept(&sets(&all), &Reach::default()));
    for uid in all {
        let clients = before.iter().filter(|kept| *kept == uid).count();
        assert!(clients.abs_diff(250) < 60, "{uid} has {clients}");
    }
    let after = kept(&sets(&all[1..]), &Reach::default());
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || before == all[0]);
    }
    let same_node = reach(&[Circle::Node, Circle::Everywhere]);
    let near = kept(&sets(&all), &same_node);
    assert!(near.iter().all(|uid| uid == all[0]));
}

#[test]
fn what_a_client_had_it_has_again_while_it_might_be_chosen() {
    let sets = sets(&["n1/z1/a", "n2/z1/b", "n3/z2/c", "n1/z1/d sick"]);
    let now = Instant::now();
    let again = |uid: &str, reach: &Reach, ask: &Ask<'_>| {
        again(&sets, reach, ask, now, &Uid::from(uid)).is_some()
    };
    let (all, same_zone) = (Reach::default(), reach(&[Circle::Zone, Circle::Everywhere]));
    assert!(again("n3/z2/c", &all, &here()));
    assert!(!again("n3/z2/c", &same_zone, &here()));
    assert!(again("n2/z1/b", &same_zone, &here()));
    assert!(!again("n1/z1/d", &all, &here()) && !again("gone", &all, &here()));
    let tried = [Uid::from("n2/z1/b")];
    let ask = Ask {
        tried: &tried,
        ..here()
    };
    assert!(!again("n2/z1/b", &all, &ask));
    stats(&sets, "n3/z2/c").failed(now, now);
    assert!(!again("n3/z2/c", &all, &here()));
}
