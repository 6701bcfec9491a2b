//! Lines for the reader, and how long each step took.

use std::io::Write as _;
use std::time::Instant;

/// The story as it is told: numbered steps, a line or two of evidence each.
pub(super) struct Story {
    number: u32,
    begun: Instant,
    told: Instant,
}

impl Story {
    /// Begins with step 0, the set-up, which does not count as story.
    pub(super) fn begin(title: &str) -> Self {
        say(&format!("0. {title}"));
        Self {
            number: 0,
            begun: Instant::now(),
            told: Instant::now(),
        }
    }

    /// Ends a step and begins the next.
    pub(super) fn next(&mut self, title: &str) {
        self.took();
        if self.number == 0 {
            self.told = Instant::now();
        }
        self.number += 1;
        say(&format!("\n{}. {title}", self.number));
        self.begun = Instant::now();
    }

    /// One line of evidence.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "callers have just formatted it"
    )]
    pub(super) fn line(&self, text: String) {
        say(&format!("   {text}"));
    }

    /// Ends the last step.
    pub(super) fn end(&self) {
        self.took();
        say(&format!(
            "\nThe story took {:.1} s after the set-up.",
            self.told.elapsed().as_secs_f32()
        ));
    }

    fn took(&self) {
        say(&format!("   ({:.1} s)", self.begun.elapsed().as_secs_f32()));
    }
}

/// Prints a line; that nobody reads it is no reason to fail.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
