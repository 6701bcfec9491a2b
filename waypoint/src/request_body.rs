//! A client's body on its way to an endpoint: counted, never held.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::head::Running;

/// The client's body on its way to an endpoint.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// None: empty.
    inner: Option<Incoming>,
    bytes: Rc<Cell<u64>>,
    /// As long as the client has not said all, what it says is not another request.
    _running: Option<Running>,
}

// === impl RequestBody ===

impl RequestBody {
    pub(crate) fn new(inner: Incoming, bytes: Rc<Cell<u64>>, running: Running) -> Self {
        Self {
            inner: Some(inner),
            bytes,
            _running: Some(running),
        }
    }

    /// Of a request that is sent once more: it had none.
    pub(crate) fn empty() -> Self {
        Self {
            inner: None,
            bytes: Rc::default(),
            _running: None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.bytes.set(self.bytes.get() + data.remaining() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
