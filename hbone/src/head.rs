//! A header block as a CONNECT, its answer or its trailers; what is malformed by RFC 9113 §8 is not read.

use http::{Method, StatusCode};

use crate::connect::{Fields, InvalidConnect, InvalidTarget, Refusal, Request, Response, Target};
use crate::frame::Broken;
use crate::hpack::Decoder;
use crate::limits::{MAX_FIELDS, MAX_HEADER_LIST};

#[cfg(test)]
mod tests;

/// What a field counts besides its bytes (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;

/// Why a header block is no head for us.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    /// The connection cannot go on.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The stream ends with PROTOCOL_ERROR.
    #[error("{0}")]
    Malformed(&'static str),
    /// Decoded, it is more than [`MAX_HEADER_LIST`] or [`MAX_FIELDS`]: status 431.
    #[error("the header list is too large")]
    TooLarge,
    /// Good HTTP, but not a CONNECT that we understand: status 400. Of an answer: what it says about
    /// the destination cannot be read.
    #[error(transparent)]
    Refused(#[from] InvalidConnect),
}

/// What a server answers to a CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The tunnel is open.
    Opened(Response),
    /// It is not.
    Refused(Refusal),
    /// A 1xx: the answer is still to come.
    Interim,
}

/// Reads a request's head.
pub(crate) fn request(decoder: &mut Decoder, block: &[u8]) -> Result<Request, HeadError> {
    let (mut control, mut fields) = (RequestControl::default(), Fields::default());
    read(decoder, block, Te::Trailers, |name, value| {
        match name {
            [b':', ..] => return control.take(name, value),
            b"host" => return control.host(value),
            _ => fields.take(name, value),
        }
        Ok(())
    })?;
    Ok(fields.request(control.finish()?)?)
}

/// Reads an answer's head.
pub(crate) fn response(decoder: &mut Decoder, block: &[u8]) -> Result<Answer, HeadError> {
    let (mut status, mut fields) = (None, Fields::default());
    read(decoder, block, Te::Never, |name, value| {
        match name {
            b":status" => return once(&mut status, status_of(value)?),
            [b':', ..] => return Err("an answer has another pseudo-header than :status"),
            _ => fields.take(name, value),
        }
        Ok(())
    })?;
    let status = status.ok_or(HeadError::Malformed("an answer has no :status"))?;
    if status.is_informational() {
        return Ok(Answer::Interim);
    }
    if !status.is_success() {
        return Ok(Answer::Refused(fields.refusal(status)));
    }
    Ok(Answer::Opened(fields.response()?))
}

/// Reads trailers, of which we want nothing but that they are well formed.
pub(crate) fn trailers(decoder: &mut Decoder, block: &[u8]) -> Result<(), HeadError> {
    read(decoder, block, Te::Never, |name, _| match name {
        [b':', ..] => Err("trailers have a pseudo-header"),
        _ => Ok(()),
    })
}

/// Decodes a block to its end, so that the table stays right, and gives `take` its good fields until one
/// is not.
fn read(
    decoder: &mut Decoder,
    block: &[u8],
    te: Te,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), &'static str>,
) -> Result<(), HeadError> {
    let (mut size, mut count, mut regular) = (0usize, 0usize, false);
    let mut bad = None;
    decoder.decode(block, |name, value| {
        if matches!(bad, Some(HeadError::TooLarge)) {
            return;
        }
        size += name.len() + value.len() + FIELD_OVERHEAD;
        count += 1;
        if size > MAX_HEADER_LIST as usize || count > MAX_FIELDS {
            bad = Some(HeadError::TooLarge);
            return;
        }
        if bad.is_none() {
            let good = check(name, value, te, &mut regular).and_then(|()| take(name, value));
            bad = good.err().map(HeadError::Malformed);
        }
    })?;
    bad.map_or(Ok(()), Err)
}

/// Where `te: trailers` may stand (RFC 9113 §8.2.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Te {
    Trailers,
    Never,
}

