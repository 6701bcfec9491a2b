//! A machine of the lab seen from outside: a set of namespaces with an init of ours, asked through its control socket.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroups::{self, Hierarchy};
use super::init::{self, Answer, Health, Request, Service, Spec};

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many of a log's last lines are shown with a failure.
const TAIL: usize = 12;

/// A machine of the lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Host name, and name of the Kubernetes node.
    pub name: String,
    /// The process that started the machine's first one, and is gone when that is.
    pub keeper: Process,
    /// The machine's first process, by its id out here.
    pub init: Process,
    pub(crate) folder: PathBuf,
    pub(crate) tools: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) cgroups: Vec<PathBuf>,
}

/// A process that is known by more than its number, which is given to another one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl Process {
    /// The living process with this number.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        let started = started(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, started })
    }

    /// Whether it still lives, and is not a corpse or another process of the same number.
    pub fn alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a process started; nothing for one that is dead or not yet buried.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end: state is the first field, start time the 20th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields.first() != Some(&"Z")).then(|| fields.get(19)?.parse().ok())?
}

/// What to make a machine from.
#[derive(Debug)]
pub struct Blueprint<'a> {
    /// The program that has the hidden `machine` and `node-init` commands.
    pub program: &'a Path,
    /// The folder of Kubernetes' programs.
    pub tools: &'a Path,
    /// Control groups as they are here.
    pub layout: &'a [Hierarchy],
    /// The lab's label.
    pub label: &'a str,
    /// The lab's folder.
    pub lab: &'a Path,
    /// The machine's name.
    pub name: &'a str,
    /// Whether it is a worker.
    pub worker: bool,
    /// A listener out here, and the address inside that serves it.
    pub forward: Option<(TcpListener, SocketAddr)>,
}

impl Machine {
    /// The folder and control groups that a machine will have; recorded before it is made, so that `down` finds them.
    pub fn places(
        lab: &Path,
        layout: &[Hierarchy],
        label: &str,
        name: &str,
    ) -> (PathBuf, Vec<PathBuf>) {
        (
            lab.join("machines").join(name),
            cgroups::places(layout, label, name),
        )
    }

