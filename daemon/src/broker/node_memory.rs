//! How much memory there is: that of the node, or of the control group that the daemon runs in, whichever is
//! less. Read once, before the loop begins.
//!
//! What share of it clients may have is decided in `memory`.

use std::path::{Path, PathBuf};

/// Where control groups are mounted.
const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// Assumed where nothing can be read: small enough for any node that decodes video.
const BYTES_IF_UNKNOWN: u64 = 2 << 30;

/// Bytes that this process and its engines may use together.
pub fn bytes() -> u64 {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    smallest_limit(&read).unwrap_or_else(|| {
        tracing::warn!("the size of this node's memory cannot be read");
        BYTES_IF_UNKNOWN
    })
}

/// The smallest of all limits, in files that `read` reads.
fn smallest_limit(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let of_node = read(Path::new("/proc/meminfo")).and_then(|text| total_bytes(&text));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    // A number near 2^63 is how version 1 spells "no limit"; the node's own memory is less.
    let of_groups = limit_files(&groups).into_iter().filter_map(|path| read(&path)?.trim().parse().ok());
    of_node.into_iter().chain(of_groups).min()
}

/// `MemTotal` of /proc/meminfo.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files with the limits of this process's control groups and all that they lie in. In a container the
/// group's path may be the host's, of which only the root is mounted; files that do not exist say nothing.
fn limit_files(cgroup: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (mount, file) = if number == "0" && controllers.is_empty() {
            (PathBuf::from(CGROUP_MOUNT), "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (Path::new(CGROUP_MOUNT).join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let ancestors = Path::new(path.trim_start_matches('/')).ancestors();
        files.extend(ancestors.map(|group| mount.join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24566820 kB\nMemFree:         1000000 kB\n";
    const NODE: u64 = 24_566_820 * 1024;

    fn smallest(files: &[(&str, &str)]) -> Option<u64> {
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        smallest_limit(&read)
    }

    #[test]
    fn node_without_control_groups_has_its_own_memory() {
        assert_eq!(smallest(&[("/proc/meminfo", MEMINFO)]), Some(NODE));
    }

    #[test]
    fn unified_hierarchy_limits_by_any_group_above() {
        let files = [
            ("/proc/meminfo", MEMINFO),
            ("/proc/self/cgroup", "0::/system.slice/reeld.service\n"),
            ("/sys/fs/cgroup/system.slice/reeld.service/memory.max", "max\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "8589934592\n"),
        ];
        assert_eq!(smallest(&files), Some(8 << 30));
    }

    #[test]
    fn version_1_limits_and_its_no_limit_is_none() {
        let group = "5:cpu,cpuacct:/a\n4:memory:/docker/17\n0::/docker/17\n";
        let files = |limit| {
            [
                ("/proc/meminfo", MEMINFO),
                ("/proc/self/cgroup", group),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", limit),
            ]
        };
        assert_eq!(smallest(&files("4294967296\n")), Some(4 << 30));
        assert_eq!(smallest(&files("9223372036854771712\n")), Some(NODE));
    }

    #[test]
    fn nothing_readable_is_unknown_and_nonsense_is_passed_over() {
        assert_eq!(smallest(&[]), None);
        let files = [("/proc/meminfo", "MemTotal: many"), ("/proc/self/cgroup", "what\n1:2\n")];
        assert_eq!(smallest(&files), None);
    }

    #[test]
    fn this_node_has_some() {
        assert!(bytes() > 64 << 20);
    }
}
