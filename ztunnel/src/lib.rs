//! The L4 node proxy as a library; `main.rs` is a thin shell around it.

pub mod app;
pub mod cni;
pub mod config;
pub mod leaving;
pub mod metrics;
pub mod party;
pub mod pods;
pub mod ports;
pub mod proxy;
pub mod socket;
pub mod workers;

mod access_log;
mod cgroup;
mod failure;
mod inbound;
mod outbound;
mod plaintext;
mod plugin;
#[cfg(test)]
mod sample;
mod sessions;