/// The rules for every field (RFC 9113 §8.2, 8.3).
fn check(name: &[u8], value: &[u8], te: Te, regular: &mut bool) -> Result<(), &'static str> {
    let word = match name {
        [b':', ..] if *regular => return Err("a pseudo-header follows other fields"),
        [b':', word @ ..] => word,
        _ => {
            *regular = true;
            name
        }
    };
    if word.is_empty() || !word.iter().all(|b| NAME[usize::from(*b)]) {
        return Err("a field name has characters that it must not");
    }
    // Every byte is looked at, so that many are at once.
    let bad = |b: &u8| (*b < b' ' && *b != b'\t') | (*b == 0x7f);
    if value.iter().fold(false, |any, b| any | bad(b)) {
        return Err("a field value has characters that it must not");
    }
    if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value {
        return Err("a field value begins or ends with a space");
    }
    match name {
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            Err("a field is about the connection, which HTTP/2 does not have")
        }
        b"te" if te == Te::Never || !value.eq_ignore_ascii_case(b"trailers") => {
            Err("te is there and is not just trailers in a request")
        }
        _ => Ok(()),
    }
}

/// The characters of a field name: those of a token, without upper case.
const NAME: [bool; 256] = {
    let mut name = [false; 256];
    let mut at = 0;
    while at < 256 {
        let b = at as u8;
        name[at] = b.is_ascii_lowercase()
            || b.is_ascii_digit()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        at += 1;
    }
    name
};

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match slot.replace(value) {
        Some(_) => Err("a pseudo-header came twice"),
        None => Ok(()),
    }
}

/// Three digits; HTTP/2 has no 101 (RFC 9113 §8.6).
fn status_of(value: &[u8]) -> Result<StatusCode, &'static str> {
    match StatusCode::from_bytes(value) {
        Ok(StatusCode::SWITCHING_PROTOCOLS) => Err("an answer has status 101"),
        Ok(status) => Ok(status),
        Err(_) => Err("a :status is not a number of three digits"),
    }
}

/// What says where a request goes.
#[derive(Default)]
struct RequestControl {
    method: Option<Method>,
    scheme: Option<()>,
    path: Option<()>,
    authority: Option<Result<Target, InvalidTarget>>,
    host: Option<Result<Target, InvalidTarget>>,
}

// === impl RequestControl ===

impl RequestControl {
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match name {
            b":method" => match Method::from_bytes(value) {
                Ok(method) => once(&mut self.method, method),
                Err(_) => Err("a :method is not a word"),
            },
            b":authority" => once(&mut self.authority, target(value)),
            b":scheme" => once(&mut self.scheme, ()),
            b":path" if value.is_empty() => Err("a :path is empty"),
            b":path" => once(&mut self.path, ()),
            _ => Err("a request has a pseudo-header that nobody knows"),
        }
    }

    /// It comes after `:authority`, and must say the same.
    fn host(&mut self, value: &[u8]) -> Result<(), &'static str> {
        let host = target(value);
        match &self.host {
            Some(before) if *before != host => Err("host came twice"),
            _ => {
                self.host = Some(host);
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Target, HeadError> {
        let malformed = |what| Err(HeadError::Malformed(what));
        match self.method {
            None => return malformed("a request has no :method"),
            Some(Method::CONNECT) => {}
            Some(_) if self.scheme.is_none() || self.path.is_none() => {
                return malformed("a request has no :scheme or :path");
            }
            Some(method) => return Err(InvalidConnect::Method(method).into()),
        }
        if self.scheme.is_some() || self.path.is_some() {
            return malformed("a CONNECT has a :scheme or :path");
        }
        let Some(authority) = self.authority else {
            return malformed("a CONNECT has no :authority");
        };
        let target = authority.map_err(InvalidConnect::Target)?;
        match self.host {
            Some(host) if host.as_ref() != Ok(&target) => malformed("host is not the :authority"),
            _ => Ok(target),
        }
    }
}

/// What is not text is no host name either.
fn target(value: &[u8]) -> Result<Target, InvalidTarget> {
    std::str::from_utf8(value)
        .map_err(|_| InvalidTarget::Host)?
        .parse()
}
