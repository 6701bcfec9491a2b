//! The first process of a machine: prepares its file systems, starts services when told to, and notices their deaths.
//!
//! It runs as process 1 in namespaces of its own, so that ending it ends everything on the machine. It does what the
//! control socket says and nothing by itself; the order of things is [`super::bring_up`]'s business.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroups::Hierarchy;
use super::mounts;

/// How often the dead are looked for.
const TICK_MS: u16 = 100;
/// How long a caller of the control socket may take over its one line.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a machine is told when it is made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Host name, and name of the Kubernetes node.
    pub name: String,
    /// The machine's own folder: spec, control socket, data.
    pub folder: PathBuf,
    /// Where its services log.
    pub logs: PathBuf,
    /// The control groups it lives in.
    pub cgroups: Vec<PathBuf>,
    /// The hierarchies it mounts for itself.
    pub layout: Vec<Hierarchy>,
    /// Where connections to the listener given as standard input go, in the machine's network.
    pub forward: Option<SocketAddr>,
    /// Whether it is a worker, with all that kubelet and containerd expect of a machine.
    pub worker: bool,
}

/// One program to run on a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// Its name on this machine, also of its log.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

/// What can be asked of a machine.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Runs a service.
    Start(Service),
    /// Sends a signal by number to all processes of a service.
    Signal(String, i32),
    /// Tells how its services are.
    Status,
}

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    /// Alive, under this process id inside the machine.
    Running(i32),
    /// Dead, and how it came to it.
    Ended(String),
}

/// What a machine answers.
pub type Answer = Result<BTreeMap<String, Health>, String>;

/// The control socket of the machine with this folder.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// Runs as process 1 of a machine; returns only when the machine cannot be set up.
pub fn run(spec: &Spec) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("following the keeper into death")?;
    nix::unistd::sethostname(&spec.name).context("setting the host name")?;
    if let Some(to) = spec.forward {
        let given = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("standard input")?;
        let listener = TcpListener::from(given);
        std::thread::Builder::new()
            .name("forward".into())
            .spawn(move || forward(&listener, to))?;
    }
    if spec.worker {
        mounts::worker(spec)?;
    } else {
        mounts::plain()?;
    }
    mounts::network_settings()?;

    let path = socket(&spec.folder);
    let _ = std::fs::remove_file(&path);
    let control =
        UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    println!("{} is up", spec.name);
    Machine {
        logs: spec.logs.clone(),
        name: spec.name.clone(),
        services: BTreeMap::new(),
    }
    .serve(&control)
}

struct Machine {
    name: String,
    logs: PathBuf,
    services: BTreeMap<String, Health>,
}

impl Machine {
    fn serve(&mut self, control: &UnixListener) -> anyhow::Result<()> {
        loop {
            let mut ready = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
            let asked = match poll(&mut ready, PollTimeout::from(TICK_MS)) {
                Ok(n) => n > 0,
                Err(Errno::EINTR) => false,
                Err(e) => return Err(e).context("waiting for requests"),
            };
            self.reap();
            if asked
                && let Ok((caller, _)) = control.accept()
                && let Err(e) = self.answer(&caller)
            {
                println!("a request went unanswered: {e}");
            }
        }
    }

    fn answer(&mut self, caller: &UnixStream) -> io::Result<()> {
        caller.set_read_timeout(Some(PATIENCE))?;
        caller.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        if BufReader::new(caller).read_line(&mut line)? == 0 {
            // Somebody only wanted to know whether anybody answers.
            return Ok(());
        }
        let answer: Answer = match serde_json::from_str(&line) {
            Ok(request) => self
                .act(request)
                .map(|()| self.services.clone())
                .map_err(|e| format!("{e:#}")),
            Err(e) => Err(format!("not a request: {e}")),
        };
        let mut caller = caller;
        writeln!(caller, "{}", serde_json::to_string(&answer)?)
    }

    fn act(&mut self, request: Request) -> anyhow::Result<()> {
        match request {
            Request::Status => Ok(()),
            Request::Start(service) => self.start(&service),
            Request::Signal(name, number) => {
                let signal = Signal::try_from(number).context("no such signal")?;
                match self.services.get(&name) {
                    Some(Health::Running(pid)) => {
                        killpg(Pid::from_raw(*pid), signal).context("sending the signal")
                    }
                    _ => anyhow::bail!("{name} does not run on {}", self.name),
                }
            }
        }
    }

    fn start(&mut self, service: &Service) -> anyhow::Result<()> {
        if let Some(Health::Running(pid)) = self.services.get(&service.name) {
            anyhow::bail!("{} runs already, as process {pid}", service.name);
        }
        let [program, arguments @ ..] = service.argv.as_slice() else {
            anyhow::bail!("nothing to run")
        };
        let path = log_of(&self.logs, &self.name, &service.name);
        let log = append(&path)?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(&service.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let pid = i32::try_from(child.id()).context("process id")?;
        self.services
            .insert(service.name.clone(), Health::Running(pid));
        Ok(())
    }

    /// Buries every dead process, among them those that lost their parents.
    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("ended with status {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("was ended by {signal}")),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            for (name, health) in &mut self.services {
                if *health == Health::Running(pid.as_raw()) {
                    println!("{name} {how}");
                    *health = Health::Ended(how.clone());
                }
            }
        }
    }
}

/// Where a service of a machine logs.
pub fn log_of(logs: &Path, machine: &str, service: &str) -> PathBuf {
    logs.join(format!("{machine}-{service}.log"))
}

/// Opens a log to write at its end.
pub fn append(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Serves connections that arrive at a listener of the machine's outside with a service on its inside.
fn forward(listener: &TcpListener, to: SocketAddr) {
    for outside in listener.incoming() {
        let Ok(outside) = outside else { continue };
        let _ = std::thread::Builder::new()
            .name("forward".into())
            .spawn(move || {
                let Ok(inside) = TcpStream::connect(to) else {
                    return;
                };
                let (Ok(from), Ok(back)) = (outside.try_clone(), inside.try_clone()) else {
                    return;
                };
                let _ = outside.set_nodelay(true);
                let _ = inside.set_nodelay(true);
                let there = std::thread::Builder::new().spawn(move || pass(from, inside));
                pass(back, outside);
                if let Ok(there) = there {
                    let _ = there.join();
                }
            });
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
