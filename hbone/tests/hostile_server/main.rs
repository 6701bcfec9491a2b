//! Clients that mean harm or are broken: each is answered by its limit, harms nobody else, and leaves nothing behind.

mod floods;
mod heads;
mod memory;
mod records;
mod slow;
mod tunnels;
mod windows;

#[path = "../support/mod.rs"]
mod support;
