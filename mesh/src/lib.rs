//! The words on which ztunnel, waypoint and controller must agree.

mod backoff;
pub mod balance;
pub mod ca;
pub mod certs;
pub mod control;
pub mod enrolment;
pub mod intern;
pub mod names;
pub mod process;
pub mod proto;
pub mod route;
pub mod service;
pub mod skew;
pub mod workload;
pub mod world;
pub mod xds;
