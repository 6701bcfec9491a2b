//! The handshake: rustls' unbuffered API over a socket, until the record layer is ours.
//!
//! rustls is fed one whole record at a time, so that it never takes a byte that follows the handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, CommonState, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::verify::{Leaf, Unexpected};
use super::{ALPN, tls_error};
use crate::limits::{CLOSING_BYTES, CLOSING_TIME};
use crate::record::{self, Records, Secrets};
use crate::{Error, Expect, Identity, Peer};

/// Room for one read: a flight with one certificate fits.
const READ: usize = 8 << 10;

/// Room for what is sent at once, before more is asked for.
const WRITE: usize = 4 << 10;

/// A finished handshake, and what it proved.
pub(crate) struct Proved {
    pub(crate) tcp: TcpStream,
    pub(crate) records: Records,
    /// Sealed by the handshake and not written yet: must be written first, best with whatever
    /// comes next.
    pub(crate) unsent: Vec<u8>,
    /// Read beyond the handshake, still sealed.
    pub(crate) early: Vec<u8>,
    pub(crate) peer: Peer,
    /// When the peer's certificate runs out.
    pub(crate) not_after: SystemTime,
    /// The peer's certificates, leaf first: for [`Identity::is_revoked`] when there is news.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// Whether it continued an earlier session: no certificate was looked at anew.
    #[cfg(test)]
    pub(crate) resumed: bool,
}

/// A connection of rustls, of either side.
trait Side {
    type Data;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    fn finish(self) -> Result<Records, Failed>;
}

/// What is to be sent, in memory that is cleared once.
#[derive(Default)]
struct Output {
    room: Vec<u8>,
    used: usize,
}

/// What one step asks for.
enum Next {
    Step,
    Read,
    Done,
}

/// Why a handshake did not come about.
enum Failed {
    Io(io::Error),
    Tls(rustls::Error),
}

/// The client's handshake: the server must prove to be one of `expect` before it learns who we are.
pub(crate) async fn dial(
    mut tcp: TcpStream,
    addr: SocketAddr,
    identity: &Identity,
    expect: &Expect,
) -> Result<Proved, Error> {
    let config = identity.client_config(expect);
    let config = config.map_err(|e| explain(addr, e.into()))?;
    let name = ServerName::IpAddress(addr.ip().into());
    let side = UnbufferedClientConnection::new(config, name);
    let mut side = side.map_err(|e| explain(addr, e.into()))?;
    let shaken = shake(&mut tcp, &mut side).await;
    let (early, unsent) = shaken.map_err(|e| explain(addr, e))?;
    prove(tcp, addr, side, early, unsent).await
}

/// The server's handshake.
pub(crate) async fn serve(
    mut tcp: TcpStream,
    addr: SocketAddr,
    config: Arc<ServerConfig>,
) -> Result<Proved, Error> {
    let side = UnbufferedServerConnection::new(config);
    let mut side = side.map_err(|e| explain(addr, e.into()))?;
    match shake(&mut tcp, &mut side).await {
        Ok((early, unsent)) => prove(tcp, addr, side, early, unsent).await,
        Err(failed) => {
            let_it_read(tcp).await;
            Err(explain(addr, failed))
        }
    }
}

/// Runs a handshake to its end; leaves what was read beyond it, and what is still to be written.
async fn shake<S: Side>(tcp: &mut TcpStream, side: &mut S) -> Result<(Vec<u8>, Vec<u8>), Failed> {
    let (mut input, mut output) = (Vec::with_capacity(READ), Output::default());
    // How much of the input rustls has been shown: whole records, and last perhaps a part of one.
    let (mut whole, mut shown) = (0_usize, 0_usize);
    loop {
        let UnbufferedStatus { discard, state } = side.step(&mut input[..shown]);
        let next = match state {
            Ok(state) => next(state, &mut output),
            Err(error) => Err(Failed::Tls(error)),
        };
        input.drain(..discard);
        (whole, shown) = (whole.saturating_sub(discard), shown - discard);
        match next {
            Ok(Next::Step) => {}
            Ok(Next::Done) if !side.common().is_handshaking() => {
                input.drain(..whole);
                return Ok((input, output.said().to_vec()));
            }
            Ok(Next::Read | Next::Done) => {
                if record_end(&input, whole).is_none() {
                    // All that is to be said is said at once, when nothing is left to be heard.
                    tcp.write_all(output.said()).await?;
                    output.used = 0;
                    read(tcp, &mut input).await?;
                }
                // A part is shown too: what is not TLS at all need not be waited for.
                match record_end(&input, whole) {
                    Some(end) => (whole, shown) = (end, end),
                    None => shown = input.len(),
                }
            }
            Err(failed) => {
                tell(tcp, side, &mut input[..shown], output).await;
                return Err(failed);
            }
        }
    }
}

/// Sorts out one step.
fn next<D>(state: ConnectionState<'_, '_, D>, output: &mut Output) -> Result<Next, Failed> {
    match state {
        ConnectionState::EncodeTlsData(data) => output.encode(data).map(|()| Next::Step),
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Next::Step)
        }
        ConnectionState::BlockedHandshake => Ok(Next::Read),
        ConnectionState::WriteTraffic(_) => Ok(Next::Done),
        // Closed during the handshake; data cannot come, since rustls is not shown any.
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

/// Where the record that begins at `from` ends, once it is whole.
fn record_end(input: &[u8], from: usize) -> Option<usize> {
    let head = input.get(from..)?.first_chunk::<{ record::HEAD }>()?;
    let end = from + record::HEAD + usize::from(u16::from_be_bytes([head[3], head[4]]));
    (end <= input.len()).then_some(end)
}

