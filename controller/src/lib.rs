//! The control plane: Kubernetes objects in, mesh configuration and certificates out.

pub mod app;
pub mod ca;
pub mod config;
pub mod desired;
pub mod discovery;
pub mod gateway_api;
pub mod hub;
pub mod index;
pub mod kubernetes;
pub mod metrics;
pub mod position;
pub mod reconcile;
pub mod server;
pub mod status;
pub mod uninstall;
pub mod watch;
pub mod waypoint;
