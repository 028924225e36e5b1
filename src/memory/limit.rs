use std::{fs, path::Path};

use crate::observe::host;

/// The bytes of memory that this process may have: the machine's, or fewer where a control group says so.
/// `None` where the system tells neither.
pub fn memory_limit_bytes() -> Option<u64> {
    let machine = host::memory().map(|memory| memory.total_bytes);
    machine.into_iter().chain(limit_of_groups(Path::new("/"))).min()
}

/// The lowest limit of the control groups that this process is in, of version 1 or 2.
fn limit_of_groups(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups.lines().filter_map(|group| limit_of_group(root, group)).min()
}

/// `group` is a line as `0::/path` or `4:cpu,memory:/path`.
fn limit_of_group(root: &Path, group: &str) -> Option<u64> {
    let (controllers, path) = group.split_once(':')?.1.split_once(':')?;
    let (mount, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // The groups above limit it too. In a container its own may be the root, whatever its name outside.
    let places = Path::new(path.trim_start_matches('/')).ancestors();
    let limit = |place: &Path| {
        fs::read_to_string(root.join(mount).join(place).join(file)).ok()?.trim().parse().ok()
    };
    places.filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told where these files are.
    fn told(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_of_groups(root.path())
    }

    #[test]
    fn the_lowest_limit_counts() {
        let own = ("proc/self/cgroup", "0::/a/b\n");
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[own, ("sys/fs/cgroup/a/b/memory.max", "max\n")]), None);
        let both = [
            own,
            ("sys/fs/cgroup/a/b/memory.max", "300\n"),
            ("sys/fs/cgroup/a/memory.max", "200\n"),
        ];
        assert_eq!(told(&both), Some(200));
        let inside = [own, ("sys/fs/cgroup/memory.max", "100\n")];
        assert_eq!(told(&inside), Some(100));
        let first_version = [
            ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/0a\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "512\n"),
            ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(told(&first_version), Some(512));
    }

    #[test]
    fn this_process_has_some() {
        assert!(memory_limit_bytes().unwrap() > 1 << 20);
    }
}
