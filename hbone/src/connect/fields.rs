//! The fields of a head that say something to us, taken as they are decoded.

use std::borrow::Cow;
use std::str::FromStr;

use http::StatusCode;
use percent_encoding::percent_decode;

use super::{
    BAGGAGE, FORWARDED, Forwarded, InvalidConnect, REASON, REFUSAL, Refusal, Request, Response,
    SOURCE, SourceKind, TRACEPARENT, Target, TraceParent, baggage, cut, is_code,
};

/// What was said so far. The first thing that cannot be read is kept: a refusal is read all the same.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    forwarded: Option<Forwarded>,
    baggage: baggage::Reading,
    traceparent: Option<TraceParent>,
    /// The inner one is none where the word is unknown.
    source: Option<Option<SourceKind>>,
    code: Option<String>,
    reason: Option<String>,
    invalid: Option<InvalidConnect>,
}

// === impl Fields ===

impl Fields {
    /// Takes a field; unknown ones say nothing.
    pub(crate) fn take(&mut self, name: &[u8], value: &[u8]) {
        if let Err(invalid) = self.read(name, value) {
            self.invalid.get_or_insert(invalid);
        }
    }

    fn read(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidConnect> {
        match std::str::from_utf8(name).unwrap_or_default() {
            FORWARDED => parse(&mut self.forwarded, FORWARDED, value)?,
            TRACEPARENT => parse(&mut self.traceparent, TRACEPARENT, value)?,
            BAGGAGE => self.baggage.add(text(value, BAGGAGE)?)?,
            SOURCE => {
                let kind = SourceKind::named(text(value, SOURCE)?);
                once(&mut self.source, SOURCE, kind)?;
            }
            REFUSAL if self.code.is_none() => {
                self.code = std::str::from_utf8(value).ok().map(str::to_owned);
            }
            REASON if self.reason.is_none() => {
                let text = percent_decode(value).decode_utf8_lossy();
                // It goes into logs: no line breaks and the like from a peer.
                let plain = cut(&text).chars().filter(|c| !c.is_control()).collect();
                self.reason = Some(plain);
            }
            _ => {}
        }
        Ok(())
    }

    /// As a request for `target`, whole or not at all.
    pub(crate) fn request(self, target: Target) -> Result<Request, InvalidConnect> {
        match self.invalid {
            Some(invalid) => Err(invalid),
            None => Ok(Request {
                target,
                forwarded: self.forwarded,
                baggage: self.baggage.finish(),
                traceparent: self.traceparent,
                source: self.source.flatten(),
            }),
        }
    }

    /// As an answer that opens the tunnel.
    pub(crate) fn response(self) -> Result<Response, InvalidConnect> {
        match self.invalid {
            Some(invalid) => Err(invalid),
            None => Ok(Response {
                baggage: self.baggage.finish(),
            }),
        }
    }

    /// As a refusal; what cannot be read of it is made up from the status.
    pub(crate) fn refusal(self, status: StatusCode) -> Refusal {
        let code = self.code.filter(|code| is_code(code));
        Refusal {
            status,
            code: match code {
                Some(code) => Cow::Owned(code),
                None => Cow::Owned(format!("http_{}", status.as_u16())),
            },
            reason: self
                .reason
                .unwrap_or_else(|| format!("the peer answered {status} without a reason")),
        }
    }
}

fn parse<T: FromStr>(
    slot: &mut Option<T>,
    name: &'static str,
    value: &[u8],
) -> Result<(), InvalidConnect>
where
    InvalidConnect: From<T::Err>,
{
    let value = text(value, name)?.parse()?;
    once(slot, name, value)
}

fn once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), InvalidConnect> {
    match slot.replace(value) {
        Some(_) => Err(InvalidConnect::Twice(name)),
        None => Ok(()),
    }
}

fn text<'a>(value: &'a [u8], name: &'static str) -> Result<&'a str, InvalidConnect> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.is_ascii())
        .ok_or(InvalidConnect::NotText(name))
}
