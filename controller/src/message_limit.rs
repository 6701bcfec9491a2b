//! How long a message may be: known once the caller is, and enforced before the message is gathered in memory.
//!
//! tonic has one bound per service. But a ztunnel that resumes names everything that it knows of a large mesh, and a waypoint
//! of a small one has no reason to send megabytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, Service, http};
use tonic::server::NamedService;
use tonic::{Request, Status};

/// Until the caller is known, and for calls that say nothing else.
const UNKNOWN: usize = 64 << 10;
/// Flag and length, before each message.
const PREFIX: usize = 5;

/// The bound of one call, in its extensions.
#[derive(Debug, Clone)]
pub struct MessageLimit(Arc<AtomicUsize>);

/// A service whose callers' messages are bounded.
#[derive(Debug, Clone)]
pub struct Limited<S>(pub S);

/// A body whose messages are bounded.
struct LimitedBody {
    body: Body,
    at: Position,
    limit: MessageLimit,
}

/// Where in a sequence of messages the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// So much of a prefix is read, and what it says so far of the length.
    Prefix { read: usize, length: u32 },
    /// So much of the message is left.
    Message { left: usize },
}

// === impl MessageLimit ===

impl MessageLimit {
    /// That of this call; nothing is bounded in a call that was made in process.
    pub fn of<T>(request: &Request<T>) -> Option<Self> {
        request.extensions().get().cloned()
    }

    /// The caller is known, and may send so much in one message.
    pub fn allow(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

// === impl Limited ===

impl<S> Service<http::Request<Body>> for Limited<S>
where
    S: Service<http::Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let limit = MessageLimit(Arc::new(AtomicUsize::new(UNKNOWN)));
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(limit.clone());
        let at = Position::START;
        let body = Body::new(LimitedBody { body, at, limit });
        self.0.call(http::Request::from_parts(parts, body))
    }
}

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

// === impl LimitedBody ===

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
            return Poll::Ready(None);
        };
        let limit = self.limit.0.load(Ordering::Relaxed);
        if let Some(data) = frame.data_ref()
            && let Err(length) = self.at.pass(data, limit)
        {
            let text = format!("a message of {length} bytes; this caller's may have {limit}");
            return Poll::Ready(Some(Err(Status::resource_exhausted(text))));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

// === impl Position ===

impl Position {
    const START: Self = Self::Prefix { read: 0, length: 0 };

    /// Passes over these bytes. A prefix that announces more than `limit` is an error: the length.
    fn pass(&mut self, mut data: &[u8], limit: usize) -> Result<(), usize> {
        while let Some((first, rest)) = data.split_first() {
            match *self {
                Self::Prefix { read, length } => {
                    // The first byte is a flag.
                    let length = if read == 0 {
                        0
                    } else {
                        (length << 8) | u32::from(*first)
                    };
                    *self = Self::Prefix {
                        read: read + 1,
                        length,
                    };
                    data = rest;
                }
                Self::Message { left } => {
                    let here = left.min(data.len());
                    *self = Self::Message { left: left - here };
                    data = data.get(here..).unwrap_or_default();
                }
            }
            match *self {
                Self::Prefix {
                    read: PREFIX,
                    length,
                } => {
                    let left = usize::try_from(length).unwrap_or(usize::MAX);
                    if left > limit {
                        return Err(left);
                    }
                    *self = if left == 0 {
                        Self::START
                    } else {
                        Self::Message { left }
                    };
                }
                Self::Message { left: 0 } => *self = Self::START,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).expect("short").to_be_bytes());
        bytes.resize(PREFIX + length, 0xff);
        bytes
    }

    /// How many bytes pass, cut into pieces like these.
    fn passed(bytes: &[u8], pieces: &[usize], limit: usize) -> Result<(), usize> {
        let (mut at, mut rest, mut pieces) = (Position::START, bytes, pieces.iter().cycle());
        while !rest.is_empty() {
            let cut = pieces
                .next()
                .map_or(rest.len(), |piece| rest.len().min(*piece));
            let (piece, left) = rest.split_at(cut);
            at.pass(piece, limit)?;
            rest = left;
        }
        Ok(())
    }

    #[test]
    fn a_length_is_judged_before_its_bytes_come() {
        let mut at = Position::START;
        assert_eq!(at.pass(&[0, 0x0c, 0x80, 0, 0], 1 << 20), Err(200 << 20));
        let mut at = Position::START;
        assert_eq!(at.pass(&[0, 0, 0x10, 0, 0], 1 << 20), Ok(()));
        assert_eq!(at, Position::Message { left: 1 << 20 });
    }

    proptest! {
        /// However it is cut: all messages within the bound pass, and the first beyond it is found with its length.
        #[test]
        fn exactly_what_is_too_long_is_found(
            lengths in prop::collection::vec(0..40_usize, 0..8),
            pieces in prop::collection::vec(1..50_usize, 1..5),
            limit in 0..40_usize,
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let too_long = lengths.iter().copied().find(|length| *length > limit);
            prop_assert_eq!(passed(&bytes, &pieces, limit), too_long.map_or(Ok(()), Err));
        }

        #[test]
        fn any_bytes_end_in_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in any::<usize>()) {
            let _ = passed(&bytes, &[7], limit);
        }
    }
}
