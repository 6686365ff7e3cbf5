//! The disk spool of one signal at one destination: requests that wait out an outage, or a restart.
//!
//! It holds frames: a request's body, and how many records of each kind are in it. They are appended to
//! numbered segment files of an eighth of `max_bytes`, 8 MiB at most; a segment is removed when all
//! of its frames are settled. What was settled is written to a small file beside the segment. Every header,
//! body and settlement has a checksum, and every damage is told with its file and offset (see [`Recovered`]
//! and [`SpoolError::Damaged`]). Nothing is dropped by itself: the owner decides, and counts.
//!
//! What holds after a kill: a frame whose [`append`](Spool::append) returned is there, unless its
//! [`settle`](Spool::settle) returned. The system has the bytes by then. A power cut may take what the system
//! had not yet written to the disk: `fdatasync` is called when a segment is full and when the spool is
//! dropped, so at most the frames of the last segment are lost, and the last settlements, whose frames are
//! then sent again.
//!
//! Opening reads every frame that is not settled, to check it. No body stays in memory, but an entry of
//! some 30 bytes for each frame does.
//!
//! All of this waits for the disk: it belongs on a thread that may.

mod error;
mod files;
mod folder;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod index;
mod recover;
mod scan;
#[cfg(test)]
mod tests;

use std::path::Path;

use bytes::Bytes;

pub use error::{Damage, Foreign, Recovered, SpoolError};
use files::{Active, Files};
use folder::Folder;
use format::{FILE_HEADER, FRAME_HEADER, Header, SETTLEMENT};
pub use index::FrameId;
use index::{Extent, Index, Place};

use crate::ledger::KindCounts;

/// A segment is not longer than this, unless a single frame is, bytes.
const SEGMENT_BYTES: u64 = 8 << 20;

/// A request and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its records, by `RecordKind as usize`.
    pub counts: KindCounts,
    /// The request, in whatever encoding: the spool does not look into it.
    pub body: Bytes,
}

/// See the module. Nobody else has the folder open as long as this lives.
#[derive(Debug)]
pub struct Spool {
    max_bytes: u64,
    segment_bytes: u64,
    index: Index,
    files: Files,
    /// Where frames are appended. A spool that is opened begins a new segment.
    active: Option<Active>,
    next_segment: u64,
}

