//! When a turn waits for those who have something to add to it: what they have to ask, to answer or to
//! send shares a record and a write with all else.

/// Tasks that hand a request on to each other until one of them answers.
const YIELDED_TURNS: u8 = 3;

/// Turns for which a connection is lively after a stream was opened: about what a short one takes.
const LIVELY: u8 = 8;

/// What one connection remembers of it.
#[derive(Debug)]
pub(super) struct Yielding {
    first: First,
    /// For how many turns streams will probably come and go.
    lively: u8,
    /// Who was woken together with the engine has gone before this turn.
    passed: bool,
}

/// Whether SETTINGS and acknowledgements, which nobody waits for, go with the owner's first words: the turn
/// that first asks or answers it lets it speak before anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Due,
    /// So many turns still begin behind other tasks that are ready; and what there was to write before.
    Now {
        turns: u8,
        ours: usize,
    },
    Over,
}

// === impl Yielding ===

impl Yielding {
    pub(super) fn new() -> Self {
        Self {
            first: First::Due,
            lively: 0,
            passed: false,
        }
    }

    /// A stream was opened.
    pub(super) fn opened(&mut self) {
        self.lively = LIVELY;
    }

    /// Somebody is told something, while so many bytes of ours wait.
    pub(super) fn told(&mut self, ours: usize) {
        if self.first == First::Due {
            let turns = YIELDED_TURNS;
            self.first = First::Now { turns, ours };
        }
    }

    /// Whether others who are ready go before this turn.
    pub(super) fn lets_pass(&mut self) -> bool {
        self.passed = self.lively > 0 && !self.passed;
        if !self.passed {
            self.lively = self.lively.saturating_sub(1);
        }
        self.passed
    }

    /// Whether the owner may still say something that goes with the bytes that wait, where there is
    /// nothing else to send.
    pub(super) fn lets_speak(&mut self, waiting: usize, nothing_else: bool) -> bool {
        let First::Now { turns, ours } = &mut self.first else {
            return false;
        };
        if *turns == 0 || waiting > *ours || !nothing_else {
            self.first = First::Over;
            return false;
        }
        *turns -= 1;
        true
    }
}
