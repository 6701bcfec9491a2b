//! What hostile tenants, nodes and strangers try against the control plane, and what must come of it.

mod callers;
mod shop;

#[path = "probes/floods.rs"]
mod floods;
#[path = "probes/identities.rs"]
mod identities;
#[path = "probes/slices.rs"]
mod slices;
