//! The kernel's list of listening TCP sockets, asked for over netlink (`sock_diag(7)`).
//!
//! `/proc/net/tcp` says the same, but walks through every connection that the node has room for: 10 ms, where this
//! takes a fraction of one. Handing over asks for every pod, ten times a second.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP};

use super::SocketId;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The bit of `TCP_LISTEN`.
const LISTENING: u32 = 1 << 10;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`
const REQUEST: usize = 56;
/// In `struct inet_diag_msg`: the local port, in the network's order, and the socket's number.
const PORT: usize = 4;
const INODE: usize = 68;

/// The sockets of the current namespace that listen, with their ports.
pub(super) fn listening() -> io::Result<Vec<(u16, SocketId)>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&request(family), 0)?;
        while !read(&socket.recv_from_full()?.0, &mut found)? {}
    }
    Ok(found)
}

fn request(family: i32) -> Vec<u8> {
    let length = HEADER + REQUEST;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST_DUMP.to_ne_bytes());
    // Sequence number and sender do not matter.
    bytes.extend([0; 8]);
    bytes.extend([family as u8, IPPROTO_TCP as u8, 0, 0]);
    bytes.extend(LISTENING.to_ne_bytes());
    // Any address, any port, any interface.
    bytes.resize(length, 0);
    bytes
}

/// Reads one datagram; true after the last.
fn read(mut bytes: &[u8], found: &mut Vec<(u16, SocketId)>) -> io::Result<bool> {
    let truncated = || io::Error::new(io::ErrorKind::InvalidData, "a truncated netlink message");
    while !bytes.is_empty() {
        let length = u32::from_ne_bytes(field(bytes, 0).ok_or_else(truncated)?) as usize;
        let kind = u16::from_ne_bytes(field(bytes, 4).ok_or_else(truncated)?);
        let message = bytes.get(HEADER..length).ok_or_else(truncated)?;
        match kind {
            SOCK_DIAG_BY_FAMILY => {
                let port = u16::from_be_bytes(field(message, PORT).ok_or_else(truncated)?);
                let inode = u32::from_ne_bytes(field(message, INODE).ok_or_else(truncated)?);
                found.push((port, inode.into()));
            }
            NLMSG_DONE | NLMSG_ERROR => {
                let error = i32::from_ne_bytes(field(message, 0).ok_or_else(truncated)?);
                return match error {
                    0.. => Ok(true),
                    _ => Err(io::Error::from_raw_os_error(-error)),
                };
            }
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_ends_too_early_or_says_no_is_an_error() {
        let message = |kind: u16, payload: &[u8]| {
            let mut bytes = Vec::new();
            bytes.extend((HEADER as u32 + payload.len() as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(payload);
            bytes
        };
        let mut socket = [0; 72];
        socket[PORT..PORT + 2].copy_from_slice(&15001_u16.to_be_bytes());
        socket[INODE..].copy_from_slice(&71_u32.to_ne_bytes());
        let mut both = message(SOCK_DIAG_BY_FAMILY, &socket);
        both.extend(message(NLMSG_DONE, &0_i32.to_ne_bytes()));
        let mut found = Vec::new();
        assert!(read(&both, &mut found).unwrap());
        assert_eq!(found, [(15001, 71)]);

        for end in 1..HEADER + 72 {
            read(&both[..end], &mut Vec::new()).unwrap_err();
        }
        let no = message(NLMSG_ERROR, &(-nix::libc::ENOENT).to_ne_bytes());
        let no = read(&no, &mut Vec::new()).unwrap_err();
        assert_eq!(no.kind(), io::ErrorKind::NotFound);
        read(&message(SOCK_DIAG_BY_FAMILY, &[0; 4]), &mut found).unwrap_err();
        read(&[0; 16], &mut found).unwrap_err();
    }
}
