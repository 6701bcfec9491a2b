//! What every process of the mesh does around its work.

pub mod admin;
pub mod line_limit;
pub mod metrics;
pub mod readiness;
pub mod shutdown;
pub mod telemetry;
