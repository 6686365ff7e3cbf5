//! The folder of a spool: its owner, its lock, its files. Files are opened relative to the folder that was
//! checked, and never through a symbolic link.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::error::SpoolError;

const LOCK: &str = "lock";

/// Segments past this have no name: nobody gets that far.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// What a file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Frames(u64),
    Settled(u64),
    Lock,
    Other,
}

impl Name {
    fn parse(name: &str) -> Self {
        if name == LOCK {
            return Self::Lock;
        }
        let (number, kind) = name.split_once('.').unwrap_or_default();
        let is_number = number.len() == 20 && number.bytes().all(|b| b.is_ascii_digit());
        match number.parse() {
            Ok(n) if is_number && n <= MAX_NUMBER => match kind {
                "frames" => Self::Frames(n),
                "settled" => Self::Settled(n),
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

pub(super) fn frames_name(number: u64) -> String {
    format!("{number:020}.frames")
}

pub(super) fn settled_name(number: u64) -> String {
    format!("{number:020}.settled")
}

/// Locked as long as it lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    folder: File,
    lock: File,
}

impl Folder {
    /// Makes the folder where there is none, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, SpoolError> {
        let io = |doing| {
            let path = path.to_owned();
            move |source| SpoolError::Io { doing, path, source }
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(io("make the spool's folder"))?;
        let folder = open_folder(path).map_err(io("open the spool's folder"))?;
        check(path, &folder).map_err(io("read the owner of the spool's folder"))??;
        let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
        let lock = open_in(&folder, LOCK, flags).map_err(io("open the lock of the spool"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The text only makes the message better.
                let _ = (&lock).take(20).read_to_string(&mut pid);
                let owner = match pid.trim().parse::<u32>() {
                    Ok(pid) => format!("another flowend (process {pid})"),
                    Err(_) => "another flowend".into(),
                };
                return Err(SpoolError::Locked { path: path.to_owned(), owner });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock the spool's folder")(source)),
        }
        // Likewise: a full disk is no reason not to open.
        let _ = open_in(&folder, LOCK, OFlag::O_WRONLY | OFlag::O_TRUNC)
            .and_then(|mut lock| writeln!(lock, "{}", std::process::id()));
        Ok(Self { path: path.to_owned(), folder, lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For messages.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn error(&self, doing: &'static str, name: &str, source: io::Error) -> SpoolError {
        SpoolError::Io { doing, path: self.path_of(name), source }
    }

    /// Opens a file of the folder; one that is made is for the owner alone.
    pub(super) fn open_file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        open_in(&self.folder, name, flags)
    }

    /// Removes a file; that it is gone already is fine.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.folder, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Every file, and what its name says.
    pub(super) fn files(&self) -> Result<Vec<(Name, PathBuf)>, SpoolError> {
        let list = || {
            std::fs::read_dir(&self.path)?
                .map(|entry| {
                    let path = entry?.path();
                    let name = path.file_name().and_then(|name| name.to_str());
                    Ok((name.map_or(Name::Other, Name::parse), path))
                })
                .collect::<io::Result<Vec<_>>>()
        };
        list().map_err(|source| self.error("list the spool's folder", "", source))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing would do, but for a process that was just forked off and has the file open until it is
        // another program.
        let _ = self.lock.unlock();
    }
}

fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty()).map(File::from)?)
}

fn open_in(folder: &File, name: &str, flags: OFlag) -> io::Result<File> {
    // O_NONBLOCK: a FIFO of that name must not stop the program.
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    Ok(openat(folder, name, flags, mode).map(File::from)?)
}

/// Whether nobody else can put files there.
fn check(path: &Path, folder: &File) -> io::Result<Result<(), SpoolError>> {
    let metadata = folder.metadata()?;
    let bad = |problem| Err(SpoolError::Folder { path: path.to_owned(), problem });
    let own = geteuid().as_raw();
    if metadata.uid() != own {
        let owner = metadata.uid();
        let problem = format!(
            "belongs to user {owner}, not to user {own}; chown it, or choose another spool.directory"
        );
        return Ok(bad(problem));
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Ok(bad(format!("others may write to it (mode {mode:o}); use chmod go-w")));
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_ends_with_its_owner_though_another_process_has_the_file_open() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("spool");
        let folder = Folder::open(&path).unwrap();
        // As a process has it that was forked off, until it is another program.
        let inherited = folder.lock.try_clone().unwrap();
        assert!(matches!(Folder::open(&path), Err(SpoolError::Locked { .. })));
        drop(folder);
        Folder::open(&path).unwrap();
        drop(inherited);
    }

    #[test]
    fn names_are_parsed_as_they_are_made() {
        for (name, want) in [
            (frames_name(7), Name::Frames(7)),
            (settled_name(MAX_NUMBER), Name::Settled(MAX_NUMBER)),
            (frames_name(MAX_NUMBER + 1), Name::Other),
            (LOCK.into(), Name::Lock),
            ("7.frames".into(), Name::Other),
            ("+0000000000000000007.frames".into(), Name::Other),
            ("00000000000000000007.frames.bak".into(), Name::Other),
            ("00000000000000000007".into(), Name::Other),
        ] {
            assert_eq!(Name::parse(&name), want, "{name}");
        }
    }
}
