//! Plain TCP: lines that say who answers, then every byte back, until the client has said its last.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::echo::report::{Accepted, Lines};

const BUFFER: usize = 64 << 10;

/// Serves one connection. The lines come with the first byte of the client, or before it if `server_first`.
pub(super) async fn serve<S>(
    mut stream: S,
    accepted: &Accepted,
    server_first: bool,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER];
    let mut introduced = false;
    if server_first {
        introduce(&mut stream, accepted).await?;
        introduced = true;
    }
    loop {
        let n = stream.read(&mut buffer).await?;
        if !introduced {
            introduce(&mut stream, accepted).await?;
            introduced = true;
        }
        match buffer.get(..n) {
            Some([]) | None => return stream.shutdown().await,
            Some(bytes) => {
                stream.write_all(bytes).await?;
                stream.flush().await?;
            }
        }
    }
}

/// `Hostname=` is always the last of these lines.
async fn introduce(stream: &mut (impl AsyncWrite + Unpin), accepted: &Accepted) -> io::Result<()> {
    let mut lines = Lines::default();
    lines.add("StatusCode", "200");
    lines.add("ServiceVersion", &accepted.server.version);
    lines.add("ServicePort", accepted.port.to_string());
    lines.add("IP", accepted.peer.to_string());
    lines.add("Hostname", &accepted.server.hostname);
    stream.write_all(lines.into_text().as_bytes()).await?;
    stream.flush().await
}
