//! The folder of pins: on a BPF filesystem, nobody else's, and one flowend's at a time.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use super::PinError;

/// What statfs(2) says of a BPF filesystem (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// May be written by the group or by others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// In such a folder, only the owner of a file may remove or rename it (inode(7), `S_ISVTX`).
const STICKY: u32 = 0o1000;

/// Makes it where it is not there.
pub(super) fn make(folder: &Path) -> Result<(), PinError> {
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(folder);
    if !is_on_bpffs(there)? {
        return Err(PinError::NotBpf { folder: folder.to_owned() });
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(folder).map_err(PinError::io(folder))
}

/// Whether this folder is on a BPF filesystem.
pub(super) fn is_on_bpffs(folder: &Path) -> Result<bool, PinError> {
    let stat = nix::sys::statfs::statfs(folder);
    stat.map(is_bpf).map_err(|errno| PinError::io(folder)(errno.into()))
}

/// The same of the one that is open.
pub(super) fn check(folder: &Path, open: &File) -> Result<(), PinError> {
    let stat = nix::sys::statfs::fstatfs(open);
    match stat.map(is_bpf).map_err(|errno| PinError::io(folder)(errno.into()))? {
        true => Ok(()),
        false => Err(PinError::NotBpf { folder: folder.to_owned() }),
    }
}

fn is_bpf(stat: nix::sys::statfs::Statfs) -> bool {
    // Its type differs between the C libraries; the number has 32 bits.
    stat.filesystem_type().0 as u32 == BPF_FS_MAGIC
}

/// What is done with a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// What is pinned in it is believed: nobody else may have put it there.
    GoOn,
    /// What is in it is removed, whoever's it is.
    TakeDown,
}

/// Takes it for this process, for as long as what is returned lives: this very folder, which nobody else can put another
/// one in the place of.
pub(super) fn lock(folder: &Path, to: Use) -> Result<Flock<File>, PinError> {
    for above in folder.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
        if let Some(what) = who_may_exchange(above).map_err(PinError::io(above))? {
            return Err(PinError::Unsafe { folder: above.to_owned(), what });
        }
    }
    let refused = |what| PinError::Unsafe { folder: folder.to_owned(), what };
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(folder).map_err(|error| {
        let is_link = folder.is_symlink();
        if is_link { refused("is a symbolic link".into()) } else { PinError::io(folder)(error) }
    })?;
    let metadata = file.metadata().map_err(PinError::io(folder))?;
    if to == Use::GoOn
        && let Some(what) = who_may_write(&metadata)
    {
        return Err(refused(what));
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => PinError::InUse {
            folder: folder.to_owned(),
            pid: holder(metadata.dev(), metadata.ino()),
        },
        errno => PinError::io(folder)(errno.into()),
    })
}

/// Whose a folder is, or who may write to it, where that is somebody else.
fn who_may_write(metadata: &Metadata) -> Option<String> {
    if !is_ours(metadata) {
        return Some(format!("belongs to user {}", metadata.uid()));
    }
    let mode = metadata.mode() & 0o777;
    (mode & WRITABLE_BY_OTHERS != 0).then(|| format!("may be written by others (mode {mode:03o})"))
}

/// The same of a folder above: with the sticky bit, others cannot exchange what is not theirs. Of a symbolic link it
/// matters who made it.
fn who_may_exchange(above: &Path) -> io::Result<Option<String>> {
    let metadata = std::fs::symlink_metadata(above)?;
    let is_fixed = metadata.is_symlink() || metadata.mode() & STICKY != 0;
    Ok(if is_fixed && is_ours(&metadata) { None } else { who_may_write(&metadata) })
}

/// Root's, or the own user's.
fn is_ours(metadata: &Metadata) -> bool {
    metadata.uid() == 0 || metadata.uid() == geteuid().as_raw()
}

/// Who holds the lock of a file, as /proc/locks numbers it; `None` where that is a process that is not seen from here.
fn holder(dev: u64, ino: u64) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    holder_in(&locks, nix::sys::stat::major(dev), nix::sys::stat::minor(dev), ino)
}

/// A line is like `1: FLOCK  ADVISORY  WRITE 4711 00:2e:17 0 EOF`; one that waits has an arrow behind its number.
fn holder_in(locks: &str, major: u64, minor: u64, ino: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{ino}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, pid) = (words.next()?, words.nth(2)?);
        let pid = pid.parse().ok().filter(|pid| *pid != 0);
        (kind == "FLOCK" && words.next() == Some(&file)).then_some(pid).flatten()
    })
}

/// The names of what is in it.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, PinError> {
    let name = |entry: io::Result<std::fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let entries = std::fs::read_dir(folder).map_err(PinError::io(folder))?;
    entries.map(name).collect::<Result<_, _>>().map_err(PinError::io(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_elsewhere_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("a/b");
        let error = make(&wanted).unwrap_err().to_string();
        assert!(error.contains("a/b is not on a BPF filesystem; mount one"), "{error}");
        assert!(!wanted.exists());
    }

    #[test]
    fn whoever_holds_the_lock_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let _lock = lock(folder.path(), Use::GoOn).unwrap();
        let error = lock(folder.path(), Use::TakeDown).unwrap_err().to_string();
        let want = format!("another flowend (pid {}) runs on ", std::process::id());
        assert!(error.contains(&want), "{error}");
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
        let error = lock(folder.path(), Use::GoOn).unwrap_err().to_string();
        assert!(error.contains("may be written by others (mode 770)"), "{error}");
        lock(folder.path(), Use::TakeDown).unwrap();
    }

    #[test]
    fn a_folder_that_somebody_could_exchange_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("pins");
        std::fs::create_dir(&folder).unwrap();
        let link = above.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        for to in [Use::GoOn, Use::TakeDown] {
            let error = lock(&link, to).unwrap_err().to_string();
            assert!(error.contains("link is a symbolic link"), "{error}");
            for (mode, is_safe) in [(0o777, false), (0o1777, true), (0o720, false), (0o755, true)] {
                let permissions = std::fs::Permissions::from_mode(mode);
                std::fs::set_permissions(above.path(), permissions).unwrap();
                let locked = lock(&folder, to);
                assert_eq!(locked.is_ok(), is_safe, "{mode:o}: {locked:?}");
            }
        }
    }

    #[test]
    fn lines_of_other_locks_are_no_answer() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 00:2e:17 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 2 00:2e:18 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 3 00:2e:17 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 00:2e:19 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 5 00:2e:17 0 EOF\n";
        assert_eq!(holder_in(locks, 0, 0x2e, 17), Some(5));
        assert_eq!(holder_in(locks, 0, 0x2e, 19), None);
        assert_eq!(holder_in(locks, 0, 0x2f, 17), None);
    }
}
