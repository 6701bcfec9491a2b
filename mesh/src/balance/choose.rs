//! One endpoint of those that may be chosen: of two at random, the one with less to do.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Instant;

use super::Ask;
use super::policy::Reach;
use super::set::{EndpointSet, Member, PortSets, Tier};
use crate::names::Uid;

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

/// How one is taken of those that may be.
#[derive(Debug)]
pub(crate) enum How<'a> {
    /// Of two at random the one with less to do.
    TwoAtRandom(&'a mut fastrand::Rng),
    /// The one that fits this client best: the same in every process that knows the same endpoints, and if one comes or goes
    /// the same for all clients but its own. Looks at all of them.
    Hashed(IpAddr),
}

/// The endpoint for a client: among those of the family asked for before all, in the narrowest circle that has any.
pub(crate) fn pick<'a>(
    sets: &'a PortSets,
    reach: &Reach,
    ask: &Ask<'_>,
    now: Instant,
    mut how: How<'_>,
) -> Option<&'a Member> {
    let family = ask.family.and_then(|family| sets.only(family));
    for wanted in [Wanted::Fresh, Wanted::Untried, Wanted::Anybody] {
        for set in family.into_iter().chain([sets.all()]) {
            for circle in reach.circles() {
                let tier = set.tier(*circle, ask.place, ask.readiness);
                let accept = |member: &Member| wanted.accepts(member, ask, now);
                let chosen = match &mut how {
                    How::TwoAtRandom(roll) => choose(set, &tier, accept, roll),
                    How::Hashed(client) => fits_best(set, &tier, accept, *client),
                };
                if chosen.is_some() {
                    return chosen;
                }
            }
        }
    }
    None
}

/// The endpoint that a client has had, while it would still be among those to choose from.
pub(crate) fn again<'a>(
    sets: &'a PortSets,
    reach: &Reach,
    ask: &Ask<'_>,
    now: Instant,
    uid: &Uid,
) -> Option<&'a Member> {
    let set = sets.all();
    let member = set.find(uid, ask.readiness)?;
    let mut circles = reach.circles().iter();
    let nearest = circles.find(|c| set.tier(**c, ask.place, ask.readiness).len() > 0)?;
    let may = Wanted::Fresh.accepts(member, ask, now) && member.is_in(*nearest, ask.place);
    may.then_some(member)
}

fn fits_best<'a>(
    set: &'a EndpointSet,
    tier: &Tier<'_>,
    accept: impl Fn(&Member) -> bool,
    client: IpAddr,
) -> Option<&'a Member> {
    let members = (0..tier.len()).filter_map(|n| set.member(tier.at(n)));
    members
        .filter(|member| accept(member))
        .max_by_key(|member| {
            // Without keys of its own, so that it is the same everywhere.
            let mut hasher = DefaultHasher::new();
            (client, &member.workload.uid).hash(&mut hasher);
            hasher.finish()
        })
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
