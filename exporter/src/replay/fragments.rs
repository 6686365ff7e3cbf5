//! Datagrams out of their IP fragments: a DNS answer may be longer than a packet of its way.
//!
//! Only UDP: TCP does not let its segments be cut. The kernel joins fragments before the probe's hook
//! sees a packet, so `run` has no need of this.

use std::fmt;

use flowend_probe_types::Addr;
use hashlink::LruCache;

use super::ip::Fragment;

/// Datagrams whose parts may be awaited at the same time; past it the oldest is forgotten.
const MAX_DATAGRAMS: usize = 64;

/// The rest of a datagram is awaited for so long, ns (Linux: net.ipv4.ipfrag_time).
const LIFE_NS: u64 = 30_000_000_000;

/// No datagram is longer, bytes.
const MAX_LENGTH: usize = u16::MAX as usize;

/// Parts of one datagram at most; of an Ethernet it has 45.
const MAX_PARTS: usize = 128;

/// What became of the fragments: `seen = joined + repeated + dropped{cause} + waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FragmentStats {
    pub(super) seen: u64,
    /// Part of a datagram that became whole.
    pub(super) joined: u64,
    pub(super) repeated: u64,
    /// Of a datagram whose rest did not come, or for which there was no room.
    pub(super) incomplete: u64,
    /// Of a datagram whose parts contradict each other (RFC 5722).
    pub(super) contradictory: u64,
    /// Measured.
    pub(super) waiting: u64,
}

impl FragmentStats {
    /// Whether every fragment seen is accounted for.
    #[cfg(any(test, fuzzing))]
    pub(super) const fn holds(&self) -> bool {
        let dropped = self.incomplete + self.contradictory;
        self.seen == self.joined + self.repeated + dropped + self.waiting
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: [u8; 16],
    dst: [u8; 16],
    id: u32,
}

/// A datagram of which parts are there.
#[derive(Debug, Default)]
struct Partial {
    since_ns: u64,
    /// In order, by offset; they do not overlap.
    parts: Vec<(usize, Vec<u8>)>,
    /// Known with the last part.
    length: Option<usize>,
}

/// What a part does to its datagram.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    New,
    Repeated,
    Contradicts,
}

/// Datagrams that wait for their rest.
#[derive(Debug)]
pub(super) struct Fragments {
    partial: LruCache<Key, Partial>,
    stats: FragmentStats,
}

impl Fragments {
    /// None waits.
    pub(super) fn new() -> Self {
        Self { partial: LruCache::new_unbounded(), stats: FragmentStats::default() }
    }

    /// Takes in a part, and returns its datagram with the UDP header where that is now whole.
    pub(super) fn take(&mut self, fragment: &Fragment<'_>, time_ns: u64) -> Option<Vec<u8>> {
        self.stats.seen += 1;
        let bytes_of = |addr: Addr| addr.octets();
        let key = Key { src: bytes_of(fragment.src), dst: bytes_of(fragment.dst), id: fragment.id };
        let since = self.partial.peek(&key).map(|partial| partial.since_ns);
        // Ids come again.
        if since.is_some_and(|since| time_ns.saturating_sub(since) > LIFE_NS) {
            self.stats.incomplete += self.forget(&key);
        }
        if self.partial.len() >= MAX_DATAGRAMS && !self.partial.contains_key(&key) {
            let oldest = self.partial.remove_lru();
            self.stats.incomplete += oldest.map_or(0, |(_, old)| old.parts.len() as u64);
        }
        let new = || Partial { since_ns: time_ns, ..Partial::default() };
        let partial = self.partial.entry(key).or_insert_with(new);
        match partial.add(fragment) {
            Fit::New => {}
            Fit::Repeated => {
                self.stats.repeated += 1;
                return None;
            }
            Fit::Contradicts => {
                self.stats.contradictory += 1 + self.forget(&key);
                return None;
            }
        }
        let whole = partial.whole()?;
        self.stats.joined += self.forget(&key);
        Some(whole)
    }

    /// What became of the fragments so far.
    pub(super) fn stats(&self) -> FragmentStats {
        let waiting = self.partial.iter().map(|(_, partial)| partial.parts.len() as u64).sum();
        FragmentStats { waiting, ..self.stats }
    }

    /// How many parts it had.
    fn forget(&mut self, key: &Key) -> u64 {
        self.partial.remove(key).map_or(0, |partial| partial.parts.len() as u64)
    }
}

impl Partial {
    fn add(&mut self, fragment: &Fragment<'_>) -> Fit {
        let Fragment { offset, more, bytes, .. } = *fragment;
        let end = offset + bytes.len();
        let last_end = self.parts.last().map_or(0, |(at, part)| at + part.len());
        let at = self.parts.partition_point(|(other, _)| *other < offset);
        if self.parts.get(at).is_some_and(|(other, part)| *other == offset && part == bytes) {
            return Fit::Repeated;
        }
        let overlaps = self.parts[..at].last().is_some_and(|(at, part)| at + part.len() > offset)
            || self.parts.get(at).is_some_and(|(next, _)| *next < end);
        let ends_otherwise = match self.length {
            Some(length) => end > length || !more,
            None => !more && last_end > end,
        };
        let is_too_much = end > MAX_LENGTH || bytes.is_empty() || self.parts.len() >= MAX_PARTS;
        if overlaps || ends_otherwise || is_too_much {
            return Fit::Contradicts;
        }
        if !more {
            self.length = Some(end);
        }
        self.parts.insert(at, (offset, bytes.to_vec()));
        Fit::New
    }

