//! What can be read on the wire between the nodes while one request is made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::stage::Stage;
use crate::capture::{Captured, Packet};
use crate::probe;

/// The port of tunnels.
const TUNNEL: u16 = 15008;
/// The held connections' port; they are older than what is looked at.
const HELD: u16 = 9090;
/// How long the change of path may take until it is seen.
const SOON: Duration = Duration::from_secs(10);

/// One request with a marker in a header, as the wire saw it.
pub(super) struct Seen {
    /// The marker.
    pub(super) marker: String,
    /// Packets with contents, between client and servers; those of held connections in tunnels are among them.
    pub(super) packets: usize,
    /// Of those, to or from the tunnels' port.
    pub(super) tunnelled: usize,
    /// Of those, which begin with a TLS record.
    pub(super) tls: usize,
    /// Packets in which the marker can be read.
    pub(super) readable: usize,
}

/// Asks echo-v1 with a new marker until it can be read on the wire.
pub(super) async fn readable(stage: &Stage) -> Result<Seen> {
    probe::eventually("the marker readable on the wire", SOON, async || {
        let seen = ask(stage).await?;
        ensure!(seen.readable > 0, "{}", seen.summary());
        Ok(seen)
    })
    .await
}

/// Asks echo-v1 with a new marker until only TLS to the tunnels' port is on the wire.
pub(super) async fn hidden(stage: &Stage) -> Result<Seen> {
    probe::eventually("only TLS to 15008 on the wire", SOON, async || {
        let seen = ask(stage).await?;
        let only = seen.tunnelled == seen.packets && seen.tls > 0;
        ensure!(seen.readable == 0 && only, "{}", seen.summary());
        Ok(seen)
    })
    .await
}

impl Seen {
    fn summary(&self) -> String {
        let Self {
            packets,
            tunnelled,
            tls,
            readable,
            ..
        } = self;
        format!(
            "{packets} packets, {tunnelled} of them tunnelled, {tls} TLS; {readable} show the marker"
        )
    }
}

async fn ask(stage: &Stage) -> Result<Seen> {
    let (clients, servers) = (stage.client.ips().await?, stage.server_ips().await?);
    let between = move |packet: &Packet| {
        let (from, to) = (packet.from.ip(), packet.to.ip());
        let pair = clients.contains(&from) && servers.contains(&to)
            || servers.contains(&from) && clients.contains(&to);
        let held = packet.from.port() == HELD || packet.to.port() == HELD;
        packet.protocol == 6 && !packet.payload.is_empty() && pair && !held
    };
    let marker = marker();
    let header = format!("x-secret:{marker}");
    let capture = stage.cluster.underlay_capture(between)?;
    let answers = stage.client.ask(&["-H", &header, "http://echo-v1/"]).await;
    let captured = capture.stop();
    let answers = answers?;
    let answer = answers.first().context("no answer")?;
    if answer.request_header("x-secret").as_deref() != Some(&marker) {
        bail!("the server did not see the marker: {answer:?}");
    }
    Ok(seen(marker, &captured))
}

fn seen(marker: String, captured: &Captured) -> Seen {
    let tunnelled = |packet: &&Packet| packet.from.port() == TUNNEL || packet.to.port() == TUNNEL;
    let tls = |packet: &&Packet| matches!(packet.payload[..], [0x14..=0x17, 3, ..]);
    Seen {
        packets: captured.packets.len(),
        tunnelled: captured.packets.iter().filter(tunnelled).count(),
        tls: captured
            .packets
            .iter()
            .filter(tunnelled)
            .filter(tls)
            .count(),
        readable: captured.containing(marker.as_bytes()).len(),
        marker,
    }
}

/// A text that was on no wire before.
fn marker() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("marker-{:x}", now.as_nanos())
}
