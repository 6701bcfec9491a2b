//! One tunnel and one application's socket: bytes both ways, ends passed on exactly.
//!
//! Memory is bounded by flow control in both directions: nothing is read from the application
//! without room in the tunnel, and the far side gets window back only for bytes that the
//! application's socket has taken.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::copy::{Chunk, Socket, failed, poll_once};
use crate::stream::{Halves, poll_chunk, poll_reset, poll_room, taken};
use crate::{Ended, Meter};

/// A read that fills less than this part of its buffer is copied out of it, so that many small
/// messages waiting for the tunnel do not each hold a large buffer.
const SMALL: usize = 4;

pub(crate) async fn run(mut halves: Halves, app: TcpStream, meter: &Meter) -> Ended {
    let mut app = Socket::new(app);
    let ended = if let Some(recv) = &mut halves.recv {
        let (mut read, mut write) = app.split();
        let sent_end = Cell::new(false);
        let mut received_end = false;
        let mut up = pin!(uplink(&mut read, &mut halves.send, &sent_end, meter));
        let mut down = pin!(downlink(recv, &mut write, meter));
        poll_fn(|cx| {
            // First what has arrived, then whether a reset came after it.
            if !received_end {
                match down.as_mut().poll(cx) {
                    Poll::Ready(Ok(())) => received_end = true,
                    Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                    Poll::Pending => {}
                }
            }
            if let Poll::Ready(ended) = up.as_mut().poll(cx) {
                return Poll::Ready(match ended {
                    Ended::Peer(error) if received_end && error.is_farewell() => Ended::Finished,
                    ended => ended,
                });
            }
            match sent_end.get() && received_end {
                true => Poll::Ready(Ended::Finished),
                false => Poll::Pending,
            }
        })
        .await
    } else {
        Ended::Finished
    };
    if matches!(ended, Ended::Finished) {
        app.finish();
        (halves.sent_end, halves.received_end) = (true, true);
    }
    ended
}

/// Application to tunnel. Sets `ended` after END_STREAM and then waits for a failure of either side.
async fn uplink(
    app: &mut ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    ended: &Cell<bool>,
    meter: &Meter,
) -> Ended {
    let mut chunk = Chunk::new();
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            biased;
            ready = app.readable() => match ready {
                Ok(()) => {}
                Err(error) => return Ended::App(error),
            },
            error = failed(app) => return Ended::App(error),
            error = poll_fn(|cx| poll_reset(send, cx)) => return Ended::Peer(error),
        }
        let want = chunk.size();
        let room = tokio::select! {
            biased;
            room = poll_fn(|cx| poll_room(send, cx, want)) => match room {
                Ok(room) => room,
                Err(error) => return Ended::Peer(error),
            },
            error = failed(app) => return Ended::App(error),
        };
        match read(app, &mut buffer, room).await {
            Ok(Some(bytes)) if bytes.is_empty() => break,
            Ok(Some(bytes)) => {
                let n = bytes.len();
                if let Err(error) = send.send_data(bytes, false) {
                    return Ended::Peer(crate::Error::from_h2(&error));
                }
                meter.add_sent(n);
                chunk.grow(n);
            }
            Ok(None) => {}
            Err(error) => return Ended::App(error),
        }
        // Room of the connection that is not used now belongs to other streams.
        send.reserve_capacity(0);
    }
    drop(buffer);
    if let Err(error) = send.send_data(Bytes::new(), true) {
        return Ended::Peer(crate::Error::from_h2(&error));
    }
    ended.set(true);
    tokio::select! {
        error = failed(app) => Ended::App(error),
        error = poll_fn(|cx| poll_reset(send, cx)) => Ended::Peer(error),
    }
}

/// Reads up to `room` bytes: nothing where none are there after all, empty at the end.
async fn read(
    app: &mut ReadHalf<'_>,
    buffer: &mut Vec<u8>,
    room: usize,
) -> io::Result<Option<Bytes>> {
    buffer.resize(room, 0);
    let Some(n) = poll_fn(|cx| poll_once(app, cx, buffer)).await? else {
        *buffer = Vec::new();
        return Ok(None);
    };
    if n * SMALL < buffer.len() {
        let bytes = Bytes::copy_from_slice(&buffer[..n]);
        *buffer = Vec::new(); // an idle connection holds no buffer
        return Ok(Some(bytes));
    }
    buffer.truncate(n);
    Ok(Some(Bytes::from(std::mem::take(buffer))))
}

/// Tunnel to application.
async fn downlink(
    recv: &mut RecvStream,
    app: &mut WriteHalf<'_>,
    meter: &Meter,
) -> Result<(), Ended> {
    while let Some(chunk) = poll_fn(|cx| poll_chunk(recv, cx))
        .await
        .map_err(Ended::Peer)?
    {
        app.write_all(&chunk).await.map_err(Ended::App)?;
        meter.add_received(chunk.len());
        taken(recv, chunk.len());
    }
    app.shutdown().await.map_err(Ended::App)
}
