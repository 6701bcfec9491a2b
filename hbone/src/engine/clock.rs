//! What a connection does by the clock: pings, the end of patience, idleness and age.

use std::time::Duration;

use tokio::time::Instant;

use super::Terms;
use crate::limits::{CLOSING_TIME, SETTINGS_TIMEOUT};

/// All deadlines of one connection. Pure: told the time, it says what is due.
#[derive(Debug)]
pub(crate) struct Clock {
    ping: Ping,
    interval: Duration,
    timeout: Duration,
    /// The end of the time the peer has for its first words.
    settle: Option<Instant>,
    /// Since when there have been no streams; looked at when it matters.
    idle: Option<Instant>,
    idle_timeout: Duration,
    /// The end of the connection's time.
    aged: Option<Instant>,
    /// Client: both sides should have proved themselves anew by then.
    renew: Option<Instant>,
    /// The end of the last certificate that the peer has shown.
    expires: Option<Instant>,
    /// The next stream that has lingered long enough.
    linger: Option<Instant>,
    closing: Option<Instant>,
    /// The earliest of all these, or something before it.
    due: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Ping {
    /// The next question.
    At(Instant),
    /// The end of patience with the last one.
    Until(Instant),
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Ask whether the peer lives.
    Ping,
    /// It did not answer.
    Dead,
    /// By now the peer must have acknowledged our SETTINGS.
    Settled,
    /// Nobody has used the connection for a while.
    Idle,
    /// It has been used for long enough.
    Aged,
    /// Both sides should prove themselves anew.
    Renew,
    /// The peer's certificate has run out, as far as was known.
    Expired,
    /// The peer had its moment to read our last words.
    Parted,
}

/// However short the lives of certificates, nobody is asked for another proof more often.
const SHORTEST_RENEWAL: Duration = Duration::from_secs(1);

/// A time of nothing would be over again as soon as it is.
const SHORTEST: Duration = Duration::from_millis(1);

// === impl Clock ===

impl Clock {
    /// A connection that begins now and whose peer's certificate runs out after `valid`.
    pub(crate) fn new(now: Instant, terms: &Terms, valid: Duration) -> Self {
        let interval = terms.ping_interval.max(SHORTEST);
        let mut clock = Self {
            ping: Ping::At(now + interval),
            interval,
            timeout: terms.ping_timeout,
            settle: Some(now + SETTINGS_TIMEOUT),
            idle: Some(now),
            idle_timeout: terms.idle_timeout.max(SHORTEST),
            aged: terms.max_age.and_then(|age| now.checked_add(age)),
            renew: None,
            expires: now.checked_add(valid),
            linger: None,
            closing: None,
            due: now,
        };
        clock.due = clock.earliest();
        clock
    }

    /// When to look next.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    fn earliest(&self) -> Instant {
        let ping = match self.ping {
            Ping::At(at) | Ping::Until(at) => at,
        };
        let idle = self.idle.map(|since| since + self.idle_timeout);
        let ends = [self.aged, self.renew, self.expires, self.closing];
        let others = [self.settle, idle, self.linger].into_iter().chain(ends);
        others.flatten().fold(ping, Instant::min)
    }

    /// What is due, one thing at a time.
    pub(crate) fn tick(&mut self, now: Instant, idle: bool) -> Option<Due> {
        let due = self.first_due(now, idle);
        self.due = self.earliest();
        due
    }

    fn first_due(&mut self, now: Instant, idle: bool) -> Option<Due> {
        if take_if_due(&mut self.closing, now) {
            return Some(Due::Parted);
        }
        if take_if_due(&mut self.settle, now) {
            return Some(Due::Settled);
        }
        if take_if_due(&mut self.aged, now) {
            return Some(Due::Aged);
        }
        if take_if_due(&mut self.renew, now) {
            return Some(Due::Renew);
        }
        if take_if_due(&mut self.expires, now) {
            return Some(Due::Expired);
        }
        take_if_due(&mut self.linger, now);
        if let Some(since) = self.idle
            && now >= since + self.idle_timeout
        {
            // Told once per idle period; a busy connection is looked at again in a while.
            self.idle = Some(now);
            if idle {
                return Some(Due::Idle);
            }
        }
        match self.ping {
            Ping::At(at) if now >= at => {
                self.ping = Ping::Until(now + self.timeout);
                Some(Due::Ping)
            }
            Ping::Until(at) if now >= at => {
                self.ping = Ping::At(now + self.interval);
                Some(Due::Dead)
            }
            _ => None,
        }
    }

