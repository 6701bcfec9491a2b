//! The data plane's threads: one runtime per core, and the commands they take from the control thread.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    num::NonZeroUsize,
    rc::Rc,
    sync::{Arc, mpsc as blocking},
    time::{Duration, Instant},
};

use mesh::world::{Changed, Changes};
use serde_json::json;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    proxy::{Proxy, Serving, Shared},
    serve::{self, Listeners},
    sessions::REPORT_EVERY,
};

/// The data plane's threads. Dropping it ends them and every connection.
#[derive(Debug)]
pub struct Workers {
    commands: Vec<mpsc::Sender<WorkerCommand>>,
}

/// What a data-plane thread runs.
pub type Body = Box<dyn FnOnce() + Send>;

/// Names one run of one pod's proxies on all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run(u64);

/// A data-plane thread has ended, which it must not.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The thread is gone.
    #[error("a data-plane thread has ended")]
    Dead,
    /// The thread could not take the sockets.
    #[error("cannot serve: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
enum WorkerCommand {
    Serve {
        run: Run,
        serving: Arc<Serving>,
        listeners: Listeners,
        done: oneshot::Sender<io::Result<()>>,
    },
    Close {
        run: Run,
        done: oneshot::Sender<()>,
    },
    Finish {
        run: Run,
        end: CancellationToken,
        done: oneshot::Sender<()>,
    },
    List {
        done: blocking::Sender<serde_json::Value>,
    },
    Report,
}

/// Orders that may wait for one thread: a node's pods times a few steps, all at once at start.
const MOST_COMMANDS: usize = 4096;

/// Connections of one thread that are shown: more than people read, and listed before anybody who is served notices.
const MOST_LISTED: usize = 1000;

/// Longer than a busy thread takes, shorter than people wait for a page.
const MOST_LISTING: Duration = Duration::from_secs(1);

// === impl Workers ===

impl Workers {
    /// Starts `count` threads, each by `spawn`, which is told its name and what it runs for ever.
    pub fn start(
        count: NonZeroUsize,
        shared: &Arc<Shared>,
        mut spawn: impl FnMut(String, Body) -> io::Result<()>,
    ) -> io::Result<Self> {
        let start = |index| {
            let (commands, received) = mpsc::channel(MOST_COMMANDS);
            let shared = shared.clone();
            let body = Box::new(move || work(received, shared, count.get()));
            spawn(format!("worker-{index}"), body)?;
            Ok(commands)
        };
        let commands = (0..count.get()).map(start).collect::<io::Result<_>>()?;
        Ok(Self { commands })
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.commands.len()
    }

    /// Serves a pod on every thread; returns when each of them accepts.
    pub async fn serve(
        &self,
        run: Run,
        serving: &Arc<Serving>,
        listeners: Vec<Listeners>,
    ) -> Result<(), WorkerError> {
        let mut started = Vec::new();
        for (commands, listeners) in self.commands.iter().zip(listeners) {
            let (done, answer) = oneshot::channel();
            let serving = serving.clone();
            let command = WorkerCommand::Serve {
                run,
                serving,
                listeners,
                done,
            };
            commands
                .send(command)
                .await
                .map_err(|_| WorkerError::Dead)?;
            started.push(answer);
        }
        for answer in started {
            answer.await.map_err(|_| WorkerError::Dead)??;
        }
        Ok(())
    }

    /// Accepts what already waits, then closes a pod's listeners.
    pub async fn close(&self, run: Run) {
        self.tell(|done| WorkerCommand::Close { run, done }).await;
    }

    /// Closes, lets the running connections end (or resets them when `end` is cancelled), and forgets the pod.
    pub async fn finish(&self, run: Run, end: &CancellationToken) {
        self.tell(|done| WorkerCommand::Finish {
            run,
            end: end.clone(),
            done,
        })
        .await;
    }

    /// The live connections of each thread, for people. Blocks, but not for long: not for the control thread.
    pub fn list(&self) -> serde_json::Value {
        self.list_within(MOST_LISTING)
    }

    /// However many threads are silent, together they are waited for so long.
    fn list_within(&self, wait: Duration) -> serde_json::Value {
        let ask = |commands: &mpsc::Sender<WorkerCommand>| {
            let (done, list) = blocking::channel();
            // A thread that has so many commands has no time for this one.
            let _ = commands.try_send(WorkerCommand::List { done });
            list
        };
        let asked: Vec<_> = self.commands.iter().map(ask).collect();
        let until = Instant::now() + wait;
        let answers = asked.iter().enumerate().map(|(index, list)| {
            let left = until.saturating_duration_since(Instant::now());
            let silent = |_| json!(format!("worker-{index} has not answered within {wait:?}"));
            list.recv_timeout(left).unwrap_or_else(silent)
        });
        answers.collect()
    }

