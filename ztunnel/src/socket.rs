//! What the kernel must be told about sockets: original destination, marks, spoofed sources, keepalive.
//!
//! Everything here is synchronous and makes its sockets in the calling thread's network namespace: wrap it
//! in [`PodNetns::call`](crate::pods::netns::PodNetns::call), and turn the result into a tokio socket on the
//! core that will serve it (`TcpSocket::from_std_stream` for one that is not connected yet).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::pods::capture::surroundings::Families;

/// Carried by every packet of a socket that ztunnel opened in a pod's namespace, so that it is not captured.
pub const MARK: u32 = 0x539;

/// The address an application dialled before its connection was redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

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
pub fn outbound(dst: SocketAddr) -> io::Result<Socket> {
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

/// A socket for a connection to `dst` in the pod that appears to come from `source`, not yet connected.
///
/// Where `source` is the destination itself, or of the other family, nothing is spoofed.
///
/// The kernel picks the port when it connects, so two connections may share one as long as their
/// destinations differ, and picks it below the ports that applications dial from: a connection of the
/// same client to the same port of the pod that is *not* ours (opened before enrolment, or arriving in
/// plaintext and redirected) has the same addresses, and with the same port too the kernel would take
/// one for the other.
pub fn outbound_as(source: IpAddr, dst: SocketAddr) -> io::Result<Socket> {
    let (source, dst) = (source.to_canonical(), canonical(dst));
    let socket = outbound(dst)?;
    if source == dst.ip() || source.is_ipv4() != dst.is_ipv4() || source.is_loopback() {
        return Ok(socket);
    }
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    setsockopt(&socket, BindAddressNoPort, &true)?;
    // Since Linux 6.3; older ones choose from the common range, where a clash is unlikely but possible.
    let ports = u32::from(*SPOOFED_PORTS.start()) | (u32::from(*SPOOFED_PORTS.end()) << 16);
    let _ = setsockopt(&socket, LocalPortRange, &ports);
    socket.bind(&SocketAddr::new(source, 0).into())?;
    Ok(socket)
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

sockopt_impl!(
    /// Leaves the choice of the local port to `connect`.
    BindAddressNoPort, SetOnly, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, bool
);
sockopt_impl!(
    /// Limits the ports `connect` chooses from: the lowest in the lower half, the highest in the upper.
    LocalPortRange, SetOnly, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, u32
);

/// `IP_LOCAL_PORT_RANGE` of `linux/in.h`.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// Below the ports that Linux, and so nearly every application, dials from (32768–60999).
const SPOOFED_PORTS: std::ops::RangeInclusive<u16> = 10_240..=32_767;

/// What the kernel allows by default (`net.core.somaxconn`): a burst at enrolment must not be dropped.
const BACKLOG: i32 = 4096;

const KEEPALIVE: Duration = Duration::from_secs(180);

fn not_ip() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an IP socket")
}