    /// The last stream ended, or one began.
    pub(crate) fn used(&mut self, now: Instant) {
        self.idle = Some(now);
    }

    /// The peer answered.
    pub(crate) fn pong(&mut self) {
        if let Ping::Until(until) = self.ping {
            let next = until - self.timeout + self.interval;
            self.ping = Ping::At(next);
            self.due = self.due.min(next);
        }
    }

    /// Client: both sides' certificates count for so long from now on.
    pub(crate) fn renew_within(&mut self, now: Instant, left: Duration) {
        let wait = (left * 3 / 4).max(SHORTEST_RENEWAL);
        self.renew = now.checked_add(wait);
        self.due = self.earliest();
    }

    /// The peer's certificate counts for so long from now on.
    pub(crate) fn expires_in(&mut self, now: Instant, left: Duration) {
        self.expires = now.checked_add(left.max(SHORTEST));
        self.due = self.earliest();
    }

    /// Look at the lingering streams then.
    pub(crate) fn linger(&mut self, until: Instant) {
        self.linger = Some(self.linger.map_or(until, |before| before.min(until)));
        self.due = self.due.min(until);
    }

    /// Our last words were said.
    pub(crate) fn part(&mut self, now: Instant) {
        self.closing = Some(now + CLOSING_TIME);
        (self.settle, self.idle, self.aged) = (None, None, None);
        (self.renew, self.expires) = (None, None);
        self.due = self.due.min(now + CLOSING_TIME);
    }
}

fn take_if_due(deadline: &mut Option<Instant>, now: Instant) -> bool {
    deadline.take_if(|at| now >= *at).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Role;

    const INTERVAL: Duration = Duration::from_secs(10);
    const TIMEOUT: Duration = Duration::from_secs(20);

    fn terms() -> Terms {
        Terms {
            role: Role::Server,
            max_streams: 1,
            ping_interval: INTERVAL,
            ping_timeout: TIMEOUT,
            idle_timeout: Duration::from_secs(300),
            max_age: None,
        }
    }

    fn clock(terms: &Terms) -> (Clock, Instant) {
        let start = Instant::now();
        (Clock::new(start, terms, Duration::from_secs(3600)), start)
    }

    /// All that is due at `now`, if that is when the clock wants to be looked at.
    fn look(clock: &mut Clock, now: Instant) -> Vec<Due> {
        assert_eq!(clock.due(), now);
        std::iter::from_fn(|| clock.tick(now, true)).collect()
    }

    #[test]
    fn a_peer_that_answers_is_asked_at_each_interval_and_given_up_on_a_timeout_after_the_last() {
        let (mut clock, start) = clock(&terms());
        assert_eq!(
            look(&mut clock, start + INTERVAL),
            [Due::Settled, Due::Ping]
        );
        for n in 2..=4 {
            clock.pong();
            assert_eq!(look(&mut clock, start + n * INTERVAL), [Due::Ping]);
        }
        let end = start + 4 * INTERVAL + TIMEOUT;
        assert_eq!(look(&mut clock, end), [Due::Dead]);
    }

    #[test]
    fn times_of_nothing_pass_once_at_a_time() {
        let (mut clock, start) = clock(&Terms {
            ping_interval: Duration::ZERO,
            ping_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            ..terms()
        });
        let now = start + SHORTEST;
        assert_eq!(look(&mut clock, now), [Due::Idle, Due::Ping, Due::Dead]);
        assert!(clock.due() > now);
    }
}
