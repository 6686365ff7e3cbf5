//! The spool against real files.

mod damage;
mod disk;
mod kill;
mod model;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::*;

/// Room for all that a test appends, in segments of 8 KiB.
const ROOM: u64 = 64 << 10;

/// A frame that is unlike all others.
fn frame(n: u32) -> Frame {
    sized(n, 40 + n as usize % 7)
}

fn sized(n: u32, bytes: usize) -> Frame {
    let body: Vec<u8> = (0..bytes).map(|i| (n as usize * 31 + i * 7) as u8).collect();
    Frame { counts: [n % 3, n % 2, 1 + n % 5], body: body.into() }
}

fn sum<'a>(frames: impl IntoIterator<Item = &'a Frame>) -> [u64; 3] {
    frames.into_iter().fold([0; 3], |mut sum, frame| {
        sum.iter_mut().zip(frame.counts).for_each(|(sum, count)| *sum += u64::from(count));
        sum
    })
}

/// A place for spools.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("collector/logs")
    }

    fn open(&self, max_bytes: u64) -> (Spool, Recovered) {
        Spool::open(&self.folder(), max_bytes).unwrap()
    }

    /// Opens it and demands that nothing is wrong.
    fn open_well(&self, max_bytes: u64) -> Spool {
        let (spool, recovered) = self.open(max_bytes);
        assert_well(&recovered);
        spool
    }

    /// What a kill at this moment would leave: the same files, without anything that is done when a spool
    /// is dropped.
    fn killed(&self) -> Self {
        let copy = Self::new();
        copy_files(&self.folder(), &copy.folder());
        copy
    }

    /// The spool's files, oldest first, without the lock.
    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.filter(|path| !path.ends_with("lock")).collect();
        files.sort();
        files
    }

    fn of_kind(&self, kind: &str) -> Vec<PathBuf> {
        let mut files = self.files();
        files.retain(|path| path.extension().is_some_and(|it| it == kind));
        files
    }

    fn disk_bytes(&self) -> u64 {
        self.files().iter().map(|path| path.metadata().unwrap().len()).sum()
    }
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn assert_well(recovered: &Recovered) {
    let Recovered { cut, lost, unsettled, foreign, .. } = recovered;
    assert!(
        cut.is_empty() && lost.is_empty() && unsettled.is_empty() && foreign.is_empty(),
        "{recovered:?}"
    );
}

fn append_all(spool: &mut Spool, frames: &[Frame]) {
    frames.iter().for_each(|frame| spool.append(frame).unwrap());
}

/// All that is waiting, which is settled.
fn drain(spool: &mut Spool) -> Vec<Frame> {
    std::iter::from_fn(|| {
        let (id, frame) = spool.next().unwrap()?;
        spool.settle(id).unwrap();
        Some(frame)
    })
    .collect()
}

#[test]
fn frames_come_back_in_order_across_segments_and_openings() {
    let home = Home::new();
    let frames: Vec<_> = (0..500).map(frame).collect();
    let mut spool = home.open_well(ROOM);
    append_all(&mut spool, &frames);
    assert!(home.files().len() > 3, "{:?}", home.files());
    assert_eq!((spool.frames(), spool.waiting()), (500, sum(&frames)));
    drop(spool);
    let (mut spool, recovered) = home.open(ROOM);
    assert_well(&recovered);
    assert_eq!((recovered.frames, recovered.records), (500, sum(&frames)));
    assert_eq!(recovered.bytes, home.disk_bytes());
    assert_eq!(drain(&mut spool), frames);
    assert_eq!((spool.bytes(), spool.waiting(), home.files()), (0, [0; 3], vec![]));
}

#[test]
fn files_are_for_their_owner_alone() {
    let home = Home::new();
    let mut spool = home.open_well(ROOM);
    append_all(&mut spool, &[frame(1), frame(2)]);
    let (id, _) = spool.next().unwrap().unwrap();
    spool.settle(id).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode(&home.folder()), 0o700);
    assert_eq!(mode(home.folder().parent().unwrap()), 0o700);
    let files = home.files();
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|path| mode(path) == 0o600), "{files:?}");
    assert_eq!(mode(&home.folder().join("lock")), 0o600);
}

#[test]
fn a_spool_is_opened_once() {
    let home = Home::new();
    let spool = home.open_well(ROOM);
    let error = Spool::open(&home.folder(), ROOM).unwrap_err().to_string();
    let pid = format!("another flowend (process {})", std::process::id());
    assert!(error.contains(&pid) && error.contains("spool.directory"), "{error}");
    drop(spool);
    home.open_well(ROOM);
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let home = Home::new();
    drop(home.open_well(ROOM));
    for (mode, is_fine) in [(0o770, false), (0o707, false), (0o1777, false), (0o755, true)] {
        fs::set_permissions(home.folder(), fs::Permissions::from_mode(mode)).unwrap();
        match Spool::open(&home.folder(), ROOM) {
            Ok(_) => assert!(is_fine, "{mode:o}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!is_fine && error.contains("chmod go-w"), "{mode:o}: {error}");
            }
        }
    }
}

