//! Looks at the kernel's sockets: at the start, when a cgroup is attached to, when only a look can tell
//! how a connection ended, and now and then.
//!
//! A task of its own: a look blocks, on the kernel and on /proc, and the data path waits for nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowend_probe_types::TcpState;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::cgroup::{self, Paths};
use crate::clock;
use crate::diag::{self, Namespace, ProcessFilter, Snapshot, SnapshotOptions, Socket, SocketKind};
use crate::enrich::is_in_initial_pid_namespace;
use crate::flow::{Census, Counters, Direction, LOOKS, OpenSocket, Running};

/// Sockets that one look takes in at most; each is about 500 bytes for the time that it takes, less those
/// in TIME-WAIT.
const MAX_SOCKETS: usize = 2_000_000;

/// Network namespaces beside the own one that are looked at, at most.
const MAX_NAMESPACES: usize = 4096;

/// Looks never follow each other faster than this, nor faster than [`LEISURE`] times what the last one
/// took: whoever can make flowend want a look must not be able to keep it busy.
const PAUSE: Duration = Duration::from_millis(500);
const LEISURE: u32 = 20;

/// Looks that nothing asks for are this much rarer, down to one in [`LONGEST_PAUSE`]: each reads the folder and
/// the processes of each watched cgroup, which with a thousand of them would be most of what an idle flowend costs.
const LEISURE_AT_REST: u32 = 2000;
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// After a look that failed, another one is tried.
const RETRY: Duration = Duration::from_secs(5);

/// A look, and which process holds which socket that it found.
#[derive(Debug)]
pub struct Look {
    /// For the flow table.
    pub census: Census,
    /// Socket cookie and pid; empty unless asked for.
    pub owners: Vec<(u64, u32)>,
}

/// What a look is about.
#[derive(Clone, Debug)]
pub struct LookSettings {
    /// Where the cgroup2 hierarchy is mounted.
    pub mount: PathBuf,
    /// How often, when nothing asks for a look. Less often where a look takes long.
    pub interval: Duration,
    /// Never less often: what is reported of open connections is read from looks.
    pub keeps_interval: bool,
    /// Find out which process holds a socket that is older than its watch.
    pub owners: bool,
}

/// The task, and how to talk to it. The task ends with this.
#[derive(Debug)]
pub struct Looker {
    looks: mpsc::Receiver<Look>,
    /// With the cookies to watch for in TIME-WAIT.
    wanted: watch::Sender<HashSet<u64>>,
    /// Asked for, and none came since.
    asked: bool,
    task: JoinHandle<()>,
}

impl Drop for Looker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Looker {
    /// Looks at once, and whenever `folders`, the cgroups attached to, change.
    pub fn start(
        settings: LookSettings,
        paths: Paths,
        folders: watch::Receiver<Vec<PathBuf>>,
    ) -> Self {
        let (send, looks) = mpsc::channel(1);
        let (wanted, asked_for) = watch::channel(HashSet::new());
        let task = tokio::spawn(run(settings, paths, folders, asked_for, send));
        Self { looks, wanted, asked: false, task }
    }

    /// Asks for a look soon, that watches for these cookies in TIME-WAIT, too.
    pub fn want(&mut self, time_waits: impl FnOnce() -> HashSet<u64>) {
        if !std::mem::replace(&mut self.asked, true) {
            // It fails only where the task is gone, of which `is_finished` tells.
            let _ = self.wanted.send(time_waits());
        }
    }

    /// Whether the task has ended by itself: a bug.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// The next look. Cancel safe. Waits for ever once the task is gone.
    pub async fn next(&mut self) -> Look {
        match self.looks.recv().await {
            Some(look) => {
                self.asked = false;
                look
            }
            None => std::future::pending().await,
        }
    }
}

