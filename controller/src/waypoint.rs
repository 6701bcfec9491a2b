//! What runs for a Gateway.

pub mod render;
