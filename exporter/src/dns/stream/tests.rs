//! Lists of segments, and what comes out of them.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use EventKind::{DnsAnswer, DnsQuery, DnsStreamIn, DnsStreamOut};

const NO_FLAGS: u8 = 0;

/// Streams, and what has come out of them.
struct Bench {
    streams: Streams,
    out: Vec<(EventKind, u64, Vec<u8>)>,
    time_ns: u64,
}

impl Bench {
    fn new(limits: StreamLimits) -> Self {
        Self { streams: Streams::new(limits), out: Vec::new(), time_ns: 0 }
    }

    fn usual() -> Self {
        Self::new(StreamLimits::default())
    }

    fn with(&mut self, kind: EventKind, facts: &DnsEvent, payload: &[u8]) {
        let len = u16::try_from(payload.len()).unwrap();
        let facts = DnsEvent { kind: kind as u8, len, time_ns: self.time_ns, ..*facts };
        // Opened from here, and nothing else is known of it.
        let is_new = !self.streams.connections.contains_key(&facts.cookie);
        if is_new && (!payload.is_empty() || facts.flags & SYN != 0) {
            self.streams.make_room_for_one();
            self.streams.connections.insert(facts.cookie, Connection::new());
        }
        self.streams.take(kind, &facts, payload, &mut |kind, facts, message| {
            assert_eq!((facts.kind, facts.cut), (kind as u8, 0));
            assert_eq!(usize::from(facts.len), message.len());
            self.out.push((kind, facts.time_ns, message.to_vec()));
        });
        let stats = self.streams.stats();
        assert!(stats.holds(), "{stats:?}");
        assert_eq!(stats.messages, self.out.len() as u64);
        let kept: usize = self.streams.connections.iter().map(|(_, c)| c.bytes()).sum();
        assert_eq!(kept, self.streams.bytes);
        assert!(kept <= self.streams.limits.bytes, "{kept}");
        assert!(self.streams.connections.len() <= self.streams.limits.connections);
    }

    /// A segment from the server.
    fn answer(&mut self, flags: u8, seq: u32, payload: &[u8]) {
        self.with(DnsStreamIn, &DnsEvent { cookie: 1, seq, flags, ..DnsEvent::default() }, payload);
    }

    fn query(&mut self, flags: u8, seq: u32, payload: &[u8]) {
        self.with(
            DnsStreamOut,
            &DnsEvent { cookie: 1, seq, flags, ..DnsEvent::default() },
            payload,
        );
    }

    fn messages(&self) -> Vec<&[u8]> {
        self.out.iter().map(|(_, _, message)| &message[..]).collect()
    }
}

/// An answer of this length, with the length in front. No part of it looks like a whole short message.
fn framed(length: u16, mark: u8) -> Vec<u8> {
    let body = (0..length).map(|n| 0x80 | mark ^ n.to_be_bytes()[1]);
    length.to_be_bytes().into_iter().chain(body).collect()
}

/// A peer that connects from port 53 could have its own queries echoed, and answer them.
#[test]
fn a_connection_that_was_not_opened_from_here_is_none() {
    let mut streams = Streams::new(StreamLimits::default());
    let mut messages = 0;
    let mut take = |kind, flags, seq, payload: &[u8]| {
        let facts = DnsEvent { cookie: 1, seq, flags, ..DnsEvent::default() };
        streams.take(kind, &facts, payload, &mut |_, _, _| messages += 1);
        (streams.stats().no_start, streams.stats().connections, messages)
    };
    let message = framed(20, 1);
    take(DnsStreamIn, SYN, 10, &[]);
    take(DnsStreamOut, SYN | ACK, 20, &[]);
    take(DnsStreamIn, ACK, 11, &message);
    assert_eq!(take(DnsStreamOut, ACK, 21, &message), (2, 0, 0));
    // The socket connects by itself now.
    take(DnsStreamOut, SYN, 30, &[]);
    take(DnsStreamIn, SYN | ACK, 40, &[]);
    assert_eq!(take(DnsStreamIn, ACK, 41, &message), (2, 1, 1));
}

