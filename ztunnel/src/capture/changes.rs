//! Hears that a namespace's rules or routes were changed, so that nobody has to read them again and again.

use std::io;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

/// `NFNLGRP_NFTABLES`
const NFTABLES: u32 = 7;
/// `RTNLGRP_LINK`: with a link that goes down its IPv4 routes go, and of these nothing is said.
const LINKS: u32 = 1;
/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_ROUTE` and `RTNLGRP_IPV6_RULE`
const ROUTING: [u32; 4] = [7, 8, 11, 19];
/// What the kernel keeps of the news of one socket, in bytes. The news themselves do not matter: that some were lost is news.
const ROOM: i32 = 4096;
/// News read at once. Who makes more of them than this has made one, which is enough to know.
const MOST_READ: usize = 64;

/// Hears of one namespace, from any other.
#[derive(Debug)]
pub struct Watch {
    rules: Socket,
    routing: Socket,
}

impl Watch {
    /// Begins to hear of the current namespace.
    ///
    /// # Errors
    ///
    /// The kernel tells nobody without the right to change it, and an old one not of every kind.
    pub fn begin() -> io::Result<Self> {
        let mut routing = vec![LINKS];
        routing.extend(ROUTING);
        Ok(Self {
            rules: open(NETLINK_NETFILTER, &[NFTABLES])?,
            routing: open(NETLINK_ROUTE, &routing)?,
        })
    }

    /// Whether anything was changed since this was asked before, by whomever. Where that cannot be known it was.
    pub fn has_news(&self) -> bool {
        // Both are read, whatever the first one says.
        let [rules, routing] = [&self.rules, &self.routing].map(has_news);
        rules || routing
    }
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_rx_buf_sz(ROOM)?;
    socket.set_non_blocking(true)?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    Ok(socket)
}

fn has_news(socket: &Socket) -> bool {
    // What is longer is cut off by the kernel.
    let mut beginning = Vec::with_capacity(64);
    for read in 0..MOST_READ {
        beginning.clear();
        match socket.recv(&mut beginning, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return read > 0,
            // Some were lost (ENOBUFS); the rest stays for the next time.
            Err(_) => return true,
        }
    }
    true
}
