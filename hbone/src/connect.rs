//! The head of a CONNECT: what is asked, for whom, and how a refusal is told; whole or refused.

use std::borrow::Cow;
use std::fmt;

use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

pub use baggage::{Baggage, InvalidBaggage};
pub use forwarded::{Forwarded, InvalidForwarded};
pub use target::{InvalidTarget, Target};
pub use trace::{InvalidTraceParent, TraceParent};

pub(crate) use fields::Fields;

mod baggage;
mod fields;
mod forwarded;
mod target;
mod trace;

use crate::hpack::{Encoder, Put, index};

const FORWARDED: &str = "forwarded";
const BAGGAGE: &str = "baggage";
const TRACEPARENT: &str = "traceparent";
const SOURCE: &str = "x-istio-source";
const REFUSAL: &str = "x-ambit-refusal";
const REASON: &str = "x-ambit-reason";

/// The longest machine code of a refusal.
const MAX_CODE: usize = 64;

/// The longest sentence of a refusal, before escaping; what is longer is cut.
const MAX_REASON: usize = 512;

/// What a reason may not carry as it is.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// Bytes of a block that are reserved at once: ours take about 450.
const USUAL_REQUEST: usize = 512;

/// The same for answers.
const USUAL_RESPONSE: usize = 256;

/// The head of a CONNECT request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the bytes shall go.
    pub target: Target,
    /// Who the client was, where somebody asks in its name.
    pub forwarded: Option<Forwarded>,
    /// What the source says about itself, for telemetry only.
    pub baggage: Baggage,
    /// The trace it belongs to.
    pub traceparent: Option<TraceParent>,
    /// Which kind of proxy asks, where it is not a workload itself.
    pub source: Option<SourceKind>,
}

/// The head of an accepted CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// What the destination says about itself, for telemetry only.
    pub baggage: Baggage,
}

/// A refused CONNECT: a status, a stable code for machines and a sentence for people.
///
/// Both travel as `x-ambit-refusal` and `x-ambit-reason`, so that the client's log names the cause.
/// A peer that knows neither yields the code `http_<status>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status; never a success.
    pub status: StatusCode,
    /// A stable word: lower-case letters, digits, `_`, `-`, `.`.
    pub code: Cow<'static, str>,
    /// A sentence.
    pub reason: String,
}

/// Which kind of proxy opened a tunnel (`x-istio-source`), in its own words: any peer can say so. Whoever lifts a check for a
/// kind asks for the proved identity of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// L7 policy of the destination has been applied already.
    Waypoint,
    /// An ingress.
    Gateway,
    /// A sidecar.
    Sidecar,
}

/// Why a CONNECT head is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConnect {
    /// Another method.
    #[error("the method is {0}, not CONNECT")]
    Method(Method),
    /// No authority, or one with more than host and port.
    #[error("the authority {0}")]
    Target(#[from] InvalidTarget),
    /// The `forwarded` header.
    #[error("the forwarded header {0}")]
    Forwarded(#[from] InvalidForwarded),
    /// The `baggage` header.
    #[error("the baggage header {0}")]
    Baggage(#[from] InvalidBaggage),
    /// The `traceparent` header.
    #[error("the traceparent header {0}")]
    TraceParent(#[from] InvalidTraceParent),
    /// A header that must come once came twice.
    #[error("the header {0} came more than once")]
    Twice(&'static str),
    /// A header that must be text is not.
    #[error("the header {0} is not text")]
    NotText(&'static str),
}

// === impl Request ===

impl Request {
    /// Asks for `target` and says nothing else.
    pub fn to(target: Target) -> Self {
        Self {
            target,
            forwarded: None,
            baggage: Baggage::default(),
            traceparent: None,
            source: None,
        }
    }

    /// As a header block.
    pub(crate) fn to_block(&self) -> Vec<u8> {
        let mut block = Encoder::new(USUAL_REQUEST);
        block.indexed_name(index::METHOD, "CONNECT");
        block.indexed_name(index::AUTHORITY, &self.target);
        if let Some(forwarded) = &self.forwarded {
            block.field(FORWARDED, forwarded);
        }
        if let Some(baggage) = self.baggage.encode() {
            block.field(BAGGAGE, &*baggage);
        }
        if let Some(trace) = &self.traceparent {
            block.field(TRACEPARENT, trace);
        }
        if let Some(source) = self.source {
            block.field(SOURCE, source.as_str());
        }
        block.finish()
    }
}

// === impl Response ===

impl Response {
    /// As a header block.
    pub(crate) fn to_block(&self) -> Vec<u8> {
        let mut block = Encoder::new(USUAL_RESPONSE);
        block.status(StatusCode::OK);
        if let Some(baggage) = self.baggage.encode() {
            block.field(BAGGAGE, &*baggage);
        }
        block.finish()
    }
}

// === impl Refusal ===

impl Refusal {
    /// A refusal with its status, code and sentence.
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            reason: reason.into(),
        }
    }

    /// As a header block.
    pub(crate) fn to_block(&self) -> Vec<u8> {
        let mut block = Encoder::new(USUAL_RESPONSE);
        // A refusal with a success status would open the tunnel it refuses, and one with 1xx would be
        // no answer yet.
        let status = if self.status.is_success() || self.status.is_informational() {
            StatusCode::FORBIDDEN
        } else {
            self.status
        };
        block.status(status);
        if is_code(&self.code) {
            block.field(REFUSAL, &*self.code);
        }
        block.field(REASON, &Escaped(cut(&self.reason)));
        block.finish()
    }
}

impl From<&InvalidConnect> for Refusal {
    fn from(invalid: &InvalidConnect) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_connect",
            invalid.to_string(),
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): {}",
            self.status.as_u16(),
            self.code,
            self.reason
        )
    }
}

// === impl SourceKind ===

impl SourceKind {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
            Self::Sidecar => "sidecar",
        }
    }

    /// An unknown kind counts as none.
    fn named(word: &str) -> Option<Self> {
        [Self::Waypoint, Self::Gateway, Self::Sidecar]
            .into_iter()
            .find(|k| k.as_str() == word)
    }
}

/// A reason as it travels; a field value must not begin or end with a space.
struct Escaped<'a>(&'a str);

// === impl Escaped ===

impl Put for Escaped<'_> {
    fn put(&self, out: &mut impl fmt::Write) -> fmt::Result {
        let (before, text) = match self.0.strip_prefix(' ') {
            Some(text) => ("%20", text),
            None => ("", self.0),
        };
        let (text, after) = match text.strip_suffix(' ') {
            Some(text) => (text, "%20"),
            None => (text, ""),
        };
        out.write_str(before)?;
        for piece in utf8_percent_encode(text, ESCAPED) {
            out.write_str(piece)?;
        }
        out.write_str(after)
    }
}

fn is_code(code: &str) -> bool {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
    !code.is_empty() && code.len() <= MAX_CODE && code.bytes().all(plain)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON)]
}

#[cfg(test)]
mod tests;
