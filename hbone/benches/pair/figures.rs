//! The figures that are compared, what is wanted of them, and how rounds are judged.

use crate::app::MESSAGE;
use crate::sealing::Sealing;

/// Rounds of one figure may be apart by this much of the lowest; beyond it the bench cannot tell.
const MOST_SPREAD: f64 = 0.15;

/// One compared figure.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    /// At most this much of the usual design, and of the plain relay.
    pub(crate) wanted: [f64; 2],
    /// What of it is sealed and opened.
    pub(crate) sealed: Sealed,
}

/// What a figure's CPU time must have been spent on at least, beside moving bytes.
#[derive(Clone, Copy)]
pub(crate) enum Sealed {
    Gigabyte,
    /// 100 000 requests and answers in records of their own.
    Requests,
    /// The same in records that many share.
    SharedRequests,
    /// Not known beforehand.
    Unknown,
}

pub(crate) const COUNT: usize = 9;

/// In the order in which [`crate::pairs::figures`] measures them.
pub(crate) const FIGURES: [Figure; COUNT] = [
    figure("cpu-s per GB, 1 stream", 0.65, 1.25, Sealed::Gigabyte),
    figure("cpu-s per GB, 8 streams", 0.65, 1.25, Sealed::Gigabyte),
    figure(
        "cpu-s per 100 k requests, c=1",
        0.88,
        1.07,
        Sealed::Requests,
    ),
    figure("p50 at c=1, us", 0.93, 1.07, Sealed::Unknown),
    figure("p99 at c=1, us", 0.9, 1.2, Sealed::Unknown),
    figure(
        "cpu-s per 100 k requests, c=32",
        0.45,
        0.55,
        Sealed::SharedRequests,
    ),
    figure("p50 at c=32, us", 0.6, 0.7, Sealed::Unknown),
    figure("p99 at c=32, us", 0.55, 0.7, Sealed::Unknown),
    figure("cpu-s per 10 k new connections", 0.63, 0.6, Sealed::Unknown),
];

const fn figure(name: &'static str, usual: f64, relay: f64, sealed: Sealed) -> Figure {
    Figure {
        name,
        wanted: [usual, relay],
        sealed,
    }
}

impl Sealed {
    /// CPU seconds of sealing and opening.
    pub(crate) fn cost(self, sealing: &Sealing) -> Option<f64> {
        const REQUESTS: f64 = 1e5;
        match self {
            Self::Gigabyte => Some(sealing.per_gb),
            Self::Requests => Some(REQUESTS * sealing.per_request),
            Self::SharedRequests => Some(REQUESTS * 2.0 * MESSAGE as f64 / 1e9 * sealing.per_gb),
            Self::Unknown => None,
        }
    }
}

/// One figure's rounds.
pub(crate) struct Rounds(Vec<f64>);

// === impl Rounds ===

impl Rounds {
    pub(crate) fn new(rounds: impl IntoIterator<Item = f64>) -> Self {
        let mut rounds: Vec<f64> = rounds.into_iter().collect();
        rounds.sort_by(f64::total_cmp);
        Self(rounds)
    }

    pub(crate) fn median(&self) -> f64 {
        let half = self.0.len() / 2;
        match self.0.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => self.0[half],
            _ => f64::midpoint(self.0[half - 1], self.0[half]),
        }
    }

    pub(crate) fn lowest(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn highest(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// Whether the rounds agree well enough to be told as a number.
    pub(crate) fn can_tell(&self) -> bool {
        self.highest() <= self.lowest() * (1.0 + MOST_SPREAD)
    }

    /// Median and lowest round beside what is wanted, or that the bench cannot tell.
    pub(crate) fn verdict(&self, wanted: f64) -> String {
        let (lowest, highest) = (self.lowest(), self.highest());
        if !self.can_tell() {
            let all = match () {
                () if highest <= wanted => ", all ok",
                () if lowest > wanted => ", all miss",
                () => "",
            };
            return format!("cannot tell: {lowest:.2} to {highest:.2} (<= {wanted:.2}{all})");
        }
        let median = self.median();
        let word = if median <= wanted { "ok" } else { "MISS" };
        format!("{median:.2} / {lowest:.2} (<= {wanted:.2} {word})")
    }
}
