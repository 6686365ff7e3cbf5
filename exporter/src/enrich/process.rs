//! The process behind a socket.

use std::sync::Arc;
use std::time::Duration;

use flowend_probe_types::{EventKind, ProcessEvent};
use serde::{Deserialize, Serialize};

use crate::fair::Table;
use crate::flow::ConnectionEnd;

/// An executable's name is read anew after this long: a process may exec, a pid may be reused.
const NAME_LIFETIME: Duration = Duration::from_secs(1);

/// The inode of the initial pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What is not known of processes in a pid namespace of flowend's own, in words.
pub const NO_EXECUTABLES: &str = "flowend runs in a pid namespace of its own, so process.executable.name is absent; \
                                  in Kubernetes set hostPID: true";

/// What is not known of hosts files in a pid namespace of flowend's own, in words.
pub const FEW_HOSTS: &str = "flowend runs in a pid namespace of its own, so of the workloads' hosts files (dns.hosts) \
                             only those of processes that it sees are read; in Kubernetes set \
                             shareProcessNamespace: true for those of its pod, or hostPID: true";

/// A process, as the initial pid namespace numbers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Base name of the executable, where /proc could be read in time.
    pub executable: Option<Arc<str>>,
}

/// Which process connected or bound which socket. Bounded: of many, a cgroup with more than its share forgets first.
#[derive(Debug)]
pub struct Processes {
    by_cookie: Table<u64, Process>,
    /// Those that bound a socket: an idle listener is not to be forgotten over many connections.
    bound: Table<u64, Process>,
    names: moka::sync::Cache<u32, Option<Arc<str>>>,
    /// Pids of events are those of the initial namespace: /proc must be of it, too.
    proc_is_initial: bool,
    own_pid: u32,
}

/// What is known of processes, for the flowend that goes on.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct KeptProcesses {
    by_cookie: Vec<KeptProcess>,
    bound: Vec<KeptProcess>,
}

/// Cgroup id, socket cookie, pid, and the executable's name.
type KeptProcess = (u64, u64, u32, Option<String>);

impl Processes {
    /// Remembers at most `limit` sockets.
    pub fn new(limit: usize) -> Self {
        Self {
            by_cookie: Table::new(limit),
            bound: Table::new(limit),
            names: moka::sync::Cache::builder()
                .max_capacity(4096)
                .time_to_live(NAME_LIFETIME)
                .build(),
            proc_is_initial: is_in_initial_pid_namespace(),
            own_pid: std::process::id(),
        }
    }

    /// Takes in what the probe saw at connect() or bind(). The name is read at once: the process may
    /// be gone when its connection ends. Pid 0 is no process: the probe was told not to say it.
    pub fn observe(&mut self, kind: EventKind, event: &ProcessEvent) {
        debug_assert!(matches!(kind, EventKind::Connect | EventKind::Bind));
        if event.pid == 0 {
            return;
        }
        let process = self.process(event.pid);
        match kind {
            EventKind::Bind => self.bound.insert(event.cgroup_id, event.cookie, process),
            _ => self.by_cookie.insert(event.cgroup_id, event.cookie, process),
        };
    }

    /// Takes in which process holds a socket that was made before the probe came. What connect() or
    /// bind() told is not overruled.
    pub fn found(&mut self, cookie: u64, pid: u32) {
        if self.by_cookie.get(&cookie).is_none() && self.bound.get(&cookie).is_none() {
            let process = self.process(pid);
            self.bound.insert(0, cookie, process);
        }
    }

    /// Hands over what is known, the oldest first.
    pub fn hand_over(&mut self) -> KeptProcesses {
        let kept = |(cgroup_id, cookie, process): (u64, u64, Process)| {
            (cgroup_id, cookie, process.pid, process.executable.map(|name| name.to_string()))
        };
        KeptProcesses {
            by_cookie: self.by_cookie.drain().into_iter().map(kept).collect(),
            bound: self.bound.drain().into_iter().map(kept).collect(),
        }
    }

    /// Takes it in again.
    pub fn take_in(&mut self, kept: KeptProcesses) {
        let process = |pid, name: Option<String>| Process { pid, executable: name.map(Arc::from) };
        for (cgroup_id, cookie, pid, name) in kept.by_cookie {
            self.by_cookie.insert(cgroup_id, cookie, process(pid, name));
        }
        for (cgroup_id, cookie, pid, name) in kept.bound {
            self.bound.insert(cgroup_id, cookie, process(pid, name));
        }
    }

    fn process(&self, pid: u32) -> Process {
        let executable = if self.proc_is_initial {
            self.names.get_with(pid, || executable_of(pid))
        } else {
            None
        };
        Process { pid, executable }
    }

    /// The process of the local side: the one that connected, or for an accepted connection the one
    /// that bound the listener.
    pub fn of(&mut self, end: &ConnectionEnd) -> Option<Process> {
        // The listener first: an accepted socket is never connected, but a cookie is asked for once.
        match end.listener {
            Some(listener) => {
                // Not to be forgotten for what is bound and not used again: a client's port, say.
                self.bound.touch(listener);
                self.bound.get(&listener).cloned()
            }
            None => {
                let connected = self.by_cookie.get(&end.cookie).cloned();
                connected.or_else(|| self.bound.get(&end.cookie).cloned())
            }
        }
    }

