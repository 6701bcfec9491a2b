//! What a namespace has without us: its address families, its own addresses, its gateways.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;

use nix::ifaddrs::getifaddrs;

/// The address families a namespace has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// IPv4 works.
    pub ipv4: bool,
    /// IPv6 works (neither missing from the kernel nor disabled in the namespace).
    pub ipv6: bool,
}

/// Which families the current namespace has.
pub fn families() -> Families {
    Families {
        ipv4: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_ok(),
        ipv6: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok(),
    }
}

/// Every address of the current namespace, loopback included.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let own = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(IpAddr::V4(v4.ip()));
        }
        address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
    });
    Ok(own.collect())
}

/// The routers of the current namespace: with most network plugins, the node's own addresses towards the pod.
pub fn gateways() -> io::Result<Vec<IpAddr>> {
    let mut found: BTreeSet<IpAddr> = BTreeSet::new();
    for (path, parse) in [
        ("/proc/thread-self/net/route", gateway_v4 as fn(&str) -> _),
        ("/proc/thread-self/net/ipv6_route", gateway_v6),
    ] {
        match fs::read_to_string(path) {
            Ok(table) => found.extend(table.lines().filter_map(parse)),
            // The family is not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether somebody uses the older iptables here, which nftables does not tell of.
pub(super) fn has_iptables() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        let names = fs::read_to_string(Path::new("/proc/thread-self/net").join(file));
        names.is_ok_and(|names| !names.is_empty())
    })
}

/// `Iface Destination Gateway …`, the addresses as one number in the machine's order.
fn gateway_v4(line: &str) -> Option<IpAddr> {
    let field = line.split_whitespace().nth(2)?;
    let number = u32::from_str_radix(field, 16).ok()?;
    let ip = Ipv4Addr::from(number.to_ne_bytes());
    (!ip.is_unspecified()).then_some(IpAddr::V4(ip))
}

/// `destination length source length next-hop …`, the addresses as 32 digits.
fn gateway_v6(line: &str) -> Option<IpAddr> {
    let field = line.split_whitespace().nth(4)?;
    let ip = Ipv6Addr::from(u128::from_str_radix(field, 16).ok()?);
    (!ip.is_unspecified()).then_some(IpAddr::V6(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_gateways() {
        assert_eq!(gateway_v4("Iface\tDestination\tGateway \tFlags"), None);
        assert_eq!(
            gateway_v4("eth0\t00000000\t0100F40A\t0003\t0\t0\t0\t00000000\t0\t0\t0"),
            Some("10.244.0.1".parse().unwrap())
        );
        assert_eq!(gateway_v4("eth0\t0000F40A\t00000000\t0001\t0"), None);
        let v6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 \
                  fd000010024400000000000000000001 00000400 00000001 00000000 00000003     eth0";
        assert_eq!(gateway_v6(v6), Some("fd00:10:244::1".parse().unwrap()));
    }
}