async fn read(tcp: &mut TcpStream, input: &mut Vec<u8>) -> Result<(), Failed> {
    input.reserve(READ);
    match tcp.read_buf(input).await? {
        0 => Err(Failed::Io(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the peer left during the handshake",
        ))),
        _ => Ok(()),
    }
}

/// Sends the alert that a failed handshake has left in rustls.
async fn tell<S: Side>(tcp: &mut TcpStream, side: &mut S, input: &mut [u8], mut output: Output) {
    // What waits is handed out before any input is looked at again.
    while side.common().wants_write()
        && let Ok(ConnectionState::EncodeTlsData(data)) = side.step(input).state
        && output.encode(data).is_ok()
    {}
    // Whether it arrives or not, the handshake has failed.
    let _ = tcp.write_all(output.said()).await;
}

/// Takes the connection over from rustls, if it is what both sides are here for.
async fn prove(
    mut tcp: TcpStream,
    addr: SocketAddr,
    side: impl Side,
    early: Vec<u8>,
    mut unsent: Vec<u8>,
) -> Result<Proved, Error> {
    let common = side.common();
    #[cfg(test)]
    let resumed = common.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let chain: Arc<[_]> = common.peer_certificates().unwrap_or_default().into();
    let agreed = agreed(addr, common.alpn_protocol(), &chain, SystemTime::now());
    let mut records = side.finish().map_err(|e| explain(addr, e))?;
    match agreed {
        Ok((peer, not_after)) => Ok(Proved {
            tcp,
            records,
            unsent,
            early,
            peer,
            not_after,
            chain,
            #[cfg(test)]
            resumed,
        }),
        Err((alert, error)) => {
            unsent.extend(records.fatal(alert).unwrap_or_default());
            // Whether it arrives or not, the peer is refused.
            let _ = tcp.write_all(&unsent).await;
            let_it_read(tcp).await;
            Err(error)
        }
    }
}

/// What the handshake left: HTTP/2 as the protocol, and a leaf that was accepted and still counts.
pub(super) fn agreed(
    addr: SocketAddr,
    alpn: Option<&[u8]>,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<(Peer, SystemTime), (AlertDescription, Error)> {
    if alpn != Some(ALPN) {
        return Err((
            AlertDescription::NoApplicationProtocol,
            Error::protocol("TLS did not agree on h2"),
        ));
    }
    let refuse = |alert, why| (alert, tls_error(addr, io::Error::other(why)));
    let leaf = chain.first().and_then(|leaf| Leaf::of(leaf).ok());
    let Some((Some(id), not_after)) = leaf.map(|leaf| (leaf.id.clone(), leaf.not_after)) else {
        return Err(refuse(
            AlertDescription::CertificateRequired,
            "the peer has no certificate",
        ));
    };
    // A resumed session was verified when it began, which may be long ago.
    if not_after <= now {
        return Err(refuse(
            AlertDescription::CertificateExpired,
            "the peer's certificate has expired",
        ));
    }
    Ok((Peer { id, addr }, not_after))
}

/// A socket closed over unread bytes is reset, and with it the alert that says why: so the client
/// gets a moment to read it and leave first.
async fn let_it_read(mut tcp: TcpStream) {
    let leaving = async {
        tcp.shutdown().await?;
        tokio::io::copy(&mut tcp.take(CLOSING_BYTES as u64), &mut tokio::io::sink()).await
    };
    // However it leaves, nothing more is to be done for it.
    let _ = timeout(CLOSING_TIME, leaving).await;
}

/// Brings the verifier's own words back out of the handshake's error.
fn explain(addr: SocketAddr, failed: Failed) -> Error {
    let error = match failed {
        Failed::Io(error) => return tls_error(addr, error),
        Failed::Tls(error) => error,
    };
    if let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) = &error
        && let Some(unexpected) = other.0.downcast_ref::<Unexpected>()
    {
        return Error::UnexpectedIdentity {
            expected: unexpected.expected.clone(),
            presented: unexpected.presented.clone(),
        };
    }
    tls_error(addr, io::Error::new(io::ErrorKind::InvalidData, error))
}

// === impl Output ===

impl Output {
    fn encode<D>(&mut self, mut data: EncodeTlsData<'_, D>) -> Result<(), Failed> {
        loop {
            let left = &mut self.room[self.used..];
            let more = match data.encode(left) {
                Ok(written) => {
                    self.used += written;
                    return Ok(());
                }
                Err(EncodeError::InsufficientSize(size)) if size.required_size > left.len() => {
                    size.required_size.max(WRITE)
                }
                Err(error) => return Err(Failed::Io(io::Error::other(error))),
            };
            self.room.resize(self.used + more, 0);
        }
    }

    /// What has been encoded since it was sent last.
    fn said(&self) -> &[u8] {
        &self.room[..self.used]
    }
}

// === impl Side ===

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<Records, Failed> {
        let (extracted, kernel) = self.dangerous_into_kernel_connection()?;
        Ok(Records::new(extracted, Secrets::Client(kernel))?)
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn step<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<Records, Failed> {
        let (extracted, kernel) = self.dangerous_into_kernel_connection()?;
        Ok(Records::new(extracted, Secrets::Server(kernel))?)
    }
}

// === impl Failed ===

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for Failed {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl From<record::RecordError> for Failed {
    fn from(error: record::RecordError) -> Self {
        Self::Io(io::Error::other(error))
    }
}

#[cfg(test)]
mod tests;
