//! The session against hand-written frames.
