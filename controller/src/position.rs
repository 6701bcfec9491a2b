//! How far a replica's watches are, and whether that covers what another replica has told a proxy.
//!
//! Kubernetes gives every object and every list a resource version, and the versions of one kind are integers that
//! only grow (KEP-5504). Per kind a replica keeps two of them:
//! * `changed`: the newest version that changed something here. What the replica tells proxies is the cluster as of
//!   these, so they make up the token that proxies keep and show when they come back.
//! * `seen`: the newest version up to which the watch is known to have told everything: an event, the end of a list, or a
//!   bookmark. Not an item of a list, because older objects may follow it.
//!   A token is covered once every one of its versions has been seen.
//!
//! From a version that is set aside on ([`Positions::set_aside`]) nothing counts as seen.
//!
//! Two numbers, because a bookmark comes once a minute: were the token made of `seen`, a replica whose watch is quiet
//! would be "behind" another whose bookmark came a second earlier, although both know the same.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What every token begins with; another form gets another word, and is then incomparable instead of misread.
const FORM: &str = "v1";
/// Kinds in a token that are read: a token comes from a proxy, and we watch about twenty.
const MAX_KINDS: usize = 64;

/// The versions of every watched kind. Equal when nothing has moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    kinds: BTreeMap<&'static str, Position>,
}

/// Whether we know at least what a token says was known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Everything that the token stands for has been seen here.
    Covered,
    /// Something that the token stands for has not been seen here yet.
    Behind,
    /// The token cannot be compared: there is none, it is of another form, or it names a kind that is not watched here.
    Unknown,
}

/// How far the watch of one kind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Position {
    changed: Version,
    seen: Version,
    /// The oldest version that was told and is set aside: from there on nothing counts as seen.
    set_aside: Option<u64>,
    /// The API server did not know the kind when it was last asked.
    absent: bool,
}

/// The newest version of its sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Version {
    /// None has come.
    #[default]
    None,
    /// This one.
    At(u64),
    /// A server that does not number its versions: nothing can be compared.
    Opaque,
}

// === impl Positions ===

impl Positions {
    /// A watch told that an object came, changed or went at `version`; or a list as of `version` swept something away.
    pub fn changed(&mut self, kind: &'static str, version: &str) {
        let position = self.kinds.entry(kind).or_default();
        position.changed.advance(version);
        position.see(version);
    }

    /// A list that goes on names an object of `version`. Lists come in the order of names: older ones may still follow,
    /// so nothing is seen before the list has ended.
    pub fn listed(&mut self, kind: &'static str, version: &str) {
        let position = self.kinds.entry(kind).or_default();
        position.changed.advance(version);
        position.absent = false;
    }

    /// Everything up to `version` has been told: a list has ended, or a bookmark came.
    pub fn seen(&mut self, kind: &'static str, version: &str) {
        self.kinds.entry(kind).or_default().see(version);
    }

    /// What was told of at `version` is set aside: it counts as not seen.
    pub fn set_aside(&mut self, kind: &'static str, version: &str) {
        let position = self.kinds.entry(kind).or_default();
        // Where versions are no numbers nothing is ever known to be behind, and so nothing is set aside for long.
        let version = version.parse().ok();
        position.set_aside = position.set_aside.into_iter().chain(version).min();
    }

    /// Nothing of a kind is set aside any more.
    pub fn nothing_set_aside(&mut self, kind: &str) {
        if let Some(position) = self.kinds.get_mut(kind) {
            position.set_aside = None;
        }
    }

    /// The API server does not know the kind: until it does there is nothing to see, and so nothing that is not seen.
    pub fn absent(&mut self, kind: &'static str) {
        self.kinds.entry(kind).or_default().absent = true;
    }

