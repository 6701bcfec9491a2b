//! The record layer of TLS 1.3 after the handshake: opens and seals records where they lie.
//!
//! The handshake is rustls', and so are the traffic secrets: they stay in its [`KernelConnection`],
//! which hands out the next ones and takes session tickets. What is here is AES-GCM over a buffer
//! of the caller, the sequence numbers, and the few messages that may come after a handshake.
//!
//! ```text
//! [ HEAD: 23 3 3 len ][ plaintext, 1..=MOST ][ inner type | tag: TAIL ]
//! ```

use std::mem;
use std::ops::Range;
use std::time::Duration;

use rustls::AlertDescription;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use tokio::time::Instant;

pub(crate) use error::RecordError;
use keys::Keys;

mod error;
mod keys;

/// What precedes the ciphertext.
pub(crate) const HEAD: usize = 5;

/// What follows the plaintext: its type and the tag.
pub(crate) const TAIL: usize = 17;

/// The longest plaintext of a record.
pub(crate) const MOST: usize = 16384;

/// The longest ciphertext of a record (RFC 8446, 5.2).
const MOST_SEALED: usize = MOST + 256;

/// Records under one key after which we take the next: half of what AES-GCM allows (RFC 8446, 5.5),
/// so that a turn of the engine that is long under way never gets to [`MAX_RECORDS`].
const REKEY_AFTER: u64 = 1 << 23;

/// Records under one key, at most.
const MAX_RECORDS: u64 = 1 << 24;

/// Messages after the handshake that a peer may send at once. Stock servers send up to four tickets,
/// and nobody needs a new key twice a minute.
const CHATTER_BURST: u32 = 32;

/// The time after which a peer may send one more.
const CHATTER_PAUSE: Duration = Duration::from_secs(2);

/// The longest message after the handshake: a ticket with a long chain in it takes a quarter.
const MAX_MESSAGE: usize = 32 << 10;

/// Records without content in a row: they cost us a tag and bring nothing.
const MAX_EMPTY: u32 = 32;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// What the first record of a buffer turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Application data.
    Data {
        /// Where it lies now.
        plain: Range<usize>,
        /// The length of the whole record.
        used: usize,
    },
    /// Something of TLS itself, dealt with.
    Handled {
        /// The length of the whole record.
        used: usize,
    },
    /// The peer sends no more (close_notify). Whatever may follow is not looked at.
    Closed,
    /// The record is not complete yet.
    More,
}

/// Both directions of one connection.
pub(crate) struct Records {
    rx: Keys,
    tx: Keys,
    secrets: Secrets,
    /// The part that has come of a handshake message.
    partial: Vec<u8>,
    chatter: Chatter,
    /// Records without content since the last one with.
    empty: u32,
    /// The peer has asked for a KeyUpdate of ours.
    update_asked: bool,
    rekey_after: u64,
    closed: bool,
}

/// What rustls keeps of a connection: the traffic secrets and, for a client, its session store.
pub(crate) enum Secrets {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What a peer may still say besides data.
struct Chatter {
    left: u32,
    since: Instant,
}

/// A handshake message, and what follows it in the same record.
struct Message<'a> {
    kind: u8,
    body: &'a [u8],
    after: &'a [u8],
}

// === impl Records ===

impl Records {
    /// Takes over from rustls, at the sequence numbers it has come to.
    pub(crate) fn new(extracted: ExtractedSecrets, secrets: Secrets) -> Result<Self, RecordError> {
        Ok(Self {
            rx: Keys::new(extracted.rx)?,
            tx: Keys::new(extracted.tx)?,
            secrets,
            partial: Vec::new(),
            chatter: Chatter::new(),
            empty: 0,
            update_asked: false,
            rekey_after: REKEY_AFTER,
            closed: false,
        })
    }

    /// Opens the first record of `buf` in place. An error ends the connection:
    /// [`alert`](Self::alert) makes what the peer is told.
    pub(crate) fn open(&mut self, buf: &mut [u8]) -> Result<Opened, RecordError> {
        if self.closed {
            return Ok(Opened::Closed);
        }
        let Some((head, body)) = buf.split_first_chunk_mut::<HEAD>() else {
            return Ok(Opened::More);
        };
        let len = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if head[0] != Kind::Data as u8 {
            return Err(RecordError::Unprotected(head[0]));
        }
        if len > MOST_SEALED {
            return Err(RecordError::TooLong);
        }
        let Some(body) = body.get_mut(..len) else {
            return Ok(Opened::More);
        };
        let used = HEAD + len;
        let inner = self.rx.open(*head, body)?;
        // Padding comes last; before it stands the type.
        let end = inner.iter().rposition(|b| *b != 0);
        let end = end.ok_or(RecordError::NoType)?;
        if end > MOST {
            return Err(RecordError::TooLong);
        }
        let (content, kind) = (&inner[..end], inner[end]);
        if kind != Kind::Handshake as u8 && !self.partial.is_empty() {
            return Err(RecordError::Interleaved);
        }
        if kind == Kind::Data as u8 {
            self.count_empty(content.is_empty())?;
            let plain = HEAD..HEAD + end;
            return Ok(Opened::Data { plain, used });
        }
        self.handle(kind, content, used)
    }

    /// Seals `record[HEAD..len - TAIL]` in place and puts head and tail around it.
    pub(crate) fn seal(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        self.tx.seal(Kind::Data, record)
    }

