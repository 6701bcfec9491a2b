//! An application's socket in the hands of the engine: remembered readiness, exact ends.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::sync::LazyLock;
use std::task::{Context, Waker};

use rustix::io::{Errno, readv, writev};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::out::MOST_RECORDS;
use crate::Meter;

/// One application's socket. Dropped, it closes in order; see [`Socket::reset`].
///
/// Readiness is remembered here: a read or write that does less than it could clears it, and the
/// socket's waker says when to look again. So a request costs one read and one write, and no call that
/// only learns that there is nothing.
pub(crate) struct Socket {
    tcp: TcpStream,
    pub(crate) meter: Meter,
    waker: Waker,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// Bytes may be there that there was no window for.
    pub(crate) starved: bool,
    /// The application has ended its direction, which keeps the socket readable for good.
    hung_up: bool,
    /// Our direction towards the application is over.
    pub(crate) shut: bool,
    /// How many records the next read may fill: few until there is much.
    pub(crate) records: u8,
}

/// As many as a read can fill.
#[expect(clippy::cast_possible_truncation, reason = "16")]
const MOST: u8 = MOST_RECORDS as u8;

/// What replaces the host's congestion control on applications' sockets: there is no network between
/// us and them for BBR to be kind to, and its pacing nearly doubles the price of a byte.
static UNPACED: LazyLock<Option<&'static [u8]>> = LazyLock::new(|| {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"));
    let host = read("tcp_congestion_control").unwrap_or_default();
    if !host.starts_with("bbr") {
        return None;
    }
    let there = read("tcp_available_congestion_control").unwrap_or_default();
    let there = |name: &str| there.split_whitespace().any(|n| n == name);
    match there("cubic") {
        true => Some(b"cubic"),
        false => Some(b"reno"),
    }
});

// === impl Socket ===

impl Socket {
    /// Takes a connected socket; `waker` is told when it becomes ready.
    pub(crate) fn new(tcp: TcpStream, meter: Meter, waker: Waker) -> Self {
        // Only hints; without them small messages may wait, and large ones cost more.
        let _ = tcp.set_nodelay(true);
        if let Some(name) = *UNPACED {
            let _ = SockRef::from(&tcp).set_tcp_congestion(name);
        }
        let mut socket = Self {
            tcp,
            meter,
            waker,
            readable: false,
            writable: true,
            starved: false,
            hung_up: false,
            shut: false,
            records: 1,
        };
        socket.arm();
        socket
    }

    /// Its waker has been called: what is it ready for now?
    pub(crate) fn woken(&mut self) {
        if self.writable && !self.hung_up {
            // Nothing else was asked for.
            self.readable = true;
            return;
        }
        let mut cx = Context::from_waker(&self.waker);
        self.readable |= self.tcp.poll_read_ready(&mut cx).is_ready();
        self.writable |= self.tcp.poll_write_ready(&mut cx).is_ready();
    }

    /// Reads what is there into `gaps`; nothing at the end, `WouldBlock` where nothing is there.
    pub(crate) fn read(&mut self, gaps: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let asked: usize = gaps.iter().map(|gap| gap.len()).sum();
        let read = match gaps {
            [one] => recv(&self.tcp, &mut **one, RecvFlags::empty()).map(|(n, _)| n),
            many => readv(&self.tcp, many),
        };
        let read = read.map_err(io::Error::from);
        match &read {
            Ok(n) if *n == asked => self.records = self.records.saturating_mul(4).min(MOST),
            Ok(0) => self.hang_up(),
            Ok(n) => {
                self.records = u8::try_from(n.div_ceil(super::out::FULL))
                    .unwrap_or(1)
                    .max(1);
                self.drained();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.drained(),
            Err(_) => self.readable = false,
        }
        read
    }

    /// Whether the application's direction is at its end, without taking what comes before that.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut one = [std::mem::MaybeUninit::uninit()];
        let ended = matches!(SockRef::from(&self.tcp).peek(&mut one), Ok(0));
        if ended {
            self.hang_up();
        }
        ended
    }

    fn hang_up(&mut self) {
        self.readable = false;
        self.hung_up = true;
        self.watch_writing();
    }

    /// There was no window for what may be there. It is not forgotten, and failures are noticed.
    pub(crate) fn starve(&mut self) {
        self.starved = true;
        self.drained();
        self.readable = true;
    }

    /// Everything has been read: the next edge counts. The end of the application's direction, which
    /// came before, keeps the socket readable.
    fn drained(&mut self) {
        self.forget(Interest::READABLE);
        self.arm();
    }

    /// Is told of what comes, or knows of it already.
    fn arm(&mut self) {
        let ready = self
            .tcp
            .poll_read_ready(&mut Context::from_waker(&self.waker));
        self.readable = ready.is_ready();
    }

    /// After the application's end only its reset can still come, which shows as a change of writing.
    fn watch_writing(&mut self) {
        self.forget(Interest::WRITABLE);
        let mut cx = Context::from_waker(&self.waker);
        // Ready at once where it has gone already: the next look finds the error.
        if self.tcp.poll_write_ready(&mut cx).is_ready() {
            self.waker.wake_by_ref();
        }
    }

    /// Makes tokio forget a readiness that is known to be over: only a new edge brings it back.
    fn forget(&self, interest: Interest) {
        let _ = self.tcp.try_io(interest, || -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        });
    }

    /// Writes what the socket takes; the rest waits until it is writable again.
    pub(crate) fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: usize = slices.iter().map(|slice| slice.len()).sum();
        let wrote = match slices {
            [one] => send(&self.tcp, one, SendFlags::NOSIGNAL),
            many => writev(&self.tcp, many),
        };
        let n = match wrote {
            Err(Errno::WOULDBLOCK) => 0,
            other => other?,
        };
        if n < all {
            self.writable = false;
            self.forget(Interest::WRITABLE);
            let mut cx = Context::from_waker(&self.waker);
            self.writable = self.tcp.poll_write_ready(&mut cx).is_ready();
        }
        self.meter.add_received(n);
        Ok(n)
    }

    /// Ends our direction towards the application.
    pub(crate) fn shut(&mut self) -> io::Result<()> {
        self.shut = true;
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }

    /// Whether it failed while nobody read or wrote.
    pub(crate) fn failed(&mut self) -> Option<io::Error> {
        if self.hung_up {
            self.watch_writing_again();
        } else if !self.starved {
            return None;
        } else {
            self.drained();
            self.readable = true;
        }
        self.tcp.take_error().ok().flatten()
    }

    fn watch_writing_again(&mut self) {
        if self.writable {
            self.forget(Interest::WRITABLE);
            let _ = self
                .tcp
                .poll_write_ready(&mut Context::from_waker(&self.waker));
        }
    }

    /// Closes with a reset, so that the application never takes this for an orderly end.
    pub(crate) fn reset(self) {
        // Fails only for a socket that is gone already.
        let _ = self.tcp.set_zero_linger();
    }
}
