//! The tunnel's own socket: sealed records in and out, and what the socket did not take yet.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::task::{Context, Waker};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Over;
use super::out::{MOST_RECORDS, SCRATCH as WRITE_SCRATCH, STRIDE};
use crate::Error;
use crate::limits::{CLOSING_BYTES, HOT, NOT_SENT, UNSENT};
use crate::record::{Opened, Records};

/// What one read of a tunnel takes at most: all that one turn of a peer like us has to say for a stream,
/// and the beginning of what follows.
const READ_SCRATCH: usize = (MOST_RECORDS + 1) * STRIDE;

/// Unsent bytes that are rather copied than written by themselves.
const LITTLE: usize = 8 << 10;

/// A write after which the kernel is told how much it may queue: a tunnel that never has one saves the
/// call, and the wake-up that the kernel answers it with.
const MUCH: usize = 32 << 10;

thread_local! {
    /// Shared by all tunnels of a thread: what is in it does not outlive a turn.
    pub(crate) static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// Memory for one turn.
pub(crate) struct Scratch {
    /// Ciphertext as it came, opened in place.
    pub(crate) read: Vec<u8>,
    /// Where `read` has plaintext.
    pub(crate) plain: Vec<Range<usize>>,
    /// Records under construction.
    pub(crate) write: Vec<u8>,
    /// Streams that were woken.
    pub(crate) keys: Vec<u64>,
}

/// The socket and its records.
pub(crate) struct Link {
    tcp: TcpStream,
    waker: Waker,
    /// Remembered, as with the applications' sockets.
    pub(crate) readable: bool,
    writable: bool,
    /// The kernel knows that it shall not queue much.
    told_little: bool,
    pub(crate) records: Records,
    /// The beginning of a record whose end has not come yet.
    partial: Vec<u8>,
    /// Sealed, and not taken by the socket yet; of it, what is gone.
    unsent: Vec<u8>,
    gone: usize,
    /// Since when more is waiting than may.
    stuffed: Option<Instant>,
    /// The peer has said that it says no more.
    pub(crate) close_notify_seen: bool,
    /// We have.
    pub(crate) said_last: bool,
    /// What we still listen to afterwards.
    patience: usize,
}

// === impl Scratch ===

impl Scratch {
    fn new() -> Self {
        Self {
            read: vec![0; READ_SCRATCH],
            plain: Vec::new(),
            write: vec![0; WRITE_SCRATCH],
            keys: Vec::new(),
        }
    }
}

// === impl Link ===

impl Link {
    pub(crate) fn new(
        tcp: TcpStream,
        records: Records,
        early: Vec<u8>,
        unsent: Vec<u8>,
        waker: Waker,
    ) -> Self {
        let mut link = Self {
            tcp,
            waker,
            readable: false,
            writable: true,
            told_little: false,
            records,
            partial: early,
            unsent,
            gone: 0,
            stuffed: None,
            close_notify_seen: false,
            said_last: false,
            patience: CLOSING_BYTES,
        };
        link.woken();
        link
    }

    /// Its waker has been called: what is it ready for now?
    pub(crate) fn woken(&mut self) {
        let mut cx = Context::from_waker(&self.waker);
        self.readable = self.tcp.poll_read_ready(&mut cx).is_ready();
        self.writable = self.writable || self.tcp.poll_write_ready(&mut cx).is_ready();
    }

    /// Reads once and opens what came; `scratch.plain` says where the plaintext is.
    pub(crate) fn receive(&mut self, scratch: &mut Scratch) -> Result<(), Over> {
        scratch.plain.clear();
        let have = self.partial.len();
        if !self.readable && have == 0 {
            return Ok(());
        }
        scratch.read[..have].copy_from_slice(&self.partial);
        let n = match self.readable {
            true => self.read(&mut scratch.read[have..])?,
            false => None,
        };
        // Without new bytes: what came with the handshake.
        let filled = have + n.unwrap_or(0);
        self.partial.clear();
        let rest = self.open(scratch, filled)?;
        match rest.is_empty() {
            true => self.partial = Vec::new(), // an idle tunnel holds none
            false => self.partial.extend_from_slice(&scratch.read[rest]),
        }
        Ok(())
    }

    /// Opens every whole record in place; what is left over.
    fn open(&mut self, scratch: &mut Scratch, filled: usize) -> Result<Range<usize>, Over> {
        let mut at = 0;
        while !self.close_notify_seen {
            let opened = self.records.open(&mut scratch.read[at..filled]);
            match opened.map_err(Over::Record)? {
                Opened::Data { plain, used } => {
                    scratch.plain.push(at + plain.start..at + plain.end);
                    at += used;
                }
                Opened::Handled { used } => at += used,
                Opened::Closed => self.close_notify_seen = true,
                Opened::More => break,
            }
        }
        Ok(at..filled)
    }

    /// Bytes of the socket; nothing where nothing is there. A short read means that this was all.
    fn read(&mut self, into: &mut [u8]) -> Result<Option<usize>, Over> {
        let n = match recv(&self.tcp, &mut *into, RecvFlags::empty()) {
            Ok((0, _)) if !into.is_empty() => return Err(self.ended()),
            Ok((n, _)) => Some(n),
            Err(Errno::WOULDBLOCK) => None,
            Err(error) => return Err(lost(error)),
        };
        if n.is_none_or(|n| n < into.len()) {
            self.not_ready(Interest::READABLE);
            let ready = self
                .tcp
                .poll_read_ready(&mut Context::from_waker(&self.waker));
            // Still so only where the peer has ended.
            self.readable = ready.is_ready();
        }
        Ok(n)
    }

    /// The peer's socket ended without a word.
    fn ended(&self) -> Over {
        match self.partial.is_empty() {
            true => Over::Closed,
            false => Over::Lost(Error::lost("the peer left in the middle of a record", true)),
        }
    }

    fn not_ready(&self, interest: Interest) {
        let _ = self.tcp.try_io(interest, || -> io::Result<()> {
            Err(io::ErrorKind::WouldBlock.into())
        });
    }

    // --- out

    /// Whether so much is waiting for the socket that nothing more may be added.
    pub(crate) fn is_stuffed(&self) -> bool {
        self.unsent.len() - self.gone > UNSENT
    }

    /// Whether what waits is so little that it goes with what is sealed next: it is the end of a handshake.
    pub(crate) fn has_little(&self) -> bool {
        self.unsent.len() - self.gone <= LITTLE
    }

    /// Whether the socket has been too slow for a while: the peer, or the way to it, is at its limit.
    pub(crate) fn is_hot(&self) -> bool {
        self.stuffed.is_some_and(|since| since.elapsed() >= HOT)
    }

    /// Writes what waited, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> Result<(), Over> {
        while self.gone < self.unsent.len() && self.writable {
            let n = self.write_now(self.gone)?;
            self.gone += n;
        }
        if self.gone == self.unsent.len() && self.gone > 0 {
            (self.unsent, self.gone) = (Vec::new(), 0);
        }
        if !self.is_stuffed() {
            self.stuffed = None;
        }
        Ok(())
    }

    fn write_now(&mut self, from: usize) -> Result<usize, Over> {
        let sealed = &self.unsent[from..];
        let written = write(&self.tcp, sealed)?;
        if written < sealed.len() {
            self.blocked();
        }
        Ok(written)
    }

    /// The socket took less than it was given: its waker is called when it takes more.
    fn blocked(&mut self) {
        self.not_ready(Interest::WRITABLE);
        let ready = self
            .tcp
            .poll_write_ready(&mut Context::from_waker(&self.waker));
        self.writable = ready.is_ready();
    }

    /// Writes sealed records, behind what waits already.
    pub(crate) fn write(&mut self, sealed: &[u8]) -> Result<(), Over> {
        let mut sent = 0;
        if !self.told_little && sealed.len() > MUCH {
            self.told_little = true;
            // A hint: without it small messages wait behind more of the large ones.
            let _ = SockRef::from(&self.tcp).set_tcp_notsent_lowat(NOT_SENT);
        }
        if self.unsent.is_empty() && self.writable && !sealed.is_empty() {
            sent = write(&self.tcp, sealed)?;
            if sent < sealed.len() {
                self.blocked();
            }
        }
        if sent < sealed.len() {
            self.unsent.extend_from_slice(&sealed[sent..]);
            if self.is_stuffed() {
                self.stuffed.get_or_insert_with(Instant::now);
            }
        }
        self.flush()
    }

    /// Records about the records themselves go before everything that is sealed after them.
    pub(crate) fn send_urgent(&mut self) -> Result<(), Over> {
        match self.records.take_urgent() {
            Some(urgent) => self.write(&urgent),
            None => Ok(()),
        }
    }

    /// The last record: nothing may follow.
    pub(crate) fn last_words(&mut self, sealed: &[u8]) {
        self.said_last = true;
        self.unsent.extend_from_slice(sealed);
    }

    /// Writes what is left, says goodbye and listens until the peer has left: a socket that is closed
    /// over unread bytes is reset, and our last words with it.
    pub(crate) fn part(&mut self, scratch: &mut Scratch) -> Result<bool, Over> {
        if !self.said_last {
            self.said_last = true;
            if let Ok(goodbye) = self.records.close_notify() {
                self.unsent.extend_from_slice(&goodbye);
            }
        }
        self.flush()?;
        if self.unsent.is_empty() {
            // Fails where the peer has gone, which is what is waited for.
            let _ = SockRef::from(&self.tcp).shutdown(Shutdown::Write);
        }
        while self.readable {
            if let Some(n) = self.read(&mut scratch.read)? {
                self.patience = self.patience.checked_sub(n).ok_or(Over::Closed)?;
            }
        }
        Ok(false)
    }
}

/// Writes what the socket takes.
fn write(tcp: &TcpStream, bytes: &[u8]) -> Result<usize, Over> {
    match send(tcp, bytes, SendFlags::NOSIGNAL) {
        Ok(n) => Ok(n),
        Err(Errno::WOULDBLOCK) => Ok(0),
        Err(error) => Err(lost(error)),
    }
}

fn lost(error: Errno) -> Over {
    Over::Lost(Error::lost(&io::Error::from(error).to_string(), true))
}
