//! The file: what is written is read, and nothing else is believed.

use flowend_probe_types::{Addr, Event, EventKind, SYN, TcpEvent, TcpState};

use super::*;
use crate::flow::{FlowSettings, FlowTable};

const RING: u32 = 17;

/// With a connection that waits to be established, and another that has begun.
fn some() -> State {
    let mut flows = FlowTable::new(FlowSettings::default());
    let event = |time_ns: u64, cookie: u64| {
        let kind = EventKind::SegmentOut;
        let event = TcpEvent {
            kind: kind as u8,
            flags: SYN,
            state: TcpState::SynSent as u8,
            local_port: 40_000,
            remote_port: 443,
            time_ns,
            cookie,
            cgroup_id: 42,
            local: Addr::v4(1),
            remote: Addr::v6([1, 2, 3, 4]),
            seq: 5,
            ..TcpEvent::default()
        };
        Event::Tcp(kind, event)
    };
    for event in [event(1_000, 7), event(9_000_000, 8)] {
        flows.apply(&event, &mut |_| {});
    }
    State {
        lost: vec![1, 2, 3],
        skipped: vec![4],
        seed: u128::MAX - 1,
        kept: Kept { flows: flows.hand_over(), own: vec![9], ..Kept::default() },
        paths: vec![(42, "/a".into())],
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    (folder, path)
}

fn text(state: &State) -> String {
    format!("{state:?}")
}

#[test]
fn what_is_written_is_taken_once() {
    let (_folder, path) = place();
    assert!(take(&path, RING).unwrap().is_none());
    write(&path, RING, &some()).unwrap();
    assert_eq!(text(&take(&path, RING).unwrap().unwrap()), text(&some()));
    assert!(take(&path, RING).unwrap().is_none());
}

#[test]
fn what_is_of_another_ring_or_boot_is_removed() {
    let (_folder, path) = place();
    write(&path, RING, &some()).unwrap();
    let error = take(&path, RING + 1).unwrap_err().to_string();
    assert!(
        error.contains("is of another ring") && error.contains("start_known = false"),
        "{error}"
    );
    assert!(!path.exists());
    let place = Place { boot_id: "another".into(), ring: RING };
    let bytes = encode(&place, &some()).unwrap();
    assert!(matches!(decode(&bytes, &here(RING).unwrap()), Err(Reason::Foreign)));
}

#[test]
fn damage_anywhere_is_found_and_set_aside() {
    let here = here(RING).unwrap();
    let bytes = encode(&here, &some()).unwrap();
    assert!(decode(&bytes, &here).is_ok());
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(decode(&damaged, &here).is_err(), "byte {at}");
        assert!(decode(&bytes[..at], &here).is_err(), "cut at {at}");
    }
    assert!(decode(&[&bytes[..], &[0]].concat(), &here).is_err());

    let (_folder, path) = place();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = take(&path, RING).unwrap_err().to_string();
    assert!(error.contains("damaged or cut") && error.contains("the file is now "), "{error}");
    assert!(!path.exists() && path.with_file_name("state-damaged").exists());
}

#[test]
fn a_file_that_others_may_write_is_not_believed() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, path) = place();
    write(&path, RING, &some()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = take(&path, RING).unwrap_err().to_string();
    assert!(error.contains("may be written by others (mode 666)"), "{error}");
}

/// Neither set aside nor replaced: not a folder of somebody else's, and not /dev/null.
#[test]
fn what_is_no_file_stays_where_it_is() {
    let (folder, path) = place();
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("precious"), "x").unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, kind) in [(&path, "a folder"), (&pipe, "a pipe")] {
        let error = take(path, RING).unwrap_err().to_string();
        assert!(error.contains("is no regular file"), "{error}");
        assert!(!error.contains("the file is now"), "{error}");
        let error = write(path, RING, &some()).unwrap_err().to_string();
        assert!(error.contains(&format!("it is {kind}, no file")), "{error}");
        assert!(whole_file::other_kind(path).unwrap().is_some());
    }
    assert!(path.join("precious").exists());
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "nothing was set aside, nothing is beside");
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let (folder, _) = place();
    let error = write(&folder.path().join("none/state"), RING, &some()).unwrap_err().to_string();
    assert!(error.contains("key `pin_state`") && error.contains("none/state"), "{error}");
}

/// The bytes follow the structs, so another struct reads them wrong without noticing.
#[test]
fn a_change_of_the_structs_has_a_new_version() {
    let bytes = postcard::to_stdvec(&some()).unwrap();
    assert_eq!(
        (STATE_VERSION, bytes.len(), crc32fast::hash(&bytes)),
        (1, 192, 392_175_490),
        "what is kept is written otherwise now: raise STATE_VERSION, and say here what it is"
    );
}