    /// Whole records of TLS itself that are due: the answer to a KeyUpdate, or our own.
    ///
    /// They belong behind all that was sealed before this call and before all that is sealed after
    /// it. To be asked once per turn: it costs two comparisons.
    pub(crate) fn take_urgent(&mut self) -> Option<Vec<u8>> {
        if !self.update_asked && self.tx.sequence() < self.rekey_after {
            return None;
        }
        self.update_asked = false;
        let next = self.secrets.next_tx().and_then(Keys::new);
        // The old key still seals the message; update_not_requested, or two of us never stop.
        let message = self.sealed(Kind::Handshake, &[KEY_UPDATE, 0, 0, 1, 0]);
        match (next, message) {
            (Ok(next), Ok(message)) => {
                self.tx = next;
                Some(message)
            }
            _ => {
                self.tx.exhaust();
                None
            }
        }
    }

    /// A sealed close_notify: we send no more.
    pub(crate) fn close_notify(&mut self) -> Result<Vec<u8>, RecordError> {
        self.sealed(Kind::Alert, &[1, CLOSE_NOTIFY])
    }

    /// The alert that tells the peer of `error`; nothing where it was the peer who told us.
    pub(crate) fn alert(&mut self, error: &RecordError) -> Option<Vec<u8>> {
        self.fatal(error.alert()?)
    }

    /// A sealed fatal alert.
    pub(crate) fn fatal(&mut self, alert: AlertDescription) -> Option<Vec<u8>> {
        self.sealed(Kind::Alert, &[2, u8::from(alert)]).ok()
    }

    fn sealed(&mut self, kind: Kind, content: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut record = vec![0; HEAD + content.len() + TAIL];
        record[HEAD..HEAD + content.len()].copy_from_slice(content);
        self.tx.seal(kind, &mut record)?;
        Ok(record)
    }

    fn count_empty(&mut self, is_empty: bool) -> Result<(), RecordError> {
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        match self.empty {
            0..=MAX_EMPTY => Ok(()),
            _ => Err(RecordError::Flood("records without content")),
        }
    }

    fn handle(&mut self, kind: u8, content: &[u8], used: usize) -> Result<Opened, RecordError> {
        if kind == Kind::Handshake as u8 {
            self.handshake(content)?;
            return Ok(Opened::Handled { used });
        }
        if kind != Kind::Alert as u8 {
            return Err(RecordError::UnexpectedType(kind));
        }
        match *content {
            [_, CLOSE_NOTIFY] => {
                self.closed = true;
                Ok(Opened::Closed)
            }
            // Announces a close_notify, no more.
            [_, USER_CANCELED] => {
                self.chatter.spend("warnings")?;
                Ok(Opened::Handled { used })
            }
            // Whatever its level says, every other one is the end (RFC 8446, 6).
            [_, description] => Err(RecordError::Alert(description.into())),
            _ => Err(RecordError::Malformed("alert")),
        }
    }

    /// One record's worth of handshake messages: several, one, or a part of one.
    fn handshake(&mut self, content: &[u8]) -> Result<(), RecordError> {
        if content.is_empty() {
            return Err(RecordError::Malformed("handshake record"));
        }
        let mut joined = mem::take(&mut self.partial);
        let mut rest = content;
        if !joined.is_empty() {
            joined.extend_from_slice(content);
            rest = &joined;
        }
        while !rest.is_empty() {
            // A part costs as much as a whole: each makes us copy what came before.
            self.chatter.spend("messages after the handshake")?;
            let Some(message) = message(rest)? else {
                self.partial = rest.to_vec();
                break;
            };
            self.message(&message)?;
            rest = message.after;
        }
        Ok(())
    }

    fn message(&mut self, message: &Message<'_>) -> Result<(), RecordError> {
        match (message.kind, message.body, &mut self.secrets) {
            // What follows would be under a key of the past.
            (KEY_UPDATE, ..) if !message.after.is_empty() => Err(RecordError::Interleaved),
            (KEY_UPDATE, &[asked @ 0..=1], secrets) => {
                self.rx = secrets.next_rx().and_then(Keys::new)?;
                self.update_asked |= asked == 1;
                Ok(())
            }
            (KEY_UPDATE, ..) => Err(RecordError::Malformed("KeyUpdate")),
            (NEW_SESSION_TICKET, ticket, Secrets::Client(kernel)) => kernel
                .handle_new_session_ticket(ticket)
                .map_err(|_| RecordError::Malformed("NewSessionTicket")),
            _ => Err(RecordError::UnexpectedMessage(message.kind)),
        }
    }
}

// === impl Secrets ===

impl Secrets {
    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), RecordError> {
        let next = match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        };
        next.map_err(|_| RecordError::NoKeys)
    }

    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), RecordError> {
        let next = match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        };
        next.map_err(|_| RecordError::NoKeys)
    }
}

// === impl Chatter ===

impl Chatter {
    fn new() -> Self {
        Self {
            left: CHATTER_BURST,
            since: Instant::now(),
        }
    }

    fn spend(&mut self, what: &'static str) -> Result<(), RecordError> {
        let pauses = self.since.elapsed().as_secs() / CHATTER_PAUSE.as_secs();
        if pauses > 0 {
            let back = u32::try_from(pauses).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(back).min(CHATTER_BURST);
            self.since = Instant::now();
        }
        self.left = self.left.checked_sub(1).ok_or(RecordError::Flood(what))?;
        Ok(())
    }
}

/// Splits off the first message; nothing while it is not whole.
fn message(bytes: &[u8]) -> Result<Option<Message<'_>>, RecordError> {
    let Some((&[kind, a, b, c], rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    if len > MAX_MESSAGE {
        return Err(RecordError::Flood("bytes in a message after the handshake"));
    }
    Ok(rest
        .split_at_checked(len)
        .map(|(body, after)| Message { kind, body, after }))
}

#[cfg(test)]
mod tests;
