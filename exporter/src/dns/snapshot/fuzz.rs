//! Files of names of any bytes.

use super::{
    Entry, Here, MAX_BYTES, MAX_NAME, MAX_NAMES, ScopeKind, Sha256, decode, encode, last_line,
    restore,
};
use sha2::Digest as _;

const NOW: u64 = 1_700_000_000_000_000_000;
const DAY: u64 = 86_400_000_000_000;

/// No file here has more.
const MAX_ENTRIES: usize = 1000;

/// Reads a file; with `is_signed`, one that these bytes begin and a right last line ends. Checks that what is
/// restored is bounded, holds, and would be written as it was read.
pub(crate) fn check(bytes: &[u8], is_signed: bool) {
    let mut file = bytes.to_vec();
    if is_signed {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let sum = Sha256::new_with_prefix(bytes);
        file.extend(last_line(lines.saturating_sub(1), sum).as_bytes());
    }
    for kind in [ScopeKind::Cgroup, ScopeKind::Host] {
        let here = Here { boot_id: "b3d5".into(), kind, host_scope: 77 };
        let (theirs, entries) = match decode(&file, MAX_ENTRIES) {
            Ok(decoded) => decoded,
            Err(reason) => {
                assert!(!reason.to_string().is_empty() && !reason.remedy().is_empty());
                return;
            }
        };
        let n = entries.len();
        assert!(n <= MAX_ENTRIES && n <= bytes.len());
        let restored = restore(&theirs, entries, &here, NOW, DAY);
        assert_eq!(restored.entries.len() + restored.lapsed + restored.foreign, n, "{restored}");
        assert_eq!(restored.foreign > 0, restored.why_foreign.is_some(), "{restored}");
        restored.entries.iter().for_each(check_entry);
        again(restored.entries, &here);
    }
}

fn check_entry(entry: &Entry) {
    assert!(entry.from_ns <= NOW && (NOW + 1..=NOW + DAY).contains(&entry.until_ns), "{entry:?}");
    assert!((1..=MAX_NAMES).contains(&entry.names.len()), "{entry:?}");
    for name in &entry.names {
        assert!(!name.is_empty() && name.len() <= MAX_NAME, "{entry:?}");
        assert!(!name.contains(char::is_control), "{entry:?}");
    }
}

/// What was restored is written, and read once more.
fn again(entries: Vec<Entry>, here: &Here) {
    let mut file = Vec::new();
    let written = encode(&mut file, &mut entries.iter().cloned(), here, MAX_BYTES);
    let written = written.unwrap_or_else(|error| panic!("into memory: {error}"));
    assert_eq!((written.entries, written.left_out), (entries.len(), 0));
    let (theirs, lines) =
        decode(&file, MAX_ENTRIES).unwrap_or_else(|reason| panic!("what was written {reason}"));
    let restored = restore(&theirs, lines, here, NOW, DAY);
    assert_eq!(restored.entries, entries);
}