#[test]
fn both_directions_of_a_connection_are_put_together() {
    let mut bench = Bench::usual();
    bench.query(SYN, 999, b"");
    bench.answer(SYN, 4999, b"");
    bench.query(NO_FLAGS, 1000, b"\0\x02as\0\x01k");
    for (time, (seq, part)) in (5..).zip([(5000, "\0\x06ans"), (5005, "w"), (5006, "er\0")]) {
        bench.time_ns = time;
        bench.answer(NO_FLAGS, seq, part.as_bytes());
    }
    bench.answer(NO_FLAGS, 5009, b"\x01!");
    let want = [
        (DnsQuery, 0, b"as".to_vec()),
        (DnsQuery, 0, b"k".to_vec()),
        (DnsAnswer, 7, b"answer".to_vec()),
        (DnsAnswer, 7, b"!".to_vec()),
    ];
    assert_eq!(bench.out, want);
    let stats = bench.streams.stats();
    assert_eq!((stats.control, stats.taken, stats.waiting), (2, 5, 0));
    assert_eq!(
        stats.to_string(),
        "dns segments: seen 7 = control 2 + taken 5 + duplicate 0 + waiting 0; messages 4"
    );
}

#[test]
fn segments_come_in_any_order_and_more_than_once() {
    let mut bench = Bench::usual();
    bench.answer(SYN, u32::MAX - 3, b"");
    // Sequence numbers wrap in the first message; what is new of the third overlaps the second.
    let first = u32::MAX - 2;
    bench.answer(NO_FLAGS, first.wrapping_add(6), b"\0\x02cd");
    bench.answer(NO_FLAGS, first.wrapping_add(6), b"\0\x02cd");
    bench.answer(NO_FLAGS, first.wrapping_add(8), b"cd\0\x01e");
    assert_eq!(bench.streams.stats().waiting, 2);
    bench.answer(NO_FLAGS, first, b"\0\x04ab");
    bench.answer(NO_FLAGS, first, b"\0\x04ab..");
    bench.answer(NO_FLAGS, first, b"\0\x04ab..");
    assert_eq!(bench.messages(), [&b"ab.."[..], b"cd", b"e"]);
    let stats = bench.streams.stats();
    assert_eq!((stats.taken, stats.duplicate, stats.waiting), (4, 2, 0), "{stats}");
}

#[test]
fn fast_open_brings_payload_with_the_syn() {
    let mut bench = Bench::usual();
    bench.query(SYN, 10, b"\0\x02hi");
    // Not taken by the server, and so sent again; then the SYN itself.
    bench.query(NO_FLAGS, 11, b"\0\x02hi");
    bench.query(SYN, 10, b"");
    bench.query(NO_FLAGS, 15, b"\0\x01x");
    assert_eq!(bench.messages(), [&b"hi"[..], b"x"]);
    // The same socket connects anew.
    bench.query(SYN, 15, b"");
    bench.query(NO_FLAGS, 16, b"\0\x01y");
    assert_eq!(bench.messages(), [&b"hi"[..], b"x", b"y"]);
}

#[test]
fn an_empty_message_is_skipped() {
    let mut bench = Bench::usual();
    bench.answer(SYN, 0, b"");
    bench.answer(NO_FLAGS, 1, b"\0\0\0");
    bench.answer(NO_FLAGS, 4, b"\0");
    bench.answer(NO_FLAGS, 5, b"\0\x01a\0\0");
    assert_eq!(bench.messages(), [b"a"]);
}

/// What it is, segments by sequence number, messages that come out, segments dropped.
type Found<'a> = (&'a str, &'a [(u32, &'a [u8])], usize, u64);

