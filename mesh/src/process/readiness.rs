//! Named conditions that must all have come true before the process says it is ready.

use std::fmt;

use tokio::sync::watch;

/// The process's readiness. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(watch::Sender<Vec<&'static str>>);

/// One condition that is not true yet. Dropping it makes it true.
pub struct Pending {
    name: &'static str,
    readiness: Readiness,
}

// === impl Readiness ===

impl Readiness {
    /// Ready as long as nothing is waited for.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the returned guard is dropped.
    pub fn wait_for(&self, name: &'static str) -> Pending {
        self.0.send_modify(|names| names.push(name));
        Pending {
            name,
            readiness: self.clone(),
        }
    }

    /// What is still waited for; empty: ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.0.borrow().clone()
    }

    /// Returns once nothing is waited for.
    pub async fn ready(&self) {
        let mut names = self.0.subscribe();
        // Fails only when the sender is gone, and we hold one.
        let _ = names.wait_for(Vec::is_empty).await;
    }
}

// === impl Pending ===

impl Drop for Pending {
    fn drop(&mut self) {
        self.readiness.0.send_modify(|names| {
            if let Some(at) = names.iter().position(|name| *name == self.name) {
                names.swap_remove(at);
            }
        });
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_all_are_dropped() {
        let readiness = Readiness::new();
        assert!(readiness.pending().is_empty());
        let (xds, first, second) = (
            readiness.wait_for("xds"),
            readiness.wait_for("pods"),
            readiness.wait_for("pods"),
        );
        drop(first);
        drop(xds);
        assert_eq!(readiness.pending(), ["pods"]);
        let waits = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop(second);
        waits.await.expect("it became ready");
    }
}
