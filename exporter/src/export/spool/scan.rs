//! Reads a segment that may be damaged anywhere: what is good, what is lost, and where its end is cut off.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::format::{
    FILE_HEADER, FRAME_HEADER, FileKind, Header, SETTLEMENT, Settlement, Tally, file_kind,
};
use super::index::Extent;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Bytes at known places: a file, or memory.
pub(super) trait ReadAt {
    fn length(&self) -> io::Result<u64>;
    /// Fills all of `into`.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, at)
    }
}

#[cfg(any(test, fuzzing))]
impl ReadAt for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..at + into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part of a segment that is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) offset: u64,
    /// The first byte after it.
    pub(super) end: u64,
    /// What is lost with it, as far as it is known.
    pub(super) tally: Tally,
}

impl Gap {
    fn settled_inside(self, settled: &Settled) -> impl Iterator<Item = &Settlement> {
        // What is past 32 bits was never settled, and nothing of this format stands there.
        let at = |place: u64| u32::try_from(place).unwrap_or(u32::MAX);
        let inside = at(self.offset)..at(self.end);
        let end = inside.end;
        settled.range(inside).map(|(_, it)| it).filter(move |it| it.end <= end)
    }

    /// What is lost with it and was not settled.
    fn unsettled(self, settled: &Settled) -> Tally {
        let left =
            self.settled_inside(settled).try_fold(self.tally, |left, it| left.minus(it.tally));
        left.unwrap_or_default()
    }
}

/// What is in a segment.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Those that are good and not settled, in order.
    pub(super) frames: Vec<Extent>,
    /// Between good ones, and not told before.
    pub(super) gaps: Vec<Gap>,
    /// From where on the segment holds nothing that could be read.
    pub(super) cut: Option<Gap>,
}

/// What was settled in a segment, by offset.
pub(super) type Settled = BTreeMap<u32, Settlement>;

/// Reads the settlements of a segment, and counts the records that cannot be read. A record that was
/// written in part at the end is none.
pub(super) fn settlements(bytes: &[u8], segment: u64) -> (Settled, Vec<u64>) {
    let (mut settled, mut bad) = (Settled::new(), Vec::new());
    for (record, at) in bytes.as_chunks::<SETTLEMENT>().0.iter().zip((0..).step_by(SETTLEMENT)) {
        match Settlement::decode(record, segment) {
            Some(settlement) => {
                settled.insert(settlement.offset, settlement);
            }
            None => bad.push(at),
        }
    }
    (settled, bad)
}

/// Reads a segment from its start to its end.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn scan<F: ReadAt + ?Sized>(file: &F, settled: &Settled) -> io::Result<Scan> {
    let length = file.length()?;
    let mut scan = Scan::default();
    let mut at = FILE_HEADER as u64;
    if length < at {
        scan.cut = Some(Gap { offset: 0, end: length, tally: Tally::default() });
        return Ok(scan);
    }
    if kind(file)? != FileKind::Own {
        scan.gap(Gap { offset: 0, end: at, tally: Tally::default() }, settled);
    }
    let mut before = Tally::default();
    while at < length {
        let Some((header, missing)) = find_header(file, at, length, before)? else {
            scan.cut = Some(Gap { offset: at, end: length, tally: Tally::default() });
            return Ok(scan);
        };
        let gap = Gap { offset: at, end: u64::from(header.offset), tally: missing };
        if header.end() > length {
            // With the gap before it, if there is one: behind that nothing would be left that could be read.
            let tally = gap.unsettled(settled).plus(Tally::one(header.counts));
            let tally = tally.unwrap_or_default();
            scan.cut = Some(Gap { offset: at, end: length, tally });
            return Ok(scan);
        }
        if gap.end > at {
            scan.gap(gap, settled);
        }
        if !header.is_end {
            scan.frame(file, &header, settled)?;
        }
        before = header.after().unwrap_or(before);
        at = header.end();
    }
    Ok(scan)
}

/// Of the file's own header.
pub(super) fn kind<F: ReadAt + ?Sized>(file: &F) -> io::Result<FileKind> {
    let mut header = [0; FILE_HEADER];
    file.read_at(0, &mut header)?;
    Ok(file_kind(&header))
}

impl Scan {
    fn frame<F: ReadAt + ?Sized>(
        &mut self,
        file: &F,
        header: &Header,
        settled: &Settled,
    ) -> io::Result<()> {
        let Header { length, offset, counts, .. } = *header;
        let end = header.end();
        if settled.get(&offset).is_some_and(|it| u64::from(it.end) == end) {
            return Ok(());
        }
        if crc_of(file, end - u64::from(length), end)? == header.body_crc {
            self.frames.push(Extent { offset, length, counts });
        } else {
            self.gaps.push(Gap { offset: u64::from(offset), end, tally: Tally::one(counts) });
        }
        Ok(())
    }

    /// Notes a gap with what was not settled in it, unless there was nothing to be lost, or it was told.
    fn gap(&mut self, gap: Gap, settled: &Settled) {
        let tally = gap.unsettled(settled);
        let is_told = gap
            .settled_inside(settled)
            .any(|it| (u64::from(it.offset), u64::from(it.end)) == (gap.offset, gap.end));
        let is_settled = tally.frames == 0 && gap.tally.frames > 0;
        if !is_told && !is_settled {
            self.gaps.push(Gap { tally, ..gap });
        }
    }
}

/// The header at `at`, or else the next one after it, with what is missing before it.
fn find_header<F: ReadAt + ?Sized>(
    file: &F,
    at: u64,
    length: u64,
    before: Tally,
) -> io::Result<Option<(Header, Tally)>> {
    let mut chunk = vec![0; FRAME_HEADER];
    let mut at = at;
    while at + FRAME_HEADER as u64 <= length {
        let take = (chunk.len() as u64).min(length - at) as usize;
        let bytes = &mut chunk[..take];
        file.read_at(at, bytes)?;
        let windows = bytes.windows(FRAME_HEADER).filter_map(|bytes| bytes.first_chunk());
        for (place, bytes) in (at..).zip(windows) {
            let found = Header::decode(bytes).filter(|header| {
                let is_in_place = u64::from(header.offset) == place;
                is_in_place && header.after().is_some() && header.end() <= u64::from(u32::MAX)
            });
            let Some(header) = found else { continue };
            if let Some(missing) = header.before.minus(before) {
                return Ok(Some((header, missing)));
            }
        }
        // From here on it is a search: in larger steps, which overlap by what may be half a header.
        at += (take - FRAME_HEADER + 1) as u64;
        chunk.resize(CHUNK, 0);
    }
    Ok(None)
}

fn crc_of<F: ReadAt + ?Sized>(file: &F, from: u64, to: u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut chunk = vec![0; CHUNK.min((to - from) as usize)];
    let mut at = from;
    while at < to {
        let take = (chunk.len() as u64).min(to - at) as usize;
        file.read_at(at, &mut chunk[..take])?;
        hasher.update(&chunk[..take]);
        at += take as u64;
    }
    Ok(hasher.finalize())
}

/// Whether the file holds less than was asked for.
pub(super) fn is_short(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}
