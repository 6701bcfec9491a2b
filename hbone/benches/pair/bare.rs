//! The floor of a new tunnel: two rustls ends in one process that shake hands in memory.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::certs::Pem;
use crate::{Result, child, stage};

/// Handshakes before those that count.
const WARM_UP: usize = 50;

/// Shakes hands `count` times; tells handshakes per CPU-second.
pub(crate) fn run(count: usize) -> Result<()> {
    let (client, server) = (
        Arc::new(Pem::near()?.client()?),
        Arc::new(Pem::far()?.server()?),
    );
    let mut wire = Vec::with_capacity(16 << 10);
    for _ in 0..WARM_UP {
        shake(&client, &server, &mut wire)?;
    }
    let before = stage::cpu(std::process::id())?;
    for _ in 0..count {
        shake(&client, &server, &mut wire)?;
    }
    let spent = stage::cpu(std::process::id())? - before;
    child::tell(&format!("{}", count as f64 / spent))
}

fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, wire: &mut Vec<u8>) -> Result<()> {
    let name = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut client = Connection::from(ClientConnection::new(client.clone(), name)?);
    let mut server = Connection::from(ServerConnection::new(server.clone())?);
    while client.is_handshaking() || server.is_handshaking() {
        carry(&mut client, &mut server, wire)?;
        carry(&mut server, &mut client, wire)?;
    }
    Ok(())
}

fn carry(from: &mut Connection, to: &mut Connection, wire: &mut Vec<u8>) -> Result<()> {
    wire.clear();
    while from.wants_write() {
        from.write_tls(&mut io::Write::by_ref(wire))?;
    }
    wire.flush()?;
    let mut rest = &wire[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest)?;
        to.process_new_packets()?;
    }
    Ok(())
}
