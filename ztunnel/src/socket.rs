//! What the kernel must be told about sockets: original destination, marks, spoofed sources, keepalive.
//!
//! Everything here is synchronous and makes its sockets in the calling thread's network namespace: wrap it
//! in [`PodNetns::call`](crate::netns::PodNetns::call), and turn the result into a tokio socket on the
//! core that will serve it ([`connected`] for one that is under way).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use mesh::verdict::OrigDst;

use crate::capture::{Families, MARK};

/// A listener on `port` of every address of the families the namespace has.
///
/// Several may listen on one port, one per core; the kernel spreads connections over them. Accepted
/// sockets inherit `TCP_NODELAY` and are non-blocking only once tokio takes them.
pub fn listen(families: Families, port: u16) -> io::Result<TcpListener> {
    let any: SocketAddr = if families.ipv6 {
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    };
    let socket = Socket::new(Domain::for_address(any), Type::STREAM, Some(Protocol::TCP))?;
    if families.ipv6 {
        socket.set_only_v6(!families.ipv4)?;
        socket.set_ip_transparent_v6(true)?;
    } else {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&any.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The address the peer dialled, for a connection accepted behind a redirection.
///
/// A connection made to the listener's own port comes back with that port: refuse it, or it loops.
pub fn original_dst(accepted: &impl AsFd) -> io::Result<OrigDst> {
    let socket = SockRef::from(accepted);
    let peer = socket.peer_addr()?.as_socket().ok_or_else(not_ip)?;
    // To connection tracking a v4-mapped peer is IPv4, whatever socket it arrived on.
    let dst = if peer.ip().to_canonical().is_ipv4() {
        socket.original_dst_v4()?
    } else {
        socket.original_dst_v6()?
    };
    dst.as_socket()
        .map(canonical)
        .map(OrigDst)
        .ok_or_else(not_ip)
}

/// An address without the v4-in-v6 disguise that dual-stack sockets give it.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// A socket for a connection from the pod to `dst`, not yet connected.
fn outbound(dst: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(canonical(dst)),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_mark(MARK)?;
    socket.set_tcp_nodelay(true)?;
    keepalive(&socket)?;
    Ok(socket)
}

/// Starts a connection from the pod to `dst`, and does not wait for it; [`connected`] does.
pub fn dial(dst: SocketAddr) -> io::Result<TcpStream> {
    start(outbound(dst)?, dst)
}

/// Starts a connection to `dst` in the pod that appears to come from `source`, as [`dial`] does.
///
/// Where `source` is the destination itself, a loopback address, or of the other family, nothing is spoofed.
///
/// The port is chosen below the ports that applications dial from. A connection of the same client to
/// the same port of the pod that is *not* ours (opened before enrolment, or arriving in plaintext and redirected)
/// has the same addresses; with the same port too, the kernel's connection tracking would take one for the
/// other, and both would break. Connections may share a port as long as their destinations differ.
pub fn dial_as(source: IpAddr, dst: SocketAddr) -> io::Result<TcpStream> {
    let mut taken = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for _ in 0..SPOOF_ATTEMPTS {
        match outbound_as(source, dst).and_then(|socket| start(socket, dst)) {
            // Another connection, or a listener of the application, has the port.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) =>
            {
                taken = e;
            }
            started => return started,
        }
    }
    Err(taken)
}

/// A socket bound to `source` and a port that may turn out to be taken: [`dial_as`] tries again.
fn outbound_as(source: IpAddr, dst: SocketAddr) -> io::Result<Socket> {
    let (source, dst) = (source.to_canonical(), canonical(dst));
    let socket = outbound(dst)?;
    if source == dst.ip() || source.is_ipv4() != dst.is_ipv4() || source.is_loopback() {
        return Ok(socket);
    }
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    let port = fastrand::u16(SPOOFED_PORTS);
    socket.bind(&SocketAddr::new(source, port).into())?;
    Ok(socket)
}

/// Waits for a connection that [`dial`] or [`dial_as`] started, on the core that will serve it.
pub async fn connected(started: TcpStream) -> io::Result<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::from_std(started)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

fn start(socket: Socket, dst: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&canonical(dst).into()) {
        Err(e) if e.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(e),
        _ => Ok(socket.into()),
    }
}

/// Finds dead peers: after 3 minutes of silence, nine probes 3 minutes apart.
pub fn keepalive(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE)
            .with_retries(9),
    )
}

/// Nothing was delivered, so the application must not take this for an orderly end.
pub(crate) fn reset(app: tokio::net::TcpStream) {
    let _ = SockRef::from(&app).set_linger(Some(Duration::ZERO));
    drop(app);
}

/// Below the ports that Linux, and so nearly every application, dials from (32768–60999).
const SPOOFED_PORTS: std::ops::RangeInclusive<u16> = 10_240..=32_767;

/// With half of the ports taken, one connection in a million finds none.
const SPOOF_ATTEMPTS: u32 = 20;

/// What the kernel allows by default (`net.core.somaxconn`): a burst at enrolment must not be dropped.
const BACKLOG: i32 = 4096;

const KEEPALIVE: Duration = Duration::from_secs(180);

fn not_ip() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an IP socket")
}
