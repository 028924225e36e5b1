use std::{collections::HashMap, fs, io, time::Duration};

use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// The CPU time that this process has used.
pub fn own() -> Duration {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default()
}

/// The CPU time that a process and its descendants have used, threads that ended included.
///
/// A descendant that ends takes its time with it.
///
/// # Errors
/// When there is no such process.
pub fn of_tree(pid: i32) -> io::Result<Duration> {
    let of = |pid| read(clock_getcpuclockid(Pid::from_raw(pid))?);
    let parents = parents()?;
    let mut total = of(pid)?;
    for &process in parents.keys().filter(|&&process| process != pid) {
        if is_descendant(process, pid, &parents) {
            // One that ended since the list was made has no clock any more.
            total += of(process).unwrap_or_default();
        }
    }
    Ok(total)
}

fn read(clock: ClockId) -> io::Result<Duration> {
    Ok(clock_gettime(clock)?.into())
}

/// The parent of every process.
fn parents() -> io::Result<HashMap<i32, i32>> {
    let processes = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((pid, parent_in(&status)?))
    });
    Ok(processes.collect())
}

/// The parent's id in a process's `stat` (proc(5)): the second field after the command, which is in
/// parentheses and may hold any others.
fn parent_in(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn is_descendant(process: i32, of: i32, parents: &HashMap<i32, i32>) -> bool {
    let mut ancestors = std::iter::successors(parents.get(&process).copied(), |ancestor| {
        parents.get(ancestor).copied()
    });
    // The list was not made at one moment, so that it could hold a circle.
    ancestors.by_ref().take(parents.len()).any(|ancestor| ancestor == of)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_parent_follows_any_command() {
        assert_eq!(parent_in("12 (a) b (c)) S 7 12 0"), Some(7));
        assert_eq!(parent_in("12 (cut"), None);
    }

    #[test]
    fn the_time_of_children_counts() {
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo; read x";
        let mut child = Command::new("sh")
            .args(["-c", &format!("sh -c '{script}'; true")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let pid = child.id() as i32;
        let alone = read(clock_getcpuclockid(Pid::from_raw(pid)).unwrap()).unwrap();
        let tree = of_tree(pid).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(tree > 2 * alone, "{tree:?} with children, {alone:?} alone");
        assert!(of_tree(pid).is_err());
        assert!(own() > Duration::ZERO);
    }
}