/// Without a SYN.
#[test]
fn a_beginning_that_was_missed_is_found_again() {
    let [a, b] = [framed(20, 1), framed(300, 2)];
    let both = [&a[..], &b].concat();
    let query = [&[0, 20][..], &[0; 20]].concat();
    let cases: [Found<'_>; 9] = [
        ("a whole message", &[(100, &a)], 1, 0),
        ("two in a segment", &[(100, &both)], 2, 0),
        ("the length alone, then the rest", &[(100, &a[..2]), (102, &a[2..])], 1, 0),
        ("one in three segments", &[(0, &b[..3]), (3, &b[3..200]), (200, &b[200..])], 1, 0),
        ("the end of one, then a whole one", &[(0, &b[100..]), (202, &a)], 1, 1),
        ("a query where answers come", &[(0, &query)], 0, 1),
        ("less than a header", &[(0, &[0, 2, 1, 1])], 0, 1),
        ("what looks like a beginning, then a whole one", &[(0, &b[..9]), (9, &a)], 1, 1),
        ("one begun, and another far away", &[(0, &b[..9]), (1 << 30, &a)], 1, 1),
    ];
    for (what, segments, messages, dropped) in cases {
        let mut bench = Bench::usual();
        for (seq, bytes) in segments {
            bench.answer(NO_FLAGS, *seq, bytes);
        }
        assert_eq!(bench.out.len(), messages, "{what}");
        let stats = bench.streams.stats();
        assert_eq!((stats.no_start, stats.waiting), (dropped, 0), "{what}: {stats}");
    }
}

#[test]
fn a_gap_that_stays_is_given_up_and_the_stream_found_again() {
    let limits = StreamLimits { held: 3, ..StreamLimits::default() };
    let segment = framed(100, 7);
    let at = |n: u32| 1 + 102 * n;
    let mut bench = Bench::new(limits);
    bench.answer(SYN, 0, b"");
    bench.answer(NO_FLAGS, at(0), &segment[..50]);
    for n in 1..4 {
        bench.answer(NO_FLAGS, at(n), &segment);
        assert_eq!(bench.streams.stats().waiting, u64::from(n));
    }
    bench.answer(NO_FLAGS, at(4), &segment);
    assert_eq!(bench.out.len(), 4, "each of them begins a message");
    // Not by number but by time.
    bench.answer(NO_FLAGS, at(6), &segment);
    bench.time_ns = 11_000_000_000;
    bench.answer(NO_FLAGS, at(8), &[0; 50]);
    let stats = bench.streams.stats();
    assert_eq!((bench.out.len(), stats.waiting), (5, 1), "{stats}");
    bench.time_ns *= 2;
    bench.answer(NO_FLAGS, at(9), &segment);
    let stats = bench.streams.stats();
    assert_eq!((bench.out.len(), stats.waiting, stats.gap), (6, 0, 1), "{stats}");
}

#[test]
fn one_from_far_away_is_dropped_and_many_mean_another_connection() {
    let message = framed(30, 3);
    for told in [true, false] {
        let mut bench = Bench::usual();
        if told {
            bench.answer(SYN, 999, b"");
        }
        bench.answer(NO_FLAGS, 1000, &message);
        for seq in [1 << 31, 1 << 25] {
            bench.answer(NO_FLAGS, seq, &message);
        }
        bench.answer(SYN, 1 << 29, b"");
        bench.answer(NO_FLAGS, 1032, &message);
        let stats = bench.streams.stats();
        assert_eq!((bench.out.len(), stats.far, stats.taken), (2, 2, 2), "{told}: {stats}");
        for n in 0..20 {
            bench.answer(NO_FLAGS, (1 << 30) + 32 * n, &message);
        }
        assert_eq!(bench.out.len(), 2 + 20 - if told { 16 } else { 2 }, "{told}");
    }
}

#[test]
fn what_was_cut_completes_messages_but_begins_none() {
    let mut bench = Bench::usual();
    let cut = |seq| DnsEvent { cookie: 1, seq, cut: 1, ..DnsEvent::default() };
    let message = framed(20, 9);
    bench.answer(SYN, 0, b"");
    bench.with(DnsStreamIn, &cut(1), &[&message[..], &message[..5]].concat());
    bench.answer(NO_FLAGS, 4000, &message[7..]);
    bench.with(DnsStreamIn, &cut(4015), &message);
    bench.answer(NO_FLAGS, 6000, &message);
    let stats = bench.streams.stats();
    assert_eq!((bench.out.len(), stats.cut, stats.no_start, stats.taken), (2, 1, 2, 1), "{stats}");
}