    /// Has the byte counters of open connections brought up to date, for ever. The data plane's threads keep
    /// no time: one with a timer to look after pays for that at every turn.
    pub async fn keep_reporting(self: Arc<Self>) {
        let mut ticks = interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for commands in &self.commands {
                // A thread that has so many commands does it next time.
                let _ = commands.try_send(WorkerCommand::Report);
            }
        }
    }

    async fn tell<T>(&self, command: impl Fn(oneshot::Sender<T>) -> WorkerCommand) -> Vec<T> {
        let mut answers = Vec::new();
        for commands in &self.commands {
            let (done, answer) = oneshot::channel();
            // A dead thread has nothing left to close; its death ends the process elsewhere.
            if commands.send(command(done)).await.is_ok() {
                answers.push(answer);
            }
        }
        let mut said = Vec::new();
        for answer in answers {
            said.extend(answer.await);
        }
        said
    }
}

// === impl Run ===

impl Run {
    /// The run after this one.
    pub fn advance(&mut self) -> Self {
        self.0 += 1;
        *self
    }

    /// Before the first.
    pub const NONE: Self = Self(0);
}

// === one thread ===

type Proxies = Rc<RefCell<HashMap<Run, Rc<Proxy>>>>;

fn work(commands: mpsc::Receiver<WorkerCommand>, shared: Arc<Shared>, cores: usize) {
    let mut builder = Builder::new_current_thread();
    let runtime = match builder.enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "no runtime for a data-plane thread"),
    };
    runtime.block_on(take_commands(commands, shared, cores));
}

async fn take_commands(
    mut commands: mpsc::Receiver<WorkerCommand>,
    shared: Arc<Shared>,
    cores: usize,
) {
    let proxies = Proxies::default();
    let mut endings = JoinSet::new();
    let mut changes = shared.world.changes();
    loop {
        tokio::select! {
            changed = next(&mut changes) => {
                proxies.borrow().values().for_each(|proxy| proxy.changed(&changed));
            }
            command = commands.recv() => match command {
                Some(command) => take(command, &proxies, &shared, cores, &mut endings),
                None => return,
            },
            Some(_) = endings.join_next() => {}
        }
    }
}

/// The next change of the mesh, which may never come.
async fn next(changes: &mut Option<Changes>) -> Arc<Changed> {
    if let Some(known) = changes {
        if let Some(changed) = known.next().await {
            return changed;
        }
        *changes = None;
    }
    std::future::pending().await
}

fn take(
    command: WorkerCommand,
    proxies: &Proxies,
    shared: &Arc<Shared>,
    cores: usize,
    endings: &mut JoinSet<()>,
) {
    let find = |run: &Run| proxies.borrow().get(run).cloned();
    match command {
        WorkerCommand::Serve {
            run,
            serving,
            listeners,
            done,
        } => {
            let started = serve::start(serving, shared.clone(), listeners, cores);
            let _ = done.send(started.map(|proxy| {
                proxies.borrow_mut().insert(run, proxy);
            }));
        }
        WorkerCommand::Close { run, done } => {
            let proxy = find(&run);
            endings.spawn_local(async move {
                if let Some(proxy) = proxy {
                    proxy.close().await;
                }
                let _ = done.send(());
            });
        }
        WorkerCommand::Finish { run, end, done } => {
            let (proxy, proxies) = (find(&run), proxies.clone());
            endings.spawn_local(async move {
                if let Some(proxy) = proxy {
                    proxy.finish(end).await;
                }
                proxies.borrow_mut().remove(&run);
                let _ = done.send(());
            });
        }
        WorkerCommand::Report => proxies.borrow().values().for_each(|p| p.sessions.report()),
        WorkerCommand::List { done } => {
            let _ = done.send(list(proxies));
        }
    }
}

/// The pods that a thread serves, with as many of their connections as may be shown.
fn list(proxies: &Proxies) -> serde_json::Value {
    let mut room = MOST_LISTED;
    let list = |proxy: &Rc<Proxy>| {
        let (pod, connections) = (proxy.pod(), proxy.list(room));
        room -= connections.len();
        json!({
            "pod": format!("{}/{}", pod.namespace, pod.name),
            "identity": pod.identity.to_string(),
            "connections_left_out": proxy.sessions.count() - connections.len(),
            "connections": connections,
        })
    };
    proxies.borrow().values().map(list).collect()
}

#[cfg(test)]
mod cost;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_silent_are_named_and_waited_for_together() {
        let silent = |_| mpsc::channel(1);
        let (commands, _unread): (Vec<_>, Vec<_>) = (0..50).map(silent).unzip();
        let began = Instant::now();
        let list = Workers { commands }.list_within(Duration::from_millis(100));
        assert_eq!(list[0], "worker-0 has not answered within 100ms");
        assert_eq!(list[49], "worker-49 has not answered within 100ms");
        // Not once for each.
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
