//! What /proc says of processes: their network namespace, the sockets they have open.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

/// Process ids in this process's numbering, ascending.
pub(super) fn all_processes() -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    pids.sort_unstable();
    Ok(pids)
}

/// Inode of the calling thread's network namespace.
pub(super) fn own_net_namespace() -> io::Result<u64> {
    namespace_link("/proc/thread-self/ns/net")
}

/// Inode of a process's network namespace.
///
/// # Errors
/// EACCES for a process of another user without CAP_SYS_PTRACE; ENOENT or ESRCH when it is gone.
pub(super) fn net_namespace_of(pid: u32) -> io::Result<u64> {
    namespace_link(&format!("/proc/{pid}/ns/net"))
}

fn namespace_link(path: &str) -> io::Result<u64> {
    let target = fs::read_link(path)?;
    inode_of(&target, "net:[").ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{path} is {}", target.display()))
    })
}

/// The number of a link such as `net:[4026531840]` or `socket:[4242]`.
fn inode_of(target: &Path, prefix: &str) -> Option<u64> {
    target.to_str()?.strip_prefix(prefix)?.strip_suffix(']')?.parse().ok()
}

/// Whether a process is gone, as opposed to hidden.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Which processes matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessFilter {
    /// All that can be seen.
    All,
    /// These, in this process's numbering: those in the cgroups of interest, most often.
    ///
    /// A socket belongs to the cgroup that its process was in when it made it; that of a process
    /// which has moved since, into another cgroup, is not looked for.
    Among(HashSet<u32>),
}

impl ProcessFilter {
    /// Whether a process matters.
    pub(super) fn takes(&self, pid: u32) -> bool {
        match self {
            Self::All => true,
            Self::Among(pids) => pids.contains(&pid),
        }
    }
}

/// Which process has which socket open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Process id, in this process's numbering, by the socket's inode. Of several processes the
    /// lowest number, which most often is the parent of the others.
    pub pids: HashMap<u32, u32>,
    /// Processes whose open files cannot be read: those of other users, without CAP_SYS_PTRACE.
    pub unreadable: usize,
}

/// Finds the processes that have these sockets open, by their inodes. Inodes of sockets are unique on
/// the machine, whatever the network namespace. Reads every link of /proc/PID/fd, some microseconds
/// each, until all are found: name the processes that matter.
///
/// # Errors
/// When /proc cannot be listed.
pub fn owners(inodes: &HashSet<u32>, processes: &ProcessFilter) -> io::Result<Owners> {
    let mut owners = Owners::default();
    // 0 stands for "no file", and is found nowhere.
    let wanted = inodes.iter().filter(|inode| **inode != 0).count();
    for pid in all_processes()? {
        if owners.pids.len() == wanted {
            break;
        }
        if !processes.takes(pid) {
            continue;
        }
        match sockets_of(pid, |inode| {
            if inodes.contains(&inode) {
                owners.pids.entry(inode).or_insert(pid);
            }
        }) {
            Err(error) if !is_gone(&error) => owners.unreadable += 1,
            _ => {}
        }
    }
    Ok(owners)
}

fn sockets_of(pid: u32, mut each: impl FnMut(u32)) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor may be closed while its folder is read.
        let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
        if let Some(inode) = inode_of(&target, "socket:[").and_then(|n| u32::try_from(n).ok()) {
            each(inode);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_an_inode() {
        for (target, prefix, want) in [
            ("net:[4026531840]", "net:[", Some(4_026_531_840)),
            ("socket:[7]", "socket:[", Some(7)),
            ("socket:[7]", "net:[", None),
            ("socket:[-7]", "socket:[", None),
            ("socket:[7", "socket:[", None),
            ("/tmp/socket:[7]", "socket:[", None),
        ] {
            assert_eq!(inode_of(Path::new(target), prefix), want, "{target}");
        }
    }

    #[test]
    fn a_socket_is_the_own_process_s() {
        use std::os::unix::fs::MetadataExt as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&listener));
        let inode = u32::try_from(fs::metadata(path).unwrap().ino()).unwrap();
        let of = |filter| owners(&HashSet::from([inode]), &filter).unwrap().pids;
        assert_eq!(of(ProcessFilter::All), HashMap::from([(inode, std::process::id())]));
        let own = HashSet::from([std::process::id()]);
        assert_eq!(of(ProcessFilter::Among(own)), HashMap::from([(inode, std::process::id())]));
        assert_eq!(of(ProcessFilter::Among(HashSet::from([1]))), HashMap::new());
    }
}
