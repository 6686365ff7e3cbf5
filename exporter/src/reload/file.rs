//! Notices that the content of one file has changed, whichever way: written in place, replaced by a rename as
//! editors do, or behind a link that was turned, as Kubernetes does with `..data` in a ConfigMap's volume.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use sha2::{Digest as _, Sha256};
use tokio::io::unix::AsyncFd;

use crate::probe::{Pollable, register};

/// A change is often made in several steps.
const SETTLE: Duration = Duration::from_millis(200);

/// Looks again after this long even if nothing was said to change: a folder on the way to the file may have
/// been replaced, and file systems of other machines say nothing.
const RECHECK: Duration = Duration::from_secs(30);

/// Links that are followed at most, as the kernel does (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Of what can be read; `None` where nothing can.
type Digest = Option<[u8; 32]>;

/// Watches one file through the folders that it, and each link on the way to it, are in.
#[derive(Debug)]
pub(super) struct FileWatch {
    path: PathBuf,
    inotify: AsyncFd<Pollable<Inotify>>,
    watched: HashSet<WatchDescriptor>,
    seen: Digest,
    /// Something happened that was not looked at yet.
    stirred: bool,
}

impl FileWatch {
    /// Watches from now on.
    ///
    /// # Errors
    /// When the kernel has no inotify instance left.
    pub(super) async fn start(path: PathBuf) -> io::Result<Self> {
        let inotify =
            Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|error| {
                io::Error::other(format!("inotify: {error}; raise fs.inotify.max_user_instances"))
            })?;
        let mut watch = Self {
            path,
            inotify: register(inotify)?,
            watched: HashSet::new(),
            seen: None,
            stirred: false,
        };
        watch.watch_folders();
        watch.seen = digest(&watch.path).await;
        Ok(watch)
    }

    /// Waits until the file says something else. Cancel safe.
    pub(super) async fn changed(&mut self) {
        loop {
            if !self.stirred {
                // Whatever it was: the file is read again.
                let _ = tokio::time::timeout(RECHECK, self.inotify.readable()).await;
                self.stirred = true;
            }
            tokio::time::sleep(SETTLE).await;
            self.drain().await;
            self.watch_folders();
            let now = digest(&self.path).await;
            self.stirred = false;
            if std::mem::replace(&mut self.seen, now) != now {
                return;
            }
        }
    }

    /// Takes what is there; what comes later wakes again.
    async fn drain(&mut self) {
        let readable = self.inotify.readable();
        // Nothing there, when it was the time that woke.
        if let Ok(Ok(mut guard)) = tokio::time::timeout(Duration::ZERO, readable).await {
            while guard.get_inner().0.read_events().is_ok_and(|events| !events.is_empty()) {}
            guard.clear_ready();
        }
    }

    /// Best effort: what cannot be watched is looked at now and then.
    fn watch_folders(&mut self) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        let inotify = &self.inotify.get_ref().0;
        let watched: HashSet<_> = folders(&self.path)
            .iter()
            .filter_map(|folder| inotify.add_watch(folder, flags).ok())
            .collect();
        for old in self.watched.difference(&watched) {
            // Gone with its folder, as often as not.
            let _ = inotify.rm_watch(*old);
        }
        self.watched = watched;
    }
}

/// The folders in which a change may change what is at `path`.
fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut add = |path: &Path| {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if !folders.iter().any(|known| known == folder) {
            folders.push(folder.to_owned());
        }
        folder.to_owned()
    };
    let mut at = path.to_owned();
    for _ in 0..MAX_LINKS {
        for above in at.ancestors().skip(1).filter(|above| above.is_symlink()) {
            add(above);
        }
        let folder = add(&at);
        match std::fs::read_link(&at) {
            Ok(target) => at = folder.join(target),
            Err(_) => break,
        }
    }
    folders
}

async fn digest(path: &Path) -> Digest {
    let content = tokio::fs::read(path).await.ok()?;
    Some(Sha256::digest(&content).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Less than [`RECHECK`]: what comes within it was noticed.
    const PATIENCE: Duration = Duration::from_secs(10);

    async fn is_noticed(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(PATIENCE, watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn a_change_is_noticed_whichever_way_it_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, "1").unwrap();
        let mut watch = FileWatch::start(path.clone()).await.unwrap();
        std::fs::write(&path, "in place").unwrap();
        assert!(is_noticed(&mut watch).await, "written in place");
        for content in ["renamed", "renamed again"] {
            std::fs::write(folder.path().join("new"), content).unwrap();
            std::fs::rename(folder.path().join("new"), &path).unwrap();
            assert!(is_noticed(&mut watch).await, "{content}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(is_noticed(&mut watch).await, "removed");
        std::fs::write(&path, "back").unwrap();
        assert!(is_noticed(&mut watch).await, "back");
    }

    #[tokio::test]
    async fn what_leaves_the_content_as_it_was_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        std::fs::write(&path, "1").unwrap();
        let mut watch = FileWatch::start(path.clone()).await.unwrap();
        std::fs::write(&path, "1").unwrap();
        std::fs::write(folder.path().join("another"), "2").unwrap();
        let soon = tokio::time::timeout(SETTLE * 3, watch.changed()).await;
        assert!(soon.is_err(), "the same content");
        std::fs::write(&path, "2").unwrap();
        assert!(is_noticed(&mut watch).await, "and the next change is still noticed");
    }

    /// As kubelet's AtomicWriter leaves a volume: `a.toml -> ..data/a.toml`, `..data -> ..1`.
    #[tokio::test]
    async fn a_link_that_is_turned_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let version = |n: &str| {
            std::fs::create_dir(root.join(format!("..{n}"))).unwrap();
            std::fs::write(root.join(format!("..{n}/a.toml")), n).unwrap();
        };
        version("1");
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/a.toml", root.join("a.toml")).unwrap();
        // Named through a link of another folder, which stays as it is.
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(root, elsewhere.path().join("volume")).unwrap();
        let paths = [root.join("a.toml"), elsewhere.path().join("volume/a.toml")];
        for (path, n) in paths.into_iter().zip(["2", "3"]) {
            let mut watch = FileWatch::start(path).await.unwrap();
            version(n);
            symlink(format!("..{n}"), root.join("..data_tmp")).unwrap();
            std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
            assert!(is_noticed(&mut watch).await, "{n}");
            // The folder that is behind the link now is the one that counts.
            std::fs::write(root.join(format!("..{n}/a.toml")), "in place").unwrap();
            assert!(is_noticed(&mut watch).await, "{n}, in place");
        }
        // And the link above, which is a folder's.
        let path = elsewhere.path().join("volume/a.toml");
        let mut watch = FileWatch::start(path).await.unwrap();
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("a.toml"), "other").unwrap();
        symlink(other.path(), elsewhere.path().join("new")).unwrap();
        std::fs::rename(elsewhere.path().join("new"), elsewhere.path().join("volume")).unwrap();
        assert!(is_noticed(&mut watch).await, "a link above");
    }
}
