//! Listening on every address of the machine, also on one that knows no IPv6.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that the kernel keeps until we accept them; it cuts this to its own bound. Many, so that a flood is met by
/// our own rules about who goes first.
const BACKLOG: i32 = 4096;

/// Listens here; `[::]` means IPv4 too, and only that where there is no IPv6.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = or_ipv4(address, bind)?;
    TcpListener::from_std(listener.into())
}

/// A kernel that was started with `ipv6.disable=1` has no such sockets at all; one whose interfaces have it disabled, no
/// such addresses.
fn or_ipv4<L>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<L>) -> io::Result<L> {
    match bind(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && lacks_ipv6(&error) => {
            tracing::info!(%address, "no IPv6 here; listening on IPv4 only");
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        outcome => outcome,
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // Whatever the machine's default is.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that answers IPv6 sockets with this error.
    fn without_ipv6(errno: i32) -> impl Fn(SocketAddr) -> io::Result<SocketAddr> {
        move |address| match address {
            SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(errno)),
            SocketAddr::V4(_) => Ok(address),
        }
    }

    #[test]
    fn where_there_is_no_ipv6_every_port_is_still_served() {
        for port in [15012, 15020, 15021] {
            for errno in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL] {
                let any: SocketAddr = format!("[::]:{port}").parse().expect("an address");
                let bound = or_ipv4(any, without_ipv6(errno)).expect("served");
                assert_eq!(bound.to_string(), format!("0.0.0.0:{port}"));
            }
        }
    }

    #[test]
    fn other_failures_and_other_addresses_are_not_hidden() {
        let any: SocketAddr = "[::]:1".parse().expect("an address");
        let in_use = or_ipv4(any, without_ipv6(libc::EADDRINUSE));
        assert_eq!(
            in_use.expect_err("in use").raw_os_error(),
            Some(libc::EADDRINUSE)
        );
        let one: SocketAddr = "[::1]:1".parse().expect("an address");
        assert!(or_ipv4(one, without_ipv6(libc::EAFNOSUPPORT)).is_err());
    }

    #[tokio::test]
    async fn any_address_means_ipv4_too() {
        let any: SocketAddr = "[::]:0".parse().expect("an address");
        let listener = listen(any).expect("served");
        let port = listener.local_addr().expect("an address").port();
        let connected = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        assert!(connected.is_ok(), "{connected:?}");
    }
}
