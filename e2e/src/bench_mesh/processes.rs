//! The mesh's processes as this machine sees them: the lab's nodes run on it, so their process ids are known here.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::figures::{Cpu, Memory};

/// How a proxy of ours is told its pod's name.
const POD_NAME: &[u8] = b"POD_NAME=";

/// The processes whose time counts: ztunnels, the waypoint's pods, and nothing else.
#[derive(Debug)]
pub(super) struct Processes {
    ztunnels: Vec<Pid>,
    waypoints: Vec<Pid>,
}

impl Processes {
    /// Finds the processes of these pods by the pod's name in their environment; each pod must have one.
    pub(super) fn find(ztunnels: &BTreeSet<String>, waypoints: &BTreeSet<String>) -> Result<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").context("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that is gone meanwhile is none of ours.
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if let Some(pod) = pod_name(&environment) {
                all.push((pod.to_owned(), Pid::from_raw(pid)));
            }
        }
        let of = |pods: &BTreeSet<String>| -> Result<Vec<Pid>> {
            for pod in pods {
                ensure!(
                    all.iter().any(|(name, _)| name == pod),
                    "no process of pod {pod} runs here"
                );
            }
            let ours = all.iter().filter(|(name, _)| pods.contains(name));
            Ok(ours.map(|(_, pid)| *pid).collect())
        };
        Ok(Self {
            ztunnels: of(ztunnels)?,
            waypoints: of(waypoints)?,
        })
    }

    /// What they have used so far, threads that have ended included.
    pub(super) fn cpu(&self) -> Result<Cpu> {
        let sum = |pids: &[Pid]| pids.iter().map(|pid| used(*pid)).sum::<Result<Duration>>();
        Ok(Cpu {
            ztunnels: sum(&self.ztunnels)?,
            waypoints: sum(&self.waypoints)?,
        })
    }

    /// What they hold now.
    pub(super) fn memory(&self) -> Result<Memory> {
        let largest = |pids: &[Pid]| -> Result<u64> {
            let sizes: Result<Vec<u64>> = pids.iter().map(|pid| resident(*pid)).collect();
            Ok(sizes?.into_iter().max().unwrap_or_default())
        };
        Ok(Memory {
            ztunnel: largest(&self.ztunnels)?,
            waypoint: largest(&self.waypoints)?,
        })
    }
}

/// CPU time of everything on this machine so far.
pub(super) fn machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks = busy(line).with_context(|| format!("/proc/stat: {line:?}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("ticks of the clock")?;
    Ok(Duration::from_secs(ticks) / u32::try_from(per_second)?)
}

fn used(pid: Pid) -> Result<Duration> {
    let clock = clock_getcpuclockid(pid).with_context(|| format!("process {pid} is gone"))?;
    Ok(clock_gettime(clock)
        .with_context(|| format!("process {pid} is gone"))?
        .into())
}

fn resident(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.with_context(|| format!("process {pid} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("process {pid} has no size"))? << 10)
}

fn pod_name(environment: &[u8]) -> Option<&str> {
    let mut variables = environment.split(|byte| *byte == 0);
    std::str::from_utf8(variables.find_map(|variable| variable.strip_prefix(POD_NAME))?).ok()
}

/// The ticks of the first line of `/proc/stat` in which a CPU was not idle, and did not wait for a disk.
fn busy(line: &str) -> Option<u64> {
    const IDLE: [usize; 2] = [3, 4];
    /// User, nice, system, idle, waiting, interrupts, soft interrupts; guests are counted among users.
    const FIELDS: usize = 7;
    let fields = line.strip_prefix("cpu ")?.split_whitespace().take(FIELDS);
    let fields: Vec<u64> = fields.map(str::parse).collect::<Result<_, _>>().ok()?;
    let busy = fields
        .iter()
        .enumerate()
        .filter(|(at, _)| !IDLE.contains(at));
    (fields.len() == FIELDS).then(|| busy.map(|(_, ticks)| ticks).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments_and_ticks_are_read() {
        assert_eq!(
            pod_name(b"A=b\0POD_NAME=ztunnel-x\0C=d\0"),
            Some("ztunnel-x")
        );
        assert_eq!(pod_name(b"MY_POD_NAME=ztunnel-x\0"), None);
        assert_eq!(busy("cpu  1 2 3 1000 1000 4 5 0 7 0"), Some(15));
        for bad in ["cpu0 1 2 3 4 5 6 7", "cpu  1 2 3", "cpu  1 2 x 4 5 6 7"] {
            assert_eq!(busy(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_process_is_seen_from_outside() {
        let own = Processes {
            ztunnels: vec![Pid::this()],
            waypoints: vec![],
        };
        let before = own.cpu().expect("this process runs");
        assert!(own.memory().expect("this process runs").ztunnel > 1 << 20);
        let used = own.cpu().expect("this process runs").since(before);
        assert!(used.ztunnels > Duration::ZERO && used.waypoints.is_zero());
        assert!(machine().expect("a machine") > Duration::ZERO);
        let nobody = BTreeSet::from(["nobody-has-this-name".to_owned()]);
        assert!(Processes::find(&nobody, &BTreeSet::new()).is_err());
    }
}
