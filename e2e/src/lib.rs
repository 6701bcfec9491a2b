//! The local cluster, the promises to users kept on it, and the app that the tests talk to.

pub mod apps;
pub mod bench_mesh;
pub mod capture;
pub mod cluster;
pub mod demo;
pub mod echo;
pub mod image;
pub mod images;
pub mod mesh;
pub mod probe;
pub mod replicas;
pub mod soak;
