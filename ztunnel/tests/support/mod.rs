//! What the tests of this crate share.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part"
)]

pub(crate) mod ca;
pub(crate) mod fabric;
pub(crate) mod log;
pub(crate) mod net;
pub(crate) mod node;
pub(crate) mod replica;
pub(crate) mod wire;
