//! The folder of pins: on a BPF filesystem, nobody else's, and one flowend's at a time.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use super::PinError;

/// What statfs(2) says of a BPF filesystem (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// May be written by the group or by others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

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
    let stat =
        nix::sys::statfs::statfs(folder).map_err(|errno| PinError::io(folder)(errno.into()))?;
    // Its type differs between the C libraries; the number has 32 bits.
    Ok(stat.filesystem_type().0 as u32 == BPF_FS_MAGIC)
}

/// Takes it for this process, for as long as what is returned lives.
pub(super) fn lock(folder: &Path) -> Result<Flock<File>, PinError> {
    let file = File::open(folder).map_err(PinError::io(folder))?;
    let metadata = file.metadata().map_err(PinError::io(folder))?;
    let refused = |what| PinError::Unsafe { folder: folder.to_owned(), what };
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        return Err(refused(format!("belongs to user {}", metadata.uid())));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(refused(format!(
            "may be written by others (mode {:03o})",
            metadata.mode() & 0o777
        )));
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => PinError::InUse {
            folder: folder.to_owned(),
            pid: holder(metadata.dev(), metadata.ino()),
        },
        errno => PinError::io(folder)(errno.into()),
    })
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
        let _lock = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err().to_string();
        let want = format!("another flowend (pid {}) runs on ", std::process::id());
        assert!(error.contains(&want), "{error}");
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
        let error = lock(folder.path()).unwrap_err().to_string();
        assert!(error.contains("may be written by others (mode 770)"), "{error}");
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
