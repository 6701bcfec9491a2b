use super::*;
use proptest::prelude::*;

const HOSTILE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 66));
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

/// Of a node proxy that is no other connection's.
fn prove(table: &mut Admission, id: ConnectionId) -> Proven {
    held_by(table, id, &format!("{id:?}"), Class::NodeProxy).0
}

fn held_by(
    table: &mut Admission,
    id: ConnectionId,
    pod: &str,
    class: Class,
) -> (Proven, Option<ConnectionId>) {
    let pod = pod.into();
    table.prove(id, Holder { pod, class }, Instant::now())
}

fn bounds(unproven: usize, per_source: usize) -> Bounds {
    Bounds {
        unproven,
        unproven_per_source: per_source,
        proven: 3,
        proven_per_source: 2,
        ..Bounds::default()
    }
}

#[test]
fn one_source_pushes_out_itself_and_nobody_else() {
    let mut table = Admission::new(bounds(100, 4));
    let (proxy, _) = table.arrive(PROXY);
    let first: Vec<_> = (0..4).map(|_| table.arrive(HOSTILE).0).collect();
    for n in 0..1000 {
        let (_, evicted) = table.arrive(HOSTILE);
        let evicted = evicted.expect("its share is full");
        assert_ne!(evicted, proxy);
        if let Some(oldest) = first.get(n) {
            assert_eq!(evicted, *oldest, "the oldest goes first");
        }
    }
    assert_eq!(table.unproven(), 5);
    assert_eq!(prove(&mut table, proxy), Proven::Held);
}

#[test]
fn of_one_source_the_silent_go_before_those_that_speak() {
    let mut table = Admission::new(bounds(100, 3));
    let ids: Vec<_> = (0..3).map(|_| table.arrive(HOSTILE).0).collect();
    table.advance(ids[0], Stage::Idle);
    table.advance(ids[1], Stage::Handshake);
    let (fourth, evicted) = table.arrive(HOSTILE);
    assert_eq!(evicted, Some(ids[2]));
    table.advance(fourth, Stage::Handshake);
    assert_eq!(table.arrive(HOSTILE).1, Some(ids[1]));
}

#[test]
fn when_all_room_is_taken_the_source_with_the_most_gives_way() {
    let mut table = Admission::new(bounds(8, 6));
    let (proxy, _) = table.arrive(PROXY);
    let hostile: Vec<_> = (0..6).map(|_| table.arrive(HOSTILE).0).collect();
    let other = IpAddr::from([10, 0, 0, 67]);
    assert_eq!(table.arrive(other).1, None);
    for expected in &hostile[..2] {
        assert_eq!(table.arrive(other).1, Some(*expected));
    }
    // However many sources there are: among equals, who came last stays longest.
    let mut table = Admission::new(bounds(8, 6));
    for n in 0..8 {
        table.arrive([10, 0, 1, n].into());
    }
    let (proxy_again, evicted) = table.arrive(PROXY);
    assert!(evicted.is_some());
    for n in 0..7 {
        assert_ne!(table.arrive([10, 0, 2, n].into()).1, Some(proxy_again));
    }
    assert_ne!(proxy, proxy_again);
}

#[test]
fn an_ipv4_source_is_the_same_in_its_ipv6_form() {
    let mut table = Admission::new(bounds(100, 1));
    let (first, _) = table.arrive(PROXY);
    let mapped = "::ffff:10.0.0.1".parse().expect("an address");
    assert_eq!(table.arrive(mapped).1, Some(first));
}

