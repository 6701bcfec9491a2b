//! A scripted HTTP/2 peer behind real TLS, as client or as server: a test reads as a packet capture.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use super::frames::*;
use super::{Ca, raw};

/// How long any one answer may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Frames that a failure shows.
const SHOWN: usize = 16;

/// The peer under the test's hand.
pub struct Wire {
    tls: TlsStream<TcpStream>,
    unread: Vec<u8>,
    /// All that came, for failures.
    seen: Vec<Frame>,
    /// What came before something else that was waited for.
    skipped: Vec<Frame>,
    /// What the other end has announced.
    pub announced: HashMap<u16, u32>,
    /// What the other end has granted by WINDOW_UPDATE, by stream.
    granted: HashMap<u32, usize>,
    sent: HashMap<u32, usize>,
    pings: u64,
    /// Whether it answers pings while it reads.
    pub lives: bool,
    is_client: bool,
    /// Whether the other end's preface is behind us.
    prefaced: bool,
}

impl Wire {
    /// Past TLS, as a client with a good certificate.
    pub async fn client(tcp: TcpStream, ca: &Ca) -> Self {
        Self::new(raw::client_tls(tcp, ca, b"h2").await.into(), true)
    }

    /// Past TLS, as a server with a good certificate.
    pub async fn server(tcp: TcpStream, ca: &Ca) -> Self {
        Self::new(raw::server_tls(tcp, ca).await.into(), false)
    }

    fn new(tls: TlsStream<TcpStream>, is_client: bool) -> Self {
        // Frames that are sent apart arrive apart, and at once.
        tls.get_ref().0.set_nodelay(true).unwrap();
        Self {
            tls,
            unread: Vec::new(),
            seen: Vec::new(),
            skipped: Vec::new(),
            announced: HashMap::new(),
            granted: HashMap::new(),
            sent: HashMap::new(),
            pings: 0,
            lives: true,
            is_client,
            prefaced: is_client,
        }
    }

    // === writing ===

    /// Both ends' first words, with our settings; returns when both have acknowledged.
    pub async fn greet(&mut self, ours: &[(u16, u32)]) {
        self.open(ours).await;
        self.expect_settings().await;
        self.send(&settings_ack()).await;
        self.expect_ack().await;
    }

    /// Our first words.
    pub async fn open(&mut self, ours: &[(u16, u32)]) {
        if self.is_client {
            self.send_raw(PREFACE).await;
        }
        self.send(&settings(ours)).await;
    }

    pub async fn send(&mut self, frame: &Frame) {
        self.send_raw(&frame.encode()).await;
    }

