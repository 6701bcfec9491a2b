//! What the peer's SETTINGS let us do (RFC 9113 §6.5.2).

use crate::frame::Settings;

/// Where every window starts before SETTINGS and WINDOW_UPDATE.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

/// The peer's limits, as far as they concern a sender of CONNECT and DATA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Where the send windows of new streams start.
    pub(crate) initial_window: u32,
    /// Streams that may be open at a time.
    pub(crate) max_streams: usize,
    /// The largest frame it takes; ours are never larger than a record anyway.
    pub(crate) max_frame: usize,
}

// === impl Limits ===

impl Limits {
    /// Until it has said anything: the protocol's defaults, and as many streams as we assume.
    pub(crate) fn new(max_streams: usize) -> Self {
        Self {
            initial_window: DEFAULT_WINDOW,
            max_streams,
            max_frame: 16 << 10,
        }
    }

    /// Takes over what was said; by how much the windows of open streams change.
    pub(crate) fn apply(&mut self, settings: &Settings) -> i64 {
        if let Some(most) = settings.max_concurrent_streams {
            self.max_streams = most as usize;
        }
        if let Some(size) = settings.max_frame_size {
            self.max_frame = size as usize;
        }
        let Some(window) = settings.initial_window_size else {
            return 0;
        };
        let before = std::mem::replace(&mut self.initial_window, window);
        i64::from(window) - i64::from(before)
    }
}