#[test]
fn the_proven_are_bounded_and_are_never_pushed_out() {
    let mut table = Admission::new(bounds(2, 2));
    let proven: Vec<_> = (0..2)
        .map(|_| {
            let (id, _) = table.arrive(PROXY);
            assert_eq!(prove(&mut table, id), Proven::Held);
            id
        })
        .collect();
    let (third, _) = table.arrive(PROXY);
    assert_eq!(prove(&mut table, third), Proven::Full);
    for _ in 0..10 {
        let (_, evicted) = table.arrive(PROXY);
        assert!(evicted.is_none_or(|evicted| !proven.contains(&evicted)));
    }
    assert_eq!(prove(&mut table, third), Proven::Gone);
    table.leave(proven[0]);
    let (fourth, _) = table.arrive(PROXY);
    assert_eq!(prove(&mut table, fourth), Proven::Held);
    assert_eq!(prove(&mut table, fourth), Proven::Held, "twice is once");
    // And all sources together.
    let (id, _) = table.arrive(HOSTILE);
    assert_eq!(prove(&mut table, id), Proven::Held);
    let (id, _) = table.arrive(HOSTILE);
    assert_eq!(prove(&mut table, id), Proven::Full);
}

#[test]
fn a_pod_pushes_out_its_own_and_nobody_elses() {
    let mut table = Admission::new(Bounds::default());
    let proxy = table.arrive(PROXY).0;
    assert_eq!(prove(&mut table, proxy), Proven::Held);
    let open = |table: &mut Admission| {
        let id = table.arrive(HOSTILE).0;
        let (proven, evicted) = held_by(table, id, "hostile", Class::Other);
        assert_eq!(proven, Proven::Held);
        (id, evicted)
    };
    let own: Vec<_> = (0..4).map(|_| open(&mut table).0).collect();
    table.call_ended(own[2], Instant::now());
    assert_eq!(open(&mut table).1, Some(own[2]), "the one without a call");
    assert_eq!(open(&mut table).1, Some(own[0]), "the oldest");
    for _ in 0..1000 {
        let evicted = open(&mut table).1.expect("its share is full");
        assert_ne!(evicted, proxy);
    }
    assert_eq!(table.proven(), 5);
    assert_eq!(table.pods.len(), 2);
}

#[test]
fn pods_that_anybody_may_make_leave_node_proxies_their_share() {
    let mut table = Admission::new(Bounds {
        proven: 10,
        proven_of_others: 6,
        ..Bounds::default()
    });
    let mut held = Vec::new();
    for n in 0..10 {
        let id = table.arrive(HOSTILE).0;
        let (proven, _) = held_by(&mut table, id, &format!("waypoint {n}"), Class::Other);
        assert_eq!(proven == Proven::Held, n < 6, "{n}");
        held.push(id);
    }
    for _ in 0..4 {
        let id = table.arrive(PROXY).0;
        assert_eq!(prove(&mut table, id), Proven::Held);
    }
    let id = table.arrive(PROXY).0;
    assert_eq!(prove(&mut table, id), Proven::Full);
    table.leave(held[0]);
    assert_eq!(prove(&mut table, id), Proven::Held);
}

#[test]
fn pods_behind_one_address_leave_its_node_proxies_their_share() {
    // How many others and node proxies of one source are held, and who of it still has room.
    for (others, proxies, room_for_other, room_for_proxy) in [
        (0, 0, true, true),
        (2, 0, true, true),
        (3, 0, false, true),
        (3, 1, false, true),
        (0, 4, true, true),
        (3, 2, false, false),
        (1, 4, false, false),
        (0, 5, false, false),
    ] {
        let mut table = Admission::new(Bounds {
            proven_per_source: 5,
            proven_of_others_per_source: 3,
            ..Bounds::default()
        });
        let hold = |table: &mut Admission, source: IpAddr, class: Class| {
            let id = table.arrive(source).0;
            (id, held_by(table, id, &format!("{id:?}"), class).0)
        };
        let classes = [(Class::Other, others), (Class::NodeProxy, proxies)];
        let mut held = Vec::new();
        for (class, count) in classes {
            for _ in 0..count {
                let (id, proven) = hold(&mut table, PROXY, class);
                assert_eq!(proven, Proven::Held);
                held.push(id);
            }
        }
        for (class, room) in [
            (Class::Other, room_for_other),
            (Class::NodeProxy, room_for_proxy),
        ] {
            let (id, proven) = hold(&mut table, PROXY, class);
            let expected = if room { Proven::Held } else { Proven::Full };
            assert_eq!(proven, expected, "{others} {proxies} {class:?}");
            table.leave(id);
            let (elsewhere, proven) = hold(&mut table, HOSTILE, class);
            assert_eq!(proven, Proven::Held, "of another source");
            table.leave(elsewhere);
        }
        for id in held {
            table.leave(id);
        }
        assert_eq!(table.proven_by_source.len(), 0);
        assert_eq!(table.proven(), 0);
    }
}

