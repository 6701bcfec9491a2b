//! What may be seen of one type: resources by name, and a number by which two views are known to be the same.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Encoded;

/// Everything of one type that one kind of client may see, by name.
///
/// Persistent: a clone is a pointer, and two versions that share structure are compared by their differences alone.
pub type Resources = imbl::OrdMap<Arc<str>, Encoded>;

/// Resources at one moment. Two views of the same edition are the same, without a look at what is in them.
#[derive(Clone, Default)]
pub struct View {
    resources: Resources,
    edition: u64,
}

/// Editions are counted for the whole process, so that one names a view of whatever type. 0 is the empty view.
static EDITIONS: AtomicU64 = AtomicU64::new(1);

// === impl View ===

impl View {
    /// To be changed: the result is of another edition, whatever is done.
    pub fn edit(&mut self) -> &mut Resources {
        self.edition = EDITIONS.fetch_add(1, Ordering::Relaxed);
        &mut self.resources
    }

    /// All of it.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Equal only for the same view.
    pub fn edition(&self) -> u64 {
        self.edition
    }
}

impl From<Resources> for View {
    fn from(resources: Resources) -> Self {
        if resources.is_empty() {
            return Self::default();
        }
        let mut view = Self::default();
        *view.edit() = resources;
        view
    }
}

impl Deref for View {
    type Target = Resources;

    fn deref(&self) -> &Resources {
        &self.resources
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "View(edition {}, {} resources)",
            self.edition,
            self.resources.len()
        )
    }
}
