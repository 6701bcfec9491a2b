//! The L4 node proxy as a library; `main.rs` is a thin shell around it.

pub mod cni;
pub mod pods;
pub mod socket;
