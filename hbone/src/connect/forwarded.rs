//! For whom a tunnel is opened: the `Forwarded` header (RFC 7239) with the members HBONE uses.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use crate::hpack::Put;

/// The longest header we read.
const MAX_BYTES: usize = 1024;

/// The client in whose name somebody asks, and the service host it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// `for`: the client's address.
    pub client: SocketAddr,
    /// `host`: the service's host name.
    pub host: Option<Arc<str>>,
}

/// Why a `forwarded` header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidForwarded {
    /// More than 1024 bytes.
    #[error("is too long")]
    TooLong,
    /// Not a list of `name=value`.
    #[error("is not a list of name=value")]
    Syntax,
    /// No `for`.
    #[error("has no for=")]
    NoClient,
    /// A `for` that is no address.
    #[error("has a for= that is no address")]
    Client,
    /// A member we know came twice.
    #[error("has a member twice")]
    Twice,
}

// === impl Forwarded ===

impl Put for Forwarded {
    fn put(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str("for=\"")?;
        self.client.put(out)?;
        out.write_str("\"")?;
        match self.host.as_deref() {
            Some(host) if !host.is_empty() && host.bytes().all(is_token) => {
                out.write_str(";host=")?;
                out.write_str(host)
            }
            Some(host) => {
                out.write_str(";host=\"")?;
                for c in host.chars().filter(|c| matches!(c, '\t' | ' '..='~')) {
                    if matches!(c, '"' | '\\') {
                        out.write_char('\\')?;
                    }
                    out.write_char(c)?;
                }
                out.write_str("\"")
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.put(f)
    }
}

impl FromStr for Forwarded {
    type Err = InvalidForwarded;

    /// Of several elements the first counts: it is the one nearest the client.
    fn from_str(text: &str) -> Result<Self, InvalidForwarded> {
        if text.len() > MAX_BYTES {
            return Err(InvalidForwarded::TooLong);
        }
        let (mut client, mut host) = (None, None);
        let mut first = true;
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (name, value, after) = pair(rest)?;
            if first && name.eq_ignore_ascii_case("for") {
                once(&mut client, node(&value)?)?;
            } else if first && name.eq_ignore_ascii_case("host") {
                once(&mut host, Arc::from(value))?;
            }
            rest = match after.split_at_checked(1) {
                None => "",
                Some((";", more)) => more,
                Some((",", more)) => {
                    first = false;
                    more
                }
                Some(_) => return Err(InvalidForwarded::Syntax),
            };
            rest = rest.trim_start();
        }
        Ok(Self {
            client: client.ok_or(InvalidForwarded::NoClient)?,
            host,
        })
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), InvalidForwarded> {
    match slot.replace(value) {
        Some(_) => Err(InvalidForwarded::Twice),
        None => Ok(()),
    }
}

/// Splits `name=token` or `name="quoted"` off the front; the third part begins with a separator.
fn pair(text: &str) -> Result<(&str, Cow<'_, str>, &str), InvalidForwarded> {
    let (name, rest) = text.split_once('=').ok_or(InvalidForwarded::Syntax)?;
    let name = name.trim();
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(InvalidForwarded::Syntax);
    }
    let Some(quoted) = rest.strip_prefix('"') else {
        // Stock peers write `host` without quotes, and it may have a port: a colon is let through.
        let end = rest.find(|c: char| !c.is_ascii() || !(is_token(c as u8) || c == ':'));
        let (value, after) = rest.split_at(end.unwrap_or(rest.len()));
        return match value {
            "" => Err(InvalidForwarded::Syntax),
            _ => Ok((name, value.into(), after.trim_start())),
        };
    };
    if let Some(end) = quoted.bytes().position(|b| matches!(b, b'"' | b'\\'))
        && let (value, Some(after)) = (&quoted[..end], quoted[end..].strip_prefix('"'))
    {
        return Ok((name, value.into(), after.trim_start()));
    }
    // With escapes, which nobody needs.
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((name, value.into(), quoted[at + 1..].trim_start())),
            '\\' => value.push(chars.next().ok_or(InvalidForwarded::Syntax)?.1),
            _ => value.push(c),
        }
    }
    Err(InvalidForwarded::Syntax)
}

/// `ip:port`, `[v6]:port`, or either without a port, which then is 0.
fn node(text: &str) -> Result<SocketAddr, InvalidForwarded> {
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(canonical(addr));
    }
    let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let ip = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6),
        None => text.parse::<IpAddr>(),
    };
    Ok(canonical(SocketAddr::new(
        ip.map_err(|_| InvalidForwarded::Client)?,
        0,
    )))
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}
