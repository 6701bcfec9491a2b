//! The words on which ztunnel, waypoint and controller must agree.

mod backoff;
pub mod ca;
pub mod certs;
pub mod control;
pub mod names;
pub mod process;
pub mod proto;
pub mod route;
pub mod xds;
