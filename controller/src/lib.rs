//! The control plane: Kubernetes objects in, mesh configuration and certificates out.

pub mod gateway_api;
pub mod index;
