//! Keeps the programs attached to what the targets and the resolvers mean, while cgroups come and go.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use tracing::{info, warn};

use super::poll::{Pollable, register};
use super::recheck::{RECHECK, Rechecks};
use super::resolvers;
use super::{AttachError, Attachment, Optional, Probe, ProgramCount, Role, detached_links};
use crate::cgroup::{self, Paths};
use crate::ledger::Count;
use crate::targets::{Pattern, Watched};

/// The programs and where they are attached.
#[derive(Debug)]
pub struct TargetWatch {
    probe: Probe,
    mount: PathBuf,
    watched: Watched,
    resolvers: Vec<Pattern>,
    /// By id, and what for.
    attached: BTreeMap<(u64, Role), (PathBuf, Attachment)>,
    /// What was said already, so that it is said once.
    said: BTreeSet<String>,
    inotify: AsyncFd<Pollable<Inotify>>,
    detachments: Arc<Count>,
    /// Of cgroups whose folders are gone. The kernel keeps their programs going until the last socket
    /// is, and the ends of those sockets are still to be seen.
    dying: Vec<Attachment>,
    /// Told of each cgroup that is attached to: it may be gone before its first event is read.
    paths: Paths,
    /// The targets attached to, for whom it concerns.
    folders: tokio::sync::watch::Sender<Vec<PathBuf>>,
    /// The same with their ids.
    attached_folders: tokio::sync::watch::Sender<Vec<(u64, PathBuf)>>,
    /// How it went, for whom it concerns.
    state: tokio::sync::watch::Sender<AttachState>,
    /// What is to be watched from now on.
    to_watch: tokio::sync::watch::Sender<Watched>,
}

/// What the programs are attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachState {
    /// Cgroups, as targets.
    pub attached: usize,
    /// Attachments that failed, and are tried again: cgroup and cause.
    pub errors: Vec<String>,
    /// Of each optional program, in how many of the cgroups it is at work.
    pub programs: Vec<ProgramCount>,
}

impl AttachState {
    /// Whether there is a cgroup where this program is not at work.
    pub fn lacks(&self, optional: Optional) -> bool {
        self.programs.iter().any(|count| count.optional == optional && count.is_lacking())
    }
}

/// What is to be attached and watched at the moment.
#[derive(Default)]
struct Wanted {
    attach: BTreeMap<(u64, Role), PathBuf>,
    watch: Vec<PathBuf>,
    /// What the user is to know of it.
    remarks: Vec<String>,
}

/// What is to go once everything new is attached.
enum Replaced {
    /// For good.
    Unwanted(Attachment),
    /// Another one was to take its place, and its pins with it.
    Broken(Attachment),
}

impl Replaced {
    fn let_go(self) {
        match self {
            Self::Unwanted(attachment) => attachment.detach(),
            Self::Broken(attachment) => drop(attachment),
        }
    }
}

