//! One endpoint of those that may be chosen: of two at random, the one with less to do.

use std::cmp::Ordering;
use std::time::Instant;

use super::Ask;
use super::policy::Reach;
use super::set::{EndpointSet, Member, PortSets, Tier};

/// Pairs that are looked at before all are: with half of the endpoints out of order, one choice in 256 looks at more.
const PAIRS: usize = 4;

/// How much is asked of an endpoint: less where nobody satisfies more.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    /// Not tried for this client, and reachable as far as this process knows.
    Fresh,
    /// Not tried for this client.
    Untried,
    Anybody,
}

/// The endpoint for a client: among those of the family asked for before all, in the narrowest circle that has any.
pub(crate) fn pick<'a>(
    sets: &'a PortSets,
    reach: &Reach,
    ask: &Ask<'_>,
    now: Instant,
    roll: &mut fastrand::Rng,
) -> Option<&'a Member> {
    let family = ask.family.and_then(|family| sets.only(family));
    for wanted in [Wanted::Fresh, Wanted::Untried, Wanted::Anybody] {
        for set in family.into_iter().chain([sets.all()]) {
            for circle in reach.circles() {
                let tier = set.tier(*circle, ask.place, ask.readiness);
                let accept = |member: &Member| wanted.accepts(member, ask, now);
                if let Some(chosen) = choose(set, &tier, accept, roll) {
                    return Some(chosen);
                }
            }
        }
    }
    None
}

/// Of two members at random that are acceptable, the one with less to do; costs the same however many there are, while
/// most are acceptable.
fn choose<'a>(
    set: &'a EndpointSet,
    tier: &Tier<'_>,
    accept: impl Fn(&Member) -> bool,
    roll: &mut fastrand::Rng,
) -> Option<&'a Member> {
    let len = tier.len();
    let at = |n: usize| set.member(tier.at(n)).filter(|member| accept(member));
    if len <= 1 {
        return at(0).filter(|_| len == 1);
    }
    for _ in 0..PAIRS {
        let first = roll.usize(..len);
        let mut second = roll.usize(..len - 1);
        if second >= first {
            second += 1;
        }
        match (at(first), at(second)) {
            (Some(one), Some(other)) => return Some(less(one, other, roll)),
            (Some(only), None) | (None, Some(only)) => return Some(only),
            (None, None) => {}
        }
    }
    let start = roll.usize(..len);
    (0..len).find_map(|n| at((start + n) % len))
}

fn less<'a>(one: &'a Member, other: &'a Member, roll: &mut fastrand::Rng) -> &'a Member {
    match one.stats.load_against(&other.stats) {
        Ordering::Less => one,
        Ordering::Greater => other,
        Ordering::Equal if roll.bool() => one,
        Ordering::Equal => other,
    }
}

impl Wanted {
    fn accepts(self, member: &Member, ask: &Ask<'_>, now: Instant) -> bool {
        let tried = || ask.tried.contains(&member.workload.uid);
        match self {
            Self::Fresh => !tried() && !member.stats.is_avoided(now),
            Self::Untried => !tried(),
            Self::Anybody => true,
        }
    }
}

#[cfg(test)]
mod tests;
