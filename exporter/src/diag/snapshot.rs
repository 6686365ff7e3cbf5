//! The network namespaces of the machine, dumped one after the other.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

use super::dump::{DiagError, Namespace, dump_wanted};
use super::procfs::{self, ProcessFilter};

/// What a snapshot may cost, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// Sockets of all namespaces together, each about 200 bytes.
    pub max_sockets: usize,
    /// Connections whose minisockets in TIME-WAIT are wanted, by cookie; others are left out.
    pub time_waits: HashSet<u64>,
    /// Namespaces beside the own one. For each the kernel walks the connections of all of them.
    pub max_namespaces: usize,
    /// Namespaces in which there is no such process are left out, unless they are known from before.
    pub processes: ProcessFilter,
}

/// The TCP sockets of the network namespaces that can be reached.
#[derive(Debug)]
pub struct Snapshot {
    /// The calling thread's.
    pub own: Namespace,
    /// Those of other processes.
    pub others: Vec<Namespace>,
    /// Holds the namespaces of `others` open, by inode. Given to a later snapshot, it enters them again
    /// even where no process is in them any more: what they still hold are closed sockets that wait for
    /// the last acknowledgments, and those of processes that made them and went elsewhere. As long as one
    /// is kept, the kernel keeps the namespace.
    pub handles: HashMap<u64, Arc<File>>,
    /// Namespaces in which there is a process that can be read, by inode.
    pub inhabited: HashSet<u64>,
    /// Namespaces that were found and could not be dumped.
    pub left_out: Option<LeftOut>,
    /// Processes whose namespace cannot be read: those of other users, without CAP_SYS_PTRACE.
    pub unreadable_processes: usize,
    /// Every namespace that was found was dumped whole, and none left out for the filter's sake: a process
    /// may have made sockets in one and gone elsewhere. What is not found: those of processes in another
    /// pid namespace or hidden by /proc, or unreadable, and those in which there is no process.
    pub complete: bool,
}

/// Namespaces that could not be dumped, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: usize,
    /// Why the first of them could not be.
    pub reason: LeftOutReason,
}

/// Why a namespace could not be dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOutReason {
    /// setns was refused.
    NoCapability,
    /// There are more than [`SnapshotOptions::max_namespaces`].
    TooMany(usize),
    /// Anything else, in words.
    Other(String),
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.count;
        match &self.reason {
            LeftOutReason::NoCapability => write!(
                f,
                "network namespaces that could not be entered: {count} (CAP_SYS_ADMIN); their connections \
                 from before the start are not known until they end; run as root, or give flowend \
                 CAP_SYS_ADMIN"
            ),
            LeftOutReason::TooMany(limit) => write!(
                f,
                "network namespaces left out: {count} (more than {limit} beside flowend's own); their \
                 connections from before the start are not known until they end; watch fewer targets"
            ),
            LeftOutReason::Other(cause) => write!(
                f,
                "network namespaces that could not be read: {count} ({cause}); their connections from \
                 before the start are not known until they end"
            ),
        }
    }
}

/// Dumps the own network namespace and those of other processes. `held` are namespaces of earlier
/// snapshots: they are dumped again whatever their processes.
///
/// Works in a thread of its own, which ends with it, since a thread that has entered another namespace
/// cannot be trusted with anything else. Blocks until that is done: not for a thread of the runtime.
///
/// # Errors
/// When not even the own namespace can be dumped, or /proc cannot be listed.
pub fn snapshot(
    held: &HashMap<u64, Arc<File>>,
    options: &SnapshotOptions,
) -> Result<Snapshot, DiagError> {
    in_a_thread(|| {
        let own = dump_wanted(options.max_sockets, Some(&options.time_waits))?;
        let mut tour = Tour::from(own, options);
        for pid in procfs::all_processes().map_err(|e| DiagError::system("list /proc", e))? {
            tour.visit(pid);
        }
        for (inode, handle) in held {
            tour.dump(*inode, handle);
        }
        Ok(tour.finish())
    })
    .map_err(|e| DiagError::system("start a thread", e))?
}

/// Whether other network namespaces can be entered: enters the own one anew, which takes the same
/// capability (net/core/net_namespace.c, netns_install). One of a user namespace that this process has no
/// power in may refuse all the same.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, or where seccomp forbids setns.
pub fn can_enter_namespaces() -> io::Result<()> {
    in_a_thread(|| enter(&File::open("/proc/thread-self/ns/net")?))?
}