impl TargetWatch {
    /// Attaches to what the targets mean now, and for DNS alone to the resolvers' cgroups that no target
    /// covers. One that does not exist yet is no error.
    ///
    /// # Errors
    /// The first failed attachment when no target at all could be attached, or when the kernel has no
    /// inotify instance left.
    pub fn start(
        probe: Probe,
        mount: PathBuf,
        watched: Watched,
        resolvers: Vec<Pattern>,
        paths: Paths,
    ) -> anyhow::Result<Self> {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|error| {
                anyhow::anyhow!("inotify: {error}; raise fs.inotify.max_user_instances")
            })?;
        let (to_watch, _) = tokio::sync::watch::channel(watched.clone());
        let mut watch = Self {
            probe,
            mount,
            watched,
            resolvers,
            attached: BTreeMap::new(),
            said: BTreeSet::new(),
            inotify: register(inotify)?,
            detachments: Arc::default(),
            dying: Vec::new(),
            paths,
            folders: tokio::sync::watch::Sender::default(),
            attached_folders: tokio::sync::watch::Sender::default(),
            state: tokio::sync::watch::Sender::default(),
            to_watch,
        };
        let mut errors = watch.reconcile(&HashSet::new());
        if watch.attached() == 0 && !errors.is_empty() {
            return Err(errors.swap_remove(0).into());
        }
        watch.take_left_over();
        watch.probe.keep_pins();
        Ok(watch)
    }

    /// Detaches what a flowend before this one was attached to and nobody wants any more. Where the cgroup is gone, its
    /// last sockets are still to be seen to their end.
    fn take_left_over(&mut self) {
        let left = self.probe.left_over();
        if left.is_empty() {
            return;
        }
        let mut there = HashSet::new();
        cgroup::walk(&self.mount, &self.mount, &mut |id, _| {
            there.insert(id);
        });
        for ((id, _), attachment) in left {
            if there.contains(&id) {
                info!("cgroup with the id {id}: no target any more; no longer attached itself");
                attachment.detach();
            } else {
                self.dying.push(attachment);
            }
        }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut to_watch = self.to_watch.subscribe();
        let mut rechecks = Rechecks::new(Instant::now());
        loop {
            tokio::select! {
                // Nothing to do with either outcome but to look.
                _ = tokio::time::timeout_at(rechecks.next, self.changed()) => {}
                Ok(()) = to_watch.changed() => {
                    self.watched.clone_from(&to_watch.borrow_and_update());
                }
            }
            let begun = Instant::now();
            if begun < rechecks.next {
                let errors = self.reconcile(&HashSet::new());
                rechecks.between(Instant::now(), self.is_at_rest(&errors));
            } else {
                self.complete();
                let errors = self.reconcile(&detached_links());
                rechecks.made(begun, Instant::now(), self.is_at_rest(&errors));
            }
        }
    }

    /// Whether nothing waits for the next recheck: an attachment that may succeed then, links that may be let go.
    fn is_at_rest(&self, errors: &[AttachError]) -> bool {
        self.dying.is_empty() && errors.is_empty()
    }

    /// Takes something else to watch, while it runs: folders that it means are attached to, others are detached.
    pub fn to_watch(&self) -> tokio::sync::watch::Sender<Watched> {
        self.to_watch.clone()
    }

    /// What is attached to, and when that changes.
    pub fn state(&self) -> tokio::sync::watch::Receiver<AttachState> {
        self.state.subscribe()
    }

    /// The number of cgroups attached to as targets.
    pub fn attached(&self) -> usize {
        self.attached.keys().filter(|(_, role)| *role == Role::Target).count()
    }

    /// The folders of the targets attached to, and when they change.
    pub fn folders(&self) -> tokio::sync::watch::Receiver<Vec<PathBuf>> {
        self.folders.subscribe()
    }

    /// As [`TargetWatch::folders`], each with its cgroup id.
    pub fn attached_folders(&self) -> tokio::sync::watch::Receiver<Vec<(u64, PathBuf)>> {
        self.attached_folders.subscribe()
    }

    /// Counts how often somebody else detached the programs.
    pub fn detachments(&self) -> Arc<Count> {
        Arc::clone(&self.detachments)
    }

    /// Waits until a folder that matters appeared or vanished.
    async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.inotify.readable().await?;
        // What happened does not matter: the folders are read again.
        while guard.get_inner().0.read_events().is_ok_and(|events| !events.is_empty()) {}
        guard.clear_ready();
        Ok(())
    }

    /// Attaches to what is new, forgets what is gone and what has lost one of these links; returns what failed.
    fn reconcile(&mut self, detached: &HashSet<u32>) -> Vec<AttachError> {
        let mut saying = BTreeSet::new();
        let wanted = loop {
            let wanted = self.wanted();
            if !self.watch_folders(&wanted.watch, &mut saying) {
                break wanted;
            }
            // A folder that came between the look and the watch is found by looking once more.
        };
        saying.extend(wanted.remarks);
        // Detached only after the new attachments are made, so that no moment is without.
        let replaced = self.forget(&wanted.attach, detached);
        let mut errors = Vec::new();
        let mut newly_attached = false;
        for ((id, role), folder) in wanted.attach {
            if self.attached.contains_key(&(id, role)) {
                continue;
            }
            let name = cgroup::relative(&self.mount, &folder);
            self.paths.learn(id, || name.clone());
            match self.probe.attach(&folder, &name, role) {
                Ok(attachment) => {
                    match role {
                        Role::Target => info!("cgroup {name}: attached"),
                        Role::Resolver => info!("cgroup {name}: attached, for its DNS alone"),
                    }
                    newly_attached |= role == Role::Target;
                    self.attached.insert((id, role), (folder, attachment));
                }
                Err(error) => {
                    saying.insert(error.to_string());
                    errors.push(error);
                }
            }
        }
        replaced.into_iter().for_each(Replaced::let_go);
        saying.extend(self.attached.values().flat_map(|(_, attachment)| attachment.missing()));
        self.tell(newly_attached);
        self.tell_state(&errors);
        self.say(saying);
        errors
    }

    fn wanted(&self) -> Wanted {
        let mount = self.mount.display();
        let (targets, excluded) = self.watched.resolve(&self.mount);
        let beside = resolvers::beside(&self.mount, &self.resolvers, &targets.attach);
        let mut wanted = Wanted { watch: targets.watch, ..Wanted::default() };
        for pattern in targets.unmatched {
            wanted.remarks.push(format!(
                "target {pattern}: no such cgroup below {mount} yet; it is attached when it appears"
            ));
        }
        for name in excluded {
            wanted.remarks.push(format!(
                "target {name}: `exclude` covers all of it, so nothing of it is watched"
            ));
        }
        for pattern in beside.found.unmatched {
            wanted.remarks.push(format!(
                "dns.resolver_cgroups {pattern}: no such cgroup below {mount} yet; it is attached when it \
                 appears"
            ));
        }
        for folder in &beside.divided {
            let name = cgroup::relative(&self.mount, folder);
            wanted.remarks.push(format!(
                "dns.resolver_cgroups: a target lies inside {name}, so lookups of the processes in {name} \
                 itself are not seen, only those in the cgroups beside the target; name the resolver's own \
                 cgroup"
            ));
        }
        wanted.watch.extend(beside.found.watch);
        let roles = [(Role::Target, targets.attach), (Role::Resolver, beside.found.attach)];
        for (role, folders) in roles {
            wanted.attach.extend(folders.into_iter().map(|(id, folder)| ((id, role), folder)));
        }
        wanted
    }

    /// Takes what is no longer wanted, gone, or no longer whole out of what is attached; returns what is to
    /// be detached.
    fn forget(
        &mut self,
        wanted: &BTreeMap<(u64, Role), PathBuf>,
        detached: &HashSet<u32>,
    ) -> Vec<Replaced> {
        let (alive, dead) = std::mem::take(&mut self.dying)
            .into_iter()
            .partition::<Vec<_>, _>(|attachment| attachment.is_whole(detached));
        self.dying = alive;
        dead.into_iter().for_each(Attachment::detach);
        let mut replaced = Vec::new();
        for ((id, role), (folder, attachment)) in std::mem::take(&mut self.attached) {
            let name = cgroup::relative(&self.mount, &folder);
            if !wanted.contains_key(&(id, role)) {
                if cgroup::id_of(&folder).is_ok_and(|now| now == id) {
                    let is_covered = folder.ancestors().skip(1).any(|above| {
                        wanted
                            .iter()
                            .any(|((_, role), wanted)| *role == Role::Target && wanted == above)
                    });
                    let why = if is_covered {
                        "covered by another target"
                    } else if self.watched.excludes(&name) {
                        "excluded"
                    } else {
                        "no target"
                    };
                    info!("cgroup {name}: {why}; no longer attached itself");
                    replaced.push(Replaced::Unwanted(attachment));
                } else {
                    info!("cgroup {name}: gone; no longer attached");
                    self.dying.push(attachment);
                }
            } else if attachment.is_whole(detached) {
                self.attached.insert((id, role), (folder, attachment));
            } else {
                self.detachments.add(1);
                warn!("cgroup {name}: somebody detached flowend's programs; attaching them again");
                replaced.push(Replaced::Broken(attachment));
            }
        }
        replaced
    }

    /// Tells which targets are attached, where that changed.
    fn tell(&self, newly_attached: bool) {
        let targets = self.attached.iter().filter(|((_, role), _)| *role == Role::Target);
        let now: Vec<(u64, PathBuf)> =
            targets.map(|((id, _), (folder, _))| (*id, folder.clone())).collect();
        let folders: Vec<PathBuf> = now.iter().map(|(_, folder)| folder.clone()).collect();
        self.folders.send_if_modified(|before| {
            let changed = newly_attached || *before != folders;
            *before = folders;
            changed
        });
        self.attached_folders.send_if_modified(|before| {
            let changed = newly_attached || *before != now;
            *before = now;
            changed
        });
    }

    /// Tries once more what found no place in a cgroup.
    fn complete(&mut self) {
        let (probe, mount) = (&mut self.probe, &self.mount);
        for ((_, role), (folder, attachment)) in &mut self.attached {
            let name = cgroup::relative(mount, folder);
            // Of one that is gone the look at the folders tells.
            for program in probe.complete(attachment, folder, &name, *role).unwrap_or_default() {
                info!("cgroup {name}: {program} is attached, too, now");
            }
        }
    }

    fn tell_state(&self, errors: &[AttachError]) {
        let errors = errors.iter().map(ToString::to_string).collect();
        let targets = self.attached.iter().filter(|((_, role), _)| *role == Role::Target);
        let programs = self.probe.count(targets.map(|(_, (_, attachment))| attachment));
        let now = AttachState { attached: self.attached(), errors, programs };
        self.state.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
    }

    /// Says what was not said in the round before.
    fn say(&mut self, messages: BTreeSet<String>) {
        for message in messages.difference(&self.said) {
            warn!("{message}");
        }
        self.said = messages;
    }

    /// Watches each folder; says whether one was not watched before.
    fn watch_folders(&self, folders: &[PathBuf], saying: &mut BTreeSet<String>) -> bool {
        let mut new = false;
        for folder in folders {
            new |= self.watch_folder(folder, saying);
        }
        new
    }

    fn watch_folder(&self, folder: &Path, saying: &mut BTreeSet<String>) -> bool {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        // Only for a folder that has no watch yet; the kernel answers EEXIST for the others.
        let create = AddWatchFlags::from_bits_retain(nix::libc::IN_MASK_CREATE);
        match self.inotify.get_ref().0.add_watch(folder, flags | create) {
            Ok(_) => true,
            Err(nix::errno::Errno::EEXIST | nix::errno::Errno::ENOENT) => false,
            Err(error) => {
                saying.insert(format!(
                    "cannot watch {} ({error}); cgroups that appear there are found only now and then, every {} s at best; raise fs.inotify.max_user_watches",
                    folder.display(),
                    RECHECK.as_secs(),
                ));
                false
            }
        }
    }
}
