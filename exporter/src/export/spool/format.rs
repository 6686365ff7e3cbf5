//! The bytes of the files. Numbers are little-endian; each header, body and record has its own CRC-32.
//!
//! A segment (`*.frames`) is a file header of [`FILE_HEADER`] bytes, then frames, each a header of
//! [`FRAME_HEADER`] bytes and its body. A segment that was closed in peace ends with an end mark: a frame
//! header without a body. Each header says how many frames and records stand before it, so that a gap says
//! exactly what it took, and where it stands, so that bytes of a body are never taken for a frame.
//!
//! A settlement file (`*.settled`) beside it holds records of [`SETTLEMENT`] bytes and nothing else.

use crc32fast::hash;

use crate::ledger::KindCounts;

/// Of the format of both files.
pub(super) const VERSION: u32 = 1;

/// Bytes of a segment's own header: magic (8), version (4), CRC of both (4).
pub(super) const FILE_HEADER: usize = 16;

/// Bytes before a body: magic (4), length of the body (4), own offset (4), frames before (4), records of
/// each kind (12), records of each kind before (12), CRC of the body (4), CRC of the header (4).
pub(super) const FRAME_HEADER: usize = 48;

/// Bytes of a settlement: offset (4), end (4), frames (4), records of each kind (12), CRC (4).
pub(super) const SETTLEMENT: usize = 28;

const FILE_MAGIC: [u8; 8] = *b"flowendS";
const FRAME_MAGIC: [u8; 4] = *b"\xf0\x9fFr";
const END_MAGIC: [u8; 4] = *b"\xf0\x9fEn";

/// What stands at the start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Of this version.
    Own,
    /// Another version's: not to be touched.
    Version(u32),
    /// Damaged.
    Unreadable,
}

pub(super) fn file_header() -> [u8; FILE_HEADER] {
    let mut bytes = [0; FILE_HEADER];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    seal(&mut bytes);
    bytes
}

pub(super) fn file_kind(bytes: &[u8; FILE_HEADER]) -> FileKind {
    if !is_sealed(bytes) || bytes[..8] != FILE_MAGIC {
        return FileKind::Unreadable;
    }
    match word(bytes, 8) {
        VERSION => FileKind::Own,
        other => FileKind::Version(other),
    }
}

/// How many frames and records: of one frame, before a frame, or in a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) frames: u32,
    pub(super) records: KindCounts,
}

impl Tally {
    pub(super) fn one(records: KindCounts) -> Self {
        Self { frames: 1, records }
    }

    /// `None` where it does not fit.
    pub(super) fn plus(self, other: Self) -> Option<Self> {
        self.zip(other, u32::checked_add)
    }

    /// `None` where more is taken than there is.
    pub(super) fn minus(self, other: Self) -> Option<Self> {
        self.zip(other, u32::checked_sub)
    }

    fn zip(self, other: Self, with: fn(u32, u32) -> Option<u32>) -> Option<Self> {
        let mut records = self.records;
        for (mine, theirs) in records.iter_mut().zip(other.records) {
            *mine = with(*mine, theirs)?;
        }
        Some(Self { frames: with(self.frames, other.frames)?, records })
    }
}

/// The header of a frame, or an end mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) is_end: bool,
    /// Bytes of the body.
    pub(super) length: u32,
    /// Where the header stands in its file.
    pub(super) offset: u32,
    /// What stands before it in its file.
    pub(super) before: Tally,
    pub(super) counts: KindCounts,
    pub(super) body_crc: u32,
}

impl Header {
    pub(super) fn of_frame(offset: u32, before: Tally, counts: KindCounts, body: &[u8]) -> Self {
        // Checked by whoever chose the offset: the end of the frame fits in 32 bits, too.
        let length = body.len() as u32;
        Self { is_end: false, length, offset, before, counts, body_crc: hash(body) }
    }

    pub(super) fn end_mark(offset: u32, before: Tally) -> Self {
        let counts = KindCounts::default();
        Self { is_end: true, length: 0, offset, before, counts, body_crc: hash(&[]) }
    }

    pub(super) fn encode(&self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; FRAME_HEADER];
        bytes[..4].copy_from_slice(if self.is_end { &END_MAGIC } else { &FRAME_MAGIC });
        let [begin, progress, end] = self.counts;
        let [begin_before, progress_before, end_before] = self.before.records;
        put(
            &mut bytes[4..],
            &[
                self.length,
                self.offset,
                self.before.frames,
                begin,
                progress,
                end,
                begin_before,
                progress_before,
                end_before,
                self.body_crc,
            ],
        );
        seal(&mut bytes);
        bytes
    }

    /// `None` where this is no header.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER]) -> Option<Self> {
        let magic = &bytes[..4];
        // First what is cheap: the search for a header asks this at every byte.
        if magic[..2] != FRAME_MAGIC[..2] {
            return None;
        }
        let is_end = magic == END_MAGIC;
        if !(is_end || magic == FRAME_MAGIC) || !is_sealed(bytes) {
            return None;
        }
        let at = |index: usize| word(bytes, 4 * index);
        Some(Self {
            is_end,
            length: at(1),
            offset: at(2),
            before: Tally { frames: at(3), records: [at(7), at(8), at(9)] },
            counts: [at(4), at(5), at(6)],
            body_crc: at(10),
        })
    }

    /// Where the next frame begins.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + FRAME_HEADER as u64 + u64::from(self.length)
    }

    /// What stands before the next frame.
    pub(super) fn after(&self) -> Option<Tally> {
        if self.is_end { Some(self.before) } else { self.before.plus(Tally::one(self.counts)) }
    }
}

/// Says that these bytes of a segment are done with: a frame that was settled, or a gap that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settlement {
    pub(super) offset: u32,
    /// The first byte that no longer belongs to it.
    pub(super) end: u32,
    pub(super) tally: Tally,
}

impl Settlement {
    /// `segment` is the number of the file it belongs to, and goes into the CRC.
    pub(super) fn encode(&self, segment: u64) -> [u8; SETTLEMENT] {
        let mut bytes = [0; SETTLEMENT];
        let [begin, progress, end] = self.tally.records;
        put(&mut bytes, &[self.offset, self.end, self.tally.frames, begin, progress, end]);
        let crc = settlement_crc(&bytes, segment);
        put(&mut bytes[SETTLEMENT - 4..], &[crc]);
        bytes
    }

    /// `None` where this is no settlement of that segment.
    pub(super) fn decode(bytes: &[u8; SETTLEMENT], segment: u64) -> Option<Self> {
        if word(bytes, SETTLEMENT - 4) != settlement_crc(bytes, segment) {
            return None;
        }
        let at = |index: usize| word(bytes, 4 * index);
        let tally = Tally { frames: at(2), records: [at(3), at(4), at(5)] };
        Some(Self { offset: at(0), end: at(1), tally })
    }
}

fn settlement_crc(bytes: &[u8; SETTLEMENT], segment: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_le_bytes());
    hasher.update(&bytes[..SETTLEMENT - 4]);
    hasher.finalize()
}

/// Writes the CRC of all that stands before its last 4 bytes there.
fn seal(bytes: &mut [u8]) {
    let at = bytes.len() - 4;
    let crc = hash(&bytes[..at]);
    put(&mut bytes[at..], &[crc]);
}

fn is_sealed(bytes: &[u8]) -> bool {
    let at = bytes.len() - 4;
    hash(&bytes[..at]) == word(bytes, at)
}

fn put(bytes: &mut [u8], words: &[u32]) {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
