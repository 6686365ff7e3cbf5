//! Keeps the programs attached to what the targets mean, while cgroups come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

use super::poll::{Pollable, register};
use super::{AttachError, Attachment, Probe, detached_links};
use crate::cgroup::{self, Paths};
use crate::ledger::Count;
use crate::targets::{Pattern, resolve};

/// Looks again after this long even if nothing was said to change: failed attachments are tried
/// again, and programs that somebody detached come back.
const RECHECK: Duration = Duration::from_secs(5);

/// The programs and where they are attached.
#[derive(Debug)]
pub struct TargetWatch {
    probe: Probe,
    mount: PathBuf,
    patterns: Vec<Pattern>,
    attached: BTreeMap<u64, (PathBuf, Attachment)>,
    /// What was said already, so that it is said once.
    said: BTreeSet<String>,
    inotify: AsyncFd<Pollable<Inotify>>,
    detachments: Arc<Count>,
    /// Of cgroups whose folders are gone. The kernel keeps their programs going until the last socket
    /// is, and the ends of those sockets are still to be seen.
    dying: Vec<Attachment>,
    /// Told of each cgroup that is attached to: it may be gone before its first event is read.
    paths: Paths,
    /// The folders attached to, for whom it concerns.
    folders: tokio::sync::watch::Sender<Vec<PathBuf>>,
}

impl TargetWatch {
    /// Attaches to what the targets mean now. A target that does not exist yet is no error.
    ///
    /// # Errors
    /// The first failed attachment when nothing at all could be attached, or when the kernel has no
    /// inotify instance left.
    pub fn start(
        probe: Probe,
        mount: PathBuf,
        patterns: Vec<Pattern>,
        paths: Paths,
    ) -> anyhow::Result<Self> {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|error| {
                anyhow::anyhow!("inotify: {error}; raise fs.inotify.max_user_instances")
            })?;
        let mut watch = Self {
            probe,
            mount,
            patterns,
            attached: BTreeMap::new(),
            said: BTreeSet::new(),
            inotify: register(inotify)?,
            detachments: Arc::default(),
            dying: Vec::new(),
            paths,
            folders: tokio::sync::watch::Sender::default(),
        };
        let mut errors = watch.reconcile();
        if watch.attached.is_empty() && !errors.is_empty() {
            return Err(errors.swap_remove(0).into());
        }
        Ok(watch)
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        loop {
            // Nothing to do with either outcome but to look.
            let _ = tokio::time::timeout(RECHECK, self.changed()).await;
            self.reconcile();
        }
    }

    /// The number of cgroups attached to.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// The folders attached to, and when they change.
    pub fn folders(&self) -> tokio::sync::watch::Receiver<Vec<PathBuf>> {
        self.folders.subscribe()
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

    /// Attaches to what is new, forgets what is gone; returns what failed.
    fn reconcile(&mut self) -> Vec<AttachError> {
        let mut saying = BTreeSet::new();
        let resolution = loop {
            let resolution = resolve(&self.mount, &self.patterns);
            if !self.watch_folders(&resolution.watch, &mut saying) {
                break resolution;
            }
            // A folder that came between the look and the watch is found by looking once more.
        };
        let detached = detached_links();
        self.dying.retain(|attachment| attachment.is_whole(&detached));
        // Detached only after the new attachments are made, so that no moment is without.
        let mut replaced = Vec::new();
        for (id, (folder, attachment)) in std::mem::take(&mut self.attached) {
            let name = cgroup::relative(&self.mount, &folder);
            if !resolution.attach.contains_key(&id) {
                if cgroup::id_of(&folder).is_ok_and(|now| now == id) {
                    info!("cgroup {name}: covered by another target; no longer attached itself");
                    replaced.push(attachment);
                } else {
                    info!("cgroup {name}: gone; no longer attached");
                    self.dying.push(attachment);
                }
            } else if attachment.is_whole(&detached) {
                self.attached.insert(id, (folder, attachment));
            } else {
                self.detachments.add(1);
                warn!("cgroup {name}: somebody detached flowend's programs; attaching them again");
                replaced.push(attachment);
            }
        }
        let mut errors = Vec::new();
        let mut newly_attached = false;
        for (id, folder) in resolution.attach {
            if self.attached.contains_key(&id) {
                continue;
            }
            let name = cgroup::relative(&self.mount, &folder);
            self.paths.learn(id, || name.clone());
            match self.probe.attach(&folder, &name) {
                Ok(attachment) => {
                    info!("cgroup {name}: attached");
                    newly_attached = true;
                    self.attached.insert(id, (folder, attachment));
                }
                Err(error) => {
                    saying.insert(error.to_string());
                    errors.push(error);
                }
            }
        }
        drop(replaced);
        let folders: Vec<PathBuf> = self.attached.values().map(|(f, _)| f.clone()).collect();
        self.folders.send_if_modified(|before| {
            let changed = newly_attached || *before != folders;
            *before = folders;
            changed
        });
        for pattern in resolution.unmatched {
            saying.insert(format!(
                "target {pattern}: no such cgroup below {} yet; it is attached when it appears",
                self.mount.display()
            ));
        }
        self.say(saying);
        errors
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
                    "cannot watch {} ({error}); cgroups that appear there are found only every {} s; raise fs.inotify.max_user_watches",
                    folder.display(),
                    RECHECK.as_secs(),
                ));
                false
            }
        }
    }
}
