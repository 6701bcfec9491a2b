//! Hands what differs in the table of desired state to those who bring it about.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use tokio::sync::{mpsc, watch};

use crate::desired::{DesiredState, Entry, Item, Wanted};
use crate::status::Order;
use crate::waypoint::Task;

/// Runs until nobody publishes any more, or nobody acts.
pub async fn distribute(
    mut desired: watch::Receiver<DesiredState>,
    orders: mpsc::Sender<Order>,
    tasks: mpsc::Sender<Task>,
    roots: watch::Sender<BTreeSet<Arc<str>>>,
) {
    let mut before = DesiredState::default();
    while desired.changed().await.is_ok() {
        let now = desired.borrow_and_update().clone();
        let changed = before.diff(&now).map(|difference| match difference {
            DiffItem::Add(item, entry)
            | DiffItem::Update {
                new: (item, entry), ..
            } => (item.clone(), Some(entry.clone())),
            DiffItem::Remove(item, _) => (item.clone(), None),
        });
        for (item, entry) in changed.collect::<Vec<_>>() {
            if hand_on(item, entry.as_deref(), &orders, &tasks, &roots)
                .await
                .is_none()
            {
                return;
            }
        }
        before = now;
    }
}

async fn hand_on(
    item: Item,
    entry: Option<&Entry>,
    orders: &mpsc::Sender<Order>,
    tasks: &mpsc::Sender<Task>,
    roots: &watch::Sender<BTreeSet<Arc<str>>>,
) -> Option<()> {
    let wanted = entry.map(|entry| &entry.wanted);
    match (item, wanted) {
        (Item::Status(target), Some(Wanted::Status(write))) => {
            let order = Order::Write(target, Some(Box::new(write.clone())));
            orders.send(order).await.ok()?;
        }
        (Item::Status(target), _) => orders.send(Order::Write(target, None)).await.ok()?,
        (Item::Events(_), Some(Wanted::Events(notices))) => {
            for notice in notices {
                orders.send(Order::Notice(notice.clone())).await.ok()?;
            }
        }
        (Item::Waypoint(key), Some(Wanted::Waypoint(plan))) => {
            tasks.send(Task::Plan(key, Some(plan.clone()))).await.ok()?;
        }
        (Item::Waypoint(key), _) => tasks.send(Task::Plan(key, None)).await.ok()?,
        (Item::Class(name), Some(_)) => tasks.send(Task::Class(name)).await.ok()?,
        (Item::Roots(namespace), Some(Wanted::Roots)) => {
            roots.send_modify(|roots| {
                roots.insert(namespace);
            });
        }
        (Item::Roots(namespace), _) => {
            roots.send_modify(|roots| {
                roots.remove(&namespace);
            });
        }
        (Item::Events(_) | Item::Class(_) | Item::Accepted(_), _) => {}
    }
    Some(())
}
