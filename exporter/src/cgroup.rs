//! The cgroup v2 hierarchy: where it is mounted, which folder has which id, and what a folder's name says.

mod folder;
mod mount;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use hashlink::LruCache;

pub use folder::{container_id, is_pod_uid, pod_uid, unit};
pub use mount::{Mount, MountError, find_mount, mount};

/// The id of a cgroup as the kernel's `bpf_skb_cgroup_id` gives it: the inode number of its folder.
///
/// # Errors
/// As `stat`.
pub fn id_of(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata(folder)?.ino())
}

/// The folder name of a cgroup relative to the mount, as a user writes it: "/" for the root.
pub fn relative(mount: &Path, folder: &Path) -> String {
    match folder.strip_prefix(mount) {
        Ok(rest) if !rest.as_os_str().is_empty() => format!("/{}", rest.display()),
        _ => "/".into(),
    }
}

/// Hands id and path of `folder` and of every cgroup below it to `found`. What vanishes meanwhile is left
/// out.
pub fn walk(mount: &Path, folder: &Path, found: &mut impl FnMut(u64, &str)) {
    if let Ok(id) = id_of(folder) {
        found(id, &relative(mount, folder));
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(mount, &entry.path(), found);
        }
    }
}

/// Adds the processes of one cgroup, in this process's numbering; those of another pid namespace have none. The
/// file names them wherever the reader's cgroup namespace begins, as /proc/PID/cgroup does not. Best effort.
pub fn processes_in(folder: &Path, found: &mut HashSet<u32>) {
    // A threaded cgroup answers for its threads alone; a process has the number of its first thread.
    let text = std::fs::read_to_string(folder.join("cgroup.procs"))
        .or_else(|_| std::fs::read_to_string(folder.join("cgroup.threads")));
    let lines = text.iter().flat_map(|text| text.lines());
    found.extend(lines.filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
}

/// The paths of cgroups by id, relative to the mount. Bounded; kept for cgroups that are gone.
#[derive(Clone, Debug)]
pub struct Paths(Arc<Mutex<LruCache<u64, Arc<str>>>>);

impl Paths {
    /// At most `limit` of them; the one not asked for for longest leaves first.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(limit))))
    }

    /// The path of a cgroup that was seen before.
    pub fn get(&self, id: u64) -> Option<Arc<str>> {
        self.lock().get(&id).cloned()
    }

    /// Remembers a path; the first one for an id stays.
    pub fn learn(&self, id: u64, path: impl FnOnce() -> String) {
        let mut paths = self.lock();
        if !paths.contains_key(&id) {
            paths.insert(id, Arc::from(path()));
        }
    }

    /// All of them, the one not asked for for longest first.
    pub fn all(&self) -> Vec<(u64, String)> {
        self.lock().iter().map(|(id, path)| (*id, path.to_string())).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
