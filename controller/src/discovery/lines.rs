//! Log lines that proxies cause by what they do: each proxy so many, so that none of them fills the log.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::rate::{Buckets, Rate};

/// Of one proxy: it begins, it ends, it refuses something, all of that a few times over.
const LINES: Rate = Rate {
    burst: 30,
    per_second: 1,
};
/// Proxies whose rate is kept: more than a mesh has nodes and waypoints.
const MAX_PROXIES: usize = 16_384;

/// The lines of all proxies. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Lines(Arc<Mutex<Written>>);

#[derive(Debug)]
struct Written {
    proxies: Buckets<Arc<str>>,
    unlogged: u64,
}

// === impl Lines ===

impl Lines {
    /// Whether there is room for one more line of this proxy, and how many of all proxies there was none for before.
    pub(super) fn room(&self, proxy: &Arc<str>) -> Option<u64> {
        let mut written = self.0.lock();
        if written.proxies.take(proxy, Instant::now()) {
            return Some(std::mem::take(&mut written.unlogged));
        }
        written.unlogged += 1;
        None
    }
}

impl Default for Lines {
    fn default() -> Self {
        let written = Written {
            proxies: Buckets::new(LINES, MAX_PROXIES),
            unlogged: 0,
        };
        Self(Arc::new(Mutex::new(written)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_makes_lines_without_end_silences_itself_only() {
        let lines = Lines::default();
        let (loud, other) = (Arc::from("loud"), Arc::from("other"));
        let written = (0..1000).filter(|_| lines.room(&loud).is_some()).count();
        assert_eq!(written, 30);
        assert_eq!(lines.room(&other), Some(970), "how many were left out");
    }
}
