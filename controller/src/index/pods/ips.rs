//! A pod's addresses: nearly always one, which needs no place of its own.

use std::net::IpAddr;
use std::ops::Deref;

/// The addresses, in the order of the pod's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::index) enum Ips {
    One([IpAddr; 1]),
    Others(Box<[IpAddr]>),
}

// === impl Ips ===

impl From<Vec<IpAddr>> for Ips {
    fn from(all: Vec<IpAddr>) -> Self {
        match all[..] {
            [one] => Self::One([one]),
            _ => Self::Others(all.into()),
        }
    }
}

impl Deref for Ips {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match self {
            Self::One(one) => one,
            Self::Others(all) => all,
        }
    }
}
