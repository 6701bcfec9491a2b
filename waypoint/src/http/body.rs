//! Bodies that pass through: counted, never held.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use mesh::balance::InFlight;

use crate::access_log::Record;
use crate::budget::Place;
use crate::flags::TERMINATED;
use crate::head::Running;
use crate::upstream::StreamPermit;

/// What the client gets; when it has ended, or is dropped, the request is over and logged.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    payload: Payload,
    /// None after a change of protocol: the request is over when the other protocol is.
    record: Option<Record>,
    /// Given back at the end of the body.
    _held: Option<(InFlight, Option<StreamPermit>)>,
    _place: Option<(Place, Running)>,
}

#[derive(Debug)]
enum Payload {
    /// From an endpoint.
    Upstream(Incoming),
    /// Our own words.
    Text(Option<Bytes>),
}

// === impl ResponseBody ===

impl ResponseBody {
    /// Keeps the request's place until the answer has gone.
    pub(crate) fn hold(&mut self, place: Place, running: Running) {
        self._place = Some((place, running));
    }

    /// An endpoint's answer.
    pub(crate) fn upstream(
        body: Incoming,
        record: Record,
        load: InFlight,
        permit: Option<StreamPermit>,
    ) -> Self {
        Self {
            payload: Payload::Upstream(body),
            record: Some(record),
            _held: Some((load, permit)),
            _place: None,
        }
    }

    /// Of a 101: nothing.
    pub(crate) fn switched() -> Self {
        Self {
            payload: Payload::Text(None),
            record: None,
            _held: None,
            _place: None,
        }
    }

    /// Our own answer.
    pub(crate) fn text(text: impl Into<Bytes>, mut record: Record) -> Self {
        let text = text.into();
        record.sent(text.len() as u64);
        record.complete();
        Self {
            payload: Payload::Text(Some(text).filter(|text| !text.is_empty())),
            record: Some(record),
            _held: None,
            _place: None,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let body = match &mut this.payload {
            Payload::Text(text) => {
                return Poll::Ready(text.take().map(|text| Ok(Frame::data(text))));
            }
            Payload::Upstream(body) => body,
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        let Some(record) = &mut this.record else {
            return Poll::Ready(frame);
        };
        match &frame {
            None => record.complete(),
            Some(Err(error)) => record.failed(TERMINATED, error),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    record.sent(data.remaining() as u64);
                } else if let Some(trailers) = frame.trailers_ref() {
                    record.grpc_status(trailers);
                    record.complete();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.payload {
            Payload::Upstream(body) => body.is_end_stream(),
            Payload::Text(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Upstream(body) => body.size_hint(),
            Payload::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body whose end is known in advance is not asked for it.
        if self.is_end_stream()
            && let Some(record) = &mut self.record
        {
            record.complete();
        }
    }
}
