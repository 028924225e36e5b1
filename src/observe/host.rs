//! What the whole machine uses, as Linux tells it.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

/// The machine's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub total_bytes: u64,
    pub used_bytes: u64,
}

/// The machine's memory; `None` where the system does not tell.
pub fn memory() -> Option<Memory> {
    parse_memory(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The share of all processors' time that was used since the machine was last looked at, from 0 to 1;
/// the first time since it started. It is looked at again after `interval` at the earliest. `None`
/// where the system does not tell.
pub fn cpu_utilization(interval: Duration) -> Option<f64> {
    static LAST: Mutex<Option<Look>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(look) = &*last
        && look.when.elapsed() < interval
    {
        return Some(look.utilization);
    }
    let now = parse_ticks(&fs::read_to_string("/proc/stat").ok()?)?;
    let before = last.as_ref().map_or(Ticks { all: 0, idle: 0 }, |look| look.ticks);
    let utilization = utilization(before, now);
    *last = Some(Look { when: Instant::now(), ticks: now, utilization });
    Some(utilization)
}

/// What was seen when the machine was last looked at.
struct Look {
    when: Instant,
    ticks: Ticks,
    utilization: f64,
}

/// Processor time since the machine started.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ticks {
    all: u64,
    idle: u64,
}

fn utilization(before: Ticks, now: Ticks) -> f64 {
    let all = now.all.saturating_sub(before.all);
    let idle = now.idle.saturating_sub(before.idle).min(all);
    if all == 0 { 0.0 } else { (all - idle) as f64 / all as f64 }
}

/// The first line sums all processors: user, nice, system, idle, iowait and more.
fn parse_ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks = line.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
    // What guests use is in user and nice already.
    let ticks = ticks.ok()?.into_iter().take(8).collect::<Vec<_>>();
    let idle = ticks.get(3)?.saturating_add(*ticks.get(4)?);
    Some(Ticks { all: ticks.iter().fold(0, |sum: u64, &ticks| sum.saturating_add(ticks)), idle })
}

fn parse_memory(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    let total_bytes = bytes("MemTotal:")?;
    Some(Memory { total_bytes, used_bytes: total_bytes.saturating_sub(bytes("MemAvailable:")?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_tells_is_read() {
        let meminfo = "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:   4000 kB\n";
        let memory = Memory { total_bytes: 16_000 << 10, used_bytes: 12_000 << 10 };
        assert_eq!(parse_memory(meminfo), Some(memory));
        assert_eq!(parse_memory("MemTotal: many"), None);
        let ticks = parse_ticks("cpu  10 1 4 80 5 0 0 0 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n");
        assert_eq!(ticks, Some(Ticks { all: 100, idle: 85 }));
        assert_eq!(parse_ticks("cpu 1 2"), None);
    }

    #[test]
    fn utilization_is_of_the_time_since_the_last_time() {
        let at = |all, idle| Ticks { all, idle };
        assert_eq!(utilization(at(100, 50), at(200, 125)), 0.25);
        assert_eq!(utilization(at(100, 50), at(100, 50)), 0.0);
        assert_eq!(utilization(at(100, 50), at(101, 90)), 0.0);
    }
}
