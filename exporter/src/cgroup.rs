//! The cgroup v2 hierarchy: where it is mounted, and which folder has which id.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hashlink::LruCache;

/// Why there is no cgroup v2 hierarchy to watch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountError {
    /// Only cgroup v1.
    #[error(
        "only cgroup v1 is mounted here, and flowend needs cgroup v2 (the hybrid layout is enough); \
         boot with systemd.unified_cgroup_hierarchy=1, or mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    OnlyV1,
    /// None at all.
    #[error(
        "no cgroup v2 hierarchy is mounted in this mount namespace; in a container, mount the host's \
         /sys/fs/cgroup into it, else: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    None,
    /// mountinfo cannot be read.
    #[error("/proc/self/mountinfo: {0}; flowend needs /proc")]
    MountInfo(String),
}

/// Finds the mount point of cgroup v2 in this process's mount namespace.
///
/// # Errors
/// [`MountError`], with the remedy.
pub fn find_mount() -> Result<PathBuf, MountError> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| MountError::MountInfo(error.to_string()))?;
    parse_mountinfo(&text)
}

/// As [`find_mount`], from the text of a mountinfo file (proc_pid_mountinfo(5)). Of several, the one
/// that shows the whole hierarchy, else the first.
///
/// # Errors
/// [`MountError`], with the remedy.
pub fn parse_mountinfo(text: &str) -> Result<PathBuf, MountError> {
    let mut found: Option<(bool, PathBuf)> = None;
    let mut v1 = false;
    for line in text.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        match kind.split(' ').next() {
            Some("cgroup2") => {
                let whole = root == "/";
                if found.as_ref().is_none_or(|(had_whole, _)| whole && !had_whole) {
                    found = Some((whole, PathBuf::from(unescape(point))));
                }
            }
            Some("cgroup") => v1 = true,
            _ => {}
        }
    }
    match found {
        Some((_, point)) => Ok(point),
        None if v1 => Err(MountError::OnlyV1),
        None => Err(MountError::None),
    }
}

/// Space, tab, newline and backslash are octal escapes in mountinfo.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, plain);
    }
    text
}

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

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<u64, Arc<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const PART_FIRST: &str = "40 1 0:38 /kubepods /part rw - cgroup2 cgroup2 rw\n\
        41 1 0:38 / /with\\040space rw shared:1 master:2 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        for (text, want) in [
            (UNIFIED, Ok("/sys/fs/cgroup")),
            (HYBRID, Ok("/sys/fs/cgroup/unified")),
            (PART_FIRST, Ok("/with space")),
            (V1, Err(MountError::OnlyV1)),
            ("22 1 0:5 / /proc rw - proc proc rw\n", Err(MountError::None)),
            ("nonsense\n", Err(MountError::None)),
        ] {
            assert_eq!(parse_mountinfo(text), want.map(PathBuf::from), "{text}");
        }
    }
}
