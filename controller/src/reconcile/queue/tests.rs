//! Never twice at once, the newest wins, waits that grow and end, turns by lane.

use super::*;

/// A name in a lane, `namespace` or `namespace/kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Job(&'static str, u32);

impl Work for Job {
    type Lane = &'static str;
    type Namespace = &'static str;

    fn lane(&self) -> &'static str {
        self.0
    }

    fn namespace(&self) -> &'static str {
        self.0.split_once('/').map_or(self.0, |(name, _)| name)
    }
}

const RETRY: Then = Then::Retry {
    at_least: Duration::ZERO,
};

fn queue() -> (Queue<Job>, Instant) {
    (Queue::new(32), Instant::now())
}

fn drain(queue: &mut Queue<Job>, now: Instant) -> Vec<Job> {
    std::iter::from_fn(|| queue.next(now)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_twice_before_it_runs_is_run_once() {
    let (mut queue, now) = queue();
    queue.request(Job("a", 1));
    queue.request(Job("a", 1));
    assert_eq!(drain(&mut queue, now), [Job("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_not_run_again_before_it_ends_and_then_once() {
    let (mut queue, now) = queue();
    queue.request(Job("a", 1));
    assert_eq!(queue.next(now), Some(Job("a", 1)));
    queue.request(Job("a", 1));
    queue.nudge(Job("a", 1), now);
    assert_eq!(queue.next(now), None);
    queue.finished(&Job("a", 1), RETRY, now, 1.0);
    assert_eq!(queue.next(now), Some(Job("a", 1)), "no wait: it is new");
    queue.finished(&Job("a", 1), Then::Forget, now, 1.0);
    assert_eq!(queue.next(now), None);
    assert_eq!(queue.next_due(), None);
}

#[tokio::test(start_paused = true)]
async fn waits_grow_from_failure_to_failure_to_a_bound() {
    let (mut queue, mut now) = queue();
    queue.request(Job("a", 1));
    let mut waits = Vec::new();
    for _ in 0..14 {
        assert_eq!(queue.next(now), Some(Job("a", 1)));
        let wait = queue
            .finished(&Job("a", 1), RETRY, now, 1.0)
            .expect("waits");
        assert_eq!(queue.next(now + wait - Duration::from_millis(1)), None);
        assert_eq!(queue.next_due(), Some(now + wait));
        now += wait;
        waits.push(wait.as_millis());
    }
    assert_eq!(waits[..4], [200, 400, 800, 1600]);
    assert_eq!(waits[12..], [300_000, 300_000]);
}

#[tokio::test(start_paused = true)]
async fn jitter_takes_away_up_to_half_and_never_what_the_server_asked_for() {
    let (mut queue, now) = queue();
    queue.request(Job("a", 1));
    queue.next(now);
    let wait = queue.finished(&Job("a", 1), RETRY, now, 0.0);
    assert_eq!(wait, Some(Duration::from_millis(100)));
    queue.request(Job("a", 1));
    queue.next(now);
    let at_least = Duration::from_secs(7);
    let wait = queue.finished(&Job("a", 1), Then::Retry { at_least }, now, 0.0);
    assert_eq!(wait, Some(at_least));
}

#[tokio::test(start_paused = true)]
async fn a_change_ends_the_wait_and_a_nudge_does_not() {
    let (mut queue, now) = queue();
    queue.request(Job("a", 1));
    queue.next(now);
    queue.finished(&Job("a", 1), Then::Refused, now, 1.0);
    queue.nudge(Job("a", 1), now);
    assert_eq!(queue.next(now + NUDGE), None, "it fails: it waits");
    queue.request(Job("a", 1));
    assert_eq!(queue.next(now), Some(Job("a", 1)));
    let wait = queue.finished(&Job("a", 1), RETRY, now, 1.0);
    assert_eq!(wait, Some(FIRST_RETRY), "from the start");
}

#[tokio::test(start_paused = true)]
async fn a_nudge_brings_forward_what_is_only_looked_at_again() {
    let (mut queue, now) = queue();
    queue.request(Job("a", 1));
    queue.next(now);
    queue.finished(&Job("a", 1), Then::Again(LAST_RETRY), now, 1.0);
    queue.nudge(Job("a", 1), now);
    queue.nudge(Job("a", 1), now);
    assert_eq!(queue.next(now), None);
    assert_eq!(drain(&mut queue, now + NUDGE), [Job("a", 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_wanted_is_not_run() {
    let (mut queue, now) = queue();
    for job in 1..=3 {
        queue.request(Job("a", job));
    }
    queue.remove(&Job("a", 1));
    assert_eq!(queue.next(now), Some(Job("a", 2)));
    queue.request(Job("a", 2));
    queue.remove(&Job("a", 2));
    queue.finished(&Job("a", 2), RETRY, now, 1.0);
    queue.remove(&Job("a", 2));
    assert_eq!(queue.next(now), Some(Job("a", 3)));
    queue.finished(&Job("a", 3), RETRY, now, 1.0);
    queue.remove(&Job("a", 3));
    assert_eq!(queue.next(now + LAST_RETRY), None);
    assert!(queue.lanes.is_empty() && queue.turns.is_empty() && queue.slots.is_empty());
    assert!(queue.namespaces.is_empty());
    assert_eq!(queue.running, 0);
}

#[tokio::test(start_paused = true)]
async fn lanes_have_their_turns() {
    let (mut queue, now) = queue();
    for job in 1..=3 {
        queue.request(Job("pods", job));
    }
    queue.request(Job("routes", 1));
    queue.request(Job("gateways", 1));
    let order: Vec<&str> = drain(&mut queue, now).iter().map(|job| job.0).collect();
    assert_eq!(order, ["pods", "routes", "gateways", "pods", "pods"]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_hangs_leaves_places_for_every_other() {
    let (mut queue, now) = queue();
    for lane in ["a", "b", "c", "d"] {
        for job in 0..1000 {
            queue.request(Job(lane, job));
        }
        let held = drain(&mut queue, now);
        assert!(held.iter().all(|job| job.0 == lane), "turns are lost");
        assert!(!held.is_empty(), "{lane} finds no place");
    }
    // Whatever hangs, somebody else's one is run.
    queue.request(Job("e", 1));
    assert_eq!(queue.next(now), Some(Job("e", 1)));
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_hangs_in_all_its_lanes_leaves_places_for_every_other() {
    const KINDS: [&str; 8] = ["a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "a/7", "a/8"];
    // Whether its lanes fill one after another, or all at once.
    for together in [false, true] {
        let (mut queue, now) = queue();
        for kind in KINDS {
            for job in 0..1000 {
                queue.request(Job(kind, job));
            }
            if !together {
                drain(&mut queue, now);
            }
        }
        drain(&mut queue, now);
        assert!(queue.running <= 16, "{} of 32 are one's", queue.running);
        for other in ["b/1", "c/1", "d/1"] {
            queue.request(Job(other, 1));
            assert_eq!(queue.next(now), Some(Job(other, 1)), "{together}");
        }
    }
}

#[test]
fn places_go_to_namespaces_by_halves_and_to_their_lanes_by_halves_of_those() {
    // Free places, how many the namespace has running and how many the lane: whether it gets one more.
    for (free, of_namespace, of_lane, gets) in [
        (0, 0, 0, false),
        (48, 16, 16, false),
        (40, 24, 8, false),
        (32, 32, 0, false),
        (1, 1, 0, false),
        (64, 0, 0, true),
        (49, 15, 15, true),
        (48, 16, 0, true),
        (33, 31, 0, true),
        (2, 0, 0, true),
        (1, 0, 0, true),
    ] {
        let case = (free, of_namespace, of_lane);
        assert_eq!(has_place(free, of_namespace, of_lane), gets, "{case:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_lane_alone_takes_a_quarter_of_the_places() {
    let (mut queue, now) = queue();
    for job in 0..1000 {
        queue.request(Job("a", job));
    }
    assert_eq!(drain(&mut queue, now).len(), 8);
    queue.finished(&Job("a", 3), Then::Forget, now, 1.0);
    assert_eq!(drain(&mut queue, now), [Job("a", 8)]);
    queue.request(Job("a/other", 1));
    assert_eq!(
        queue.next(now),
        Some(Job("a/other", 1)),
        "its other kinds go on"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_server_said_holds_for_new_wishes_too() {
    let (mut queue, now) = queue();
    let at_least = Duration::from_secs(7);
    for again in [false, true] {
        queue.request(Job("a", 1));
        assert_eq!(queue.next(now), Some(Job("a", 1)));
        if again {
            queue.request(Job("a", 1));
        }
        queue.finished(&Job("a", 1), Then::Retry { at_least }, now, 0.0);
        for _ in 0..3 {
            queue.request(Job("a", 1));
            assert_eq!(queue.next(now + at_least / 2), None);
        }
        assert_eq!(queue.next(now + at_least), Some(Job("a", 1)));
        queue.finished(&Job("a", 1), Then::Forget, now, 0.0);
    }
}
