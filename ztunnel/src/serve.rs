//! A pod's listeners on one core, and who serves what they accept.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::{
    inbound, outbound, plaintext,
    proxy::{Proxy, Serving, Shared},
    socket,
};

/// A pod's listeners for one core.
#[derive(Debug)]
pub struct Listeners {
    /// Captured connections that leave.
    pub outbound: StdListener,
    /// Captured plaintext that arrives.
    pub plaintext: StdListener,
    /// Tunnels that arrive.
    pub tunnel: StdListener,
}

/// Starts to serve a pod on this core; `cores` is how many share the pod.
pub(crate) fn start(
    serving: Arc<Serving>,
    shared: Arc<Shared>,
    listeners: Listeners,
    cores: usize,
) -> io::Result<Rc<Proxy>> {
    let outbound = TcpListener::from_std(listeners.outbound)?;
    let plaintext = TcpListener::from_std(listeners.plaintext)?;
    let tunnel = TcpListener::from_std(listeners.tunnel)?;
    let proxy = Proxy::new(serving, shared, cores);
    accept(&proxy, outbound, outbound::serve);
    accept(&proxy, plaintext, plaintext::serve);
    accept(&proxy, tunnel, inbound::serve);
    Ok(proxy)
}

/// The accept loop of one listener.
fn accept<F>(
    proxy: &Rc<Proxy>,
    listener: TcpListener,
    serve: fn(Rc<Proxy>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let proxy = proxy.clone();
    let start = move |proxy: &Rc<Proxy>, stream: TcpStream, peer| {
        proxy.serving.accepted();
        // Not worth refusing a connection for. Small messages do not wait: `hbone` sees to that.
        let _ = socket::keepalive(&stream);
        proxy.spawn(serve(proxy.clone(), stream, socket::canonical(peer)));
    };
    proxy.clone().spawn_loop(async move {
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => start(&proxy, stream, peer),
                    Err(error) => back_off(&error).await,
                },
                () = proxy.closing() => break,
            }
        }
        // Whoever was led here before redirection ended is still served.
        if let Ok(listener) = listener.into_std() {
            while let Ok((stream, peer)) = listener.accept() {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    start(&proxy, stream, peer);
                }
            }
        }
    });
}

/// A connection that failed in the queue is nothing to wait for; running out of something is.
async fn back_off(error: &io::Error) {
    use nix::errno::Errno;
    let exhausted = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    if error
        .raw_os_error()
        .is_some_and(|e| exhausted.contains(&Errno::from_raw(e)))
    {
        tracing::warn!(%error, "cannot accept connections for now");
        sleep(ACCEPT_BACKOFF).await;
    }
}

/// Long enough not to spin, short enough for the clients in the queue.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn size<F>(_: fn(Rc<Proxy>, TcpStream, SocketAddr) -> F) -> usize {
        size_of::<F>()
    }

    /// What an idle connection costs, besides its sockets.
    #[test]
    fn a_connection_is_small() {
        let sizes = [
            size(outbound::serve),
            size(plaintext::serve),
            size(inbound::serve),
        ];
        let most = [1 << 10, 2304, 1 << 10];
        assert!(
            sizes.iter().zip(most).all(|(size, most)| *size <= most),
            "{sizes:?}"
        );
    }
}