#[test]
fn nothing_is_kept_of_what_is_over() {
    let ends = [
        "fin",
        "fin with payload",
        "reset by us",
        "reset by the server",
        "forged reset",
        "forged fin",
    ];
    for end in ends {
        let mut bench = Bench::usual();
        bench.query(SYN, 0, b"");
        bench.answer(SYN, 0, b"");
        bench.answer(NO_FLAGS, 1, b"\0\x09abc");
        bench.answer(NO_FLAGS, 10, b"xyz");
        let stays = end.starts_with("forged");
        match end {
            "fin" => {
                bench.query(FIN, 1, b"");
                bench.answer(FIN, 6, b"");
            }
            "fin with payload" => {
                bench.query(FIN, 1, b"");
                bench.answer(FIN, 6, b"d");
            }
            "reset by us" => bench.query(RST, 1, b""),
            "reset by the server" => bench.answer(RST, 6, b""),
            "forged reset" => bench.answer(RST, 7, b""),
            _ => {
                bench.query(FIN, 1, b"");
                bench.answer(FIN, 77, b"");
            }
        }
        let stats = bench.streams.stats();
        assert_eq!((stats.bytes > 0, stats.waiting > 0), (stays, stays), "{end}");
    }
}

#[test]
fn memory_is_bounded_whatever_comes() {
    let limits = StreamLimits { connections: 50, bytes: 100_000, held: 8 };
    let mut bench = Bench::new(limits);
    let start = framed(60_000, 0);
    for n in 0..5_000_u32 {
        let cookie = u64::from(n % 400);
        let facts = DnsEvent { cookie, seq: n * 7, ..DnsEvent::default() };
        let kind = if n % 3 == 0 { DnsStreamOut } else { DnsStreamIn };
        bench.with(kind, &facts, &start[..1 + (n as usize * 37) % 9_000]);
    }
    let stats = bench.streams.stats();
    assert!(stats.limit > 0 && stats.connections <= 50, "{stats:?}");
    // One connection alone does not get past it either.
    let mut bench = Bench::new(StreamLimits { bytes: 10_000, ..limits });
    bench.answer(SYN, 0, b"");
    bench.answer(NO_FLAGS, 1, &start[..20_000]);
    assert_eq!(bench.streams.stats().bytes, 0);
}

/// What happens to a list of segments on its way.
#[derive(Clone, Debug)]
enum Fate {
    /// The segment at the one place is sent again at the other, a bit longer or shorter.
    Again(Index, Index, i8),
    /// A segment comes later, by as many places.
    Late(Index, usize),
    /// Somebody sends one of these from nowhere near.
    Forged(Index, u32, Vec<u8>),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        (any::<Index>(), any::<Index>(), any::<i8>()).prop_map(|(a, b, n)| Fate::Again(a, b, n)),
        (any::<Index>(), 0..6_usize).prop_map(|(at, by)| Fate::Late(at, by)),
        (any::<Index>(), (1_u32 << 22)..(1 << 31), vec(any::<u8>(), 1..40))
            .prop_map(|(at, far, bytes)| Fate::Forged(at, far, bytes)),
    ]
}

