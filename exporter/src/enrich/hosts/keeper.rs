//! Which file each cgroup has, since when, and what is remembered of it.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hashlink::LruCache;
use smallvec::{SmallVec, smallvec};
use tracing::warn;

use super::file::{self, Content, MAX_FILE, Opening, Stamp};
use super::patient::{Impatience, Patient};
use super::table::{Parsed, Table};
use super::{Known, State, VERSIONS, Version};
use crate::cgroup::Paths;

/// Memory for all tables, about, bytes.
const MAX_BYTES: usize = 16 << 20;

/// And for one of them.
const MAX_TABLE_BYTES: usize = 1 << 20;

/// Cgroups known at most: about 200 bytes each.
const MAX_CGROUPS: usize = 16_384;

/// A cgroup of which nothing was seen for so long is forgotten, ns.
const FORGET_NS: u64 = 600_000_000_000;

/// One that is gone is forgotten after so long, and one that must make room may be, ns.
const IDLE_NS: u64 = 60_000_000_000;

/// A file that was written to within this time before it was read may be written to again without another
/// stamp, since the kernel's file times are coarse, ns.
const SETTLE_NS: u64 = 1_000_000_000;

/// The longest that the thread waits for the file system of one workload.
const PATIENCE: Duration = Duration::from_secs(2);

/// One whose file system did not answer is left alone for so long.
const SILENT_FOR: Duration = Duration::from_secs(600);

/// Such cgroups at most.
const MAX_SILENT: usize = 1024;

/// Different messages at most.
const MAX_SAID: usize = 256;

/// A moment, by the kernel's clock and as what it takes to compare it with file times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) boot_ns: u64,
    pub(super) boot_to_unix_ns: u64,
}

/// Where the files come from.
pub(super) trait Files {
    /// The file of a cgroup as it is now.
    fn open(&mut self, cgroup_id: u64) -> Opening;
    /// Its content; the error in words, where there is something to be said.
    fn read(&mut self, cgroup_id: u64, file: File) -> Result<Content, Option<String>>;
    /// The cgroup in words.
    fn name(&self, cgroup_id: u64) -> String;
}

/// How far a file's time stamps may be behind: one tick of a kernel with CONFIG_HZ=100 (inode_set_ctime_current()
/// takes the coarse clock, fs/inode.c).
const TICK_NS: u64 = 10_000_000;

/// Reads the files and keeps what they say.
#[derive(Debug)]
pub(super) struct Keeper<F> {
    state: Arc<State>,
    files: F,
    visits: HashMap<u64, Visit>,
    /// All tables that some cgroup has, and had.
    tables: Vec<Weak<Table>>,
    /// Those whose file is known for certain by its stamp.
    shared: HashMap<Stamp, Weak<Table>>,
    said: BTreeSet<String>,
}

/// The last visit to a cgroup.
#[derive(Clone, Copy, Debug)]
struct Visit {
    at_ns: u64,
    /// When the present content was last found in place.
    verified_ns: u64,
    /// The same stamp will mean the same content.
    is_settled: bool,
    is_gone: bool,
}

/// What a visit found.
struct Found {
    table: Option<Arc<Table>>,
    stamp: Option<Stamp>,
    is_settled: bool,
}

impl<F: Files> Keeper<F> {
    pub(super) fn new(state: Arc<State>, files: F) -> Self {
        Self {
            state,
            files,
            visits: HashMap::new(),
            tables: Vec::new(),
            shared: HashMap::new(),
            said: BTreeSet::new(),
        }
    }

    /// Takes in a cgroup that the data path saw at `seen_ns`.
    pub(super) fn learn(&mut self, cgroup_id: u64, seen_ns: u64, now: Now) {
        // One that could not be read is not asked for again before the next look.
        if self.visits.contains_key(&cgroup_id) || self.visit(cgroup_id, seen_ns, now) {
            self.state.asked().remove(&cgroup_id);
        }
    }

    /// Looks at the files of the cgroups seen since the last look, and forgets those not seen for long.
    pub(super) fn look(&mut self, now: impl Fn() -> Now) {
        let seen: Vec<(u64, u64)> = {
            let cgroups = self.state.cgroups();
            let seen = |known: &Known| known.seen_ns.load(Ordering::Relaxed);
            cgroups.iter().map(|(id, known)| (*id, seen(known))).collect()
        };
        for (id, seen_ns) in seen {
            let now = now();
            let Some(visit) = self.visits.get(&id).copied() else { continue };
            let unseen_for = now.boot_ns.saturating_sub(seen_ns);
            if unseen_for >= FORGET_NS || (visit.is_gone && unseen_for >= IDLE_NS) {
                self.forget(id);
                self.state.counts.forgotten.add(1);
            } else if seen_ns > visit.at_ns || !visit.is_settled {
                self.visit(id, seen_ns, now);
            }
        }
        self.count_tables();
        // Those that could not be read are tried again when they are seen again.
        self.state.asked().clear();
    }

