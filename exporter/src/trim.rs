//! Lets go of the pages of the program that only its start needed.
//!
//! Arguments, configuration, the BPF object: most of what was touched so far is not touched again, and the kernel
//! mapped some pages around each of it, too (`fault_around_bytes`). They stay in the page cache, and one that is
//! needed after all comes back from there within a microsecond.

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Drops the mapped pages of the program's files as far as nothing was written to them: code and constants.
///
/// # Errors
/// When /proc/self/smaps cannot be read, or the kernel refuses.
pub fn release_files() -> io::Result<()> {
    for range in unwritten_files(&fs::read_to_string("/proc/self/smaps")?) {
        let Some(start) = NonNull::new(std::ptr::without_provenance_mut::<c_void>(range.start))
        else {
            continue;
        };
        // SAFETY: a private mapping of a file, no page of which was ever written to, reads the same from the file
        // again. It may not be written to, so nobody does meanwhile.
        unsafe { madvise(start, range.len(), MmapAdvise::MADV_DONTNEED) }?;
    }
    Ok(())
}

/// The address ranges of private mappings of files that cannot be written to and have no page of their own. What
/// was relocated has some, though it is read-only by now. The format: proc_pid_smaps(5).
fn unwritten_files(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (fields.next(), fields.next()) else { continue };
        match first.strip_suffix(':') {
            None => {
                found.extend(mapping.take());
                let is_file = fields.nth(2).is_some_and(|inode| inode != "0");
                if is_file
                    && second.starts_with('r')
                    && &second[1..2] == "-"
                    && second.ends_with('p')
                {
                    mapping = range(first);
                }
            }
            Some("Anonymous" | "Swap") if second != "0" => mapping = None,
            Some(_) => {}
        }
    }
    found.extend(mapping);
    found
}

fn range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_of_files_kb() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_and_constants_are_found_and_nothing_that_was_written_to() {
        let mapping = |head: &str, anonymous: u64, swap: u64| {
            format!(
                "{head}\nSize: 4 kB\nRss: 4 kB\nPrivate_Clean: 4 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd mr mw\n"
            )
        };
        let smaps = [
            mapping("1000-2000 r--p 00000000 fe:00 7 /bin/flowend", 0, 0),
            mapping("2000-5000 r-xp 00001000 fe:00 7 /bin/flowend", 0, 0),
            // Relocated, and then made read-only; some of it in the swap.
            mapping("5000-6000 r--p 00004000 fe:00 7 /bin/flowend", 4, 0),
            mapping("6000-7000 r--p 00005000 fe:00 7 /bin/flowend", 0, 4),
            mapping("7000-8000 rw-p 00006000 fe:00 7 /bin/flowend", 0, 0),
            // The ring, and memory that is no file's.
            mapping("8000-9000 r--s 00000000 00:0e 9 anon_inode:bpf-map", 0, 0),
            mapping("9000-a000 r--p 00000000 00:00 0 [vvar]", 0, 0),
            mapping("a000-b000 r-xp 00000000 fe:00 8 /lib/libc.so.6 (deleted)", 0, 0),
        ]
        .concat();
        assert_eq!(unwritten_files(&smaps), [0x1000..0x2000, 0x2000..0x5000, 0xa000..0xb000]);
        assert!(unwritten_files("").is_empty());
    }

    #[test]
    fn the_program_goes_on_with_less() {
        let before = resident_of_files_kb();
        release_files().unwrap();
        let after = resident_of_files_kb();
        assert!(after < before, "{before} kB before, {after} kB after");
    }
}