/// Segments of `stream` by offset, cut at these places, and then what becomes of them.
fn sent(stream: &[u8], cuts: &[Index], fates: &[Fate]) -> Vec<(u32, Vec<u8>)> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    cuts.extend([0, stream.len()]);
    // No segment of IPv4 is longer.
    cuts.extend((0..stream.len()).step_by(60_000));
    cuts.sort_unstable();
    cuts.dedup();
    let piece = |from: usize, to: usize| (u32::try_from(from).unwrap(), stream[from..to].to_vec());
    let mut segments: Vec<_> = cuts.windows(2).map(|cut| piece(cut[0], cut[1])).collect();
    for fate in fates {
        match fate {
            Fate::Again(from, to, n) => {
                let (start, bytes) = segments[from.index(segments.len())].clone();
                let start = start as usize;
                if start >= stream.len() {
                    continue;
                }
                let end = (start + bytes.len()).saturating_add_signed(isize::from(*n));
                let again = piece(start, end.clamp(start + 1, stream.len()));
                segments.insert(to.index(segments.len() + 1), again);
            }
            Fate::Late(at, by) => {
                let at = at.index(segments.len());
                let segment = segments.remove(at);
                segments.insert((at + by).min(segments.len()), segment);
            }
            Fate::Forged(at, far, bytes) => {
                segments.insert(at.index(segments.len() + 1), (*far, bytes.clone()));
            }
        }
    }
    segments
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_the_messages_come_out_in_order(
        messages in vec(prop_oneof![9 => vec(any::<u8>(), 0..300), 1 => vec(any::<u8>(), 0..65_536)], 1..12),
        cuts in vec(any::<Index>(), 0..20),
        fates in vec(fate(), 0..12),
        isn in prop_oneof![any::<u32>(), (u32::MAX - 1000)..=u32::MAX],
    ) {
        let frame = |message: &Vec<u8>| {
            let length = u16::try_from(message.len()).unwrap().to_be_bytes();
            [&length[..], message].concat()
        };
        let stream: Vec<u8> = messages.iter().flat_map(frame).collect();
        // So that all of it may wait at the same time.
        let fates = if stream.len() < 4000 { &fates[..] } else { &[] };
        let mut bench = Bench::usual();
        bench.answer(SYN, isn, b"");
        for (offset, bytes) in sent(&stream, &cuts, fates) {
            bench.answer(NO_FLAGS, isn.wrapping_add(1).wrapping_add(offset), &bytes);
        }
        let want: Vec<&[u8]> = messages.iter().filter(|m| !m.is_empty()).map(|m| &m[..]).collect();
        prop_assert_eq!(bench.messages(), want);
        prop_assert_eq!(bench.streams.stats().waiting, 0);
    }

    #[test]
    fn without_a_syn_they_come_out_as_well(
        messages in vec((12_u16..2000, any::<u8>()), 1..12),
        cuts in vec(any::<Index>(), 0..12),
        again in vec(any::<Index>(), 0..5),
        seq in prop_oneof![any::<u32>(), (u32::MAX - 1000)..=u32::MAX],
    ) {
        let frames: Vec<Vec<u8>> = messages.iter().map(|(len, mark)| framed(*len, *mark)).collect();
        let mut bench = Bench::usual();
        let mut segments = sent(&frames.concat(), &cuts, &[]);
        // Repeated after the first time.
        for at in again {
            let at = at.index(segments.len());
            segments.insert(at + 1, segments[at].clone());
        }
        for (offset, bytes) in segments {
            bench.answer(NO_FLAGS, seq.wrapping_add(offset), &bytes);
        }
        let want: Vec<&[u8]> = frames.iter().map(|frame| &frame[2..]).collect();
        prop_assert_eq!(bench.messages(), want);
    }

    #[test]
    fn anything_at_all_is_accounted_for_and_bounded(
        segments in vec((any::<bool>(), 0..4_u64, 0..3_000_u32, any::<u8>(), any::<bool>(), vec(any::<u8>(), 0..300)), 0..200),
    ) {
        let mut bench = Bench::new(StreamLimits { connections: 3, bytes: 4_000, held: 4 });
        for (n, (is_in, cookie, seq, flags, cut, bytes)) in (0..).zip(segments) {
            bench.time_ns = n * 1_000_000_000;
            let kind = if is_in { DnsStreamIn } else { DnsStreamOut };
            // `Bench::with` checks what must hold.
            bench.with(kind, &DnsEvent { cookie, seq, flags, cut: cut.into(), ..DnsEvent::default() }, &bytes);
        }
    }
}
