//! One request to the kernel at a time, over a netlink socket of the current namespace.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::CaptureError;

/// One part of a transaction, with a name for when the kernel refuses it.
pub(super) struct Change {
    what: &'static str,
    message: NfTablesMessage,
}

impl Change {
    pub(super) fn new(what: &'static str, message: NfTablesMessage) -> Self {
        Self { what, message }
    }
}

/// Makes all changes, or none.
pub(super) fn commit(changes: Vec<Change>) -> Result<(), CaptureError> {
    const SUBSYS_NFTABLES: u16 = 10;
    let mut batch = Vec::new();
    let control = |m, seq, batch: &mut Vec<u8>| {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYS_NFTABLES);
        append(netfilter(header, m), 0, seq, batch);
    };
    control(ControlMessage::BatchBegin, 0, &mut batch);
    let names: Vec<&str> = changes.iter().map(|change| change.what).collect();
    let mut seq = 0;
    for change in changes {
        let flags = match change.message {
            NfTablesMessage::DeleteTable(_) => NLM_F_ACK,
            NfTablesMessage::NewRule(_) => NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND,
            _ => NLM_F_ACK | NLM_F_CREATE,
        };
        seq += 1;
        append(netfilter(inet(), change.message), flags, seq, &mut batch);
    }
    control(ControlMessage::BatchEnd, seq + 1, &mut batch);

    let mut socket = Channel::open(NETLINK_NETFILTER)?;
    socket.send(&batch)?;
    // Answers come in order; an answer to the batch as a whole bears the number of its begin.
    let mut answered = 0;
    while answered < seq {
        for reply in socket.receive::<NetfilterMessage>()? {
            if let Some(error) = answer(&reply) {
                answered = reply.header.sequence_number;
                let name = (answered as usize)
                    .checked_sub(1)
                    .and_then(|i| names.get(i));
                error.map_err(|source| CaptureError::Refused {
                    what: name.copied().unwrap_or("the batch").into(),
                    source,
                })?;
            }
        }
    }
    Ok(())
}

/// Everything of one kind in the inet family. What the crate cannot read is none of ours.
pub(super) fn dump(what: NfTablesMessage) -> Result<Vec<NfTablesMessage>, CaptureError> {
    // Of every family: our table is `inet`, and so is every chain and rule in it; tables are asked for to
    // learn of others, too.
    let header = match what {
        NfTablesMessage::GetTable(_) => NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        _ => inet(),
    };
    let mut socket = Channel::open(NETLINK_NETFILTER)?;
    let mut request = Vec::new();
    append(netfilter(header, what), NLM_F_DUMP, 1, &mut request);
    socket.send(&request)?;
    let found = socket.dump::<NetfilterMessage>("the list of nftables objects")?;
    let tables = found.into_iter().filter_map(|message| match message.inner {
        NetfilterMessageInner::NfTables(message) => Some(message),
        _ => None,
    });
    Ok(tables.collect())
}

/// Empties the namespace's connection tracking table.
pub(super) fn forget_connections() -> Result<(), CaptureError> {
    const DELETE: u8 = 2;
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let all = ConntrackMessage::Other {
        message_type: DELETE,
        attributes: vec![],
    };
    let mut request = Vec::new();
    append(netfilter(header, all), NLM_F_ACK, 1, &mut request);
    let mut socket = Channel::open(NETLINK_NETFILTER)?;
    socket.send(&request)?;
    let source = match socket.acknowledged::<NetfilterMessage>()? {
        Ok(()) => return Ok(()),
        Err(source) => source,
    };
    Err(CaptureError::Refused {
        what: "forgetting tracked connections".into(),
        source,
    })
}

/// A netlink socket that knows where messages end.
pub(super) struct Channel(Socket);

impl Channel {
    pub(super) fn open(protocol: isize) -> Result<Self, CaptureError> {
        let mut socket = Socket::new(protocol).map_err(CaptureError::Netlink)?;
        socket.bind_auto().map_err(CaptureError::Netlink)?;
        let kernel = SocketAddr::new(0, 0);
        socket.connect(&kernel).map_err(CaptureError::Netlink)?;
        Ok(Self(socket))
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), CaptureError> {
        self.0.send(bytes, 0).map_err(CaptureError::Netlink)?;
        Ok(())
    }

    /// The next datagram's messages. One whose content cannot be read is left out.
    fn receive<M: NetlinkDeserializable>(
        &mut self,
    ) -> Result<Vec<NetlinkMessage<M>>, CaptureError> {
        let (bytes, _) = self.0.recv_from_full().map_err(CaptureError::Netlink)?;
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while rest.len() >= HEADER {
            let len = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            if len < HEADER || len > rest.len() {
                return Err(CaptureError::Unreadable(format!("length {len}")));
            }
            match NetlinkMessage::deserialize(&rest[..len]) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::debug!(%error, "left out a netlink message"),
            }
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }

    /// Reads the answer to one request that asked for an acknowledgement.
    pub(super) fn acknowledged<M: NetlinkDeserializable>(
        &mut self,
    ) -> Result<io::Result<()>, CaptureError> {
        loop {
            if let Some(answer) = self.receive::<M>()?.iter().find_map(answer) {
                return Ok(answer);
            }
        }
    }

    /// Reads the answers to a dump up to its end.
    pub(super) fn dump<M: NetlinkDeserializable>(
        &mut self,
        what: &str,
    ) -> Result<Vec<M>, CaptureError> {
        let mut found = Vec::new();
        loop {
            for message in self.receive::<M>()? {
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => found.push(inner),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => {
                        return Err(CaptureError::Refused {
                            what: what.into(),
                            source: error.to_io(),
                        });
                    }
                    _ => {}
                }
            }
        }
    }
}

const HEADER: usize = 16;

/// Appends a request to `out`.
pub(super) fn append<M: NetlinkSerializable>(
    message: NetlinkMessage<M>,
    flags: u16,
    seq: u32,
    out: &mut Vec<u8>,
) {
    let mut message = message;
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = seq;
    message.finalize();
    let at = out.len();
    out.resize(at + message.buffer_len(), 0);
    message.serialize(&mut out[at..]);
}

fn answer<M>(message: &NetlinkMessage<M>) -> Option<io::Result<()>> {
    match &message.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Some(Err(error.to_io())),
        NetlinkPayload::Error(_) => Some(Ok(())),
        _ => None,
    }
}

fn netfilter(
    header: NetfilterHeader,
    message: impl Into<NetfilterMessageInner>,
) -> NetlinkMessage<NetfilterMessage> {
    NetlinkMessage::from(NetfilterMessage::new(header, message))
}

fn inet() -> NetfilterHeader {
    NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0)
}
