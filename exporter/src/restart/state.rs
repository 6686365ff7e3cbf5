//! The file that keeps what is known of open connections from an orderly stop to the next start.
//!
//! It belongs to one ring of one boot: what stands in it goes on exactly where the ring was read to. So it is taken
//! once, and removed by that; a flowend that is killed later must not be followed by one that believes it again.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::pipeline::Kept;
use crate::whole_file::{self, Unfit};

/// Of the format, which follows the structs that are in it: a test says when it is to be raised.
pub const STATE_VERSION: u32 = 1;

/// What the file begins with; version, length and checksum of the rest follow.
const MAGIC: &[u8] = b"flowend state\n";
const HEADER: usize = MAGIC.len() + 4 + 8 + 4;

/// No longer file is written or read, bytes: some two million connections.
const MAX_BYTES: u64 = 1 << 30;

/// What is known beside the ring.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The lost events that were counted and judged so far, by `LOST_SLOTS`.
    pub lost: Vec<u64>,
    /// The packets that could not be read and were counted so far, by `SKIPPED_SLOTS`.
    pub skipped: Vec<u64>,
    /// From which ids of connections follow whose ISNs were not seen.
    pub seed: u128,
    /// Connections and their sockets.
    pub kept: Kept,
    /// Paths of cgroups by id: they may be gone by the time that their last ends are read.
    pub paths: Vec<(u64, String)>,
}

/// Whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    boot_id: String,
    /// The id of the ring in the kernel, which no other map of this boot gets.
    ring: u32,
}

/// Why there is nothing to go on with, or nothing was kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file that cannot be believed.
    #[error("{}: {reason}; {WITHOUT}{}", path.display(), aside(to.as_deref()))]
    Unusable {
        /// `pin_state`.
        path: PathBuf,
        /// What is wrong.
        reason: Reason,
        /// Where it is now, for whoever wants to look at it.
        to: Option<PathBuf>,
    },
    /// No file was written.
    #[error(
        "key `pin_state`: {}: {cause}; nothing is kept for the next start, to which connections that are open now are \
         older than flowend; flowend must be able to write there", path.display()
    )]
    Write {
        /// `pin_state`.
        path: PathBuf,
        /// Of the system.
        cause: io::Error,
    },
}

/// What it costs.
const WITHOUT: &str =
    "connections that were open at the stop are taken for older ones (flowend.start_known = false)";

fn aside(to: Option<&Path>) -> String {
    to.map_or_else(String::new, |to| format!("; the file is now {}", to.display()))
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each says it
pub enum Reason {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error("is no regular file")]
    NotAFile,
    #[error("belongs to user {0}, who could have written anything")]
    Owner(u32),
    #[error("may be written by others (mode {0:03o}), who could have written anything")]
    Mode(u32),
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("is no file of state that flowend wrote")]
    NoState,
    #[error("is of version {0} of the format, and this flowend reads {STATE_VERSION}")]
    Version(u32),
    #[error("its checksum is wrong: it was damaged or cut")]
    Checksum,
    #[error("does not say what it should, though its checksum holds")]
    Content,
    #[error("is of another ring, or of before the machine was started anew")]
    Foreign,
    #[error("cannot be removed ({0}), and must not be believed twice")]
    Stays(io::Error),
}

impl From<Unfit> for Reason {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Io(error) => Self::Io(error),
            Unfit::NotAFile => Self::NotAFile,
            Unfit::Owner(user) => Self::Owner(user),
            Unfit::Mode(mode) => Self::Mode(mode),
            Unfit::TooLong => Self::TooLong,
        }
    }
}

/// Writes what is known where the ring `ring` was read to.
///
/// # Errors
/// [`StateError::Write`].
pub(super) fn write(path: &Path, ring: u32, state: &State) -> Result<(), StateError> {
    let write = || {
        let bytes = encode(&here(ring)?, state)?;
        whole_file::replace(path, |out| out.write_all(&bytes))
    };
    write().map_err(|cause| StateError::Write { path: path.to_owned(), cause })
}

/// Reads what was known where the ring `ring` was read to, and removes the file. `None` where there is none.
///
/// # Errors
/// [`StateError::Unusable`]. A file that is not what it should be is set aside; what is none, or cannot be read now, stays.
pub(super) fn take(path: &Path, ring: u32) -> Result<Option<State>, StateError> {
    let unusable = |reason, to| StateError::Unusable { path: path.to_owned(), reason, to };
    let bytes = match whole_file::contents(path, MAX_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(unfit @ (Unfit::Io(_) | Unfit::NotAFile)) => return Err(unusable(unfit.into(), None)),
        Err(unfit) => return Err(unusable(unfit.into(), set_aside(path))),
    };
    let here = here(ring).map_err(|error| unusable(Reason::Io(error), None))?;
    match decode(&bytes, &here) {
        Ok(state) => match std::fs::remove_file(path) {
            Ok(()) => Ok(Some(state)),
            Err(error) => Err(unusable(Reason::Stays(error), None)),
        },
        Err(Reason::Foreign) => {
            discard(path);
            Err(unusable(Reason::Foreign, None))
        }
        Err(reason) => Err(unusable(reason, set_aside(path))),
    }
}

/// Removes the file, if there is one.
pub(super) fn discard(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!("{}: cannot be removed: {error}", path.display());
        }
        _ => {}
    }
}

/// Keeps a file that is no use for whoever wants to look at it: the last one.
fn set_aside(path: &Path) -> Option<PathBuf> {
    let mut name = path.file_name()?.to_owned();
    name.push("-damaged");
    let to = path.with_file_name(name);
    std::fs::rename(path, &to).ok().map(|()| to)
}

fn here(ring: u32) -> io::Result<Place> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(Place { boot_id: boot_id.trim().into(), ring })
}

fn encode(place: &Place, state: &State) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(&(place, state)).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(STATE_VERSION.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    bytes.extend(body);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it would be longer than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

fn decode(bytes: &[u8], here: &Place) -> Result<State, Reason> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(Reason::NoState)?;
    let (version, rest) = rest.split_first_chunk().ok_or(Reason::Checksum)?;
    let version = u32::from_le_bytes(*version);
    if version != STATE_VERSION {
        return Err(Reason::Version(version));
    }
    let (length, rest) = rest.split_first_chunk().ok_or(Reason::Checksum)?;
    let (sum, body) = rest.split_first_chunk().ok_or(Reason::Checksum)?;
    let is_whole = u64::from_le_bytes(*length) == body.len() as u64;
    if !is_whole || u32::from_le_bytes(*sum) != crc32fast::hash(body) {
        return Err(Reason::Checksum);
    }
    // Whose it is comes first: the rest of a foreign one is of no interest.
    let (place, rest) = postcard::take_from_bytes::<Place>(body).map_err(|_| Reason::Content)?;
    if place != *here {
        return Err(Reason::Foreign);
    }
    match postcard::take_from_bytes(rest) {
        Ok((state, [])) => Ok(state),
        _ => Err(Reason::Content),
    }
}

#[cfg(test)]
mod tests;
