//! What can go wrong with a spool, and what its opening tells.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::ledger::KindCounts;
use crate::record::RecordKind;

/// Why something could not be done with a spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder is not one to keep records in.
    #[error("the spool's folder {}: {problem}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Somebody else has the spool open.
    #[error(
        "the spool's folder {} is in use by {owner}; give each flowend a spool.directory of its own",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// By its process id, where that is known.
        owner: String,
    },
    /// `max_bytes` would be passed. Nothing was appended, and nothing dropped.
    #[error(
        "the spool {} is full: {bytes} of {max_bytes} bytes in use and {needed} more needed; \
         spool.max_bytes is the bound",
        path.display()
    )]
    Full {
        /// The folder.
        path: PathBuf,
        /// Bytes in use.
        bytes: u64,
        /// Bytes that the frame would take.
        needed: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// The frame would not fit in an empty spool either. Nothing was appended.
    #[error(
        "a request of {bytes} bytes does not fit in the spool {} of {max_bytes} bytes; raise \
         spool.max_bytes or lower export.batch_records",
        path.display()
    )]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// Bytes of the body.
        bytes: u64,
        /// The bound.
        max_bytes: u64,
    },
    /// A frame turned bad on the disk. It is passed over, and never handed out again.
    #[error(
        "{}: the frame at byte {offset} is damaged, its records ({}) are lost",
        file.display(),
        Records(counts.map(u64::from))
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where the frame begins in it.
        offset: u64,
        /// What is lost.
        counts: KindCounts,
    },
    /// A settlement could not be written. It holds in this process, and is written as soon as it can be.
    #[error(
        "{}: cannot write that a request is done with: {source}; it is sent again if flowend is \
         killed before this can be written",
        path.display()
    )]
    Unsettled {
        /// The settlement file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The system refused something.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What was found when a spool was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Frames to be delivered.
    pub frames: u64,
    /// Their records, by `RecordKind as usize`.
    pub records: [u64; 3],
    /// Bytes in use on the disk.
    pub bytes: u64,
    /// Ends of segments that were cut off: a frame whose writing was interrupted, or what was left of a
    /// file. What was interrupted had not been appended, so it counts as no loss; `records` are
    /// those that a readable header told.
    pub cut: Vec<Damage>,
    /// Frames that are lost, in segments that could be read before and after them. Told once.
    pub lost: Vec<Damage>,
    /// Settlements that could not be read: their frames are sent again.
    pub unsettled: Vec<Damage>,
    /// Files that are left alone.
    pub foreign: Vec<Foreign>,
}

/// A place where a file is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// The first bad byte, or the start of the frame that has it.
    pub offset: u64,
    /// How many bytes are useless.
    pub bytes: u64,
    /// How many frames, as far as it is known.
    pub frames: u64,
    /// How many of their records, as far as it is known, by `RecordKind as usize`.
    pub records: [u64; 3],
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, bytes, frames, records } = self;
        write!(
            f,
            "{}: {bytes} bytes from byte {offset} on are damaged: {frames} requests ({})",
            file.display(),
            Records(*records)
        )
    }
}

/// A file that is not the spool's, or that another version of flowend wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The file.
    pub file: PathBuf,
    /// Why it is left alone, and what to do.
    pub why: String,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.why)
    }
}

/// "1 begin, 0 progress, 2 end".
struct Records([u64; 3]);

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, kind) in RecordKind::ALL.into_iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", self.0[kind as usize], kind.as_str())?;
        }
        Ok(())
    }
}