#[test]
fn no_symbolic_link_is_followed() {
    let home = Home::new();
    drop(home.open_well(ROOM));
    let link = home.0.path().join("link");
    symlink(home.folder(), &link).unwrap();
    let error = Spool::open(&link, ROOM).unwrap_err().to_string();
    assert!(error.contains("link"), "{error}");
    // A segment that is a link to a file elsewhere is left alone.
    let elsewhere = home.0.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    symlink(&elsewhere, home.folder().join(folder::frames_name(3))).unwrap();
    let (mut spool, recovered) = home.open(ROOM);
    assert_eq!(recovered.foreign.len(), 1, "{recovered:?}");
    append_all(&mut spool, &[frame(1)]);
    assert_eq!(drain(&mut spool), [frame(1)]);
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), "precious");
}

#[test]
fn what_is_full_says_so_and_drops_nothing() {
    let home = Home::new();
    let mut spool = home.open_well(ROOM);
    let mut frames = Vec::new();
    let error = loop {
        let frame = sized(frames.len() as u32, 1000);
        match spool.append(&frame) {
            Ok(()) => frames.push(frame),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full { max_bytes: ROOM, .. }), "{error}");
    assert!(error.to_string().contains("spool.max_bytes"), "{error}");
    // 1000 bytes and what belongs to them; 8 segments.
    assert!((55..=61).contains(&frames.len()), "{}", frames.len());
    assert_eq!(spool.waiting(), sum(&frames));
    // The oldest go one by one; there is room when their segment is gone.
    let mut dropped = Vec::new();
    while spool.append(&sized(99, 1000)).is_err() {
        let (counts, written) = spool.drop_oldest().unwrap();
        written.unwrap();
        dropped.push(counts);
    }
    let n = dropped.len();
    assert!((2..=8).contains(&n), "{n}");
    assert_eq!(dropped, frames[..n].iter().map(|frame| frame.counts).collect::<Vec<_>>());
    assert!(spool.bytes() <= ROOM);
    frames.push(sized(99, 1000));
    assert_eq!(drain(&mut spool), frames[n..]);
}

#[test]
fn what_never_fits_is_told_apart() {
    let home = Home::new();
    let mut spool = home.open_well(ROOM);
    let fits = ROOM as usize - FILE_HEADER - 2 * FRAME_HEADER - SETTLEMENT;
    let error = spool.append(&sized(1, fits + 1)).unwrap_err();
    assert!(matches!(error, SpoolError::TooLarge { .. }), "{error}");
    // Longer than a segment should be.
    spool.append(&sized(2, fits)).unwrap();
    assert!(matches!(spool.append(&frame(3)), Err(SpoolError::Full { .. })));
    assert_eq!(drain(&mut spool), [sized(2, fits)]);
}

#[test]
fn a_lowered_bound_loses_nothing() {
    let home = Home::new();
    let frames: Vec<_> = (0..40).map(|n| sized(n, 1000)).collect();
    append_all(&mut home.open_well(ROOM), &frames);
    let mut spool = home.open_well(ROOM / 4);
    assert!(matches!(spool.append(&frame(1)), Err(SpoolError::Full { .. })));
    assert_eq!(drain(&mut spool), frames);
    spool.append(&frame(1)).unwrap();
}

#[test]
fn counts_of_any_size_add_up() {
    let home = Home::new();
    let many = Frame { counts: [u32::MAX; 3], body: Bytes::new() };
    let mut spool = home.open_well(ROOM);
    append_all(&mut spool, &[many.clone(), many.clone(), many.clone()]);
    assert_eq!(spool.waiting(), [3 * u64::from(u32::MAX); 3]);
    drop(spool);
    let mut spool = home.open_well(ROOM);
    assert_eq!(spool.waiting(), [3 * u64::from(u32::MAX); 3]);
    assert_eq!(drain(&mut spool), [many.clone(), many.clone(), many]);
}

#[test]
fn other_versions_and_foreign_files_are_left_alone() {
    let home = Home::new();
    append_all(&mut home.open_well(ROOM), &[frame(1)]);
    let mut future = fs::read(&home.of_kind("frames")[0]).unwrap();
    future[8] = 2;
    let crc = crc32fast::hash(&future[..12]);
    future[12..16].copy_from_slice(&crc.to_le_bytes());
    let newer = home.folder().join(folder::frames_name(9));
    let newer_settled = home.folder().join(folder::settled_name(9));
    let notes = home.folder().join("notes.txt");
    for (path, bytes) in [(&newer, &future[..]), (&newer_settled, b"?"), (&notes, b"mine")] {
        fs::write(path, bytes).unwrap();
    }
    let (mut spool, recovered) = home.open(ROOM);
    let told: Vec<_> = recovered.foreign.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("notes.txt: is no file of the spool"), "{told:?}");
    assert!(
        told[1].contains("written by a newer flowend (format 2, this one reads 1)"),
        "{told:?}"
    );
    // It counts, and new segments come after it.
    assert_eq!(recovered.bytes, home.disk_bytes() - 4);
    append_all(&mut spool, &[frame(2)]);
    assert!(home.folder().join(folder::frames_name(10)).exists());
    assert_eq!(drain(&mut spool), [frame(1), frame(2)]);
    drop(spool);
    assert_eq!(fs::read(newer).unwrap(), future);
    assert_eq!(
        (fs::read(newer_settled).unwrap(), fs::read(notes).unwrap()),
        (b"?".to_vec(), b"mine".to_vec())
    );
}
