//! Reads packets off the lab's wire, to see what can be read on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

use crate::cluster::machine::Machine;

/// Larger than any packet, joined ones included.
const LARGEST: usize = 70_000;
/// Room for packets that arrive faster than they are looked at.
const BUFFER: usize = 32 << 20;
/// How many bytes a capture keeps; later packets are counted only.
const KEPT: usize = 64 << 20;
/// How long after its end a capture may notice it, and how long it still waits for what was on its way.
const TICK_MS: u16 = 20;
/// More packets than can be waiting then: a wire that is never silent does not keep a capture going.
const MOST_WAITING: usize = BUFFER / 512;

/// One TCP or UDP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom it is for.
    pub to: SocketAddr,
    /// IP protocol number: 6 is TCP, 17 UDP.
    pub protocol: u8,
    /// What is in it.
    pub payload: Vec<u8>,
}

/// What was seen while a capture ran.
#[derive(Debug, Default)]
pub struct Captured {
    /// The packets that passed the filter, each as often as it crossed a cable of the underlay.
    pub packets: Vec<Packet>,
    /// How many more did, beyond what a capture keeps.
    pub dropped: usize,
}

impl Captured {
    /// The packets in whose contents these bytes can be read.
    pub fn containing(&self, marker: &[u8]) -> Vec<&Packet> {
        let readable = |p: &&Packet| p.payload.windows(marker.len().max(1)).any(|w| w == marker);
        self.packets.iter().filter(readable).collect()
    }
}

/// A capture that runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Capture {
    end: Arc<AtomicBool>,
    reader: Option<JoinHandle<Captured>>,
}