    /// Reads the file of a cgroup if it is another one than before. False if nothing is known of it.
    fn visit(&mut self, id: u64, seen_ns: u64, now: Now) -> bool {
        let before = self.visits.get(&id).copied();
        let found = match self.files.open(id) {
            Opening::File(file, stamp) => self.table_of(id, file, stamp, now),
            Opening::Nothing(why) => {
                if let Some(why) = why {
                    self.say(id, &why);
                }
                Some(Found { table: None, stamp: None, is_settled: true })
            }
            Opening::Unknown(why) => {
                self.unreadable(id, why);
                None
            }
            Opening::Gone => {
                if let Some(visit) = self.visits.get_mut(&id) {
                    *visit =
                        Visit { at_ns: now.boot_ns, is_settled: true, is_gone: true, ..*visit };
                }
                return before.is_some();
            }
        };
        let Some(found) = found else {
            if let Some(visit) = self.visits.get_mut(&id) {
                visit.at_ns = now.boot_ns;
            }
            return before.is_some();
        };
        if before.is_none() && !self.has_place(now) {
            self.no_room(id);
            return false;
        }
        let mut from_ns = since(found.stamp, before.map(|visit| visit.verified_ns), now);
        if before.is_some() {
            // The stamp may lie before a connection that was there when the file changed.
            from_ns = from_ns.saturating_add(TICK_NS).min(now.boot_ns);
        }
        self.publish(id, seen_ns, Version { from_ns, table: found.table });
        let visit = Visit {
            at_ns: now.boot_ns,
            verified_ns: now.boot_ns,
            is_settled: found.is_settled,
            is_gone: false,
        };
        self.visits.insert(id, visit);
        true
    }

    /// The table of a file: the one in memory where the file is the same, whosever it is.
    fn table_of(&mut self, id: u64, file: File, stamp: Stamp, now: Now) -> Option<Found> {
        if let Some(table) = self.shared.get(&stamp).and_then(Weak::upgrade) {
            return Some(Found { table: Some(table), stamp: Some(stamp), is_settled: true });
        }
        let content = match self.files.read(id, file) {
            Ok(content) => content,
            Err(why) => {
                self.unreadable(id, why);
                return None;
            }
        };
        self.state.counts.reads.add(1);
        let Parsed { table, bad_lines, is_full } = Table::parse(&content.bytes, MAX_TABLE_BYTES);
        self.state.counts.bad_lines.add(usize::try_from(bad_lines).unwrap_or(usize::MAX));
        if content.is_cut {
            self.say(id, &format!("it is longer than {MAX_FILE} bytes; the rest is ignored"));
        }
        if is_full {
            self.say(id, "it names too many addresses; the last ones are ignored");
        }
        let table = match self.present(id).filter(|present| **present == table) {
            Some(present) => present,
            None if self.make_room(table.bytes(), now) => {
                let table = Arc::new(table);
                self.tables.push(Arc::downgrade(&table));
                self.count_tables();
                table
            }
            None => {
                self.no_room(id);
                return None;
            }
        };
        let written_ns = stamp.mtime_ns.max(stamp.ctime_ns);
        let now_unix_ns = now.boot_ns.saturating_add(now.boot_to_unix_ns);
        let is_settled =
            content.stamp == Some(stamp) && now_unix_ns.saturating_sub(written_ns) > SETTLE_NS;
        if is_settled {
            self.shared.insert(stamp, Arc::downgrade(&table));
        }
        Some(Found { table: Some(table), stamp: Some(stamp), is_settled })
    }

    /// What the cgroup's file said when it was read last.
    fn present(&self, id: u64) -> Option<Arc<Table>> {
        self.state.cgroups().get(&id)?.versions.first()?.table.clone()
    }

    /// Lets the data path see a version, where it says something else than the one before.
    fn publish(&self, id: u64, seen_ns: u64, version: Version) {
        let mut cgroups = self.state.cgroups_mut();
        let Some(known) = cgroups.get_mut(&id) else {
            let versions: SmallVec<[Version; 1]> = smallvec![version];
            cgroups.insert(id, Known { seen_ns: AtomicU64::new(seen_ns), versions });
            return;
        };
        let present = known.versions.first().and_then(|version| version.table.as_ref());
        if present != version.table.as_ref() {
            self.state.counts.changes.add(1);
            known.versions.insert(0, version);
            let oldest = (known.versions.len() > VERSIONS).then(|| known.versions.pop());
            // Freed when nobody waits for the lock any more.
            drop(cgroups);
            drop(oldest);
        }
    }

    /// Whether there is a place for one more cgroup.
    fn has_place(&mut self, now: Now) -> bool {
        self.visits.len() < MAX_CGROUPS || self.evict(now)
    }

    /// Whether there is memory for one more table.
    fn make_room(&mut self, bytes: usize, now: Now) -> bool {
        loop {
            if self.count_tables() + bytes <= MAX_BYTES {
                return true;
            }
            if !self.evict(now) {
                return false;
            }
        }
    }

