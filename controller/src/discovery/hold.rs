//! DECISION: what a proxy that comes back must not be told yet, because this replica may know less than it does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh::xds::session::{ControllerSession, Hold};
use tokio::time::Instant;

use crate::position::{Coverage, Positions};
use crate::watch::RECOVERED_WITHIN;

/// A replica that is behind has caught up by now, although its watch was dead. From then on what it knows of other kinds is of
/// more use to the proxy than what it does not know is a danger.
const HOLD_KNOWN_FOR: Duration = RECOVERED_WITHIN;
/// How long nothing is taken from a proxy that does not say what it was told.
const HOLD_UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// Longer than any watch is broken without an alarm. The cluster was restored from a backup, and versions began anew.
const BEHIND_FOR_EVER: Duration = Duration::from_secs(600);
const _: () = assert!(HOLD_KNOWN_FOR.as_secs() < BEHIND_FOR_EVER.as_secs());

/// The holds of one stream, by type.
#[derive(Debug)]
pub(super) struct Holds {
    opened: Instant,
    /// What was covered once is never held again: what is set aside for a moment later is older than what it was told.
    released: BTreeSet<String>,
}

// === impl Holds ===

impl Holds {
    /// Of a stream that was opened then.
    pub(super) fn new(opened: Instant) -> Self {
        Self {
            opened,
            released: BTreeSet::new(),
        }
    }

    /// What of a type is held now.
    pub(super) fn hold(
        &mut self,
        session: &ControllerSession,
        type_url: &str,
        positions: &Positions,
        now: Instant,
    ) -> Hold {
        if !session.resumed(type_url) || self.released.contains(type_url) {
            return Hold::Nothing;
        }
        let coverage = match session.known_as_of(type_url) {
            Some(token) => positions.covers(token),
            None => Coverage::Unknown,
        };
        let hold = decide(coverage, now - self.opened);
        if hold == Hold::Nothing {
            if coverage == Coverage::Behind {
                tracing::warn!(
                    r#type = type_url,
                    "a proxy knows of newer versions than this replica has seen in {} s: they count no longer",
                    BEHIND_FOR_EVER.as_secs()
                );
            }
            self.released.insert(type_url.to_owned());
        }
        hold
    }

    /// When time alone may end a hold next.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        [HOLD_UNKNOWN_FOR, HOLD_KNOWN_FOR, BEHIND_FOR_EVER]
            .into_iter()
            .map(|after| self.opened + after)
            .find(|at| *at > now)
    }
}

/// Decides what a proxy is told that it knows at most, with what it is told under this hold: it came with the token
/// `shown`, and `ours` stands for all that we know. Empty: nothing that could be compared.
pub(super) fn known_as_of(
    hold: Hold,
    shown: Option<&str>,
    positions: &Positions,
    ours: &Arc<str>,
) -> Arc<str> {
    match (hold, shown) {
        (Hold::Nothing, _) => Arc::clone(ours),
        // It keeps what another replica told it, and hears what we know besides: nobody who knows less may take that back.
        (_, Some(shown)) if positions.covers(shown) == Coverage::Behind => {
            positions.token_with(shown).into()
        }
        (_, _) => "".into(),
    }
}

/// Decides for a proxy that came with something, so long after its stream was opened.
fn decide(coverage: Coverage, age: Duration) -> Hold {
    match coverage {
        Coverage::Covered => Hold::Nothing,
        Coverage::Behind if age < HOLD_KNOWN_FOR => Hold::Known,
        Coverage::Behind if age < BEHIND_FOR_EVER => Hold::Unseen,
        Coverage::Unknown if age < HOLD_UNKNOWN_FOR => Hold::Unseen,
        Coverage::Behind | Coverage::Unknown => Hold::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_held_for_ever_and_what_is_covered_not_at_all() {
        use Coverage::{Behind, Covered, Unknown};
        for (coverage, seconds, hold) in [
            (Covered, 0, Hold::Nothing),
            (Behind, 0, Hold::Known),
            (Behind, 450, Hold::Known),
            (Behind, 509, Hold::Known),
            (Behind, 510, Hold::Unseen),
            (Behind, 599, Hold::Unseen),
            (Behind, 600, Hold::Nothing),
            (Unknown, 0, Hold::Unseen),
            (Unknown, 59, Hold::Unseen),
            (Unknown, 60, Hold::Nothing),
        ] {
            let decided = decide(coverage, Duration::from_secs(seconds));
            assert_eq!(decided, hold, "{coverage:?} after {seconds} s");
        }
    }

    #[test]
    fn a_proxy_is_never_told_that_it_knows_less_than_it_does() {
        let mut positions = Positions::default();
        positions.changed("pods", "7");
        positions.changed("services", "9");
        let ours: Arc<str> = positions.token().into();
        for (hold, shown, told) in [
            (Hold::Nothing, None, "v1;pods=7;services=9"),
            (Hold::Nothing, Some("v1;pods=5"), "v1;pods=7;services=9"),
            // Versions that began anew count no longer.
            (Hold::Nothing, Some("v1;pods=12"), "v1;pods=7;services=9"),
            (Hold::Known, Some("v1;pods=12"), "v1;pods=12;services=9"),
            (Hold::Unseen, Some("v1;pods=12"), "v1;pods=12;services=9"),
            (Hold::Unseen, Some("else"), ""),
            (Hold::Unseen, None, ""),
        ] {
            let said = known_as_of(hold, shown, &positions, &ours);
            assert_eq!(&*said, told, "{hold:?} {shown:?}");
        }
    }

    #[test]
    fn a_stream_wakes_when_time_may_end_a_hold() {
        let opened = Instant::now();
        let holds = Holds::new(opened);
        let after = |seconds| opened + Duration::from_secs(seconds);
        assert_eq!(holds.next(opened), Some(after(60)));
        assert_eq!(holds.next(after(60)), Some(after(510)));
        assert_eq!(holds.next(after(511)), Some(after(600)));
        assert_eq!(holds.next(after(600)), None);
    }
}
