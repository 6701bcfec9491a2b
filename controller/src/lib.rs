//! The control plane: Kubernetes objects in, mesh configuration and certificates out.

pub mod app;
pub mod ca;
pub mod config;
pub mod connection;
pub mod discovery;
pub mod gateway_api;
pub mod hub;
pub mod index;
pub mod kubernetes;
pub mod lease;
pub mod listen;
pub mod message_limit;
pub mod metrics;
pub mod position;
pub mod rate;
pub mod reconcile;
pub mod server;
mod text;
pub mod uninstall;
pub mod watch;
pub mod waypoint;