    /// Forgets the cgroup of which nothing was seen for longest; not one that is in use, since it would be
    /// read again at once, and another forgotten for it.
    fn evict(&mut self, now: Now) -> bool {
        let oldest = {
            let cgroups = self.state.cgroups();
            let seen = cgroups.iter().map(|(id, k)| (k.seen_ns.load(Ordering::Relaxed), *id));
            seen.min()
        };
        match oldest {
            Some((seen_ns, id)) if now.boot_ns.saturating_sub(seen_ns) >= IDLE_NS => {
                self.forget(id);
                self.state.counts.evicted.add(1);
                true
            }
            _ => false,
        }
    }

    fn unreadable(&mut self, id: u64, why: Option<String>) {
        self.state.counts.unreadable.add(1);
        if let Some(why) = why {
            self.say(id, &why);
        }
    }

    fn no_room(&mut self, id: u64) {
        self.state.counts.no_room.add(1);
        self.say(id, "those in use leave no room for it");
    }

    fn forget(&mut self, id: u64) {
        self.visits.remove(&id);
        let forgotten = self.state.cgroups_mut().remove(&id);
        // Its tables are freed when the lock is free again: the data path may wait for it.
        drop(forgotten);
    }

    /// Memory of the tables that there are, bytes.
    fn count_tables(&mut self) -> usize {
        self.tables.retain(|table| table.strong_count() > 0);
        self.shared.retain(|_, table| table.strong_count() > 0);
        let bytes = self.tables.iter().filter_map(Weak::upgrade).map(|table| table.bytes()).sum();
        let counts = &self.state.counts;
        counts.tables.store(self.tables.len() as u64, Ordering::Relaxed);
        counts.bytes.store(bytes as u64, Ordering::Relaxed);
        bytes
    }

    /// Each message once.
    fn say(&mut self, id: u64, words: &str) {
        if self.said.len() < MAX_SAID {
            let message = format!("/etc/hosts of {}: {words}", self.files.name(id));
            if !self.said.contains(&message) {
                warn!("{message}");
                self.said.insert(message);
            }
        }
    }
}

/// Since when what was found is there, by the kernel's clock. `verified_ns`: when something else was last
/// found in its place.
fn since(stamp: Option<Stamp>, verified_ns: Option<u64>, now: Now) -> u64 {
    let boot = |unix_ns: u64| unix_ns.saturating_sub(now.boot_to_unix_ns).min(now.boot_ns);
    match (stamp, verified_ns) {
        // A connection may be older than the first look at its file.
        (Some(stamp), None) => boot(stamp.mtime_ns),
        // A file that took another's place may have been written long before.
        (Some(stamp), Some(verified_ns)) => [stamp.mtime_ns, stamp.ctime_ns]
            .map(boot)
            .into_iter()
            .filter(|ns| *ns > verified_ns)
            .min()
            .unwrap_or(now.boot_ns),
        (None, _) => now.boot_ns,
    }
}

/// The files of this machine's workloads.
#[derive(Debug)]
pub(super) struct Workloads {
    mount: PathBuf,
    paths: Paths,
    reader: Patient,
    /// Those whose file system did not answer, and when.
    silent: LruCache<u64, Instant>,
}

impl Workloads {
    pub(super) fn new(mount: PathBuf, paths: Paths) -> Self {
        let silent = LruCache::new(MAX_SILENT);
        Self { mount, paths, reader: Patient::new(PATIENCE), silent }
    }

    /// Does what may hang for this cgroup; the error in words.
    fn wait_for<T: Send + 'static>(
        &mut self,
        cgroup_id: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Option<String>> {
        // One that hangs over and over would leave no thread for the others.
        if self.silent.get(&cgroup_id).is_some_and(|since| since.elapsed() < SILENT_FOR) {
            return Err(None);
        }
        self.reader.wait_for(work).map_err(|why| {
            Some(match why {
                Impatience::NoResult => {
                    self.silent.insert(cgroup_id, Instant::now());
                    format!("its file system gave no answer in {PATIENCE:?}")
                }
                Impatience::TooManyHang => {
                    "not read, since the file systems of others do not answer".into()
                }
                Impatience::NoThread => "not read: no thread can be started".into(),
            })
        })
    }
}

impl Files for Workloads {
    fn open(&mut self, cgroup_id: u64) -> Opening {
        let Some(path) = self.paths.get(cgroup_id) else { return Opening::Unknown(None) };
        let folder = self.mount.join(path.trim_start_matches('/'));
        self.wait_for(cgroup_id, move || file::open_of_cgroup(&folder))
            .unwrap_or_else(Opening::Unknown)
    }

    fn read(&mut self, cgroup_id: u64, file: File) -> Result<Content, Option<String>> {
        self.wait_for(cgroup_id, move || file::read(&file))?
            .map_err(|error| Some(error.to_string()))
    }

    fn name(&self, cgroup_id: u64) -> String {
        match self.paths.get(cgroup_id) {
            // Whoever may make a cgroup chooses its name.
            Some(path) => path.escape_debug().to_string(),
            None => format!("cgroup {cgroup_id}"),
        }
    }
}

#[cfg(test)]
mod tests;
