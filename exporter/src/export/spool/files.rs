//! The files of a spool: what is written, read and removed, and how much they take.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use nix::fcntl::OFlag;

use super::Frame;
use super::error::SpoolError;
use super::folder::{Folder, frames_name, settled_name};
use super::format::{
    FILE_HEADER, FRAME_HEADER, Header, SETTLEMENT, Settlement, Tally, file_header,
};
use super::index::Extent;
use super::scan::is_short;

/// The segment that frames are appended to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: u64,
    file: File,
    /// Up to the end of the last good frame.
    pub(super) length: u64,
    /// What is in it.
    pub(super) before: Tally,
    /// Part of a frame stands at its end.
    pub(super) is_torn: bool,
}

impl Active {
    pub(super) fn is_empty(&self) -> bool {
        self.before == Tally::default()
    }

    /// Whether offsets and sums stay within 32 bits.
    pub(super) fn has_room_for(&self, frame: &Frame, size: u64) -> bool {
        let end = self.length + size + FRAME_HEADER as u64;
        end <= u64::from(u32::MAX) && self.before.plus(Tally::one(frame.counts)).is_some()
    }
}

/// Of one segment.
#[derive(Debug, Default)]
struct Segment {
    /// Both files, bytes.
    bytes: u64,
    /// Settlements on the disk, bytes.
    settled: u64,
    /// Settlements that are not on the disk yet.
    unwritten: Vec<Settlement>,
    /// Settlements were written since the last `fdatasync`.
    is_dirty: bool,
    /// All is settled: the files are to go.
    is_done: bool,
}

/// All of the folder's.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) folder: Folder,
    segments: BTreeMap<u64, Segment>,
    /// Of the files that are left alone.
    foreign_bytes: u64,
    bytes: u64,
    /// Segments with unwritten settlements, or that are done: there is something to be tried again.
    behind: usize,
    /// The segment that was read last.
    reader: Option<(u64, File)>,
    /// The settlement file that was written last.
    settler: Option<(u64, File)>,
    pub(super) warning: Option<SpoolError>,
}

impl Files {
    pub(super) fn new(folder: Folder) -> Self {
        Self {
            folder,
            segments: BTreeMap::new(),
            foreign_bytes: 0,
            bytes: 0,
            behind: 0,
            reader: None,
            settler: None,
            warning: None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes + self.foreign_bytes
    }

    /// What will be written as soon as it can be.
    pub(super) fn unwritten_bytes(&self) -> u64 {
        if self.behind == 0 {
            return 0;
        }
        self.segments.values().map(|of| (of.unwritten.len() * SETTLEMENT) as u64).sum()
    }

    /// Takes in a segment that was there.
    pub(super) fn add(&mut self, segment: u64, frames: u64, settled: u64) {
        let bytes = frames + settled;
        // A record in part at the end is written over.
        let settled = settled - settled % SETTLEMENT as u64;
        self.segments.insert(segment, Segment { bytes, settled, ..Segment::default() });
        self.bytes += bytes;
    }

    /// Takes in bytes of files that are left alone.
    pub(super) fn add_foreign(&mut self, bytes: u64) {
        self.foreign_bytes += bytes;
    }

    /// Begins a segment.
    pub(super) fn begin(&mut self, segment: u64) -> Result<Active, SpoolError> {
        let name = frames_name(segment);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_APPEND;
        let begun = self.folder.open_file(&name, flags).and_then(|mut file| {
            let written = file.write_all(&file_header());
            if written.is_err() {
                // It is empty, or opening finds it short: no harm is done if it stays.
                let _ = self.folder.remove(&name);
            }
            written.map(|()| file)
        });
        let file = begun.map_err(|source| self.folder.error("begin a segment", &name, source))?;
        let length = FILE_HEADER as u64;
        self.add(segment, length, 0);
        Ok(Active { segment, file, length, before: Tally::default(), is_torn: false })
    }

    /// Appends a frame, and says where it stands.
    pub(super) fn append(&mut self, to: &mut Active, frame: &Frame) -> Result<u32, SpoolError> {
        let offset = to.length as u32;
        let header = Header::of_frame(offset, to.before, frame.counts, &frame.body);
        let after = header.after().filter(|_| header.end() <= u64::from(u32::MAX));
        let written = write_all(&to.file, [&header.encode(), &frame.body]);
        match (written, after) {
            (Ok(()), Some(after)) => {
                self.grow(to.segment, header.end() - to.length);
                (to.length, to.before) = (header.end(), after);
                Ok(offset)
            }
            (written, _) => {
                self.take_back(to);
                let source = written.err().unwrap_or(io::ErrorKind::FileTooLarge.into());
                Err(self.folder.error("append a request", &frames_name(to.segment), source))
            }
        }
    }

    /// Cuts what was written of a frame off again.
    fn take_back(&mut self, active: &mut Active) {
        if active.file.set_len(active.length).is_err() {
            active.is_torn = true;
            let now = active.file.metadata().map_or(active.length, |metadata| metadata.len());
            self.grow(active.segment, now.saturating_sub(active.length));
        }
    }

    /// Writes the end mark of a segment, and sees to it that the segment is on the disk.
    pub(super) fn close(&mut self, active: &Active, end: &Header) {
        match write_all(&active.file, [&end.encode(), &[]]) {
            Ok(()) => self.grow(active.segment, FRAME_HEADER as u64),
            // Without the mark the segment is as good, and says less of a damage at its end.
            Err(_) => {
                let _ = active.file.set_len(active.length);
            }
        }
        if let Err(source) = active.file.sync_data() {
            let name = frames_name(active.segment);
            self.warning = Some(self.folder.error("write a segment to the disk", &name, source));
        }
    }

    /// The body of a frame; `None` when it is damaged.
    pub(super) fn read(
        &mut self,
        segment: u64,
        extent: Extent,
    ) -> Result<Option<Bytes>, SpoolError> {
        let read = self.reader(segment).and_then(|file| read_frame(file, extent));
        match read {
            Err(error) if is_short(&error) || error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map_err(|source| {
                self.folder.error("read a request", &frames_name(segment), source)
            }),
        }
    }

    fn reader(&mut self, segment: u64) -> io::Result<&File> {
        let file = match self.reader.take_if(|(of, _)| *of == segment) {
            Some((_, file)) => file,
            None => self.folder.open_file(&frames_name(segment), OFlag::O_RDONLY)?,
        };
        Ok(&self.reader.insert((segment, file)).1)
    }

    pub(super) fn damaged(&self, segment: u64, extent: Extent) -> SpoolError {
        let file = self.folder.path_of(&frames_name(segment));
        let Extent { offset, counts, .. } = extent;
        SpoolError::Damaged { file, offset: u64::from(offset), counts }
    }

    /// Writes a settlement, now or later.
    pub(super) fn settle(
        &mut self,
        segment: u64,
        settlement: Settlement,
    ) -> Result<(), SpoolError> {
        let Some(of) = self.segments.get_mut(&segment) else { return Ok(()) };
        if of.unwritten.is_empty() && !of.is_done {
            self.behind += 1;
        }
        of.unwritten.push(settlement);
        let path = self.folder.path_of(&settled_name(segment));
        self.write_settlements(segment)
            .map(|()| self.tidy())
            .map_err(|source| SpoolError::Unsettled { path, source })
    }

    /// Tries again what could not be written or removed.
    pub(super) fn tidy(&mut self) {
        if self.behind == 0 {
            return;
        }
        let behind = |(segment, of): (&u64, &Segment)| {
            (of.is_done || !of.unwritten.is_empty()).then_some(*segment)
        };
        let segments: Vec<u64> = self.segments.iter().filter_map(behind).collect();
        for segment in segments {
            let is_done = self.segments.get(&segment).is_some_and(|of| of.is_done);
            if is_done && self.remove(segment) {
                continue;
            }
            if self.write_settlements(segment).is_err() {
                // The others would fare no better.
                return;
            }
        }
    }

    fn write_settlements(&mut self, segment: u64) -> io::Result<()> {
        let Some(of) = self.segments.get_mut(&segment) else { return Ok(()) };
        if of.unwritten.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = of.unwritten.iter().flat_map(|it| it.encode(segment)).collect();
        let at = of.settled;
        let file = match self.settler.take_if(|(of, _)| *of == segment) {
            Some((_, file)) => file,
            None => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
                self.folder.open_file(&settled_name(segment), flags)?
            }
        };
        let written = file.write_all_at(&bytes, at);
        self.settler = Some((segment, file));
        // In part, too: it is written over at the next attempt.
        written?;
        let Some(of) = self.segments.get_mut(&segment) else { return Ok(()) };
        of.unwritten = Vec::new();
        of.settled += bytes.len() as u64;
        of.is_dirty = true;
        if !of.is_done {
            self.behind -= 1;
        }
        self.grow(segment, bytes.len() as u64);
        Ok(())
    }

