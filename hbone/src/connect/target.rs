//! Where a tunnel leads: the authority of a CONNECT.

use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::hpack::Put;

/// The longest DNS name.
const MAX_HOST: usize = 253;

/// Where a tunnel leads: an address, or a name that the far side knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address and port; an IPv4 address written as IPv6 counts as the IPv4 it is.
    Addr(SocketAddr),
    /// A host name, in lower case, and port.
    Host {
        /// The name.
        host: Arc<str>,
        /// The port.
        port: u16,
    },
}

/// Why an authority is not a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// No port, zero, or not a number.
    #[error("has no port between 1 and 65535")]
    Port,
    /// Brackets around something that is no IPv6 address, or such an address without them.
    #[error("has an address that cannot be read")]
    Address,
    /// Not a host name.
    #[error("has a host that is no DNS name")]
    Host,
}

// === impl Target ===

impl Target {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self::Addr(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }
}

impl Put for Target {
    fn put(&self, out: &mut impl Write) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.put(out),
            Self::Host { host, port } => {
                out.write_str(host)?;
                write!(out, ":{port}")
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.put(f)
    }
}

impl Put for SocketAddr {
    fn put(&self, out: &mut impl Write) -> fmt::Result {
        let Self::V4(addr) = self else {
            return write!(out, "{self}");
        };
        let (mut text, mut at) = ([0; "255.255.255.255:65535".len()], 0);
        for (octet, after) in addr.ip().octets().into_iter().zip(*b"...:") {
            at = put_digits(&mut text, at, octet.into());
            text[at] = after;
            at += 1;
        }
        at = put_digits(&mut text, at, addr.port());
        out.write_str(std::str::from_utf8(&text[..at]).map_err(|_| fmt::Error)?)
    }
}

/// Writes a number at `at`; where it ends.
fn put_digits(into: &mut [u8], at: usize, number: u16) -> usize {
    let len = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    let mut rest = number;
    for digit in into[at..at + len].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    at + len
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidTarget::Port)?;
        let port = port_of(port)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(InvalidTarget::Address)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_| InvalidTarget::Address)?;
            return Ok(SocketAddr::new(IpAddr::V6(ip), port).into());
        }
        if host.contains(':') {
            return Err(InvalidTarget::Address);
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(SocketAddr::new(IpAddr::V4(ip), port).into());
        }
        check_host(host)?;
        Ok(Self::Host {
            host: Arc::from(host.to_ascii_lowercase()),
            port,
        })
    }
}

/// Digits only: `+80` parses as a number, but is no port.
fn port_of(text: &str) -> Result<u16, InvalidTarget> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidTarget::Port);
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(InvalidTarget::Port),
        Ok(port) => Ok(port),
    }
}

/// A DNS name whose last label is not a number, so that `10.1` or `0x7f.1` is never an address to one
/// reader and a name to another.
fn check_host(host: &str) -> Result<(), InvalidTarget> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.bytes().all(plain);
    let last = host.rsplit('.').next().unwrap_or_default();
    if host.len() > MAX_HOST
        || !host.split('.').all(label)
        || last.starts_with(|c: char| c.is_ascii_digit())
    {
        return Err(InvalidTarget::Host);
    }
    Ok(())
}
