//! Labels and selectors, as compact as they are compared: pairs in the order of their names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::common::Common;

/// Names and values. Each name stands there once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Labels(Box<[Pair]>);

/// A name and its value.
pub(super) type Pair = (Arc<str>, Arc<str>);

// === impl Labels ===

impl Labels {
    pub(super) fn of(labels: Option<&BTreeMap<String, String>>) -> Self {
        let pairs = labels.into_iter().flatten();
        let pairs = pairs.map(|(name, value)| (name.as_str().into(), value.as_str().into()));
        Self(pairs.collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<str>> {
        let at = self.0.binary_search_by(|(one, _)| (**one).cmp(name)).ok()?;
        Some(&self.0[at].1)
    }

    pub(super) fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether this label has this value.
    pub(super) fn says(&self, name: &str, value: &str) -> bool {
        self.get(name).is_some_and(|said| **said == *value)
    }

    /// Whether all of these pairs are there.
    pub(super) fn contain(&self, selector: &Self) -> bool {
        let mut pairs = selector.0.iter();
        pairs.all(|(name, value)| self.says(name, value))
    }

    pub(super) fn pairs(&self) -> &[Pair] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For selectors of Kubernetes' own libraries.
    pub(super) fn to_map(&self) -> BTreeMap<String, String> {
        let pairs = self.0.iter();
        pairs
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    /// Takes its texts from those that are known.
    pub(super) fn share(&mut self, common: &mut Common) {
        for (name, value) in &mut self.0 {
            common.text(name);
            common.text(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        let map = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Labels::of(Some(&map.collect()))
    }

    #[test]
    fn a_selector_wants_all_of_its_pairs() {
        let pod = labels(&[("version", "v1"), ("app", "cart")]);
        assert!(pod.contain(&labels(&[("app", "cart")])));
        assert!(pod.contain(&labels(&[("app", "cart"), ("version", "v1")])));
        assert!(!pod.contain(&labels(&[("app", "cart"), ("version", "v2")])));
        assert!(!pod.contain(&labels(&[("tier", "web")])));
        assert_eq!(pod.get("app").map(|app| &**app), Some("cart"));
    }
}
