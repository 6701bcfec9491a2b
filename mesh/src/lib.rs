//! The domain model that ztunnel, waypoint and controller share, and the decisions that are made from it.

mod backoff;
pub mod balance;
pub mod ca;
pub mod certs;
pub mod control;
pub mod enrolment;
pub mod intern;
pub mod names;
pub mod party;
pub mod pod;
pub mod ports;
pub mod process;
pub mod proto;
pub mod revocations;
pub mod route;
#[cfg(test)]
mod sample;
pub mod service;
pub mod skew;
pub mod unproven;
pub mod verdict;
pub mod workload;
pub mod world;
pub mod xds;
