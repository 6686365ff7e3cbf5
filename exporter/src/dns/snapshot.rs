//! The names that outlive a restart: one file, written at shutdown and read at the start.
//!
//! JSON lines: a header, a line for each answer's names of an address, and a last line with their number
//! and the SHA-256 of all before it. Times are ns since 1970, so that a name lapses when it would have.
//! What is not exactly as it was written is not believed, and nothing of it is taken. Pure but for the
//! file: the time and the boot are arguments.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use flowend_probe_types::Addr;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::ScopeKind;
use crate::whole_file::{self, Unfit};

/// Of the format: 1.
pub const VERSION: u32 = 1;

/// No file is written or read that is longer, bytes.
pub const MAX_BYTES: u64 = 64 << 20;

/// No more entries are written or read.
pub const MAX_ENTRIES: usize = 1 << 20;

/// Names of one entry at most: the one asked for and its aliases.
pub const MAX_NAMES: usize = 32;

/// The longest name, bytes of its escaped text.
pub const MAX_NAME: usize = 255;

/// The names that one answer gave to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For whom ([`super::Scope`]).
    pub scope: u64,
    /// The address named.
    pub addr: Addr,
    /// The one asked for first, then those it was an alias for.
    pub names: Vec<String>,
    /// Where they are from: lower-case letters, like "dns".
    pub source: String,
    /// When they were learnt, ns since 1970.
    pub from_ns: u64,
    /// When they lapse, ns since 1970.
    pub until_ns: u64,
}

/// Who writes or reads, and what its scopes mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// `/proc/sys/kernel/random/boot_id`: ids of cgroups are those of one boot.
    pub boot_id: String,
    /// `dns.scope`.
    pub kind: ScopeKind,
    /// The scope that means everybody who is watched; any other is of a cgroup.
    pub host_scope: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Entries.
    pub entries: usize,
    /// Those for which there was no room ([`MAX_ENTRIES`], [`MAX_BYTES`]).
    pub left_out: usize,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Those that still hold, in the order written.
    pub entries: Vec<Entry>,
    /// How many had lapsed.
    pub lapsed: usize,
    /// How many are for cgroups that cannot be told any more.
    pub foreign: usize,
    /// Why they cannot.
    pub why_foreign: Option<Foreign>,
}

/// Why a scope of the file means nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The machine was started anew, and cgroups have other ids.
    Boot,
    /// `dns.scope` is another.
    Kind,
}

