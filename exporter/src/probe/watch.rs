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
use crate::cgroup;
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
}

impl TargetWatch {
    /// Attaches to what the targets mean now. A target that does not exist yet is no error.
    ///
    /// # Errors
    /// The first failed attachment when nothing at all could be attached, or when the kernel has no
    /// inotify instance left.
    pub fn start(probe: Probe, mount: PathBuf, patterns: Vec<Pattern>) -> anyhow::Result<Self> {
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
        let resolution = loop {
            let resolution = resolve(&self.mount, &self.patterns);
            if !self.watch_folders(&resolution.watch) {
                break resolution;
            }
            // A folder that came between the look and the watch is found by looking once more.
        };
        let detached = detached_links();
        self.attached.retain(|id, (folder, attachment)| {
            let name = cgroup::relative(&self.mount, folder);
            if !resolution.attach.contains_key(id) {
                info!("cgroup {name}: gone, or covered by another target; no longer attached");
                return false;
            }
            if !attachment.is_whole(&detached) {
                self.detachments.add(1);
                warn!("cgroup {name}: somebody detached flowend's programs; attaching them again");
                return false;
            }
            true
        });
        let mut errors = Vec::new();
        for (id, folder) in resolution.attach {
            if self.attached.contains_key(&id) {
                continue;
            }
            let name = cgroup::relative(&self.mount, &folder);
            match self.probe.attach(&folder, &name) {
                Ok(attachment) => {
                    info!("cgroup {name}: attached");
                    self.said.retain(|said| !said.starts_with(&format!("cgroup {name}:")));
                    self.attached.insert(id, (folder, attachment));
                }
                Err(error) => {
                    self.say(&error.to_string());
                    errors.push(error);
                }
            }
        }
        for pattern in resolution.unmatched {
            self.say(&format!(
                "target {pattern}: no such cgroup below {} yet; it is attached when it appears",
                self.mount.display()
            ));
        }
        errors
    }

    fn say(&mut self, message: &str) {
        if self.said.insert(message.to_owned()) {
            warn!("{message}");
        }
    }

    /// Watches each folder; says whether one was not watched before.
    fn watch_folders(&mut self, folders: &[PathBuf]) -> bool {
        let mut new = false;
        for folder in folders {
            new |= self.watch_folder(folder);
        }
        new
    }

    fn watch_folder(&mut self, folder: &Path) -> bool {
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
                self.say(&format!(
                    "cannot watch {} ({error}); cgroups that appear there are found only every {} s; raise fs.inotify.max_user_watches",
                    folder.display(),
                    RECHECK.as_secs(),
                ));
                false
            }
        }
    }
}