    /// Removes a segment, now or later, and says whether it is gone.
    pub(super) fn remove(&mut self, segment: u64) -> bool {
        let Some(of) = self.segments.get_mut(&segment) else { return true };
        if !of.is_done && of.unwritten.is_empty() {
            self.behind += 1;
        }
        of.is_done = true;
        // In this order: settlements without frames harm nobody, but frames without them would be sent
        // again.
        for name in [frames_name(segment), settled_name(segment)] {
            if let Err(source) = self.folder.remove(&name) {
                self.warning = Some(self.folder.error("remove what is done with", &name, source));
                return false;
            }
        }
        self.reader.take_if(|(of, _)| *of == segment);
        self.settler.take_if(|(of, _)| *of == segment);
        self.bytes -= self.segments.remove(&segment).map_or(0, |of| of.bytes);
        self.behind -= 1;
        true
    }

    /// Sees to it that all settlements are on the disk.
    pub(super) fn sync(&mut self) {
        for (segment, of) in &mut self.segments {
            if !std::mem::take(&mut of.is_dirty) {
                continue;
            }
            let name = settled_name(*segment);
            let file = self.folder.open_file(&name, OFlag::O_RDONLY);
            if let Err(source) = file.and_then(|file| file.sync_data()) {
                let doing = "write settlements to the disk";
                self.warning = Some(self.folder.error(doing, &name, source));
            }
        }
    }

    fn grow(&mut self, segment: u64, by: u64) {
        if let Some(of) = self.segments.get_mut(&segment) {
            of.bytes += by;
            self.bytes += by;
        }
    }
}

fn read_frame(file: &File, extent: Extent) -> io::Result<Option<Bytes>> {
    let at = u64::from(extent.offset);
    let mut header = [0; FRAME_HEADER];
    file.read_exact_at(&mut header, at)?;
    let is_it = |header: &Header| {
        (header.offset, header.length, header.counts)
            == (extent.offset, extent.length, extent.counts)
    };
    let Some(header) = Header::decode(&header).filter(is_it) else { return Ok(None) };
    let mut body = vec![0; extent.length as usize];
    file.read_exact_at(&mut body, at + FRAME_HEADER as u64)?;
    Ok((crc32fast::hash(&body) == header.body_crc).then(|| body.into()))
}

/// At the end of the file, in as few calls as the system allows.
fn write_all(mut file: &File, parts: [&[u8]; 2]) -> io::Result<()> {
    let mut slices = parts.map(IoSlice::new);
    let mut left = &mut slices[..];
    // Drops what is empty.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
