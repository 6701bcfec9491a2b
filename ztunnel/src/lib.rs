//! The L4 node proxy as a library; `main.rs` is a thin shell around it.

pub mod app;
pub mod capture;
pub mod cni;
pub mod config;
pub mod leaving;
pub mod metrics;
pub mod netns;
pub mod pods;
pub mod proxy;
pub mod socket;
pub mod workers;

mod access_log;
mod cgroup;
mod connection;
mod dial;
mod failure;
mod inbound;
mod outbound;
mod plaintext;
mod plugin;
mod serve;
mod sessions;
