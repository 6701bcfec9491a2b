//! The local cluster, and the promises to users kept on it.

pub mod echo;
