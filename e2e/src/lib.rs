//! The local cluster, and the promises to users kept on it.

pub mod apps;
pub mod echo;
pub mod probe;
