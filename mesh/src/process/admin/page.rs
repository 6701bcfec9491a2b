//! A page that costs something: built off the thread that serves, once for all who ask meanwhile, and no longer than people read.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::Instant;

/// Builds the page anew when it is asked for and the last one is not fresh. Cheap to clone.
#[derive(Clone)]
pub(super) struct Page {
    build: Arc<dyn Fn() -> Bytes + Send + Sync>,
    fresh: Duration,
    last: Arc<Mutex<Option<Built>>>,
}

struct Built {
    at: Instant,
    text: Bytes,
}

/// Text that takes no more than so many bytes.
struct Bounded {
    text: String,
    most: usize,
}

/// What is shown, or its first `most` bytes and that it was cut there. Takes no more memory than that.
pub fn bounded(most: usize, shown: fmt::Arguments<'_>) -> String {
    let text = String::new();
    let mut bounded = Bounded { text, most };
    let whole = bounded.write_fmt(shown);
    let mut text = bounded.text;
    if whole.is_err() {
        text.push_str(&format!("... cut here: {most} bytes are shown at most"));
    }
    text
}

// === impl Page ===

impl Page {
    pub(super) fn new(fresh: Duration, build: impl Fn() -> Bytes + Send + Sync + 'static) -> Self {
        Self {
            build: Arc::new(build),
            fresh,
            last: Arc::default(),
        }
    }

    /// The page. An error: building it panicked.
    pub(super) async fn text(&self) -> Result<Bytes, JoinError> {
        // Held until it is built, even if nobody waits for it any more: who asks and leaves cannot have many built at once.
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(built) = &*last
            && built.at.elapsed() < self.fresh
        {
            return Ok(built.text.clone());
        }
        let (build, keep) = (Arc::clone(&self.build), !self.fresh.is_zero());
        let building = spawn_blocking(move || {
            let text = build();
            *last = keep.then(|| Built {
                at: Instant::now(),
                text: text.clone(),
            });
            text
        });
        building.await
    }
}

// === impl Bounded ===

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = self.most - self.text.len();
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        self.text.push_str(&more[..more.floor_char_boundary(room)]);
        // Full, also for what is shorter.
        self.most = self.text.len();
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A page that counts how often it was built.
    fn counting() -> (Page, Arc<AtomicUsize>) {
        let built = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&built);
        let page = Page::new(Duration::from_secs(1), move || {
            let n = count.fetch_add(1, Ordering::SeqCst) + 1;
            n.to_string().into()
        });
        (page, built)
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_within_a_second_shares_one_building() {
        let (page, _) = counting();
        let (one, two) = tokio::join!(page.text(), page.text());
        assert_eq!(
            (&one.expect("built")[..], &two.expect("built")[..]),
            (&b"1"[..], &b"1"[..])
        );
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(page.text().await.expect("built"), "1");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(page.text().await.expect("built"), "2");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_and_leaves_has_no_second_one_built_meanwhile() {
        let (page, built) = counting();
        for _ in 0..100 {
            let mut asked = Box::pin(page.text());
            // Asked, and gone before there is an answer.
            let _ = futures_util::poll!(&mut asked);
        }
        assert_eq!(page.text().await.expect("built"), "1");
        assert_eq!(built.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters_and_says_so() {
        let cut = "... cut here: 5 bytes are shown at most";
        for (text, shown) in [
            ("four", "four".to_owned()),
            ("fives", "fives".to_owned()),
            ("sixsix", format!("sixsi{cut}")),
            ("füüße", format!("füü{cut}")),
            ("four€", format!("four{cut}")),
        ] {
            assert_eq!(bounded(5, format_args!("{text}")), shown);
        }
        // Nothing comes after the cut.
        assert_eq!(
            bounded(5, format_args!("{:?}", ["aé€", "b"])),
            format!("[\"aé{cut}")
        );
    }
}
