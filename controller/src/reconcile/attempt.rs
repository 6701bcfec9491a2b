//! One try of one piece of work, with its deadline.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use super::events::{self, Told};
use super::outcome::{Failure, Outcome};
use super::{Settings, accepted, class, gate, log, roots, status, waypoint};
use crate::index::desired::{Entry, Item, Wanted};

/// How long a try of one call may take.
const ONE_CALL: Duration = Duration::from_secs(10);
/// How long a try may take that consists of several.
const SEVERAL_CALLS: Duration = Duration::from_secs(30);

/// What a try works on.
pub(super) enum Try {
    /// With the time of what flips.
    Entry(Item, Arc<Entry>, Timestamp),
    Tell(Told),
}

/// One try, with its deadline.
pub(super) async fn attempt(client: &Client, settings: &Settings, what: &Try) -> Outcome {
    let within = match what {
        Try::Entry(Item::Waypoint(_) | Item::Roots(_) | Item::Events(_) | Item::Gate(_), ..) => {
            SEVERAL_CALLS
        }
        _ => ONE_CALL,
    };
    let tried = tokio::time::timeout(within, bring_about(client, settings, what)).await;
    tried.unwrap_or(Outcome::Failed(Failure::Late))
}

async fn bring_about(client: &Client, settings: &Settings, what: &Try) -> Outcome {
    let (item, entry, at) = match what {
        Try::Tell(told) => return events::publish(client, &settings.instance, told).await,
        Try::Entry(item, entry, at) => (item, entry, *at),
    };
    match (item, &entry.wanted) {
        (Item::Status(target), Wanted::Status(write)) => {
            let body = write.patch(at);
            status::reconcile(client, target, &write.how, &body, entry.writer).await
        }
        (Item::Events(_), Wanted::Events(notices)) => {
            for notice in notices {
                log(notice);
                let told = Told::standing(notice.clone());
                let outcome = events::publish(client, &settings.instance, &told).await;
                if matches!(outcome, Outcome::Failed(_)) {
                    return outcome;
                }
            }
            Outcome::Done
        }
        (Item::Waypoint(key), Wanted::Waypoint(plan)) => {
            waypoint::deploy(client, &settings.mesh, key, plan).await
        }
        (Item::Waypoint(key), Wanted::NoWaypoint { gateway_uid }) => {
            waypoint::withdraw(client, key, gateway_uid).await
        }
        (Item::Class(name), Wanted::Class) => class::reconcile(client, name).await,
        (Item::Roots(namespace), Wanted::Roots) => {
            let current = settings.roots.borrow().clone();
            match roots::revocations(settings.revocations.as_deref()).await {
                Ok(lists) => roots::publish(client, namespace, &current, lists).await,
                // What is published stays so.
                Err(error) => Outcome::Failed(Failure::Revocations(error)),
            }
        }
        (Item::Roots(namespace), Wanted::NoRoots) => roots::give_up(client, namespace).await,
        (Item::Accepted(namespace), Wanted::Accepted(generations)) => {
            accepted::reconcile(client, &settings.namespace, namespace, generations).await
        }
        (Item::Gate(node), Wanted::Gate { uid, gate }) => {
            gate::reconcile(client, node, uid, *gate).await
        }
        (item, wanted) => {
            tracing::error!(?item, ?wanted, "the entry does not fit its item");
            Outcome::Moot
        }
    }
}