    /// Makes a machine and waits until it answers.
    pub async fn create(from: Blueprint<'_>) -> anyhow::Result<Self> {
        let (folder, groups) = Self::places(from.lab, from.layout, from.label, from.name);
        let logs = from.lab.join("logs");
        for dir in [&folder, &logs] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        cgroups::create(from.layout, from.label, from.name)?;
        let spec = Spec {
            name: from.name.to_owned(),
            folder: folder.clone(),
            logs: logs.clone(),
            cgroups: groups.clone(),
            layout: from.layout.to_vec(),
            forward: from.forward.as_ref().map(|(_, to)| *to),
            worker: from.worker,
        };
        let file = folder.join("spec.json");
        fs::write(&file, serde_json::to_string_pretty(&spec)?)
            .context("writing the machine's description")?;
        let log = init::append(&init::log_of(&logs, from.name, "init"))?;
        let input = from.forward.map_or_else(Stdio::null, |(listener, _)| {
            Stdio::from(OwnedFd::from(listener))
        });
        let mut keeper = Command::new(from.program)
            .arg("machine")
            .arg(&file)
            .current_dir("/")
            .stdin(input)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", from.program.display()))?;
        let pid = i32::try_from(keeper.id()).context("process id")?;
        let by = Instant::now() + PATIENCE;
        while UnixStream::connect(init::socket(&folder)).is_err() {
            let ended = keeper.try_wait()?;
            if ended.is_some() || Instant::now() > by {
                let how = ended.map_or_else(
                    || "does not answer".to_owned(),
                    |s| format!("ended early ({s})"),
                );
                bail!(
                    "the machine {} {how}\n{}",
                    from.name,
                    tail(&init::log_of(&logs, from.name, "init"))
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let inner = first_child(pid)
            .with_context(|| format!("the machine {} has no first process", from.name))?;
        let (keeper, init) = (Process::of(pid)?, Process::of(inner)?);
        Ok(Self {
            name: from.name.to_owned(),
            keeper,
            init,
            folder,
            tools: from.tools.to_owned(),
            logs,
            cgroups: groups,
        })
    }

    /// Whether its first process lives.
    pub fn alive(&self) -> bool {
        self.init.alive()
    }

    /// How its services are.
    pub fn status(&self) -> anyhow::Result<BTreeMap<String, Health>> {
        self.ask(&Request::Status)
    }

    /// Runs a service that does not run.
    pub fn start(&self, service: &Service) -> anyhow::Result<()> {
        let file = self.folder.join(format!("{}.service.json", service.name));
        fs::write(&file, serde_json::to_string_pretty(service)?).context("recording a service")?;
        self.ask(&Request::Start(service.clone())).map(drop)
    }

    /// Runs a service again as it was run before.
    pub fn start_again(&self, service: &str) -> anyhow::Result<()> {
        let file = self.folder.join(format!("{service}.service.json"));
        let recorded =
            fs::read(&file).with_context(|| format!("{service} never ran on {}", self.name))?;
        self.ask(&Request::Start(serde_json::from_slice(&recorded)?))
            .map(drop)
    }

    /// Ends a service and waits until it is dead. Its children stay, as pods stay when kubelet goes.
    pub async fn stop(&self, service: &str) -> anyhow::Result<()> {
        self.signal(service, Signal::SIGKILL)?;
        let by = Instant::now() + PATIENCE;
        while matches!(self.status()?.get(service), Some(Health::Running(_))) {
            if Instant::now() > by {
                bail!("{service} on {} does not end", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Sends a signal to a service; SIGSTOP and SIGCONT make it hang and go on.
    pub fn signal(&self, service: &str, signal: Signal) -> anyhow::Result<()> {
        self.ask(&Request::Signal(service.to_owned(), signal as i32))
            .map(drop)
    }

    /// Where a service logs.
    pub fn log(&self, service: &str) -> PathBuf {
        init::log_of(&self.logs, &self.name, service)
    }

    /// Fails if one of its services has died, with the last of its log.
    pub fn check(&self) -> anyhow::Result<()> {
        for (service, health) in self.status()? {
            if let Health::Ended(how) = health {
                bail!(
                    "{service} on {} {how}\n{}",
                    self.name,
                    tail(&self.log(&service))
                );
            }
        }
        Ok(())
    }

    /// A command that will run on this machine: in its control groups and all its namespaces.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", r#"for group in $GROUPS_; do echo 0 > "$group/cgroup.procs" || exit 125; done; exec nsenter -t "$INIT_" -m -u -i -n -p -C -- "$@""#, "enter"]);
        let groups: Vec<String> = self.cgroups.iter().map(|g| self.entrance(g)).collect();
        command
            .args(argv)
            .env("GROUPS_", groups.join(" "))
            .env("INIT_", self.init.pid.to_string());
        command
            .env("TMPDIR", "/run/tmp")
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// On version 2 the machine's processes are one group further down.
    fn entrance(&self, group: &Path) -> String {
        let inner = group.join("init");
        if inner.is_dir() {
            inner.display().to_string()
        } else {
            group.display().to_string()
        }
    }

    /// Runs a command on this machine and returns what it printed, whether it succeeded or not.
    pub fn output<S: AsRef<OsStr>>(&self, argv: &[S]) -> anyhow::Result<Output> {
        self.command(argv)
            .output()
            .with_context(|| format!("running a command on {}", self.name))
    }

    /// Runs a command on this machine and returns what it printed; fails if it does.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: &[S]) -> anyhow::Result<String> {
        let output = self.output(argv)?;
        let shown: Vec<_> = argv.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        if !output.status.success() {
            bail!(
                "`{}` on {}: {}\n{}",
                shown.join(" "),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Does something in the machine's network: sockets made there belong to it, and stay usable here.
    pub fn in_network<T: Send>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let network = fs::File::open(format!("/proc/{}/ns/net", self.init.pid))
            .context("the machine's network")?;
        // A thread of its own, because it stays in the other network.
        let done = std::thread::scope(|scope| {
            let entered = || {
                setns(&network, CloneFlags::CLONE_NEWNET)?;
                work()
            };
            scope.spawn(entered).join()
        });
        let done =
            done.map_err(|_| anyhow::anyhow!("work in the network of {} died", self.name))?;
        done.with_context(|| format!("in the network of {}", self.name))
    }

    /// Listens on a loopback port of the machine. Until somebody accepts, callers wait.
    pub fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        self.in_network(|| TcpListener::bind(("127.0.0.1", port)))
    }

    /// A path on this machine, as it can be opened from here.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init.pid))
    }

    /// Whether something listens on this TCP port in the machine's network.
    pub fn listens(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X}");
        ["tcp", "tcp6"].iter().any(|table| {
            let text = fs::read_to_string(format!("/proc/{}/net/{table}", self.init.pid))
                .unwrap_or_default();
            text.lines().skip(1).any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                fields.next().is_some_and(|local| local.ends_with(&wanted))
                    && fields.nth(1) == Some("0A")
            })
        })
    }

    /// Ends the machine at once, as a power failure would.
    pub fn kill(&self) -> anyhow::Result<()> {
        if self.init.alive() {
            kill(Pid::from_raw(self.init.pid), Signal::SIGKILL)
                .with_context(|| format!("ending {}", self.name))?;
        }
        cgroups::clear(&self.cgroups)
    }

    fn ask(&self, request: &Request) -> anyhow::Result<BTreeMap<String, Health>> {
        if !self.alive() {
            bail!(
                "the machine {} is gone\n{}",
                self.name,
                tail(&self.log("init"))
            );
        }
        let mut socket = UnixStream::connect(init::socket(&self.folder))
            .with_context(|| format!("the machine {} does not answer", self.name))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        writeln!(socket, "{}", serde_json::to_string(request)?)?;
        let mut line = String::new();
        BufReader::new(&socket)
            .read_line(&mut line)
            .with_context(|| format!("asking {}", self.name))?;
        let answer: Answer = serde_json::from_str(&line).context("reading a machine's answer")?;
        answer.map_err(|e| anyhow::anyhow!("{}: {e}", self.name))
    }
}

/// Runs as a machine's keeper: enters new namespaces, runs the machine's first process in them, and outlives it.
pub fn keep(file: &Path) -> anyhow::Result<()> {
    nix::unistd::setsid().context("leaving the caller's session")?;
    let spec: Spec =
        serde_json::from_slice(&fs::read(file)?).with_context(|| file.display().to_string())?;
    cgroups::join(&spec.cgroups)?;
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::unshare(flags).context("making namespaces (is this process root?)")?;
    let program = std::env::current_exe().context("finding this program")?;
    let status = Command::new(program)
        .arg("node-init")
        .arg(file)
        .stdin(Stdio::inherit())
        .status()?;
    println!("the first process of {} ended: {status}", spec.name);
    Ok(())
}

fn first_child(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The last lines of a log, and where the rest is.
pub fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(TAIL)..].join("\n    ");
    format!("    {last}\n  (the rest is in {})", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_more_than_its_number() {
        let me = Process::of(Pid::this().as_raw()).unwrap();
        assert!(me.alive());
        assert!(
            !Process {
                started: me.started + 1,
                ..me
            }
            .alive()
        );
        assert!(Process::of(i32::MAX).is_err());
    }
}
