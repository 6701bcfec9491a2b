//! Never twice at once, the newest wins, waits that grow and end, turns by lane.

use super::*;

/// A name in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Job(&'static str, u32);

impl Work for Job {
    type Lane = &'static str;

    fn lane(&self) -> &'static str {
        self.0
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
async fn one_lane_alone_takes_half_of_the_places() {
    let (mut queue, now) = queue();
    for job in 0..1000 {
        queue.request(Job("a", job));
    }
    assert_eq!(drain(&mut queue, now).len(), 16);
    queue.finished(&Job("a", 3), Then::Forget, now, 1.0);
    assert_eq!(drain(&mut queue, now), [Job("a", 16)]);
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