/// Why there is nothing to restore, or why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file that cannot be believed, or cannot be read. It is left as it is until it is written again.
    #[error(
        "names of before are not restored: {path}: {reason}; they are learnt anew, and the file is \
         replaced at the next shutdown ({remedy})"
    )]
    Unusable {
        /// `dns.snapshot`.
        path: PathBuf,
        /// What is wrong.
        reason: Reason,
        /// What to do for it to be right.
        remedy: &'static str,
    },
    /// No file was written; one that was there before is still there.
    #[error("names are not kept for the next start: {path}: {cause}; {remedy}")]
    Write {
        /// The file, or its folder.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
        /// What to do.
        remedy: &'static str,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each says it
pub enum Reason {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is no regular file")]
    NotAFile,
    #[error("belongs to user {0}, who could have written any names")]
    Owner(u32),
    #[error("may be written by others (mode {0:03o}), who could have written any names")]
    Mode(u32),
    #[error("is longer than {MAX_BYTES} bytes")]
    TooLong,
    #[error("is no file of names that flowend wrote")]
    NoSnapshot,
    #[error("is of version {0} of the format, newer than {VERSION}")]
    Newer(u32),
    #[error("ends before its last line")]
    CutOff,
    #[error("its checksum is wrong: it was damaged or changed")]
    Checksum,
    #[error("line {0} is no entry")]
    Line(usize),
    #[error("has more than {MAX_ENTRIES} entries")]
    TooMany,
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

impl Reason {
    const fn remedy(&self) -> &'static str {
        match self {
            Self::Owner(_) => "chown it to the user that flowend runs as",
            Self::Mode(_) => "chmod 600",
            Self::Newer(_) => "to keep it, go back to the newer flowend before that",
            Self::NotAFile | Self::NoSnapshot => "if the path is wrong, set dns.snapshot",
            Self::Io(_) => "flowend must be able to read it; else set dns.snapshot",
            _ => "nothing has to be done",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    boot_id: String,
    scope: String,
}

/// Read before the rest of the header, which another version may change.
#[derive(Debug, Deserialize)]
struct VersionLine {
    flowend_names: u32,
    #[serde(flatten)]
    rest: serde_json::Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryLine {
    scope: u64,
    addr: IpAddr,
    names: Vec<String>,
    source: String,
    from_ns: u64,
    until_ns: u64,
}

/// Writes the file: beside it first, then in its place at once, for its owner alone. A symbolic link in
/// its place is replaced and not followed.
///
/// # Errors
/// [`SnapshotError::Write`].
pub fn write(
    path: &Path,
    entries: &mut dyn Iterator<Item = Entry>,
    here: &Here,
) -> Result<Written, SnapshotError> {
    whole_file::replace(path, |out| encode(out, entries, here, MAX_BYTES))
        .map_err(|e| unwritten(path, e))
}

fn unwritten(path: &Path, cause: io::Error) -> SnapshotError {
    let remedy = match cause.kind() {
        io::ErrorKind::IsADirectory => "set dns.snapshot to a file's path",
        io::ErrorKind::NotFound => {
            "create its folder (systemd does: StateDirectory=flowend), or set dns.snapshot"
        }
        io::ErrorKind::StorageFull => "make room there, or set dns.snapshot to another place",
        _ => "flowend must be able to write to its folder; else set dns.snapshot",
    };
    SnapshotError::Write { path: path.to_owned(), cause, remedy }
}

/// Reads the file. That there is none is no error: nothing is restored.
///
/// `now_ns` is ns since 1970. Nothing is believed for longer than `max_ttl_ns` from now, nor to have been
/// learnt later than now, whatever the clock was that wrote it.
///
/// # Errors
/// [`SnapshotError::Unusable`].
pub fn read(
    path: &Path,
    here: &Here,
    now_ns: u64,
    max_ttl_ns: u64,
) -> Result<Restored, SnapshotError> {
    let unusable = |reason: Reason| {
        let remedy = reason.remedy();
        SnapshotError::Unusable { path: path.to_owned(), reason, remedy }
    };
    let read = whole_file::contents(path, MAX_BYTES);
    let Some(bytes) = read.map_err(|unfit| unusable(unfit.into()))? else {
        return Ok(Restored::default());
    };
    let (theirs, entries) = decode(&bytes, MAX_ENTRIES).map_err(unusable)?;
    Ok(restore(&theirs, entries, here, now_ns, max_ttl_ns))
}

fn encode(
    out: &mut dyn Write,
    mut entries: &mut dyn Iterator<Item = Entry>,
    here: &Here,
    max_bytes: u64,
) -> io::Result<Written> {
    let header = serde_json::json!({
        "flowend_names": VERSION,
        "boot_id": here.boot_id,
        "scope": kind_name(here.kind),
    });
    let mut sum = Sha256::new();
    let mut line = format!("{header}\n");
    let mut length = 0;
    let mut written = Written { entries: 0, left_out: 0 };
    // Room for the last line.
    let max_bytes = max_bytes.saturating_sub(256);
    loop {
        sum.update(&line);
        out.write_all(line.as_bytes())?;
        length += line.len() as u64;
        let next = Iterator::find_map(&mut entries, |entry| {
            let text = entry_line(entry).filter(|text| {
                written.entries < MAX_ENTRIES && length + text.len() as u64 <= max_bytes
            });
            written.left_out += usize::from(text.is_none());
            text
        });
        let Some(next) = next else { break };
        line = next;
        written.entries += 1;
    }
    out.write_all(last_line(written.entries, sum).as_bytes())?;
    Ok(written)
}

/// `None` for one that would not be read.
fn entry_line(entry: Entry) -> Option<String> {
    let Entry { scope, addr, names, source, from_ns, until_ns } = entry;
    let line = EntryLine { scope, addr: addr.into(), names, source, from_ns, until_ns };
    if !is_sound(&line) {
        return None;
    }
    serde_json::to_string(&line).ok().map(|text| text + "\n")
}

fn last_line(entries: usize, sum: Sha256) -> String {
    let sum: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{{\"entries\":{entries},\"sha256\":\"{sum}\"}}\n")
}

fn decode(bytes: &[u8], max_entries: usize) -> Result<(HeaderLine, Vec<EntryLine>), Reason> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let header = decode_header(lines.next().unwrap_or_default())?;
    let body_length = bytes.strip_suffix(b"\n").and_then(|b| b.iter().rposition(|b| *b == b'\n'));
    let (body, last) = bytes.split_at(body_length.ok_or(Reason::CutOff)? + 1);
    let count = body.iter().filter(|byte| **byte == b'\n').count() - 1;
    if !last.starts_with(b"{\"entries\":") {
        return Err(Reason::CutOff);
    }
    let sum = Sha256::new_with_prefix(body);
    if last != last_line(count, sum).as_bytes() {
        return Err(Reason::Checksum);
    }
    if count > max_entries {
        return Err(Reason::TooMany);
    }
    let entries = lines.take(count).enumerate().map(|(n, line)| {
        let entry = serde_json::from_slice(line).ok().filter(is_sound);
        entry.ok_or(Reason::Line(n + 2))
    });
    Ok((header, entries.collect::<Result<_, _>>()?))
}

fn decode_header(line: &[u8]) -> Result<HeaderLine, Reason> {
    let version: VersionLine = serde_json::from_slice(line).map_err(|_| Reason::NoSnapshot)?;
    match version.flowend_names {
        VERSION => serde_json::from_value(version.rest).map_err(|_| Reason::NoSnapshot),
        0 => Err(Reason::NoSnapshot),
        newer => Err(Reason::Newer(newer)),
    }
}

/// Bounds, and no byte that could hurt where a name is shown: flowend writes them escaped.
fn is_sound(line: &EntryLine) -> bool {
    let is_name = |name: &String| {
        !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
    };
    (1..=MAX_NAMES).contains(&line.names.len())
        && line.names.iter().all(is_name)
        && (1..=16).contains(&line.source.len())
        && line.source.bytes().all(|byte| byte.is_ascii_lowercase())
}

/// What still holds, and means something here.
fn restore(
    theirs: &HeaderLine,
    entries: Vec<EntryLine>,
    here: &Here,
    now_ns: u64,
    max_ttl_ns: u64,
) -> Restored {
    let mut restored = Restored::default();
    let foreign = if theirs.scope != kind_name(here.kind) {
        Some(Foreign::Kind)
    } else if theirs.boot_id != here.boot_id {
        Some(Foreign::Boot)
    } else {
        None
    };
    for EntryLine { scope, addr, names, source, from_ns, until_ns } in entries {
        // That of the whole host outlives a boot.
        let is_of_host = here.kind == ScopeKind::Host && scope == here.host_scope;
        let until_ns = until_ns.min(now_ns.saturating_add(max_ttl_ns));
        if foreign.is_some_and(|why| why == Foreign::Kind || !is_of_host) {
            restored.foreign += 1;
            restored.why_foreign = foreign;
        } else if until_ns <= now_ns {
            restored.lapsed += 1;
        } else {
            let (addr, from_ns) = (addr.into(), from_ns.min(now_ns));
            restored.entries.push(Entry { scope, addr, names, source, from_ns, until_ns });
        }
    }
    restored
}

const fn kind_name(kind: ScopeKind) -> &'static str {
    match kind {
        ScopeKind::Cgroup => "cgroup",
        ScopeKind::Target => "target",
        ScopeKind::Host => "host",
    }
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "names of before: {} restored, {} had lapsed", self.entries.len(), self.lapsed)?;
        let why = match self.why_foreign {
            None => return Ok(()),
            Some(Foreign::Boot) => "the machine was started anew, and cgroups have other ids",
            Some(Foreign::Kind) => "dns.scope was another",
        };
        write!(f, ", {} left out: {why}", self.foreign)
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kept for the next start", self.entries)?;
        if self.left_out > 0 {
            write!(f, ", {} left out: the file is full", self.left_out)?;
        }
        Ok(())
    }
}
