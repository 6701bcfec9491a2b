//! What each client has of what all share, so that none can take it from the others.
//!
//! One rule for everything ([`may_take`]): a client may have one more as long as it has less than what is still free. Alone
//! it gets half; however many others take what they can, each newcomer finds room, as `n` greedy clients leave `1/(n+1)`.
//! So a Deployment of a thousand pods needs no other bound than a single pod. A client is a proved identity; who has
//! not proved one is in no budget of this file (`mesh::unproven`).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use hbone::{Refusal, SpiffeId};
use http::StatusCode;

use crate::limits::Limits;

/// What is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Connections,
    Tunnels,
    Heads,
    Requests,
}

/// Kinds of [`Resource`].
const KINDS: usize = 4;

/// One core's budgets. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budgets(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    most: [usize; KINDS],
    used: [Cell<usize>; KINDS],
    /// Of clients that are here.
    accounts: RefCell<HashMap<SpiffeId, Weak<Account>>>,
}

/// What one client has; there as long as it has anything.
#[derive(Debug)]
pub(crate) struct Account {
    id: SpiffeId,
    shared: Rc<Shared>,
    has: [Cell<usize>; KINDS],
}

/// One place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    account: Rc<Account>,
    of: Resource,
}

/// A client has its share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this waypoint has no room for more {} of {id}: it has {has}, and {free} are left for all", of.plural())]
pub(crate) struct Exhausted {
    of: Resource,
    id: SpiffeId,
    has: usize,
    free: usize,
}

/// Whether a client that has `mine` may have one more, where `free` are left for all.
fn may_take(mine: usize, free: usize) -> bool {
    mine < free
}

// === impl Budgets ===

impl Budgets {
    /// Nothing is taken yet.
    pub(crate) fn new(limits: &Limits) -> Self {
        let mut most = [0; KINDS];
        most[Resource::Connections as usize] = limits.connections;
        most[Resource::Tunnels as usize] = limits.tunnels;
        most[Resource::Heads as usize] = limits.heads;
        most[Resource::Requests as usize] = limits.requests;
        Self(Rc::new(Shared {
            most,
            used: Default::default(),
            accounts: RefCell::default(),
        }))
    }

    /// A client's account.
    pub(crate) fn account(&self, id: &SpiffeId) -> Rc<Account> {
        let mut accounts = self.0.accounts.borrow_mut();
        if let Some(account) = accounts.get(id).and_then(Weak::upgrade) {
            return account;
        }
        let account = Rc::new(Account {
            id: id.clone(),
            shared: Rc::clone(&self.0),
            has: Default::default(),
        });
        accounts.insert(id.clone(), Rc::downgrade(&account));
        account
    }
}

// === impl Account ===

impl Account {
    /// One more, if this client may have it.
    pub(crate) fn take(self: &Rc<Self>, of: Resource) -> Result<Place, Exhausted> {
        let kind = of as usize;
        let (used, has) = (&self.shared.used[kind], &self.has[kind]);
        let free = self.shared.most[kind].saturating_sub(used.get());
        if !may_take(has.get(), free) {
            return Err(Exhausted {
                of,
                id: self.id.clone(),
                has: has.get(),
                free,
            });
        }
        used.set(used.get() + 1);
        has.set(has.get() + 1);
        Ok(Place {
            account: Rc::clone(self),
            of,
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.shared.accounts.borrow_mut().remove(&self.id);
    }
}

// === impl Place ===

impl Place {
    /// Whose it is.
    pub(crate) fn account(&self) -> &Rc<Account> {
        &self.account
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let kind = self.of as usize;
        for counter in [&self.account.shared.used[kind], &self.account.has[kind]] {
            counter.set(counter.get() - 1);
        }
    }
}

// === impl Resource ===

impl Resource {
    fn plural(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Tunnels => "tunnels",
            Self::Heads => "unfinished request heads",
            Self::Requests => "requests",
        }
    }
}

// === impl Exhausted ===

impl Exhausted {
    /// What the client's side is told.
    pub(crate) fn refusal(&self) -> Refusal {
        let code = match self.of {
            Resource::Connections => "too_many_connections",
            Resource::Tunnels => "too_many_tunnels",
            Resource::Heads => "too_many_heads",
            Resource::Requests => "too_many_requests",
        };
        Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: code.into(),
            reason: self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        let id = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        id.parse().expect("an id")
    }

    /// Takes all that this client gets.
    fn greedy(account: &Rc<Account>) -> Vec<Place> {
        std::iter::from_fn(|| account.take(Resource::Tunnels).ok()).collect()
    }

    #[test]
    fn however_many_are_greedy_the_next_one_finds_room() {
        let budgets = Budgets::new(&Limits {
            tunnels: 120,
            ..Limits::default()
        });
        let accounts = ["a", "b", "c", "d"].map(|name| budgets.account(&id(name)));
        let first = greedy(&accounts[0]);
        assert_eq!(first.len(), 60);
        let second = greedy(&accounts[1]);
        assert_eq!(second.len(), 30);
        assert_eq!(greedy(&accounts[2]).len(), 15);
        // What the first gives back, the others may have, and it no more than they.
        drop(first);
        let third = greedy(&accounts[2]);
        assert_eq!((second.len(), third.len()), (30, 45));
        assert_eq!(greedy(&accounts[0]).len(), 23);
        assert!(accounts[3].take(Resource::Tunnels).is_ok());
        assert!(accounts[2].take(Resource::Requests).is_ok(), "another kind");
    }

    #[test]
    fn connections_of_one_identity_are_one_client_and_who_has_gone_costs_nothing() {
        let budgets = Budgets::new(&Limits {
            tunnels: 4,
            ..Limits::default()
        });
        let place = budgets.account(&id("a")).take(Resource::Tunnels);
        let again = budgets.account(&id("a"));
        assert_eq!(again.has[Resource::Tunnels as usize].get(), 1);
        drop((place, again));
        assert!(budgets.0.accounts.borrow().is_empty());
        assert_eq!(budgets.0.used[Resource::Tunnels as usize].get(), 0);
    }

    #[test]
    fn who_is_refused_reads_why() {
        let budgets = Budgets::new(&Limits {
            requests: 1,
            ..Limits::default()
        });
        let account = budgets.account(&id("a"));
        let _one = account.take(Resource::Requests).expect("the first");
        let refused = account.take(Resource::Requests).expect_err("no more");
        let Refusal { code, reason, .. } = refused.refusal();
        assert_eq!(code, "too_many_requests");
        assert_eq!(
            reason,
            "this waypoint has no room for more requests of spiffe://cluster.local/ns/shop/sa/a: it has 1, and 0 are left for all"
        );
    }
}
