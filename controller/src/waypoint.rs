//! What runs for a Gateway.

pub mod child;
pub mod render;