impl Capture {
    /// Captures on every link of a machine's network; returns when it does.
    pub fn start(
        on: &Machine,
        filter: impl Fn(&Packet) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        let network = std::fs::File::open(format!("/proc/{}/ns/net", on.init.pid))
            .context("the machine's network")?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let (ready, begun) = std::sync::mpsc::channel();
        // A thread of its own, because it stays in the other network.
        let reader = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                let opened = setns(&network, CloneFlags::CLONE_NEWNET).and_then(|()| {
                    let socket = socket(
                        AddressFamily::Packet,
                        SockType::Raw,
                        SockFlag::SOCK_CLOEXEC,
                        SockProtocol::EthAll,
                    )?;
                    let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
                    Ok(socket)
                });
                let (socket, result) = match opened {
                    Ok(socket) => (Some(socket), Ok(())),
                    Err(e) => (None, Err(e)),
                };
                let _ = ready.send(result);
                socket.map_or_else(Captured::default, |s| read(&s, &filter, &ended))
            })?;
        begun
            .recv()
            .context("the capture did not begin")?
            .context("capturing packets")?;
        Ok(Self {
            end,
            reader: Some(reader),
        })
    }

    /// Ends the capture and returns what was seen.
    pub fn stop(mut self) -> Captured {
        self.end.store(true, Ordering::Relaxed);
        self.reader
            .take()
            .and_then(|r| r.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn read(
    socket: &impl std::os::fd::AsFd,
    filter: &dyn Fn(&Packet) -> bool,
    end: &AtomicBool,
) -> Captured {
    use std::os::fd::AsRawFd as _;
    let mut seen = Captured::default();
    let mut kept = 0;
    let mut buffer = vec![0; LARGEST];
    let (mut ended, mut late) = (None, 0);
    loop {
        // What was on the wire before the end waits to be read within a tick, and is read however late that is.
        let over = end.load(Ordering::Relaxed)
            && ended.get_or_insert_with(Instant::now).elapsed()
                > Duration::from_millis(TICK_MS.into());
        if late > MOST_WAITING {
            return seen;
        }
        late += usize::from(over);
        let patience = if over {
            PollTimeout::ZERO
        } else {
            TICK_MS.into()
        };
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let waiting = match poll(&mut ready, patience) {
            Ok(n) => n > 0,
            Err(Errno::EINTR) => continue,
            Err(_) => return seen,
        };
        if !waiting && over {
            return seen;
        }
        if !waiting {
            continue;
        }
        let Ok(length) = recv(
            socket.as_fd().as_raw_fd(),
            &mut buffer,
            MsgFlags::MSG_DONTWAIT,
        ) else {
            continue;
        };
        let Some(packet) = parse(&buffer[..length]).filter(|p| filter(p)) else {
            continue;
        };
        if kept + packet.payload.len() > KEPT {
            seen.dropped += 1;
        } else {
            kept += packet.payload.len();
            seen.packets.push(packet);
        }
    }
}

/// Reads an Ethernet frame; nothing for one that is not TCP or UDP over IP, or is cut short.
fn parse(frame: &[u8]) -> Option<Packet> {
    let (kind, packet) = (frame.get(12..14)?, frame.get(14..)?);
    let (from, to, protocol, segment): (IpAddr, IpAddr, u8, &[u8]) = match kind {
        [0x08, 0x00] => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let four = |at: usize| {
                Some(Ipv4Addr::from(
                    <[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?,
                ))
            };
            // A joined packet larger than the field can say has none.
            let end = if total == 0 {
                packet.len()
            } else {
                total.min(packet.len())
            };
            (
                four(12)?.into(),
                four(16)?.into(),
                *packet.get(9)?,
                packet.get(header..end)?,
            )
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            let six = |at: usize| {
                Some(Ipv6Addr::from(
                    <[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?,
                ))
            };
            let end = if length == 0 {
                packet.len()
            } else {
                (40 + length).min(packet.len())
            };
            (
                six(8)?.into(),
                six(24)?.into(),
                *packet.get(6)?,
                packet.get(40..end)?,
            )
        }
        _ => return None,
    };
    let port = |at: usize| {
        Some(u16::from_be_bytes([
            *segment.get(at)?,
            *segment.get(at + 1)?,
        ]))
    };
    let header = match protocol {
        6 => usize::from(*segment.get(12)? >> 4) * 4,
        17 => 8,
        _ => return None,
    };
    let (from, to) = (
        SocketAddr::new(from, port(0)?),
        SocketAddr::new(to, port(2)?),
    );
    Some(Packet {
        from,
        to,
        protocol,
        payload: segment.get(header..)?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn frame4(payload: &[u8]) -> Vec<u8> {
        let mut f = vec![0; 12];
        f.extend([0x08, 0x00, 0x45, 0]);
        f.extend((40 + u16::try_from(payload.len()).unwrap()).to_be_bytes());
        f.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        f.extend([
            0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0,
        ]);
        f.extend(payload);
        f
    }

    #[test]
    fn a_segment_is_read_without_its_padding() {
        let mut frame = frame4(b"hello");
        frame.extend([0; 9]);
        let packet = parse(&frame).unwrap();
        assert_eq!(packet.from, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(packet.to, "10.0.0.2:80".parse().unwrap());
        assert_eq!(packet.payload, b"hello");
    }

    #[test]
    fn a_capture_of_a_busy_wire_ends_and_has_what_came_before() {
        let (wire, reader) = UnixDatagram::pair().unwrap();
        wire.send(&frame4(b"before the end")).unwrap();
        // Until the reader is gone.
        let busy = std::thread::spawn(move || while wire.send(&frame4(b"after")).is_ok() {});
        let (done, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            done.send(read(&reader, &|_| true, &AtomicBool::new(true)))
                .unwrap();
        });
        let seen = seen.recv_timeout(Duration::from_secs(10));
        let seen = seen.expect("a capture that was ended goes on while there are packets");
        assert_eq!(seen.packets[0].payload, b"before the end");
        busy.join().unwrap();
    }

    #[test]
    fn cut_frames_are_refused_at_every_length() {
        let frame = frame4(b"");
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "{length}");
        }
    }
}
