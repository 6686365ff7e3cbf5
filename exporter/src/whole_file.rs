//! A file that is whole or not there, and that nobody else could have written: what is kept over a restart.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// Why the bytes of a file are not to be had, or not to be believed.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// Of the system.
    Io(io::Error),
    /// A link, a folder, a pipe.
    NotAFile,
    /// It belongs to this user, who is neither root nor the own one.
    Owner(u32),
    /// The group or others may write to it: the mode.
    Mode(u32),
    /// It is longer than it can be.
    TooLong,
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// May be written by the group or by others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The bytes of the file, `None` where there is none. Neither a symbolic link nor a pipe is followed.
///
/// # Errors
/// [`Unfit`].
pub(crate) fn contents(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, Unfit> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // What open(2) says of a symbolic link with O_NOFOLLOW, and of a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(Unfit::NotAFile);
        }
        Err(error) => return Err(error.into()),
    };
    // Of the open file: the path may be another's by now.
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Unfit::NotAFile);
    }
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        return Err(Unfit::Owner(metadata.uid()));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(Unfit::Mode(metadata.mode() & 0o777));
    }
    let mut bytes = Vec::new();
    let read = file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if read as u64 > max_bytes {
        return Err(Unfit::TooLong);
    }
    Ok(Some(bytes))
}

/// Puts what `fill` writes in the place of the file, at once and for good: for its owner alone. A symbolic link in its
/// place is replaced and not followed.
///
/// # Errors
/// Of the system; [`io::ErrorKind::IsADirectory`] where the path names no file. What was there before is still there, and
/// so is what is no file at all: a device, say.
pub(crate) fn replace<T>(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> io::Result<T> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let beside = beside(path).ok_or(io::ErrorKind::IsADirectory)?;
    if let Some(kind) = other_kind(path)? {
        let is_folder = kind == A_FOLDER;
        let error =
            if is_folder { io::ErrorKind::IsADirectory } else { io::ErrorKind::AlreadyExists };
        return Err(io::Error::new(error, format!("it is {kind}, no file")));
    }
    let result = fill_new(&beside, fill).and_then(|outcome| {
        std::fs::rename(&beside, path)?;
        // The name, too, is to survive a power cut.
        File::open(folder)?.sync_all()?;
        Ok(outcome)
    });
    if result.is_err() {
        // Where it was not even made there is nothing to remove.
        let _ = std::fs::remove_file(&beside);
    }
    result
}

const A_FOLDER: &str = "a folder";

/// What is there that is neither a file nor a symbolic link, in words, if it is something else.
pub(crate) fn other_kind(path: &Path) -> io::Result<Option<&'static str>> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(match kind {
        _ if kind.is_file() || kind.is_symlink() => None,
        _ if kind.is_dir() => Some(A_FOLDER),
        _ if kind.is_fifo() => Some("a pipe"),
        _ if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    })
}

fn fill_new<T>(beside: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<T>) -> io::Result<T> {
    // Left behind by one that was killed.
    match std::fs::remove_file(beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // Not to be told as if the path itself were one.
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            let text = format!("{} is a folder", beside.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Err(error) => return Err(error),
    }
    // O_EXCL: it follows no link that somebody puts there.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    let mut out = BufWriter::new(file);
    let outcome = fill(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(outcome)
}

/// `.name.new` in the same folder, so that it can take the name's place.
fn beside(path: &Path) -> Option<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name()?);
    name.push(".new");
    Some(path.with_file_name(name))
}
