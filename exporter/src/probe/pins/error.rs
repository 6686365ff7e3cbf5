//! Why pins cannot be had, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why a folder cannot be one of pins, or something cannot be pinned there.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Another kind of file system.
    #[error(
        "key `pin_folder`: {} is not on a BPF filesystem; mount one (mount -t bpf bpf /sys/fs/bpf; in a container, \
         mount the host's folder), or name a folder on one", folder.display()
    )]
    NotBpf {
        /// As configured.
        folder: PathBuf,
    },
    /// The lock is another's.
    #[error(
        "key `pin_folder`: another flowend{} runs on {}; stop that one, or give each its own folder (and its own \
         `pin_state`)", of(*pid), folder.display()
    )]
    InUse {
        /// As configured.
        folder: PathBuf,
        /// Who holds it, where that can be told.
        pid: Option<u32>,
    },
    /// Another user could exchange what is in it.
    #[error(
        "key `pin_folder`: {} {what}, who could exchange the programs in it; run flowend as the user whose folder it is, or \
         remove it, or give it to root with mode 700", folder.display()
    )]
    Unsafe {
        /// As configured.
        folder: PathBuf,
        /// Owner or mode.
        what: String,
    },
    /// Anything else.
    #[error("key `pin_folder`: {}: {cause}{}", path.display(), remedy(cause))]
    Io {
        /// The folder, or what is in it.
        path: PathBuf,
        /// Of the system.
        cause: io::Error,
    },
}

impl PinError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io { path: path.clone(), cause }
    }
}

fn of(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "; the user that flowend runs as must be able to write there: make the folder for it (mkdir, chown), and \
             note that a BPF filesystem takes no dot in a name"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; it is read-only here: allow it (systemd: ReadWritePaths=/sys/fs/bpf; a container: mount it writable)"
        }
        _ => "",
    }
}
