//! What of a Gateway's `infrastructure` is passed on to the objects made for it.
//!
//! Whoever may create a Gateway need not be allowed to create pods. Labels and annotations are words that admission
//! webhooks and clouds act on, so only those pass of which nobody but people makes anything.

use std::collections::BTreeMap;

use crate::gateway_api::Infrastructure;

/// Prefixes that pass beside names without any: descriptions, and where to scrape.
const HARMLESS: [&str; 2] = ["app.kubernetes.io/", "prometheus.io/"];
/// Names without a prefix that mean something to somebody all the same.
const TAKEN: [&str; 2] = ["istio-injection", "sidecar-injection"];
/// How many that do not pass are named: a condition's message stays a sentence.
const NAMED: usize = 5;

/// What passes, and what does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PassedOn {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    /// `label x`, `annotation y`.
    pub(super) dropped: Vec<String>,
}

/// Chooses; `more` are prefixes that whoever installed the mesh allows.
pub(super) fn passed_on(asked: Option<&Infrastructure>, more: &[String]) -> PassedOn {
    let mut passed = PassedOn::default();
    let Some(asked) = asked else {
        return passed;
    };
    for (name, value) in &asked.labels {
        if passes(name, more) {
            passed.labels.insert(name.clone(), value.clone());
        } else {
            passed.dropped.push(format!("label {name}"));
        }
    }
    for (name, value) in &asked.annotations {
        if passes(name, more) {
            passed.annotations.insert(name.clone(), value.clone());
        } else {
            passed.dropped.push(format!("annotation {name}"));
        }
    }
    passed
}

fn passes(name: &str, more: &[String]) -> bool {
    if !name.contains('/') {
        return !TAKEN.contains(&name);
    }
    HARMLESS.iter().any(|prefix| name.starts_with(prefix))
        || more.iter().any(|prefix| {
            // `example.com` is meant with its slash: example.com.evil is somebody else's.
            name.strip_prefix(&**prefix)
                .is_some_and(|rest| prefix.ends_with('/') || rest.starts_with('/'))
        })
}

// === impl PassedOn ===

impl PassedOn {
    /// For the condition; `None`: everything passed.
    pub(super) fn sentence(&self) -> Option<String> {
        if self.dropped.is_empty() {
            return None;
        }
        let named = self.dropped.iter().take(NAMED).cloned();
        let more = self.dropped.len().saturating_sub(NAMED);
        let more = (more > 0).then(|| format!("{more} more"));
        let named: Vec<String> = named.chain(more).collect();
        Some(format!(
            "not passed on from spec.infrastructure: {}",
            named.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_acts_on_does_not_pass() {
        for name in [
            "eks.amazonaws.com/role-arn",
            "iam.gke.io/gcp-service-account",
            "azure.workload.identity/use",
            "sidecar.istio.io/inject",
            "istio.io/dataplane-mode",
            "istio-injection",
            "linkerd.io/inject",
            "vault.hashicorp.com/agent-inject",
            "kubernetes.io/config.mirror",
            "cluster-autoscaler.kubernetes.io/safe-to-evict",
            "gateway.istio.io/managed",
            "example.com.evil/x",
        ] {
            assert!(!passes(name, &["example.com".to_owned()]), "{name}");
        }
        for name in [
            "team",
            "app",
            "app.kubernetes.io/part-of",
            "prometheus.io/path",
            "example.com/x",
        ] {
            assert!(passes(name, &["example.com".to_owned()]), "{name}");
        }
    }

    #[test]
    fn what_does_not_pass_is_named() {
        let asked = Infrastructure {
            labels: BTreeMap::from([("team".to_owned(), "red".to_owned())]),
            annotations: (0..9)
                .map(|n| (format!("evil.example/{n}"), String::new()))
                .collect(),
            parameters_ref: None,
        };
        let passed = passed_on(Some(&asked), &[]);
        assert_eq!(passed.labels.len(), 1);
        assert!(passed.annotations.is_empty());
        let sentence = passed.sentence().expect("something was dropped");
        assert!(sentence.contains("annotation evil.example/0"), "{sentence}");
        assert!(sentence.ends_with("4 more"), "{sentence}");
        assert_eq!(passed_on(None, &[]).sentence(), None);
    }
}
