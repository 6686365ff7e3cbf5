//! Hosts files of any bytes.

use super::{ADDRESS_BYTES, MAX_NAMES, NAME_BYTES, Parsed, Table};
use crate::dns::name::MAX_TEXT;

/// Little, so that files do not fit.
const MAX_BYTES: usize = 2048;

/// Reads a file, with room for all of it and with little; checks that what is kept is bounded, that each address has
/// names and each name is there once, and that too little room leaves only the end out. Returns the names.
pub(crate) fn check(text: &[u8]) -> Vec<String> {
    let whole = Table::parse(text, usize::MAX);
    let lines = text.split(|byte| *byte == b'\n').count() as u64;
    assert!(!whole.is_full && whole.bad_lines <= lines, "{whole:?}");
    check_table(&whole.table);
    let part = Table::parse(text, MAX_BYTES);
    check_table(&part.table);
    assert!(part.is_full || part == whole, "{part:?} {whole:?}");
    // The last address that begins within the limit goes past it.
    let last = ADDRESS_BYTES + MAX_NAMES * (NAME_BYTES + MAX_TEXT);
    assert!(part.table.bytes < MAX_BYTES + last, "{part:?}");
    is_beginning(&part, &whole);
    let names = whole.table.names.values().flat_map(|names| names.iter());
    names.map(ToString::to_string).collect()
}

fn check_table(table: &Table) {
    let mut bytes = 0;
    for names in table.names.values() {
        assert!((1..=MAX_NAMES).contains(&names.len()), "{names:?}");
        let once = |n: usize| !names[..n].contains(&names[n]);
        assert!((0..names.len()).all(once), "{names:?}");
        bytes += ADDRESS_BYTES + names.iter().map(|name| NAME_BYTES + name.len()).sum::<usize>();
    }
    // More where an address has no name that is one.
    assert!(bytes <= table.bytes, "{bytes}: {table:?}");
}

fn is_beginning(part: &Parsed, whole: &Parsed) {
    assert!(part.bad_lines <= whole.bad_lines);
    for (addr, names) in &part.table.names {
        let all = whole.table.names(*addr);
        assert!(all.is_some_and(|all| all.starts_with(names)), "{addr:?}: {names:?} of {all:?}");
    }
}
