//! A disk that is full, or read-only, and then is not any more: a small tmpfs in a mount namespace of the
//! test's own, so as root.

use std::io::Write as _;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Does this with the folder of a fresh tmpfs of so many bytes, which nobody else sees.
fn on_tmpfs(test: &str, bytes: u64, act: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var("TEST_REQUIRE").is_ok_and(|v| v == "all");
        assert!(!required, "TEST_REQUIRE=all, and {test} needs root");
        // Not eprintln: the harness would keep it to itself.
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {test}: needs root ***");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        // The namespace is the thread's, and goes with it.
        let tested = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let options = format!("size={bytes},mode=700");
            mount(Some("spool"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(&*options))
                .unwrap();
            act(folder.path());
        });
        if let Err(panic) = tested.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn remount(folder: &Path, flags: MsFlags) {
    mount(None::<&str>, folder, None::<&str>, MsFlags::MS_REMOUNT | flags, None::<&str>).unwrap();
}

/// Takes all that is left.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write(&[1; 4096]).is_ok() {}
}

/// What a kill at this moment would leave, on a disk with room.
fn killed(spool: &Path) -> Home {
    let home = Home::new();
    copy_files(spool, &home.folder());
    home
}

fn os_error(error: &SpoolError) -> Option<i32> {
    match error {
        SpoolError::Io { source, .. } | SpoolError::Unsettled { source, .. } => {
            source.raw_os_error()
        }
        _ => None,
    }
}

#[test]
fn a_full_disk_loses_nothing_and_work_goes_on_when_there_is_room() {
    on_tmpfs("a_full_disk_loses_nothing", 256 << 10, |disk| {
        let folder = disk.join("logs");
        let (mut spool, _) = Spool::open(&folder, 1 << 20).unwrap();
        let mut frames = Vec::new();
        let error = loop {
            let frame = sized(frames.len() as u32, 10_000);
            match spool.append(&frame) {
                Ok(()) => frames.push(frame),
                Err(error) => break error,
            }
        };
        assert_eq!(os_error(&error), Some(libc::ENOSPC), "{error}");
        assert!(error.to_string().contains(".frames: cannot append a request"), "{error}");
        assert!(frames.len() > 20, "{}", frames.len());
        // What was written of the last one is taken back.
        let on_disk = || {
            let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
            let ours = files.filter(|entry| entry.file_name() != "lock");
            ours.map(|entry| entry.metadata().unwrap().len()).sum::<u64>()
        };
        assert_eq!(spool.bytes(), on_disk());
        assert_well(&killed(&folder).open(1 << 20).1);
        let ballast = disk.join("ballast");
        fill(&ballast);
        // What is settled cannot be written, and that is said: a kill would bring it back.
        let (first, _) = spool.next().unwrap().unwrap();
        let error = spool.settle(first).unwrap_err();
        assert!(matches!(error, SpoolError::Unsettled { .. }), "{error}");
        assert_eq!(os_error(&error), Some(libc::ENOSPC), "{error}");
        assert!(error.to_string().contains("sent again if flowend is killed"), "{error}");
        assert_eq!(drain(&mut killed(&folder).open_well(1 << 20)), frames);
        assert!(spool.append(&sized(1, 10_000)).is_err());
        assert_eq!(spool.waiting(), sum(&frames[1..]));
        // Room again: it is written with the next operation, whichever that is.
        fs::remove_file(ballast).unwrap();
        let (second, _) = spool.next().unwrap().unwrap();
        spool.settle(second).unwrap();
        assert_eq!(drain(&mut killed(&folder).open_well(1 << 20)), frames[2..]);
        // A segment that is done with makes room by itself.
        while spool.append(&sized(99, 10_000)).is_err() {
            let (id, frame) = spool.next().unwrap().unwrap();
            assert_eq!(frame, frames.remove(2));
            // On a full disk, too: the last settlement of a segment needs no room.
            let _ = spool.settle(id);
        }
        frames.push(sized(99, 10_000));
        drop(spool);
        let (mut spool, recovered) = Spool::open(&folder, 1 << 20).unwrap();
        assert_well(&recovered);
        assert_eq!(drain(&mut spool), frames[2..]);
        assert_eq!(spool.bytes(), 0);
    });
}

#[test]
fn a_read_only_disk_loses_nothing_and_work_goes_on_when_it_can_be_written() {
    on_tmpfs("a_read_only_disk_loses_nothing", 256 << 10, |disk| {
        let folder = disk.join("logs");
        let frames: Vec<_> = (0..4).map(frame).collect();
        append_all(&mut Spool::open(&folder, ROOM).unwrap().0, &frames);
        let (mut spool, _) = Spool::open(&folder, ROOM).unwrap();
        remount(disk, MsFlags::MS_RDONLY);
        for n in 0..2 {
            let error = spool.append(&frame(9)).unwrap_err();
            assert_eq!(os_error(&error), Some(libc::EROFS), "{error}");
            let (id, read) = spool.next().unwrap().unwrap();
            assert_eq!(read, frame(n));
            let error = spool.settle(id).unwrap_err();
            assert_eq!(os_error(&error), Some(libc::EROFS), "{error}");
            assert!(matches!(error, SpoolError::Unsettled { .. }), "{error}");
        }
        assert_eq!((spool.frames(), spool.waiting()), (2, sum(&frames[2..])));
        assert_eq!(drain(&mut killed(&folder).open_well(ROOM)), frames);
        remount(disk, MsFlags::empty());
        spool.append(&frame(9)).unwrap();
        let left = [frame(2), frame(3), frame(9)];
        assert_eq!(drain(&mut killed(&folder).open_well(ROOM)), left);
        // All is settled on a disk that cannot be written: the files go later.
        drop(spool);
        let (mut spool, _) = Spool::open(&folder, ROOM).unwrap();
        remount(disk, MsFlags::MS_RDONLY);
        while let Some((id, _)) = spool.next().unwrap() {
            spool.settle(id).unwrap_err();
        }
        assert!(spool.take_warning().is_some());
        assert!(spool.bytes() > 0);
        remount(disk, MsFlags::empty());
        spool.append(&frame(5)).unwrap();
        assert_eq!(drain(&mut spool), [frame(5)]);
        assert_eq!(spool.bytes(), 0);
        assert_well(&killed(&folder).open(ROOM).1);
    });
}

#[test]
fn a_spool_on_a_read_only_disk_does_not_open() {
    on_tmpfs("a_spool_on_a_read_only_disk_does_not_open", 64 << 10, |disk| {
        remount(disk, MsFlags::MS_RDONLY);
        let error = Spool::open(&disk.join("logs"), ROOM).unwrap_err();
        assert_eq!(os_error(&error), Some(libc::EROFS), "{error}");
    });
}