    /// A connection of this socket has ended. Its process is forgotten before those of open ones, and not at once: the
    /// next connect() of the same socket may have been told already.
    pub fn ended(&mut self, end: &ConnectionEnd) {
        // The cookie of a failed handshake is the listener's.
        if !end.is_of_listener() {
            self.by_cookie.spare(end.cookie);
            self.bound.spare(end.cookie);
        }
    }

    /// Whether this is flowend's own process. Only where pids can be compared.
    pub const fn is_own(&self, process: &Process) -> bool {
        self.proc_is_initial && process.pid == self.own_pid
    }
}

/// The base name of /proc/PID/exe.
fn executable_of(pid: u32) -> Option<Arc<str>> {
    let target = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = target.file_name()?.to_str()?;
    Some(Arc::from(name.strip_suffix(" (deleted)").unwrap_or(name)))
}

/// Whether pids mean here what they mean to the kernel's programs.
pub fn is_in_initial_pid_namespace() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self/ns/pid").is_ok_and(|m| m.ino() == INITIAL_PID_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::tests::record;
    use crate::record::RecordKind;
    use std::collections::HashMap;

    #[test]
    fn the_own_process_has_a_name() {
        let name = executable_of(std::process::id()).unwrap();
        assert!(name.starts_with("flowend"), "{name}");
        assert_eq!(executable_of(u32::MAX), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut processes = Processes::new(2);
        for cookie in 0..3 {
            let event = ProcessEvent { cookie, pid: 1, ..ProcessEvent::default() };
            processes.observe(EventKind::Connect, &event);
        }
        let known: HashMap<u64, bool> =
            (0..3).map(|c| (c, processes.by_cookie.get(&c).is_some())).collect();
        assert_eq!(known, HashMap::from([(0, false), (1, true), (2, true)]));
    }

    #[test]
    fn connections_that_ended_do_not_make_an_open_one_forgotten() {
        let mut processes = Processes::new(3);
        let mut connect = |cookie, has_ended| {
            let event = ProcessEvent { cookie, pid: 1, cgroup_id: 5, ..ProcessEvent::default() };
            processes.observe(EventKind::Connect, &event);
            if has_ended {
                processes.ended(&ConnectionEnd { cookie, ..record(RecordKind::End).end });
            }
        };
        connect(1, false);
        (2..20).for_each(|cookie| connect(cookie, true));
        // Connected again before its end was told.
        connect(20, true);
        connect(20, false);
        connect(21, true);
        connect(22, true);
        let known: Vec<u64> =
            (1..23).filter(|cookie| processes.by_cookie.get(cookie).is_some()).collect();
        assert_eq!(known, [1, 20, 22]);
    }

    /// A client that binds a port for each of its connections, in the listener's cgroup.
    #[test]
    fn a_listener_that_is_in_use_is_not_forgotten() {
        let listener = 1;
        let accepted = ConnectionEnd { listener: Some(listener), ..record(RecordKind::End).end };
        let failed = ConnectionEnd { cookie: listener, ..accepted.clone() };
        for in_use in [true, false] {
            let mut processes = Processes::new(8);
            for cookie in [listener].into_iter().chain(10..100) {
                let event = ProcessEvent { cookie, pid: 1, cgroup_id: 5, ..Default::default() };
                processes.observe(EventKind::Bind, &event);
                if in_use && cookie % 4 == 0 {
                    assert!(processes.of(&accepted).is_some(), "{cookie}");
                    processes.ended(&accepted);
                    processes.ended(&failed);
                }
            }
            assert_eq!(processes.of(&accepted).is_some(), in_use);
        }
        // Nor is one of which there is no news, where those connections have ended.
        let mut processes = Processes::new(8);
        for cookie in [listener].into_iter().chain(10..100) {
            let event = ProcessEvent { cookie, pid: 1, cgroup_id: 5, ..Default::default() };
            processes.observe(EventKind::Bind, &event);
            if cookie != listener {
                processes.ended(&ConnectionEnd { cookie, ..record(RecordKind::End).end });
            }
        }
        assert!(processes.of(&accepted).is_some());
    }

    #[test]
    fn pid_0_is_no_process() {
        let mut processes = Processes::new(2);
        for kind in [EventKind::Connect, EventKind::Bind] {
            processes.observe(kind, &ProcessEvent { cookie: 7, ..ProcessEvent::default() });
        }
        assert!(processes.by_cookie.is_empty() && processes.bound.is_empty());
    }

    #[test]
    fn connections_do_not_make_a_listener_forgotten() {
        let mut processes = Processes::new(2);
        let event = |cookie| ProcessEvent { cookie, pid: 1, ..ProcessEvent::default() };
        processes.observe(EventKind::Bind, &event(100));
        processes.found(101, 1);
        for cookie in 0..10 {
            processes.observe(EventKind::Connect, &event(cookie));
        }
        assert!(processes.bound.get(&100).is_some() && processes.bound.get(&101).is_some());
    }
}
