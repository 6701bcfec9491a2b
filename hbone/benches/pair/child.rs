//! This program once more in another role: started, spoken with by lines, measured, and always ended.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child as Process, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::Signal;

use crate::certs::Certs;
use crate::net::{self, Net};
use crate::{Result, stage};

/// Longer than any figure takes to measure; a child that is silent for longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a child is told its CPU, its network namespace, and what it binds.
const CPU: &str = "BENCH_PAIR_CPU";
const NAMESPACE: &str = "BENCH_PAIR_NETNS";
const BIND: &str = "BENCH_PAIR_BIND";

/// A process in a role. Dropping ends it.
pub(crate) struct Child {
    process: Process,
    role: String,
    lines: Receiver<String>,
    stdin: ChildStdin,
}

/// What all children are given.
pub(crate) struct Cast {
    pub(crate) cpu: usize,
    pub(crate) net: Net,
    pub(crate) certs: Certs,
    /// jemalloc gives freed pages back at once: what is resident is what is held.
    pub(crate) thrifty: bool,
}

/// The first thing a child does: to where it belongs, and never alive without its parent.
pub(crate) fn enter() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    stage::raise_file_limit()?;
    if let Ok(namespace) = std::env::var(NAMESPACE) {
        net::enter(&namespace)?;
    }
    stage::pin(std::env::var(CPU)?.parse()?)
}

/// What this process is to bind.
pub(crate) fn bind() -> Result<SocketAddr> {
    Ok(std::env::var(BIND)?.parse()?)
}

/// Tells the parent something.
pub(crate) fn tell(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Waits for the parent's word; nothing when it has no more.
pub(crate) fn hear() -> Result<Option<String>> {
    let mut line = String::new();
    let n = std::io::stdin().lock().read_line(&mut line)?;
    Ok((n > 0).then(|| line.trim().to_owned()))
}

// === impl Cast ===

impl Cast {
    /// Starts this program in a role, at the place of that role.
    pub(crate) fn start(&self, role: &[&str]) -> Result<Child> {
        self.start_at(role.first().ok_or("no role")?, role)
    }

    /// Starts this program in a role, at another's place.
    pub(crate) fn start_at(&self, place: &str, role: &[&str]) -> Result<Child> {
        let place = self.net.place(place);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("role").args(role);
        command.env(CPU, self.cpu.to_string()).env(BIND, place.bind);
        command.envs(place.namespace.map(|namespace| (NAMESPACE, namespace)));
        command.envs(self.certs.env());
        if self.thrifty {
            command.env("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let (Some(stdin), Some(stdout)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("a child without pipes".into());
        };
        let (heard, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                if heard.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Child {
            process,
            role: role.join(" "),
            lines,
            stdin,
        })
    }
}

// === impl Child ===

impl Child {
    /// The child's next line.
    pub(crate) fn line(&mut self) -> Result<String> {
        self.line_within(PATIENCE)?
            .ok_or_else(|| format!("{}: silent for too long", self.role).into())
    }

    /// The child's next line, or nothing if it does not come in time.
    pub(crate) fn line_within(&mut self, patience: Duration) -> Result<Option<String>> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(Some(line)),
            Err(Timeout) => Ok(None),
            Err(Disconnected) => Err(format!("{}: it ended", self.role).into()),
        }
    }

    /// Waits until the child says `ready`; what it adds.
    pub(crate) fn ready(&mut self) -> Result<String> {
        let line = self.line()?;
        match line.strip_prefix("ready") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(format!("{}: said {line:?} instead of ready", self.role).into()),
        }
    }

    /// Tells the child something.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    /// The CPU time of all its threads so far, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        stage::cpu(self.process.id())
    }

    /// Its resident memory, in bytes.
    pub(crate) fn rss(&self) -> Result<f64> {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let text = fs::read_to_string(path)?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix("kB"))
            .ok_or("smaps_rollup without Rss")?;
        Ok(kib.trim().parse::<f64>()? * 1024.0)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself; either way nobody is left behind.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
