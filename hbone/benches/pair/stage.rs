//! The machine as far as the bench arranges and reads it: one CPU, files, CPU time, load.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::Result;

/// The last CPU we may use: the first ones serve the machine's interrupts.
pub(crate) fn last_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .ok_or_else(|| "no CPU".into())
}

/// Keeps this process, and every thread it starts later, on one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Keeps this process off a CPU, if it has another.
pub(crate) fn leave(cpu: usize) -> Result<()> {
    let mut others = sched_getaffinity(Pid::from_raw(0))?;
    others.unset(cpu)?;
    // The only one there is cannot be left.
    let _ = sched_setaffinity(Pid::from_raw(0), &others);
    Ok(())
}

/// As many open files as we may have.
pub(crate) fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// How many files one process may have open.
pub(crate) fn file_limit() -> Result<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(soft)?)
}

/// The CPU time of all threads of a process, in seconds.
pub(crate) fn cpu(process: u32) -> Result<f64> {
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().ok_or("empty schedstat")?;
        nanoseconds += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
}

/// The machine's load of the last minute.
pub(crate) fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text
        .split_whitespace()
        .next()
        .ok_or("empty loadavg")?
        .parse()?)
}

/// Lets the machine be for a while: what is measured next is how things are at rest.
pub(crate) fn rest(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}
