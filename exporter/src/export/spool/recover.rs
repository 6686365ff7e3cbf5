//! Reads what an earlier flowend left.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::Spool;
use super::error::{Damage, Foreign, Recovered, SpoolError};
use super::folder::{Name, frames_name, settled_name};
use super::format::{FileKind, SETTLEMENT, Settlement, Tally, VERSION};
use super::scan::{Gap, Scan, is_short, kind, scan, settlements};

impl Spool {
    /// Takes in all that is in the folder, oldest first.
    pub(super) fn recover(&mut self) -> Result<Recovered, SpoolError> {
        let mut recovered = Recovered::default();
        let (mut segments, mut settled) = (BTreeSet::new(), BTreeSet::new());
        for (name, file) in self.files.folder.files()? {
            match name {
                Name::Frames(number) => drop(segments.insert(number)),
                Name::Settled(number) => drop(settled.insert(number)),
                Name::Lock => {}
                Name::Other => {
                    let why = "is no file of the spool; move it elsewhere".into();
                    recovered.foreign.push(Foreign { file, why });
                }
            }
        }
        recovered.foreign.sort_by(|a, b| a.file.cmp(&b.file));
        for &segment in &segments {
            self.recover_segment(segment, &mut recovered)?;
        }
        for &segment in settled.difference(&segments) {
            // Its segment was removed, and then the removal was interrupted.
            self.files.add(segment, 0, 0);
            self.files.remove(segment);
        }
        let newest = segments.last().max(settled.last()).copied().unwrap_or_default();
        self.next_segment = newest + 1;
        recovered.frames = self.index.frames;
        recovered.records = self.index.waiting;
        recovered.bytes = self.bytes();
        Ok(recovered)
    }

    fn recover_segment(
        &mut self,
        segment: u64,
        recovered: &mut Recovered,
    ) -> Result<(), SpoolError> {
        let name = frames_name(segment);
        let path = self.files.folder.path_of(&name);
        let read = |source| SpoolError::Io { doing: "read a segment", path: path.clone(), source };
        let file = match self.files.folder.open_file(&name, OFlag::O_RDWR) {
            Ok(file) if file.metadata().map_err(read)?.is_file() => file,
            Ok(_) => {
                recovered.leave(path, "is no plain file; move it elsewhere".into());
                return Ok(());
            }
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                recovered.leave(path, "is a symbolic link; move it elsewhere".into());
                return Ok(());
            }
            Err(source) => return Err(read(source)),
        };
        let length = file.metadata().map_err(read)?.len();
        let settled = self.read_settled(segment)?;
        match kind(&file) {
            Ok(FileKind::Version(version)) => {
                self.files.add_foreign(length + settled.len() as u64);
                recovered.leave(path, other_version(version));
                return Ok(());
            }
            Err(error) if !is_short(&error) => return Err(read(error)),
            Ok(FileKind::Own | FileKind::Unreadable) | Err(_) => {}
        }
        let (settlements, bad) = settlements(&settled, segment);
        let settled_path = self.files.folder.path_of(&settled_name(segment));
        recovered.unsettled.extend(bad.into_iter().map(|at| {
            let gap = Gap {
                offset: at,
                end: at + SETTLEMENT as u64,
                tally: Tally { frames: 1, ..Tally::default() },
            };
            damage(&settled_path, gap)
        }));
        let scan = scan(&file, &settlements).map_err(read)?;
        recovered.tell(&path, &scan);
        let length = self.cut(segment, &file, length, &scan)?;
        self.files.add(segment, length, settled.len() as u64);
        self.take_in(segment, scan);
        Ok(())
    }

    fn read_settled(&self, segment: u64) -> Result<Vec<u8>, SpoolError> {
        let name = settled_name(segment);
        let mut bytes = Vec::new();
        let read = self
            .files
            .folder
            .open_file(&name, OFlag::O_RDONLY)
            .and_then(|mut file| file.read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(bytes),
            Err(source) => Err(self.files.folder.error("read what was settled", &name, source)),
        }
    }

    /// Cuts a damaged end off, so that it is told once. Says how long the segment is then.
    fn cut(&self, segment: u64, file: &File, length: u64, scan: &Scan) -> Result<u64, SpoolError> {
        let Some(Gap { offset, .. }) = scan.cut else { return Ok(length) };
        let name = frames_name(segment);
        file.set_len(offset).map(|()| offset).map_err(|source| {
            self.files.folder.error("cut the damaged end of a segment off", &name, source)
        })
    }

    fn take_in(&mut self, segment: u64, scan: Scan) {
        for &extent in &scan.frames {
            self.index.add(segment, extent);
        }
        if scan.frames.is_empty() {
            self.files.remove(segment);
            return;
        }
        for Gap { offset, end, tally } in scan.gaps {
            // A gap lies between frames, whose offsets fit.
            let settlement = Settlement { offset: offset as u32, end: end as u32, tally };
            // If it cannot be written now, it is by and by; and if not, the gap is told again.
            let _ = self.files.settle(segment, settlement);
        }
    }
}

impl Recovered {
    fn leave(&mut self, file: PathBuf, why: String) {
        self.foreign.push(Foreign { file, why });
    }

    fn tell(&mut self, path: &Path, scan: &Scan) {
        self.lost.extend(scan.gaps.iter().map(|gap| damage(path, *gap)));
        // A segment that was made, and not begun.
        let is_damage = |gap: &&Gap| gap.end > 0;
        self.cut.extend(scan.cut.iter().filter(is_damage).map(|gap| damage(path, *gap)));
    }
}

fn damage(file: &Path, gap: Gap) -> Damage {
    Damage {
        file: file.to_owned(),
        offset: gap.offset,
        bytes: gap.end - gap.offset,
        frames: u64::from(gap.tally.frames),
        records: gap.tally.records.map(u64::from),
    }
}

fn other_version(version: u32) -> String {
    let which = if version > VERSION { "a newer" } else { "another" };
    format!(
        "was written by {which} flowend (format {version}, this one reads {VERSION}); run that one to \
         deliver it, or remove the file"
    )
}
