//! Bytes both ways between two streams: each direction ends on its own, a failure of one ends both.

use std::io;

use hbone::Meter;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Buffer of each direction.
const BUFFER: usize = 16 << 10;

/// Copies until both directions have ended. Where one fails both streams are dropped, which resets tunnels.
///
/// Bytes from the client count as received, bytes to it as sent.
pub(crate) async fn pipe(
    client: impl AsyncRead + AsyncWrite,
    endpoint: impl AsyncRead + AsyncWrite,
    meter: &Meter,
) -> io::Result<()> {
    let (client_read, client_write) = tokio::io::split(client);
    let (endpoint_read, endpoint_write) = tokio::io::split(endpoint);
    let up = one_way(client_read, endpoint_write, |n| meter.add_received(n));
    let down = one_way(endpoint_read, client_write, |n| meter.add_sent(n));
    tokio::try_join!(up, down).map(|_| ())
}

/// Gives both halves back, so that neither stream is dropped before the other direction has ended.
async fn one_way<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut from: R,
    mut to: W,
    count: impl Fn(usize),
) -> io::Result<(R, W)> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            to.shutdown().await?;
            return Ok((from, to));
        }
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
        count(n);
    }
}