fn enter(namespace: &File) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(Into::into)
}

/// Runs to the end in a thread that is not used again. The error is of starting it.
fn in_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("flowend-diag".into());
        match thread.spawn_scoped(scope, work)?.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// On its way from namespace to namespace.
struct Tour<'a> {
    snapshot: Snapshot,
    /// Sockets that there is still room for.
    room: usize,
    /// Namespaces that were dumped or could not be.
    settled: HashSet<u64>,
    options: &'a SnapshotOptions,
}

impl<'a> Tour<'a> {
    fn from(own: Namespace, options: &'a SnapshotOptions) -> Self {
        Self {
            room: options.max_sockets.saturating_sub(own.len()),
            settled: HashSet::from([own.inode]),
            snapshot: Snapshot {
                complete: own.is_whole(),
                inhabited: HashSet::from([own.inode]),
                own,
                others: Vec::new(),
                handles: HashMap::new(),
                left_out: None,
                unreadable_processes: 0,
            },
            options,
        }
    }

    fn finish(mut self) -> Snapshot {
        self.snapshot.complete &= self.snapshot.inhabited.is_subset(&self.settled);
        self.snapshot
    }

    fn visit(&mut self, pid: u32) {
        let inode = match procfs::net_namespace_of(pid) {
            Ok(inode) => inode,
            Err(error) => {
                if !procfs::is_gone(&error) {
                    self.snapshot.unreadable_processes += 1;
                }
                return;
            }
        };
        self.snapshot.inhabited.insert(inode);
        if self.settled.contains(&inode) || !self.options.processes.takes(pid) {
            return;
        }
        if self.snapshot.others.len() >= self.options.max_namespaces {
            let limit = self.options.max_namespaces;
            return self.leave_out(inode, LeftOutReason::TooMany(limit));
        }
        let path = format!("/proc/{pid}/ns/net");
        // The process may have moved on since its link was read: what was opened counts.
        match File::open(&path).and_then(|file| Ok((file.metadata()?.ino(), file))) {
            Ok((inode, file)) => self.dump(inode, &Arc::new(file)),
            // Another process of the namespace may still be there.
            Err(error) if procfs::is_gone(&error) => {}
            Err(error) => self.leave_out(inode, LeftOutReason::Other(format!("{path}: {error}"))),
        }
    }

    fn dump(&mut self, inode: u64, file: &Arc<File>) {
        if self.settled.contains(&inode) {
            return;
        }
        if let Err(error) = enter(file) {
            let reason = match error.raw_os_error() {
                Some(libc::EPERM) => LeftOutReason::NoCapability,
                _ => LeftOutReason::Other(format!("setns: {error}")),
            };
            return self.leave_out(inode, reason);
        }
        match dump_wanted(self.room, Some(&self.options.time_waits)) {
            Ok(namespace) => {
                self.settled.insert(inode);
                self.room = self.room.saturating_sub(namespace.len());
                self.snapshot.complete &= namespace.is_whole();
                self.snapshot.others.push(namespace);
                self.snapshot.handles.insert(inode, Arc::clone(file));
            }
            Err(error) => self.leave_out(inode, LeftOutReason::Other(error.to_string())),
        }
    }

    fn leave_out(&mut self, inode: u64, reason: LeftOutReason) {
        self.settled.insert(inode);
        self.snapshot.complete = false;
        match &mut self.snapshot.left_out {
            Some(left_out) => left_out.count += 1,
            first => *first = Some(LeftOut { count: 1, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said_with_a_remedy() {
        for (reason, words) in [
            (
                LeftOutReason::NoCapability,
                ["network namespaces that could not be entered: 3 (CAP_SYS_ADMIN)", "run as root"],
            ),
            (LeftOutReason::TooMany(64), ["left out: 3 (more than 64", "watch fewer targets"]),
            (LeftOutReason::Other("setns: broken".into()), ["read: 3", "setns: broken"]),
        ] {
            let text = LeftOut { count: 3, reason }.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn a_panic_of_the_thread_is_not_swallowed() {
        let result = std::panic::catch_unwind(|| in_a_thread(|| panic!("so")));
        assert!(result.is_err());
    }
}