    /// All of them in one piece.
    pub async fn send_all(&mut self, frames: &[Frame]) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        self.send_raw(&bytes).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        let sent = async {
            self.tls.write_all(bytes).await?;
            self.tls.flush().await
        };
        let sent = timeout(PATIENCE, sent).await;
        if !matches!(sent, Ok(Ok(()))) {
            panic!("cannot send: {sent:?}; so far came {}", self.capture());
        }
    }

    /// Sends while it reads, and stops without complaint where the other end does.
    pub async fn flood(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        let flood = poll_fn(|cx| {
            loop {
                let mut moved = false;
                let mut space = [0; 4096];
                let mut into = ReadBuf::new(&mut space);
                match Pin::new(&mut self.tls).poll_read(cx, &mut into) {
                    Poll::Ready(Ok(())) if !into.filled().is_empty() => {
                        self.unread.extend(into.filled());
                        moved = true;
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
                match Pin::new(&mut self.tls).poll_write(cx, left) {
                    Poll::Ready(Ok(n)) => {
                        left = &left[n..];
                        moved = true;
                    }
                    // What was said before it stopped listening can still be read.
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
                if left.is_empty() {
                    return Pin::new(&mut self.tls).poll_flush(cx).map(|_| ());
                }
                if !moved {
                    return Poll::Pending;
                }
            }
        });
        if timeout(PATIENCE, flood).await.is_err() {
            panic!("a flood got stuck; so far came {}", self.capture());
        }
    }

    /// Sends without reading until the other end takes no more or closes; how many bytes were taken.
    pub async fn push_unread(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        let push = async {
            for part in bytes.chunks(16 << 10) {
                if self.tls.write_all(part).await.is_err() {
                    break;
                }
                taken += part.len();
            }
        };
        // Ends with an error when the other end has lost its patience.
        let _ = timeout(PATIENCE, push).await;
        taken
    }

    /// What is left of the other end's windows on a stream, of all that was ever granted.
    pub fn room(&self, stream: u32) -> usize {
        let granted = |id| self.granted.get(&id).copied().unwrap_or_default();
        let sent = |id| self.sent.get(&id).copied().unwrap_or_default();
        let initial = self.announced.get(&INITIAL_WINDOW_SIZE);
        let initial = initial.map_or(0xffff, |size| *size as usize);
        let own = (initial + granted(stream)).saturating_sub(sent(stream));
        own.min((0xffff + granted(0)).saturating_sub(sent(0)))
    }

    /// Sends DATA as soon as the windows allow.
    pub async fn send_within(&mut self, frame: &Frame) {
        while self.room(frame.stream) < frame.payload.len() {
            let Some(frame) = self.frame().await else {
                panic!("closed instead of WINDOW_UPDATE: {}", self.capture());
            };
            self.skipped.push(frame);
        }
        for id in [0, frame.stream] {
            *self.sent.entry(id).or_default() += frame.payload.len();
        }
        self.send(frame).await;
    }

    /// Asks for new keys in both directions, as TLS lets every peer do.
    pub async fn update_keys(&mut self) {
        let asked = match &mut self.tls {
            TlsStream::Client(tls) => tls.get_mut().1.refresh_traffic_keys(),
            TlsStream::Server(tls) => tls.get_mut().1.refresh_traffic_keys(),
        };
        asked.unwrap();
        // Fails where the other end has had enough of it.
        let _ = self.tls.flush().await;
    }

    /// Leaves without a word, as a machine that loses its mind.
    pub fn crash(mut self) {
        self.tls.get_mut().0.set_zero_linger().unwrap();
    }

    /// Writes past TLS.
    pub async fn send_tcp(&mut self, bytes: &[u8]) {
        self.tls.get_mut().0.write_all(bytes).await.unwrap();
    }

    /// Ends our direction as TLS wants it.
    pub async fn shutdown(&mut self) {
        let _ = self.tls.shutdown().await;
    }

    // === reading ===

    /// Keeps nothing of what came until now.
    pub fn forget(&mut self) {
        self.seen.clear();
        self.skipped.clear();
    }

    /// The next frame; nothing when the other end has closed.
    pub async fn frame(&mut self) -> Option<Frame> {
        let next = timeout(PATIENCE, self.next()).await;
        next.unwrap_or_else(|_| panic!("nothing comes; so far came {}", self.capture()))
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if !self.prefaced && self.unread.len() >= PREFACE.len() {
                let preface: Vec<u8> = self.unread.drain(..PREFACE.len()).collect();
                assert_eq!(preface, PREFACE);
                self.prefaced = true;
            }
            if self.prefaced
                && let Some(frame) = Frame::take(&mut self.unread)
            {
                self.seen.push(frame.clone());
                self.remember(&frame);
                if self.lives && frame.kind == PING && !frame.has(ACK) {
                    self.answer(&frame).await;
                }
                return Some(frame);
            }
            self.unread.reserve(16 << 10);
            if !matches!(self.tls.read_buf(&mut self.unread).await, Ok(1..)) {
                return None;
            }
        }
    }

    async fn answer(&mut self, ping: &Frame) {
        let pong = ping.clone().flag(ACK).encode();
        // Fails where the other end has left.
        let _ = self.tls.write_all(&pong).await;
        let _ = self.tls.flush().await;
    }

    fn remember(&mut self, frame: &Frame) {
        assert!(
            frame.payload.len() <= 16_384,
            "{frame:?} is larger than any peer of these tests has allowed"
        );
        if frame.kind == WINDOW_UPDATE {
            *self.granted.entry(frame.stream).or_default() += frame.number(0) as usize;
        }
        if frame.kind != SETTINGS {
            return;
        }
        for entry in frame.payload.chunks(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            self.announced.insert(id, value);
        }
    }

    /// The first frame that `is` takes, of those that nobody has waited for yet. Only an end that was not
    /// asked for is a failure.
    pub async fn until<T>(&mut self, what: &str, is: impl Fn(&Frame) -> Option<T>) -> T {
        let known = self.skipped.iter().enumerate();
        if let Some((at, found)) = known.filter_map(|(at, f)| Some((at, is(f)?))).next() {
            self.skipped.remove(at);
            return found;
        }
        loop {
            let Some(frame) = self.frame().await else {
                panic!("closed instead of {what}: {}", self.capture());
            };
            if let Some(found) = is(&frame) {
                return found;
            }
            if frame.kind == GOAWAY && frame.number(1) != NO_ERROR {
                panic!("{frame:?} instead of {what}: {}", self.capture());
            }
            self.skipped.push(frame);
        }
    }

    pub async fn expect_settings(&mut self) {
        self.until("SETTINGS", |f| {
            (f.kind == SETTINGS && !f.has(ACK)).then_some(())
        })
        .await;
    }

    /// The acknowledgement of our settings.
    pub async fn expect_ack(&mut self) {
        self.until("an acknowledgement of SETTINGS", |f| {
            (f.kind == SETTINGS && f.has(ACK)).then_some(())
        })
        .await;
    }

    /// HEADERS on this stream.
    pub async fn expect_headers(&mut self, stream: u32) -> Frame {
        let what = format!("HEADERS({stream})");
        self.on_stream(&what, stream, HEADERS).await
    }

    /// An answer with this status.
    pub async fn expect_status(&mut self, stream: u32, expected: u16) {
        let answer = self.expect_headers(stream).await;
        assert_eq!(status(&answer.payload), Some(expected), "{answer:?}");
    }

    /// Exactly these bytes on this stream, in however many pieces.
    pub async fn expect_data(&mut self, stream: u32, bytes: &[u8]) {
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let frame = self.on_stream("DATA", stream, DATA).await;
            got.extend(frame.payload);
        }
        assert!(got == bytes, "other bytes came on stream {stream}");
    }

    /// END_STREAM, after no further bytes.
    pub async fn expect_end(&mut self, stream: u32) {
        let what = format!("END_STREAM({stream})");
        let frame = self.on_stream(&what, stream, DATA).await;
        assert!(
            frame.has(END_STREAM) && frame.payload.is_empty(),
            "{frame:?}"
        );
    }

    /// A reset of this stream with this code.
    pub async fn expect_reset(&mut self, stream: u32, expected: u32) {
        let what = format!("a reset of {stream} with {}", code(expected));
        let got = self
            .until(&what, |f| {
                (f.kind == RST_STREAM && f.stream == stream).then(|| f.number(0))
            })
            .await;
        assert_eq!(code(got), code(expected), "{}", self.capture());
    }

    /// GOAWAY with this code; a gentle one before it does not count.
    pub async fn expect_goaway(&mut self, expected: u32) {
        let what = format!("GOAWAY {}", code(expected));
        let got = self
            .until(&what, |f| {
                let is_meant =
                    f.kind == GOAWAY && (f.number(1) != NO_ERROR || expected == NO_ERROR);
                is_meant.then(|| f.number(1))
            })
            .await;
        assert_eq!(code(got), code(expected), "{}", self.capture());
    }

    /// The end of the connection, whatever still comes before it.
    pub async fn expect_closed(&mut self) {
        while self.frame().await.is_some() {}
    }

    /// GOAWAY with this code, then the end.
    pub async fn expect_thrown_out(&mut self, code: u32) {
        self.expect_goaway(code).await;
        self.expect_closed().await;
    }

    /// That the connection still works.
    pub async fn expect_alive(&mut self) {
        self.pings += 1;
        let payload = (0xa11f_e000_0000_0000 | self.pings).to_be_bytes();
        self.send(&ping(payload)).await;
        self.until("the answer to a ping", |f| {
            (f.kind == PING && f.has(ACK) && f.payload == payload).then_some(())
        })
        .await;
    }

    /// That nothing answered, besides what keeps the connection going.
    pub async fn expect_silence(&mut self) {
        let before = self.seen.len();
        self.expect_alive().await;
        let loud = |f: &&Frame| matches!(f.kind, DATA | HEADERS | RST_STREAM | GOAWAY);
        let said: Vec<_> = self.seen[before..].iter().filter(loud).collect();
        assert!(said.is_empty(), "{said:?} instead of silence");
    }

    async fn on_stream(&mut self, what: &str, stream: u32, kind: u8) -> Frame {
        let found = self
            .until(what, |f| {
                (f.stream == stream && (f.kind == kind || f.kind == RST_STREAM)).then(|| f.clone())
            })
            .await;
        assert_eq!(
            found.kind,
            kind,
            "{found:?} instead of {what}: {}",
            self.capture()
        );
        found
    }

    /// The last frames that came.
    pub fn capture(&self) -> String {
        let from = self.seen.len().saturating_sub(SHOWN);
        format!("… {:?}", &self.seen[from..])
    }
}

/// Reads a socket to its end, which must come.
pub async fn closes(tcp: &mut TcpStream) {
    let mut space = [0; 4096];
    let end = async {
        loop {
            match tcp.read(&mut space).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    };
    let ended: Result<io::Result<()>, _> = timeout(PATIENCE, end).await;
    assert!(ended.is_ok(), "the socket stays open");
}
