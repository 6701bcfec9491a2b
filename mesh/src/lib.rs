//! The words on which ztunnel, waypoint and controller must agree.

pub mod proto;
pub mod xds;
