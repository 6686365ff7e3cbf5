//! Names from /etc/hosts, as each workload's own mount namespace shows the file.
//!
//! The data path tells which cgroups it sees ([`Hosts::observe`]) and asks for names ([`Hosts::names`]); both
//! are a look into a table in memory. A thread of its own opens and reads the files, once for
//! each version of each, and looks every [`LOOK`] whether one has changed. All processes of a cgroup are taken
//! to share a mount namespace: the first one whose root can be entered speaks for it.
//!
//! A connection gets the names that held when it began. A file's text is known from when it was written, or
//! from when it was put in place of the one before; what stood there earlier is kept for the
//! connections that began earlier.

mod file;
mod keeper;
mod patient;
mod table;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use flowend_probe_types::Addr;
use smallvec::SmallVec;

#[cfg(any(test, fuzzing))]
pub(crate) use self::table::fuzz::check as check_file;

use self::keeper::{Keeper, Now, Workloads};
use self::table::Table;
use crate::cgroup::Paths;
use crate::clock;
use crate::ledger::Count;

/// How often the files of cgroups seen lately are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Cgroups that wait to be read for the first time, at most; further ones are asked for again.
const MAX_ASKED: usize = 1024;

/// Versions of a cgroup's file that are remembered: the present one and those before it.
const VERSIONS: usize = 4;

/// What the hosts files of the workloads say. The thread ends with this.
#[derive(Debug)]
pub struct Hosts {
    state: Arc<State>,
    wanted: SyncSender<(u64, u64)>,
}

/// What the data path and the thread share.
#[derive(Debug, Default)]
struct State {
    cgroups: RwLock<HashMap<u64, Known>>,
    /// Those that the thread was told of, or could not read; until it is done with them, or the next look.
    asked: Mutex<HashSet<u64>>,
    counts: Counts,
}

/// Of one cgroup.
#[derive(Debug)]
struct Known {
    /// When an event of it was seen last, ns.
    seen_ns: AtomicU64,
    /// The latest first; never empty.
    versions: SmallVec<[Version; 1]>,
}

/// What the file said from some moment on.
#[derive(Clone, Debug)]
struct Version {
    from_ns: u64,
    /// `None` where there was no file that could be read.
    table: Option<Arc<Table>>,
}

#[derive(Debug, Default)]
struct Counts {
    named: Count,
    unnamed: Count,
    refused: Count,
    reads: Count,
    changes: Count,
    bad_lines: Count,
    unreadable: Count,
    forgotten: Count,
    evicted: Count,
    no_room: Count,
    tables: AtomicU64,
    bytes: AtomicU64,
}

/// What became of the files, and of the lookups in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostsStats {
    /// Lookups that found a name.
    pub named: u64,
    /// Lookups that found none.
    pub unnamed: u64,
    /// Cgroups known now.
    pub cgroups: u64,
    /// Different files in memory now; several cgroups may share one.
    pub tables: u64,
    /// Memory that these take, about, bytes.
    pub bytes: u64,
    /// Files read.
    pub reads: u64,
    /// Times that a file known before had another content, came or went.
    pub changes: u64,
    /// Lines without an address or a name, or with a name that is too long.
    pub bad_lines: u64,
    /// Times that a cgroup's file could not be read: no process, no right, or no answer.
    pub unreadable: u64,
    /// Cgroups that the thread could not be told of because too many waited; they are asked for again.
    pub refused: u64,
    /// Cgroups forgotten because they are gone or nothing was seen of them for long.
    pub forgotten: u64,
    /// Cgroups forgotten early, to make room for others.
    pub evicted: u64,
    /// Times that a file was left out because those in use leave no room.
    pub no_room: u64,
}

