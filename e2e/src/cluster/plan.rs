//! Names and addresses of one lab: which machine is where, and which ranges pods and services live in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// How many workers a lab has.
const WORKERS: u8 = 2;

/// The name of the machine that runs etcd and the API server.
pub const CONTROL_PLANE: &str = "control-plane";

/// Everything about a lab that follows from its number; labs of different numbers can run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    index: u8,
}

/// A worker's name and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Name of the Kubernetes node.
    pub name: String,
    /// Position, from 1.
    pub number: u8,
    /// Address on the underlay.
    pub ip4: Ipv4Addr,
    /// Address on the underlay.
    pub ip6: Ipv6Addr,
    /// Range that its pods get addresses from.
    pub pods4: String,
    /// Range that its pods get addresses from.
    pub pods6: String,
}

impl Plan {
    /// The lab with this number; below 8, so that no range runs over.
    pub fn new(index: u8) -> anyhow::Result<Self> {
        anyhow::ensure!(index < 8, "labs are numbered 0 to 7, not {index}");
        Ok(Self { index })
    }

    /// The lab's number.
    pub fn index(self) -> u8 {
        self.index
    }

    /// What the lab's folder and its control groups are called.
    pub fn label(self) -> String {
        match self.index {
            0 => "lab".to_owned(),
            n => format!("lab-{n}"),
        }
    }

    /// The folder that holds all that this lab writes.
    pub fn folder(self) -> anyhow::Result<PathBuf> {
        Ok(cache()?.join(self.label()))
    }

    /// The workers, in order.
    pub fn workers(self) -> Vec<Worker> {
        (1..=WORKERS).map(|n| self.worker(n)).collect()
    }

    fn worker(self, n: u8) -> Worker {
        Worker {
            name: format!("worker-{n}"),
            number: n,
            ip4: self.underlay4(n),
            ip6: self.underlay6(n),
            pods4: format!("10.{}.{n}.0/24", 244 + self.index),
            pods6: format!("fd00:10:{}:{n}::/64", 244 + u16::from(self.index)),
        }
    }

    /// The control plane's address on the underlay.
    pub fn control_plane4(self) -> Ipv4Addr {
        self.underlay4(10)
    }

    /// The control plane's address on the underlay.
    pub fn control_plane6(self) -> Ipv6Addr {
        self.underlay6(10)
    }

    fn underlay4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 18 + self.index, 0, host)
    }

    fn underlay6(self, host: u8) -> Ipv6Addr {
        // The decimal numbers are meant to be read in the address, so they are spelled as hexadecimal digits.
        let net = u16::from_str_radix(&(18 + self.index).to_string(), 16).unwrap_or(0x18);
        let host = u16::from_str_radix(&host.to_string(), 16).unwrap_or(0xff);
        Ipv6Addr::new(0xfd00, 0x172, net, 0, 0, 0, 0, host)
    }

    /// Both pod ranges, as `--cluster-cidr` wants them.
    pub fn pods(self) -> String {
        let i = self.index;
        format!("10.{}.0.0/16,fd00:10:{}::/48", 244 + i, 244 + u16::from(i))
    }

    /// Both service ranges.
    pub fn services(self) -> String {
        format!("{}0.0/16,{}/112", self.services4(), self.services6())
    }

    /// The API server's own Service addresses, first of each range.
    pub fn api_service(self) -> [IpAddr; 2] {
        let v4 = Ipv4Addr::new(10, 96 + self.index, 0, 1);
        let net =
            u16::from_str_radix(&(96 + u16::from(self.index)).to_string(), 16).unwrap_or(0x96);
        [
            v4.into(),
            Ipv6Addr::new(0xfd00, 0x10, net, 0, 0, 0, 0, 1).into(),
        ]
    }

    /// CoreDNS's Service address.
    pub fn dns_service(self) -> String {
        format!("{}0.10", self.services4())
    }

    fn services4(self) -> String {
        format!("10.{}.", 96 + self.index)
    }

    fn services6(self) -> String {
        format!("fd00:10:{}::", 96 + u16::from(self.index))
    }
}

/// The folder for what may be thrown away and made again: tools, images, labs.
pub fn cache() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("AMBIT_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(dir).join("ambit"));
    }
    let home = std::env::home_dir()
        .ok_or_else(|| anyhow::anyhow!("no home folder; set AMBIT_CACHE to a folder"))?;
    Ok(home.join(".cache/ambit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_documented() {
        let plan = Plan::new(0).unwrap();
        assert_eq!(plan.control_plane4().to_string(), "172.18.0.10");
        assert_eq!(plan.control_plane6().to_string(), "fd00:172:18::10");
        assert_eq!(plan.services(), "10.96.0.0/16,fd00:10:96::/112");
        assert_eq!(plan.api_service()[1].to_string(), "fd00:10:96::1");
        let second = &plan.workers()[1];
        assert_eq!(
            (second.pods4.as_str(), second.pods6.as_str()),
            ("10.244.2.0/24", "fd00:10:244:2::/64")
        );
    }

    #[test]
    fn labs_do_not_overlap() {
        let (a, b) = (Plan::new(0).unwrap(), Plan::new(1).unwrap());
        assert_ne!(a.pods(), b.pods());
        assert_ne!(a.services(), b.services());
        assert_ne!(a.label(), b.label());
        assert!(Plan::new(8).is_err());
    }
}