    /// The parts do not overlap, so that as many bytes as it is long are all of it.
    fn whole(&self) -> Option<Vec<u8>> {
        let there: usize = self.parts.iter().map(|(_, part)| part.len()).sum();
        (self.length == Some(there))
            .then(|| self.parts.iter().flat_map(|(_, part)| part).copied().collect())
    }
}

impl fmt::Display for FragmentStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seen, joined, repeated, incomplete, contradictory, waiting } = self;
        write!(
            f,
            "udp fragments {seen} = joined {joined} + repeated {repeated} + dropped{{incomplete}} \
             {incomplete} + dropped{{contradictory}} {contradictory} + waiting {waiting}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn fragment(id: u32, offset: usize, more: bool, bytes: &[u8]) -> Fragment<'_> {
        Fragment { src: Addr::v4(1), dst: Addr::v4(2), id, offset, more, bytes }
    }

    #[test]
    fn parts_are_joined_in_any_order() {
        let parts = [(0, true, &b"12345678"[..]), (8, true, b"abcdefgh"), (16, false, b"end")];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let mut fragments = Fragments::new();
            let mut whole = Vec::new();
            for at in order {
                let (offset, more, bytes) = parts[at];
                // Another datagram is none of its business.
                assert_eq!(fragments.take(&fragment(2, offset, true, b"other"), 0), None);
                whole.extend(fragments.take(&fragment(1, offset, more, bytes), 0));
            }
            assert_eq!(whole, [b"12345678abcdefghend"], "{order:?}");
            assert_eq!(fragments.stats().joined, 3);
            assert!(fragments.stats().holds());
        }
    }

    /// Id, offset, whether more follow, bytes, time in s.
    type Step<'a> = (u32, usize, bool, &'a [u8], u64);

    #[test]
    fn what_does_not_fit_is_dropped_with_its_cause() {
        let a = &b"12345678"[..];
        // Steps; repeated, incomplete, contradictory, waiting.
        let cases: [(&str, &[Step<'_>], [u64; 4]); 7] = [
            ("repeated", &[(1, 0, true, a, 0), (1, 0, true, a, 0)], [1, 0, 0, 1]),
            ("overlaps", &[(1, 0, true, a, 0), (1, 4, true, a, 0)], [0, 0, 2, 0]),
            ("other bytes", &[(1, 0, true, a, 0), (1, 0, true, b"x2345678", 0)], [0, 0, 2, 0]),
            ("behind its end", &[(1, 8, false, a, 0), (1, 16, true, a, 0)], [0, 0, 2, 0]),
            ("ends before", &[(1, 16, true, a, 0), (1, 8, false, a, 0)], [0, 0, 2, 0]),
            ("too long", &[(1, 65_528, false, a, 0)], [0, 0, 1, 0]),
            ("too late", &[(1, 0, true, a, 0), (1, 8, false, a, 31)], [0, 1, 0, 1]),
        ];
        for (name, steps, want) in cases {
            let mut fragments = Fragments::new();
            for (id, offset, more, bytes, seconds) in steps {
                let fragment = fragment(*id, *offset, *more, bytes);
                assert_eq!(fragments.take(&fragment, seconds * 1_000_000_000), None, "{name}");
            }
            let s = fragments.stats();
            assert_eq!([s.repeated, s.incomplete, s.contradictory, s.waiting], want, "{name}");
            assert!(fragments.stats().holds(), "{name}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut fragments = Fragments::new();
        for id in 0..1000 {
            assert_eq!(fragments.take(&fragment(id, 0, true, &[7; 1480]), 0), None);
        }
        let stats = fragments.stats();
        assert_eq!((stats.waiting, stats.incomplete), (64, 936));
        for part in 0..1000 {
            fragments.take(&fragment(5000, part * 16, true, &[7; 8]), 0);
            assert!(fragments.stats().waiting <= 63 + 128);
        }
        assert!(fragments.stats().holds());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_fragments_are_accounted_for(
            steps in vec((0..3_u32, 0..10_usize, any::<bool>(), vec(0..2_u8, 0..24), 0..20_u64), 0..60),
        ) {
            let mut fragments = Fragments::new();
            let mut time = 0;
            for (id, offset, more, bytes, wait) in steps {
                time += wait * 1_000_000_000;
                if let Some(whole) = fragments.take(&fragment(id, offset * 8, more, &bytes), time) {
                    // The part that made it whole is in its place.
                    prop_assert_eq!(&whole[offset * 8..][..bytes.len()], &bytes);
                }
                prop_assert!(fragments.stats().holds());
            }
        }
    }
}