#[test]
fn a_connection_is_idle_once_its_last_call_has_ended() {
    let mut table = Admission::new(Bounds::default());
    let (id, _) = table.arrive(PROXY);
    assert_eq!(table.activity(id), Activity::Unproven);
    for _ in 0..2 {
        assert_eq!(prove(&mut table, id), Proven::Held);
    }
    let then = Instant::now();
    table.call_ended(id, then);
    assert_eq!(table.activity(id), Activity::Busy);
    table.call_ended(id, then);
    assert_eq!(table.activity(id), Activity::IdleSince(then));
    assert_eq!(prove(&mut table, id), Proven::Held);
    assert_eq!(table.activity(id), Activity::Busy);
}

#[derive(Debug, Clone)]
enum Event {
    Arrive(u8),
    Advance(usize, bool),
    Prove(usize),
    Leave(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..5_u8).prop_map(Event::Arrive),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(at, idle)| Event::Advance(at, idle)),
        1 => any::<usize>().prop_map(Event::Prove),
        1 => any::<usize>().prop_map(Event::Leave),
    ]
}

proptest! {
    /// In any order of events: bounds hold, nobody below a fair share is pushed out, and the books agree with a plain list.
    #[test]
    fn bounds_hold_and_the_small_are_left_alone(events in prop::collection::vec(event(), 1..200)) {
        let mut table = Admission::new(Bounds { unproven: 10, unproven_per_source: 4, proven: 6, proven_per_source: 3, ..Bounds::default() });
        let mut live: Vec<(ConnectionId, u8, bool)> = Vec::new();
        for event in events {
            let at = |n: usize, live: &[(ConnectionId, u8, bool)]| (!live.is_empty()).then(|| n % live.len());
            match event {
                Event::Arrive(source) => {
                    let unproven = |of: u8, live: &[(ConnectionId, u8, bool)]| live.iter().filter(|(_, s, p)| *s == of && !p).count();
                    let most = (0..5).map(|s| unproven(s, &live)).max().unwrap_or(0);
                    let own = unproven(source, &live);
                    let (id, evicted) = table.arrive([10, 0, 0, source].into());
                    if let Some(evicted) = evicted {
                        let index = live.iter().position(|(id, ..)| *id == evicted).expect("it was there");
                        let (_, of, proven) = live.remove(index);
                        prop_assert!(!proven);
                        prop_assert!(of == source && own == 4 || unproven(of, &live) + 1 == most);
                    }
                    live.push((id, source, false));
                }
                Event::Advance(n, idle) => if let Some(at) = at(n, &live) {
                    table.advance(live[at].0, if idle { Stage::Idle } else { Stage::Handshake });
                },
                Event::Prove(n) => if let Some(at) = at(n, &live) {
                    let full = prove(&mut table, live[at].0) == Proven::Full;
                    live[at].2 |= !full;
                },
                Event::Leave(n) => if let Some(at) = at(n, &live) {
                    table.leave(live.remove(at).0);
                },
            }
            let proven = live.iter().filter(|(_, _, proven)| *proven).count();
            prop_assert_eq!((table.unproven(), table.proven()), (live.len() - proven, proven));
            prop_assert!(table.unproven() <= 10 && table.proven() <= 6);
            prop_assert_eq!(table.crowded.len(), table.unproven.len());
        }
    }
}
