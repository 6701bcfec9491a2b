//! What proxies have been told because of each object: when it says anew what it stands for, only differences go out.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::xds::Version;

use super::super::changes::{PodPlacement, ResourceChange, Resources, Scope};
use super::super::kinds::Kind;
use super::super::names::Key;

/// What has been told, by the object that it comes from.
#[derive(Debug, Default)]
pub(super) struct Published(BTreeMap<Kind, BTreeMap<Key, Told>>);

/// What has been told because of one object.
#[derive(Debug, Default)]
struct Told {
    /// In order. Content is compared by its version: only who reads it keeps it.
    resources: Box<[(Scope, Arc<str>, Version)]>,
    /// Where a pod runs.
    placed: Option<Arc<PodPlacement>>,
}

// === impl Published ===

impl Published {
    /// The object is the source of these resources and of no others.
    pub(super) fn replace(
        &mut self,
        kind: Kind,
        key: &Key,
        now: Resources,
        out: &mut Vec<ResourceChange>,
    ) {
        let told = now
            .iter()
            .map(|(scope, name, resource)| (scope.clone(), name.clone(), resource.version()));
        let told = told.collect();
        let before = self.change(kind, key, |entry| {
            std::mem::replace(&mut entry.resources, told)
        });
        for (scope, name, _) in &before {
            if now.find(scope, name).is_err() {
                out.push(ResourceChange {
                    scope: scope.clone(),
                    name: name.clone(),
                    resource: None,
                });
            }
        }
        for (scope, name, resource) in now {
            let at = before.binary_search_by(|(at, called, _)| (at, called).cmp(&(&scope, &name)));
            if at.is_ok_and(|at| before[at].2 == resource.version()) {
                continue;
            }
            out.push(ResourceChange {
                scope,
                name,
                resource: Some(resource),
            });
        }
    }

    /// The pod runs there now. What was said before; `None` if that is the same.
    pub(super) fn place(
        &mut self,
        kind: Kind,
        key: &Key,
        now: Option<&Arc<PodPlacement>>,
    ) -> Option<Option<Arc<PodPlacement>>> {
        self.change(kind, key, |entry| {
            let same = entry.placed.as_ref() == now;
            (!same).then(|| std::mem::replace(&mut entry.placed, now.cloned()))
        })
    }

    /// Of how many objects something has been told.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// To be kept for long: what is told in order leaves a tree's nodes half empty.
    pub(super) fn pack(&mut self) {
        for of_kind in self.0.values_mut() {
            *of_kind = std::mem::take(of_kind).into_iter().collect();
        }
    }

    /// Changes what was told because of one object; nothing is kept of one that nothing was told of.
    fn change<R>(&mut self, kind: Kind, key: &Key, change: impl FnOnce(&mut Told) -> R) -> R {
        let of_kind = self.0.entry(kind).or_default();
        if let Some(told) = of_kind.get_mut(key) {
            let changed = change(told);
            if told.is_nothing() {
                of_kind.remove(key);
            }
            return changed;
        }
        let mut told = Told::default();
        let changed = change(&mut told);
        if !told.is_nothing() {
            of_kind.insert(key.clone(), told);
        }
        changed
    }
}

// === impl Told ===

impl Told {
    fn is_nothing(&self) -> bool {
        self.resources.is_empty() && self.placed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use mesh::xds::Encoded;

    use super::*;

    fn resources(names: &[(&str, &str)]) -> Resources {
        let mut resources = Resources::default();
        for (name, content) in names {
            let content = Encoded::new("type", &(*content).to_owned());
            resources.insert(Scope::Addresses, (*name).into(), content);
        }
        resources
    }

    #[test]
    fn only_differences_go_out() {
        let (mut published, key) = (Published::default(), Key::new("shop", "a"));
        let mut tell = |names: &[(&str, &str)]| {
            let mut out = Vec::new();
            published.replace(Kind::Pod, &key, resources(names), &mut out);
            let out = out.iter();
            let out = out.map(|change| (change.name.to_string(), change.resource.is_some()));
            (out.collect::<Vec<_>>(), published.0[&Kind::Pod].len())
        };
        let (came, went) = (
            |name: &str| (name.to_owned(), true),
            |name: &str| (name.to_owned(), false),
        );
        assert_eq!(
            tell(&[("a", "1"), ("b", "1")]),
            (vec![came("a"), came("b")], 1)
        );
        assert_eq!(tell(&[("a", "1"), ("b", "2")]), (vec![came("b")], 1));
        assert_eq!(tell(&[("b", "2")]), (vec![went("a")], 1));
        assert_eq!(
            tell(&[]),
            (vec![went("b")], 0),
            "nothing is kept of nothing"
        );
    }
}