async fn run(
    settings: LookSettings,
    paths: Paths,
    mut folders: watch::Receiver<Vec<PathBuf>>,
    mut wanted: watch::Receiver<HashSet<u64>>,
    send: mpsc::Sender<Look>,
) {
    let mut memory = Memory::default();
    let mut said = BTreeSet::new();
    // Before the programs were attached there may have been connections.
    let mut after_attach = true;
    loop {
        let owners = settings.owners && after_attach;
        let attached = folders.borrow_and_update().clone();
        let (mount, paths, before) = (settings.mount.clone(), paths.clone(), memory.clone());
        let time_waits = wanted.borrow_and_update().clone();
        let look = tokio::task::spawn_blocking(move || {
            look(&mount, &attached, &paths, &before, time_waits, owners)
        });
        let begun = Instant::now();
        let look = look.await;
        let took = begun.elapsed();
        let pause = PAUSE.max(took * LEISURE);
        match look {
            Ok(Ok((mut look, snapshot))) => {
                say(&snapshot, &mut said);
                memory.take_in(&mut look.census, &snapshot, after_attach);
                if send.send(look).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                let words = format!("{error}; connections older than flowend are not known");
                if said.insert(words.clone()) {
                    warn!("{words}");
                }
                // What it was for is still to be done.
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Aborted, with the program.
            Err(_) => return,
        }
        tokio::time::sleep(pause).await;
        let interval = if settings.keeps_interval || !memory.older.is_empty() {
            settings.interval
        } else {
            settings.interval.max(LONGEST_PAUSE.min(took * LEISURE_AT_REST))
        };
        after_attach = tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => false,
                Err(_) => return,
            },
            () = tokio::time::sleep(interval.saturating_sub(pause)) => false,
            changed = folders.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
        };
    }
}

/// What is remembered from look to look.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// Cookies of watched connections that were there when the programs were attached: their ends are
    /// told by looks alone. Each with the looks in a row that have missed it.
    older: HashMap<u64, u8>,
    /// Namespaces in which one of them is open, held so that their last look finds them whatever becomes
    /// of their processes.
    held: HashMap<u64, Arc<File>>,
    /// Cookie of each namespace by inode, of the look before.
    cookies: HashMap<u64, u64>,
}

impl Memory {
    fn take_in(&mut self, census: &mut Census, snapshot: &Snapshot, after_attach: bool) {
        let open = |s: &&OpenSocket| s.watched && s.state != TcpState::TimeWait;
        let there: HashSet<u64> = census.sockets.iter().filter(open).map(|s| s.cookie).collect();
        if after_attach {
            self.older.extend(there.iter().map(|cookie| (*cookie, 0)));
        }
        self.older.retain(|cookie, missed| {
            *missed = if there.contains(cookie) { 0 } else { *missed + 1 };
            *missed < LOOKS
        });
        let before = std::mem::take(&mut self.held);
        let missed = self.older.values().any(|missed| *missed > 0);
        for namespace in &snapshot.others {
            let matters = namespace.sockets.iter().any(|s| self.older.contains_key(&s.cookie))
                // One that is missing may have been there.
                || (missed && before.contains_key(&namespace.inode));
            if matters && let Some(handle) = snapshot.handles.get(&namespace.inode) {
                self.held.insert(namespace.inode, Arc::clone(handle));
            }
        }
        // Of processes that cannot be read nobody knows where they are.
        if snapshot.unreadable_processes == 0 {
            let deserted = |inode: &u64| !snapshot.inhabited.contains(inode);
            census.deserted = self
                .cookies
                .iter()
                .filter(|(i, _)| deserted(i))
                .map(|(_, cookie)| *cookie)
                .collect();
        }
        // A deserted one is kept for the looks that it takes to be sure.
        self.cookies.retain(|_, cookie| census.deserted.contains(cookie));
        if self.cookies.len() > MAX_NAMESPACES {
            self.cookies.clear();
        }
        self.cookies.extend(namespaces(snapshot).filter_map(|n| Some((n.inode, n.cookie?))));
    }
}

/// Says what could not be looked at, once.
fn say(snapshot: &Snapshot, said: &mut BTreeSet<String>) {
    if let Some(left_out) = &snapshot.left_out {
        let words = left_out.to_string();
        let cause = words.split('(').nth(1).unwrap_or_default().to_owned();
        if said.insert(cause) {
            info!("{words}");
        }
    }
    if namespaces(snapshot).any(|n| n.truncated) && said.insert("truncated".into()) {
        warn!("more than {MAX_SOCKETS} TCP sockets: those past it are not looked at");
    }
}

fn namespaces(snapshot: &Snapshot) -> impl Iterator<Item = &Namespace> {
    std::iter::once(&snapshot.own).chain(&snapshot.others)
}