impl Spool {
    /// Opens the spool of a folder, which is made where there is none, and reads what is there. More than
    /// `max_bytes` may be there, when the bound was lowered: nothing is appended until there is room.
    ///
    /// # Errors
    /// When the folder belongs to somebody else or others may write to it, when another flowend uses it,
    /// or when the system refuses something.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<(Self, Recovered), SpoolError> {
        let mut spool = Self {
            max_bytes,
            segment_bytes: (max_bytes / 8).min(SEGMENT_BYTES),
            index: Index::default(),
            files: Files::new(Folder::open(folder)?),
            active: None,
            next_segment: 1,
        };
        let recovered = spool.recover()?;
        Ok((spool, recovered))
    }

    /// Appends a frame, the newest.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::TooLarge`], and [`SpoolError::Io`]. In each case nothing was
    /// appended, and it can be tried again.
    pub fn append(&mut self, frame: &Frame) -> Result<(), SpoolError> {
        self.files.tidy();
        let size = FRAME_HEADER as u64 + frame.body.len() as u64;
        let begins = !self.active.as_ref().is_some_and(|active| {
            let has_room = active.length + size <= self.segment_bytes || active.is_empty();
            has_room && active.has_room_for(frame, size)
        });
        self.check_room(size, begins)?;
        if begins {
            self.close_active();
            // A number is used once, even where the file could not be begun.
            let segment = self.next_segment;
            self.next_segment += 1;
            self.active = Some(self.files.begin(segment)?);
        }
        let Some(active) = &mut self.active else { unreachable!("was begun") };
        match self.files.append(active, frame) {
            Ok(offset) => {
                let length = frame.body.len() as u32;
                self.index.add(active.segment, Extent { offset, length, counts: frame.counts });
                Ok(())
            }
            Err(error) => {
                // What was written of the frame could not be taken back: nothing may follow it.
                if let Some(torn) = self.active.take_if(|active| active.is_torn)
                    && torn.is_empty()
                {
                    self.files.remove(torn.segment);
                }
                Err(error)
            }
        }
    }

    /// Hands out the oldest frame that is not handed out, after checking it again.
    ///
    /// # Errors
    /// [`SpoolError::Damaged`] when the frame turned bad: the next call goes on with the one after it.
    /// [`SpoolError::Io`] when it cannot be read: the next call tries again, and
    /// [`drop_oldest`](Self::drop_oldest) passes it over.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: it may go on after None")]
    pub fn next(&mut self) -> Result<Option<(FrameId, Frame)>, SpoolError> {
        let Some((place, extent)) = self.index.take() else { return Ok(None) };
        match self.files.read(place.segment, extent) {
            Ok(Some(body)) => Ok(Some((FrameId(place), Frame { counts: extent.counts, body }))),
            Ok(None) => {
                let error = self.files.damaged(place.segment, extent);
                self.index.settle(place);
                // If this cannot be written now, it is by and by; and if not, the frame is found bad again.
                let _ = self.write_off(place, extent);
                Err(error)
            }
            Err(error) => {
                self.index.give_back(place);
                Err(error)
            }
        }
    }

    /// The frame was delivered, or given up: it is never handed out again.
    ///
    /// # Errors
    /// [`SpoolError::Unsettled`] when that could not be written: it holds all the same, but after a kill
    /// the frame would be sent again. It is written as soon as it can be.
    pub fn settle(&mut self, frame: FrameId) -> Result<(), SpoolError> {
        match self.index.settle(frame.0) {
            Some(extent) => self.write_off(frame.0, extent),
            // Of another spool, which nobody does: nothing here is settled by it.
            None => Ok(()),
        }
    }

    /// The frame is handed out again, before those that never were.
    pub fn give_back(&mut self, frame: FrameId) {
        self.index.give_back(frame.0);
    }

    /// Drops the oldest frame that is not handed out, unread, and says what was in it. `None` when there is
    /// none. The room is there when all frames of its segment are settled. The result is that of
    /// [`settle`](Self::settle).
    pub fn drop_oldest(&mut self) -> Option<(KindCounts, Result<(), SpoolError>)> {
        let (place, extent) = self.index.take()?;
        self.index.settle(place);
        Some((extent.counts, self.write_off(place, extent)))
    }

    /// Records on the disk that are not handed out, by `RecordKind as usize`.
    pub fn waiting(&self) -> [u64; 3] {
        self.index.waiting
    }

    /// Records of the frames that are handed out, by `RecordKind as usize`.
    pub fn handed_out(&self) -> [u64; 3] {
        self.index.handed_out
    }

    /// Frames that are not handed out.
    pub fn frames(&self) -> u64 {
        self.index.frames
    }

    /// Bytes in use on the disk: of all files, with the settled frames of segments that hold others.
    pub fn bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// The last failure that lost nothing, and that nobody was told: of `fdatasync`, or of the removal of
    /// a segment that is done with, which is tried again.
    pub fn take_warning(&mut self) -> Option<SpoolError> {
        self.files.warning.take()
    }

    /// Whether another frame fits, with all that will be written about it and the others.
    fn check_room(&self, size: u64, begins: bool) -> Result<(), SpoolError> {
        let max_bytes = self.max_bytes;
        let new_segment = (FILE_HEADER + FRAME_HEADER) as u64;
        let alone = new_segment + size + SETTLEMENT as u64;
        let path = || self.files.folder.path().to_owned();
        if alone > max_bytes || alone > u64::from(u32::MAX) {
            let bytes = size - FRAME_HEADER as u64;
            return Err(SpoolError::TooLarge { path: path(), bytes, max_bytes });
        }
        let settlements = self.index.unsettled * SETTLEMENT as u64;
        let end_mark = if self.active.is_some() { FRAME_HEADER as u64 } else { 0 };
        let bytes = self.bytes() + self.files.unwritten_bytes() + settlements + end_mark;
        let needed = size + SETTLEMENT as u64 + if begins { new_segment } else { 0 };
        if bytes + needed > max_bytes {
            return Err(SpoolError::Full { path: path(), bytes, needed, max_bytes });
        }
        Ok(())
    }

    /// Writes that a frame is done with, or removes its segment if all of them are.
    fn write_off(&mut self, place: Place, extent: Extent) -> Result<(), SpoolError> {
        let segment = place.segment;
        if self.index.is_done(segment) {
            self.index.forget(segment);
            self.active.take_if(|active| active.segment == segment);
            if self.files.remove(segment) {
                self.files.tidy();
                return Ok(());
            }
        }
        self.files.settle(segment, extent.settlement())
    }

    fn close_active(&mut self) {
        let Some(active) = self.active.take() else { return };
        if active.is_empty() {
            self.files.remove(active.segment);
        } else {
            let end = Header::end_mark(active.length as u32, active.before);
            self.files.close(&active, &end);
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.close_active();
        self.files.tidy();
        self.files.sync();
    }
}
