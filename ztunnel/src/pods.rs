//! The pods of this node: their namespaces, their redirection, their proxies.

pub mod capture;
pub mod find;
pub mod netns;