    /// What a proxy that was told everything knows: the newest change of every kind. Empty while there is none.
    pub fn token(&self) -> String {
        let changed = |(kind, position): (&&'static str, &Position)| (*kind, position.changed);
        write_token(self.kinds.iter().map(changed))
    }

    /// What a proxy knows at most that came with `token` and was told something of what we know: of every kind the newer.
    /// A token that cannot be read adds nothing.
    pub fn token_with(&self, token: &str) -> String {
        let changed = |(kind, position): (&&'static str, &Position)| (*kind, position.changed);
        let mut newest: BTreeMap<&str, Version> = self.kinds.iter().map(changed).collect();
        for entry in entries(token).into_iter().flatten().take(MAX_KINDS) {
            if let Some((kind, version)) = entry.split_once('=') {
                newest.entry(kind).or_default().advance(version);
            }
        }
        write_token(newest)
    }

    /// Whether objects of a kind as of `version` may not have been seen yet. Never, where versions cannot be compared.
    pub fn may_lack(&self, kind: &str, version: &str) -> bool {
        let told = self.kinds.contains_key(kind);
        !told || self.covers_entry(&format!("{kind}={version}")) == Coverage::Behind
    }

    /// Whether a kind may have changed since the version up to which it was seen, because another kind has changed since.
    pub fn lags(&self, kind: &str, other: &str) -> bool {
        let numbers = |kind| self.kinds.get(kind);
        let (Some(of), Some(other)) = (numbers(kind), numbers(other)) else {
            return false;
        };
        matches!((of.seen, other.changed), (Version::At(seen), Version::At(changed)) if seen < changed)
    }

    /// Whether what we have seen is at least as new as `token`, which another replica (or we, earlier) gave.
    pub fn covers(&self, token: &str) -> Coverage {
        let Some(entries) = entries(token) else {
            return Coverage::Unknown;
        };
        let mut coverage = Coverage::Covered;
        for (at, entry) in entries.enumerate() {
            match self.covers_entry(entry) {
                _ if at == MAX_KINDS => return Coverage::Unknown,
                // Known to be behind in one kind is behind, whatever cannot be said of another.
                Coverage::Behind => return Coverage::Behind,
                Coverage::Unknown => coverage = Coverage::Unknown,
                Coverage::Covered => {}
            }
        }
        coverage
    }

    fn covers_entry(&self, entry: &str) -> Coverage {
        let Some((kind, version)) = entry.split_once('=') else {
            return Coverage::Unknown;
        };
        let (Some(position), Ok(version)) = (self.kinds.get(kind), version.parse::<u64>()) else {
            return Coverage::Unknown;
        };
        match position.seen {
            _ if position.absent => Coverage::Covered,
            _ if position.set_aside.is_some_and(|from| from <= version) => Coverage::Behind,
            Version::At(seen) if seen >= version => Coverage::Covered,
            Version::At(_) | Version::None => Coverage::Behind,
            Version::Opaque => Coverage::Unknown,
        }
    }
}

// === impl Position ===

impl Position {
    fn see(&mut self, version: &str) {
        self.seen.advance(version);
        self.absent = false;
    }
}

// === impl Version ===

impl Version {
    /// Versions come in any order (a relist's items, a bookmark after a list): the newest counts.
    fn advance(&mut self, version: &str) {
        *self = match (*self, version.parse::<u64>()) {
            (Self::Opaque, _) | (_, Err(_)) => Self::Opaque,
            (Self::None, Ok(version)) => Self::At(version),
            (Self::At(before), Ok(version)) => Self::At(before.max(version)),
        };
    }
}

// === free ===

fn entries(token: &str) -> Option<std::str::Split<'_, char>> {
    let entries = token.strip_prefix(FORM)?.strip_prefix(';')?;
    Some(entries.split(';'))
}

fn write_token<'a>(kinds: impl IntoIterator<Item = (&'a str, Version)>) -> String {
    let mut token = String::new();
    for (kind, version) in kinds {
        let written = match version {
            Version::None => continue,
            Version::At(version) => write!(token, ";{kind}={version}"),
            Version::Opaque => write!(token, ";{kind}=?"),
        };
        // A string takes all.
        debug_assert!(written.is_ok());
    }
    if !token.is_empty() {
        token.insert_str(0, FORM);
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positions after these words: kind, what happened, version.
    fn after(events: &[(&'static str, char, &str)]) -> Positions {
        let mut positions = Positions::default();
        for (kind, what, version) in events {
            match what {
                'c' => positions.changed(kind, version),
                'l' => positions.listed(kind, version),
                's' => positions.seen(kind, version),
                'a' => positions.absent(kind),
                other => panic!("{other}"),
            }
        }
        positions
    }

    #[test]
    fn a_token_names_changes_and_not_bookmarks() {
        for (events, token) in [
            (&[][..], ""),
            (&[("pods", 's', "900")][..], ""),
            (&[("pods", 'c', "7"), ("pods", 's', "900")], "v1;pods=7"),
            (&[("pods", 'c', "9"), ("pods", 'c', "7")], "v1;pods=9"),
            (
                &[("services", 'c', "3"), ("pods", 'c', "12")],
                "v1;pods=12;services=3",
            ),
            (&[("pods", 'c', "x12")], "v1;pods=?"),
            (&[("routes", 'a', "")], ""),
        ] {
            assert_eq!(after(events).token(), token, "{events:?}");
        }
    }

    #[test]
    fn covered_is_what_has_been_seen() {
        use Coverage::{Behind, Covered, Unknown};
        let ours: &[_] = &[
            ("pods", 'c', "100"),
            ("pods", 's', "150"),
            ("services", 'c', "80"),
            ("nodes", 's', "120"),
            ("routes", 'a', ""),
            ("opaque", 's', "etag-1"),
        ];
        for (token, coverage) in [
            ("v1;pods=100", Covered),
            ("v1;pods=150", Covered),
            ("v1;pods=151", Behind),
            // As numbers: as text 99 would be beyond 150.
            ("v1;pods=99", Covered),
            ("v1;pods=1000", Behind),
            ("v1;pods=100;services=80", Covered),
            ("v1;pods=100;services=81", Behind),
            ("v1;nodes=120", Covered),
            ("v1;routes=999", Covered),
            ("v1;else=1", Unknown),
            ("v1;else=1;pods=151", Behind),
            ("v1;pods=151;else=1", Behind),
            ("v1;opaque=1", Unknown),
            ("v1;pods=?", Unknown),
            ("v1;pods=-1", Unknown),
            ("v1;pods", Unknown),
            ("v1;", Unknown),
            ("v1", Unknown),
            ("v2;pods=1", Unknown),
            ("more", Unknown),
            ("", Unknown),
        ] {
            assert_eq!(after(ours).covers(token), coverage, "{token:?}");
        }
    }

    #[test]
    fn a_kind_that_is_watched_and_has_told_nothing_is_behind() {
        let mut positions = Positions::default();
        positions.kinds.insert("pods", Position::default());
        assert_eq!(positions.covers("v1;pods=1"), Coverage::Behind);
    }

    #[test]
    fn a_kind_that_was_absent_and_came_is_compared_as_any_other() {
        let positions = after(&[("routes", 'a', ""), ("routes", 's', "50")]);
        assert_eq!(positions.covers("v1;routes=50"), Coverage::Covered);
        assert_eq!(positions.covers("v1;routes=51"), Coverage::Behind);
    }

    #[test]
    fn an_item_of_a_list_covers_nothing_before_the_list_has_ended() {
        let before = [("pods", 's', "8900"), ("routes", 'a', "")];
        let items = [("pods", 'l', "9000"), ("routes", 'l', "9000")];
        let ends = [("pods", 's', "9001"), ("routes", 's', "9001")];
        let during = after(&[before, items].concat());
        let ended = after(&[before, items, ends].concat());
        assert_eq!(during.token(), "v1;pods=9000;routes=9000");
        for (token, coverage) in [
            ("v1;pods=8900", Coverage::Covered),
            ("v1;pods=8990", Coverage::Behind),
            ("v1;pods=9000", Coverage::Behind),
            // The kind has come: what another replica knows of it is still to be told.
            ("v1;routes=1", Coverage::Behind),
        ] {
            assert_eq!(during.covers(token), coverage, "{token}");
            assert_eq!(ended.covers(token), Coverage::Covered, "{token}");
        }
    }

    #[test]
    fn a_replica_covers_its_own_token() {
        let positions = after(&[("pods", 'c', "5"), ("services", 'c', "9")]);
        assert_eq!(positions.covers(&positions.token()), Coverage::Covered);
    }

    #[test]
    fn what_two_replicas_told_is_the_newer_of_each_kind() {
        let ours = after(&[("pods", 'c', "7"), ("services", 'c', "9")]);
        for (token, both) in [
            ("v1;pods=12;services=3", "v1;pods=12;services=9"),
            ("v1;nodes=4;pods=6", "v1;nodes=4;pods=7;services=9"),
            ("v1;pods=?", "v1;pods=?;services=9"),
            ("v2;pods=12", "v1;pods=7;services=9"),
            ("", "v1;pods=7;services=9"),
        ] {
            assert_eq!(ours.token_with(token), both, "{token:?}");
        }
        assert_eq!(after(&[]).token_with("v1;pods=12"), "v1;pods=12");
    }

    #[test]
    fn a_token_of_a_thousand_kinds_is_not_read() {
        let entries = vec!["pods=1"; 1000].join(";");
        let positions = after(&[("pods", 'c', "5")]);
        assert_eq!(
            positions.covers(&format!("{FORM};{entries}")),
            Coverage::Unknown
        );
    }
}