/// One look. Blocks.
fn look(
    mount: &Path,
    attached: &[PathBuf],
    paths: &Paths,
    memory: &Memory,
    mut time_waits: HashSet<u64>,
    owners: bool,
) -> Result<(Look, Snapshot), diag::DiagError> {
    let begun_ns = clock::boot_ns();
    let (mut cgroups, mut pids) = (HashSet::new(), HashSet::new());
    // No need to ask each cgroup of the machine for its processes.
    let is_all = attached.iter().any(|folder| folder == mount);
    for folder in attached {
        cgroup::walk(mount, folder, &mut |id, path| {
            cgroups.insert(id);
            paths.learn(id, || path.to_owned());
            if !is_all {
                cgroup::processes_in(&mount.join(path.trim_start_matches('/')), &mut pids);
            }
        });
    }
    let processes = if is_all { ProcessFilter::All } else { ProcessFilter::Among(pids) };
    time_waits.extend(memory.older.keys());
    let options = SnapshotOptions {
        max_sockets: MAX_SOCKETS,
        time_waits,
        max_namespaces: MAX_NAMESPACES,
        processes: processes.clone(),
    };
    let snapshot = diag::snapshot(&memory.held, &options)?;
    let all = || {
        namespaces(&snapshot)
            .flat_map(|namespace| namespace.sockets.iter().map(move |socket| (namespace, socket)))
    };
    let open = all().filter(|(_, s)| s.kind == SocketKind::Whole).map(|(_, s)| s.cookie).collect();
    let sockets = all()
        .filter(|(_, socket)| socket.kind != SocketKind::Request)
        .map(|(namespace, socket)| (namespace, socket, is_in(&cgroups, socket)))
        .filter(|(_, socket, watched)| *watched || socket.kind == SocketKind::TimeWait)
        .map(|(namespace, socket, watched)| open_socket(namespace, socket, watched))
        .collect();
    let census = Census {
        begun_ns,
        done_ns: clock::boot_ns(),
        namespaces: namespaces(&snapshot)
            .filter(|n| n.is_whole())
            .filter_map(|n| n.cookie)
            .collect(),
        complete: snapshot.complete
            && snapshot.unreadable_processes == 0
            && is_in_initial_pid_namespace(),
        deserted: HashSet::new(),
        open,
        sockets,
    };
    let owners = if owners { owners_of(&snapshot, &cgroups, &processes) } else { Vec::new() };
    Ok((Look { census, owners }, snapshot))
}

fn is_in(cgroups: &HashSet<u64>, socket: &Socket) -> bool {
    socket.cgroup_id.is_some_and(|id| cgroups.contains(&id))
}

fn open_socket(namespace: &Namespace, socket: &Socket, watched: bool) -> OpenSocket {
    let is_minisocket = socket.kind == SocketKind::TimeWait;
    OpenSocket {
        cookie: socket.cookie,
        netns: namespace.cookie,
        cgroup_id: socket.cgroup_id,
        state: if is_minisocket { TcpState::TimeWait } else { socket.state },
        local: socket.local,
        remote: socket.remote,
        direction: if is_minisocket {
            Direction::Unknown
        } else {
            diag::direction(socket, &namespace.listeners)
        },
        direction_is_exact: diag::exact_direction(socket).is_some(),
        watched,
        running: running(socket),
    }
}

fn running(socket: &Socket) -> Option<Running> {
    let info = socket.info?;
    // The peer's FIN counts as a byte once it is there.
    let has_fin =
        matches!(socket.state, TcpState::CloseWait | TcpState::LastAck | TcpState::Closing);
    let known = |us: u32| (us != 0 && us != u32::MAX).then_some(us);
    Some(Running {
        counters: Counters {
            bytes_sent: info
                .bytes_sent
                .zip(info.bytes_retrans)
                .and_then(|(all, again)| all.checked_sub(again)),
            bytes_received: info.bytes_received.and_then(|n| n.checked_sub(u64::from(has_fin))),
            segments_sent: info.segs_out,
            segments_received: info.segs_in,
            retransmits: Some(info.total_retrans),
        },
        srtt_us: known(info.rtt_us),
        min_rtt_us: info.min_rtt_us.and_then(known),
    })
}

/// The processes of listeners and connections in watched cgroups, by socket cookie. Best effort: what
/// cannot be read is left out.
fn owners_of(
    snapshot: &Snapshot,
    cgroups: &HashSet<u64>,
    processes: &ProcessFilter,
) -> Vec<(u64, u32)> {
    // Pids of events are those of the initial namespace; /proc must number them alike.
    if !is_in_initial_pid_namespace() {
        return Vec::new();
    }
    let sockets: Vec<&Socket> = namespaces(snapshot)
        .flat_map(|n| n.listeners.iter().map(|l| &l.socket).chain(&n.sockets))
        .filter(|s| s.inode != 0 && is_in(cgroups, s))
        .collect();
    let inodes = sockets.iter().map(|socket| socket.inode).collect();
    let Ok(owners) = diag::owners(&inodes, processes) else { return Vec::new() };
    sockets
        .iter()
        .filter_map(|socket| Some((socket.cookie, *owners.pids.get(&socket.inode)?)))
        .collect()
}