impl Hosts {
    /// Starts the thread, for the hierarchy mounted at `mount`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mount: PathBuf, paths: Paths) -> std::io::Result<Self> {
        let (hosts, told) = Self::new();
        let workloads = Workloads::new(mount, paths);
        let mut keeper = Keeper::new(Arc::clone(&hosts.state), workloads);
        std::thread::Builder::new().name("hosts".into()).spawn(move || run(&mut keeper, &told))?;
        Ok(hosts)
    }

    fn new() -> (Self, Receiver<(u64, u64)>) {
        let (wanted, told) = sync_channel(MAX_ASKED);
        (Self { state: Arc::default(), wanted }, told)
    }

    /// Says that an event of a cgroup was seen at `now_ns`. Cheap when it is known, and never waits.
    pub fn observe(&self, cgroup_id: u64, now_ns: u64) {
        if cgroup_id == 0 {
            return;
        }
        if let Some(known) = self.state.cgroups().get(&cgroup_id) {
            known.seen_ns.fetch_max(now_ns, Ordering::Relaxed);
            return;
        }
        let mut asked = self.state.asked();
        if asked.contains(&cgroup_id) {
            return;
        }
        if asked.len() < MAX_ASKED && self.wanted.try_send((cgroup_id, now_ns)).is_ok() {
            asked.insert(cgroup_id);
        } else {
            self.state.counts.refused.add(1);
        }
    }

    /// The names that the hosts file of this cgroup gave the address at `at_ns`, as far as is known:
    /// canonical name, then aliases.
    pub fn names(&self, cgroup_id: u64, addr: Addr, at_ns: u64) -> Option<Arc<[Arc<str>]>> {
        let names = self.state.cgroups().get(&cgroup_id).and_then(|known| known.names(addr, at_ns));
        let Counts { named, unnamed, .. } = &self.state.counts;
        if names.is_some() { named } else { unnamed }.add(1);
        names
    }

    /// What became of the files so far.
    pub fn stats(&self) -> HostsStats {
        let counts = &self.state.counts;
        HostsStats {
            named: counts.named.get(),
            unnamed: counts.unnamed.get(),
            cgroups: self.state.cgroups().len() as u64,
            tables: counts.tables.load(Ordering::Relaxed),
            bytes: counts.bytes.load(Ordering::Relaxed),
            reads: counts.reads.get(),
            changes: counts.changes.get(),
            bad_lines: counts.bad_lines.get(),
            unreadable: counts.unreadable.get(),
            refused: counts.refused.get(),
            forgotten: counts.forgotten.get(),
            evicted: counts.evicted.get(),
            no_room: counts.no_room.get(),
        }
    }
}

impl fmt::Display for HostsStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { named, unnamed, cgroups, tables, bytes, .. } = self;
        write!(
            f,
            "hosts files: lookups {} = named {named} + unnamed {unnamed}; ",
            named + unnamed
        )?;
        write!(f, "{cgroups} cgroups know {tables} files, {bytes} bytes; ")?;
        let Self { reads, changes, bad_lines, unreadable, .. } = self;
        write!(
            f,
            "read {reads}, changed {changes}, bad lines {bad_lines}, unreadable {unreadable}; "
        )?;
        let Self { refused, forgotten, evicted, no_room, .. } = self;
        write!(
            f,
            "cgroups refused {refused}, forgotten {forgotten}, evicted {evicted}, no room {no_room}"
        )
    }
}

impl State {
    // A thread that panicked while it held a lock left whole entries behind: each is replaced at once.
    fn cgroups(&self) -> RwLockReadGuard<'_, HashMap<u64, Known>> {
        self.cgroups.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn cgroups_mut(&self) -> RwLockWriteGuard<'_, HashMap<u64, Known>> {
        self.cgroups.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn asked(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn names(&self, addr: Addr, at_ns: u64) -> Option<Arc<[Arc<str>]>> {
        let version = self.versions.iter().find(|version| version.from_ns <= at_ns)?;
        version.table.as_ref()?.names(addr).cloned()
    }
}

/// Reads what is asked for, and looks now and then, until the handle is gone.
fn run(keeper: &mut Keeper<Workloads>, told: &Receiver<(u64, u64)>) {
    let mut next_look = Instant::now() + LOOK;
    loop {
        match told.recv_timeout(next_look.saturating_duration_since(Instant::now())) {
            Ok((cgroup_id, seen_ns)) => keeper.learn(cgroup_id, seen_ns, now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= next_look {
            keeper.look(now);
            next_look = Instant::now() + LOOK;
        }
    }
}

fn now() -> Now {
    Now { boot_ns: clock::boot_ns(), boot_to_unix_ns: clock::boot_to_unix_ns() }
}
