//! What one hosts file says: hosts(5).

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use flowend_probe_types::Addr;

use crate::enrich::escape::escaped_text;

/// Names of one address at most: those written first.
const MAX_NAMES: usize = 8;

/// What an address takes beside its names, about, bytes: its place in the map with room to grow, and a slice.
const ADDRESS_BYTES: usize = 128;

/// What a name takes beside its text, about, bytes: a pointer to it, two counters, and malloc's share.
const NAME_BYTES: usize = 48;

/// The names of addresses, as one version of a file has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    names: HashMap<Addr, Arc<[Arc<str>]>>,
    bytes: usize,
}

/// A table, and what of the file is not in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) table: Table,
    /// Lines without an address or without a name, and those with a name too long to be one.
    pub(super) bad_lines: u64,
    /// The table is as large as one may be; the rest was not read.
    pub(super) is_full: bool,
}

impl Table {
    /// Reads a file's bytes, until the table takes `max_bytes`.
    pub(super) fn parse(text: &[u8], max_bytes: usize) -> Parsed {
        let mut names: HashMap<Addr, Vec<Arc<str>>> = HashMap::new();
        let (mut bytes, mut bad_lines, mut is_full) = (0, 0, false);
        for line in text.split(|byte| *byte == b'\n') {
            let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
            let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
            let Some(first) = words.next() else { continue };
            let mut words = words.peekable();
            let (Some(addr), Some(_)) = (address(first), words.peek()) else {
                bad_lines += 1;
                continue;
            };
            if bytes >= max_bytes {
                is_full = true;
                break;
            }
            let known = names.entry(addr).or_insert_with(|| {
                bytes += ADDRESS_BYTES;
                Vec::new()
            });
            let mut is_bad = false;
            // A list of what to block has one address for all: no work for names that are not kept.
            for word in words {
                if known.len() == MAX_NAMES {
                    break;
                }
                match escaped_text(word) {
                    Some(name) if known.contains(&name) => {}
                    Some(name) => {
                        bytes += NAME_BYTES + name.len();
                        known.push(name);
                    }
                    None => is_bad = true,
                }
            }
            bad_lines += u64::from(is_bad);
        }
        let names = names
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(addr, names)| (addr, names.into()))
            .collect();
        Parsed { table: Self { names, bytes }, bad_lines, is_full }
    }

    /// The names of an address, as they follow each other in the file: canonical name, then aliases.
    pub(super) fn names(&self, addr: Addr) -> Option<&Arc<[Arc<str>]>> {
        self.names.get(&addr)
    }

    /// Memory that it takes, about, bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// An address as hosts(5) has it. A scope ("fe80::1%eth0", RFC 4007) says through which interface; a
/// connection's address does not, so the name counts for each.
fn address(word: &[u8]) -> Option<Addr> {
    let text = std::str::from_utf8(word).ok()?;
    let ip: IpAddr = match text.split_once('%') {
        Some((address, scope)) if !scope.is_empty() => IpAddr::V6(address.parse().ok()?),
        Some(_) => return None,
        None => text.parse().ok()?,
    };
    Some(ip.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parsed: &Parsed, ip: &str) -> Vec<String> {
        let addr: IpAddr = ip.parse().unwrap();
        let names = parsed.table.names(addr.into());
        names.iter().flat_map(|names| names.iter()).map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_as_people_write_it() {
        let parsed = Table::parse(
            b"# static\n\
              127.0.0.1\tlocalhost\n\
              ::1   localhost ip6-localhost # loopback\r\n\
              \n   \t \n\
              192.0.2.7 db.test DB db.test. # the canonical name, an alias, itself\n\
              ::ffff:192.0.2.8 mapped.test\n\
              fe80::1%eth0 link.test\n\
              192.0.2.7 second.test\n\
              198.51.100.9 last.test",
            usize::MAX,
        );
        for (ip, want) in [
            ("127.0.0.1", &["localhost"][..]),
            ("::1", &["localhost", "ip6-localhost"]),
            ("192.0.2.7", &["db.test", "db", "second.test"]),
            ("192.0.2.8", &["mapped.test"]),
            ("fe80::1", &["link.test"]),
            ("198.51.100.9", &["last.test"]),
            ("192.0.2.99", &[]),
        ] {
            assert_eq!(names(&parsed, ip), want, "{ip}");
        }
        assert_eq!((parsed.bad_lines, parsed.is_full), (0, false));
    }

    #[test]
    fn a_bad_line_is_counted_and_the_next_is_read() {
        let too_long = format!("192.0.2.1 {} short.test", "x".repeat(256));
        for (line, kept) in [
            ("192.0.2.1", &[][..]),
            ("192.0.2.1 # nobody", &[]),
            ("name.test 192.0.2.1", &[]),
            ("192.0.2.256 a", &[]),
            // Octal in inet_aton(3), and refused by inet_pton(3), which resolvers use.
            ("192.0.02.1 a", &[]),
            ("192.0.2.1%eth0 a", &[]),
            ("fe80::1% a", &[]),
            ("\u{fc} a", &[]),
            (too_long.as_str(), &["short.test"]),
        ] {
            let parsed = Table::parse(format!("{line}\n192.0.2.5 good\n").as_bytes(), usize::MAX);
            assert_eq!(parsed.bad_lines, 1, "{line}");
            assert_eq!(names(&parsed, "192.0.2.1"), kept, "{line}");
            assert_eq!(names(&parsed, "192.0.2.5"), ["good"], "{line}");
        }
    }

    #[test]
    fn a_name_cannot_hurt_who_reads_it() {
        let parsed = Table::parse(b"192.0.2.1 a\x1b[2Jb q\"uote \xff\n", usize::MAX);
        assert_eq!(names(&parsed, "192.0.2.1"), ["a\\027[2jb", "q\\034uote", "\\255"]);
    }

    #[test]
    fn a_list_of_what_to_block_takes_no_more_than_its_first_names() {
        use std::fmt::Write as _;
        let mut text = String::new();
        for n in 0..10_000 {
            let _ = writeln!(text, "0.0.0.0 ads{n}.test tracker{n}.test");
        }
        let parsed = Table::parse(text.as_bytes(), usize::MAX);
        let first: Vec<String> =
            (0..4).flat_map(|n| [format!("ads{n}.test"), format!("tracker{n}.test")]).collect();
        assert_eq!(names(&parsed, "0.0.0.0"), first);
        assert!(parsed.table.bytes() < 1000, "{}", parsed.table.bytes());
        assert_eq!(parsed.bad_lines, 0);
    }

    #[test]
    fn a_table_is_no_larger_than_it_may_be() {
        use std::fmt::Write as _;
        let mut text = String::new();
        for n in 0..1000 {
            let _ = writeln!(text, "10.0.{}.{} host{n}", n / 256, n % 256);
        }
        let whole = Table::parse(text.as_bytes(), usize::MAX);
        assert!(!whole.is_full && names(&whole, "10.0.3.231") == ["host999"]);
        let part = Table::parse(text.as_bytes(), 10_000);
        assert!(part.is_full);
        // One more address than fits, with its names.
        let one = ADDRESS_BYTES + MAX_NAMES * (NAME_BYTES + 255);
        assert!(part.table.bytes() < 10_000 + one, "{}", part.table.bytes());
        assert_eq!(names(&part, "10.0.0.0"), ["host0"]);
        assert_eq!(names(&part, "10.0.3.231"), Vec::<String>::new());
    }
}
