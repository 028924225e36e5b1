use std::{fs, io, thread};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The processors that this process may use, and how they are divided.
///
/// Reactors take the first ones, instance threads the others where there are any; or no thread has a
/// processor of its own, and the system decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    cores: Vec<Core>,
    /// The time of so many processors may be used.
    quota: usize,
    pins: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Core {
    id: usize,
    numa_node: usize,
}

impl Topology {
    /// Reads the affinity mask of the process, the NUMA node of every processor in it, and the quota of
    /// its control group. Whoever has a quota below the number of processors shares all of them with
    /// others, and the system alone knows which is free: then threads are not bound.
    ///
    /// # Errors
    /// When the system does not tell the affinity mask.
    pub fn read() -> io::Result<Self> {
        let mask = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores: Vec<_> = (0..CpuSet::count())
            .filter(|&id| mask.is_set(id).unwrap_or(false))
            .map(|id| Core { id, numa_node: numa_node_of(id) })
            .collect();
        cores.sort_by_key(|core| (core.numa_node, core.id));
        let quota = thread::available_parallelism()?.get().min(cores.len());
        Ok(Self { pins: quota == cores.len(), cores, quota })
    }

    /// The same, with threads bound to processors or not.
    pub fn pinning(self, pins: bool) -> Self {
        Self { pins, ..self }
    }

    /// The number of usable processors.
    pub fn core_count(&self) -> usize {
        self.cores.len()
    }

    /// The reactors that run when nobody says how many: half of the cores, one to four.
    pub fn default_reactors(&self) -> usize {
        (self.quota / 2).clamp(1, 4)
    }

    /// The processors that each of `count` reactors is bound to.
    pub(super) fn places(&self, count: usize) -> Vec<Vec<usize>> {
        let all = || self.cores.iter().map(|core| core.id).collect();
        let own = self.reactor_cores(count).into_iter();
        own.map(|core| if self.pins { vec![core] } else { all() }).collect()
    }

    /// The processors of `count` reactors, by their system numbers; they wrap around when there
    /// are fewer.
    pub fn reactor_cores(&self, count: usize) -> Vec<usize> {
        self.cores.iter().map(|core| core.id).cycle().take(count).collect()
    }

    /// The processors for instance threads beside `reactors` reactors: the others, or all when
    /// there are no others.
    pub fn instance_cores(&self, reactors: usize) -> Vec<usize> {
        let others = self.cores.get(reactors..).filter(|_| self.pins).unwrap_or_default();
        let cores = if others.is_empty() { &self.cores[..] } else { others };
        cores.iter().map(|core| core.id).collect()
    }

    /// The processors of a NUMA node.
    pub fn cores_of_node(&self, node: usize) -> Vec<usize> {
        self.cores.iter().filter(|core| core.numa_node == node).map(|core| core.id).collect()
    }

    /// Whether this process may run on a processor.
    pub fn has(&self, id: usize) -> bool {
        self.cores.iter().any(|core| core.id == id)
    }
}

fn numa_node_of(core: usize) -> usize {
    let Ok(entries) = fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")) else {
        return 0;
    };
    entries
        .flatten()
        .find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .unwrap_or(0)
}

/// Binds the calling thread to these processors.
///
/// # Errors
/// When the system refuses, for example because none of them exists.
pub fn pin_to(cores: &[usize]) -> io::Result<()> {
    let mut mask = CpuSet::new();
    for &core in cores {
        mask.set(core)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(0), &mask)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(cores: usize) -> Topology {
        let all = (0..cores).map(|id| Core { id, numa_node: 0 }).collect();
        Topology { cores: all, quota: cores, pins: true }
    }

    #[test]
    fn cores_are_divided_once() {
        for (cores, reactors) in [(1, 1), (2, 1), (4, 2), (8, 4), (64, 4)] {
            assert_eq!(topology(cores).default_reactors(), reactors, "{cores} cores");
        }
        assert_eq!(topology(4).reactor_cores(2), [0, 1]);
        assert_eq!(topology(4).instance_cores(2), [2, 3]);
        assert_eq!(topology(2).instance_cores(2), [0, 1]);
        assert_eq!(topology(2).reactor_cores(3), [0, 1, 0]);
        assert_eq!(topology(2).places(3), [[0], [1], [0]]);
    }

    #[test]
    fn without_cores_of_their_own_threads_run_on_all() {
        let shared = Topology { quota: 2, ..topology(8) }.pinning(false);
        assert_eq!(shared.default_reactors(), 1);
        assert_eq!(shared.places(1), [[0, 1, 2, 3, 4, 5, 6, 7]]);
        assert_eq!(shared.instance_cores(1).len(), 8);
    }
}
