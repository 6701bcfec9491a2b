//! The words on which ztunnel, waypoint and controller must agree.

pub mod names;
pub mod proto;
pub mod route;
pub mod xds;
