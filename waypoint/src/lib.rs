//! The L7 proxy: takes the tunnels of clients, routes their requests, and sends them on through tunnels.

mod access_log;
pub mod app;
mod balance;
mod budget;
pub mod config;
mod cut;
mod exec;
mod flags;
mod head;
mod http;
mod leases;
pub mod limits;
mod listener;
pub mod lookups;
pub mod metrics;
mod opaque;
mod pipe;
pub mod proxy;
mod request_body;
mod routed;
pub mod serve;
mod session;
mod upstream;
