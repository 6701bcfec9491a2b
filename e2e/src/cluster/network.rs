//! The wires between the machines: one bridge in the control plane's network, one cable to each worker, no way out.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::machine::Machine;
use super::plan::{Plan, Worker};

/// The bridge that all packets between machines cross.
pub(super) const UNDERLAY: &str = "underlay";

/// Makes the bridge. It lives in the control plane's network and goes away with it.
pub(super) fn bridge(plan: Plan, control_plane: &Machine) -> anyhow::Result<()> {
    let (ip4, ip6) = (plan.control_plane4(), plan.control_plane6());
    let mut lines = format!(
        "link set lo up\n\
         link add {UNDERLAY} type bridge\n\
         addr add {ip4}/24 dev {UNDERLAY}\n\
         addr add {ip6}/64 dev {UNDERLAY} nodad\n\
         link set {UNDERLAY} up\n\
         route add unreachable default\n\
         route add unreachable ::/0\n"
    );
    for worker in plan.workers() {
        writeln!(lines, "route add {} via {}", worker.pods4, worker.ip4)?;
        writeln!(lines, "route add {} via {}", worker.pods6, worker.ip6)?;
    }
    batch(control_plane, &lines)
}

/// Connects a worker to the bridge.
pub(super) fn attach(
    plan: Plan,
    control_plane: &Machine,
    worker: &Worker,
    machine: &Machine,
) -> anyhow::Result<()> {
    let (name, pid) = (&worker.name, machine.init.pid);
    let there = format!(
        "link add {name} type veth peer name eth0 netns {pid}\n\
         link set {name} master {UNDERLAY}\n\
         link set {name} up\n"
    );
    batch(control_plane, &there)?;
    // The default route leads to the control plane, which refuses what is not for the lab. It has to exist: a packet
    // to a Service address needs a route before its address is translated.
    let mut here = format!(
        "link set lo up\n\
         addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {}\n\
         route add ::/0 via {}\n",
        worker.ip4,
        worker.ip6,
        plan.control_plane4(),
        plan.control_plane6(),
    );
    for other in plan
        .workers()
        .iter()
        .filter(|other| other.number != worker.number)
    {
        writeln!(here, "route add {} via {}", other.pods4, other.ip4)?;
        writeln!(here, "route add {} via {}", other.pods6, other.ip6)?;
    }
    batch(machine, &here)
}

/// Takes a worker's cable out, or plugs it in again.
pub(super) fn plug(control_plane: &Machine, worker: &str, connected: bool) -> anyhow::Result<()> {
    batch(
        control_plane,
        &format!(
            "link set {worker} {}\n",
            if connected { "up" } else { "down" }
        ),
    )
}

/// Runs commands of `ip`, one a line, in a machine's network.
fn batch(machine: &Machine, lines: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("nsenter")
        .args([
            "-t",
            &machine.init.pid.to_string(),
            "-n",
            "ip",
            "-batch",
            "-",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running ip")?;
    if let Some(mut input) = ip.stdin.take() {
        input
            .write_all(lines.as_bytes())
            .context("telling ip what to do")?;
    }
    let output = ip.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        bail!(
            "setting up the network of {}: {}",
            machine.name,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
