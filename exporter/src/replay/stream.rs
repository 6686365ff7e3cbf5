//! What one side of a connection sent: its sequence space (RFC 9293, section 3.4), seen from a
//! capture, which may lack packets, and show others twice or out of order.

use smallvec::SmallVec;

/// A sequence number further away from what is expected is not of this stream: the largest window
/// (RFC 7323, section 2.3).
const MAX_WINDOW: i64 = 1 << 30;

/// Gaps remembered at the same time; with more, the bytes are not counted any more.
const MAX_HOLES: usize = 64;

/// One packet, by number and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Of the packet, counted from 1: times may be equal, or go back.
    pub(super) index: u64,
    /// ns since 1970.
    pub(super) time_ns: u64,
}

/// What a payload was to its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Placed {
    /// Holds bytes that were seen before.
    pub(super) resent: bool,
    /// Its gap in front was acknowledged already: the capture lacks it.
    pub(super) gaps: u32,
}

/// The sequence space of one sender. Positions count from the first byte after the SYN, or from the
/// first byte seen; they do not wrap.
#[derive(Debug, Default)]
pub(super) struct Stream {
    isn: Option<u32>,
    /// The sequence number of position 0.
    base: Option<u32>,
    low: i64,
    /// After the last payload byte seen.
    next: i64,
    /// The highest acknowledgement number of the other side.
    acked: Option<u32>,
    holes: SmallVec<[(i64, i64); 1]>,
    /// More holes than are remembered.
    inexact: bool,
    fin: Option<(i64, Mark)>,
    /// Packets sent.
    pub(super) packets: u32,
    /// Packets that repeated payload, a SYN or a FIN.
    pub(super) resent: u32,
}

impl Stream {
    /// The initial sequence number, if its SYN was seen.
    pub(super) const fn isn(&self) -> Option<u32> {
        self.isn
    }

    /// A SYN: whether it is the first one, or one that was captured late.
    pub(super) fn synchronise(&mut self, isn: u32) {
        if self.isn.is_some() {
            return;
        }
        self.isn = Some(isn);
        self.base.get_or_insert(isn.wrapping_add(1));
    }

    /// Whether `seq` is where the stream begins, as far as it was seen or acknowledged.
    pub(super) fn begins_at(&self, seq: u32) -> bool {
        self.position(seq) == Some(self.low) || (self.base.is_none() && self.acked == Some(seq))
    }

    /// Takes in payload.
    pub(super) fn place(&mut self, seq: u32, payload: u32) -> Placed {
        let mut placed = Placed::default();
        if self.base.is_none() {
            self.base = Some(seq);
        }
        let Some(from) = self.position(seq).filter(|p| self.is_near(*p)) else { return placed };
        let to = from + i64::from(payload);
        if payload == 0 {
            return placed;
        }
        // A FIN is the last thing in the sequence space: what lies beyond proves it false.
        self.fin = self.fin.filter(|(at, _)| *at >= to);
        let before = self.next;
        if from > before {
            let is_acked = self.acked_position().is_some_and(|acked| acked >= from);
            if is_acked { placed.gaps += 1 } else { self.open_hole(before, from) }
        }
        self.next = self.next.max(to);
        if from < before {
            placed.resent = self.fill(from, to.min(before));
        }
        placed
    }

    /// Takes in an acknowledgement by the other side: how many gaps it proves to be the capture's.
    pub(super) fn acknowledge(&mut self, ack: u32) -> u32 {
        let is_new = self.acked.is_none_or(|old| ack.wrapping_sub(old).cast_signed() > 0);
        if !is_new || !self.position(ack).is_none_or(|p| self.is_near(p)) {
            return 0;
        }
        self.acked = Some(ack);
        let Some(acked) = self.position(ack) else { return 0 };
        let before = self.holes.len();
        self.holes.retain(|(_, to)| *to > acked);
        let mut gaps = u32::try_from(before - self.holes.len()).unwrap_or(u32::MAX);
        if let Some((fin, _)) = self.fin
            && fin > self.next
            && acked >= fin
        {
            self.next = fin;
            gaps += 1;
        }
        gaps
    }

    /// Takes in a FIN; `seq` is its own sequence number, after the payload. Whether it repeats one.
    pub(super) fn finish(&mut self, seq: u32, mark: Mark) -> bool {
        let Some(at) = self.position(seq).filter(|p| self.is_near(*p)) else { return false };
        match self.fin {
            Some((fin, _)) => fin == at,
            None if at < self.next => false,
            None => {
                self.fin = Some((at, mark));
                false
            }
        }
    }

    /// The packet whose FIN ended the stream.
    pub(super) fn fin(&self) -> Option<Mark> {
        self.fin.map(|(_, mark)| mark)
    }

    /// Whether this payload lies behind the stream's FIN: then it is of another connection.
    pub(super) fn is_behind_fin(&self, seq: u32, payload: u32) -> bool {
        let end = self.position(seq).map(|at| at + i64::from(payload));
        payload > 0 && self.fin.zip(end).is_some_and(|((fin, _), end)| end > fin)
    }

    /// Whether an RST with this sequence number is just what its receiver may expect: at or after what
    /// it acknowledged, and not past what was sent to it (RFC 5961, section 3.2). Linux takes the
    /// number before it, too, once it has the FIN (`tcp_reset_check`).
    pub(super) fn may_reset_at(&self, seq: u32) -> bool {
        let Some(at) = self.position(seq) else {
            // Nothing of the sender was seen, so all is known from the acknowledgements.
            return self.acked.is_none_or(|acked| acked == seq);
        };
        let acked = self.acked_position().unwrap_or(self.low);
        let low = self.fin.map_or(acked, |(fin, _)| acked.min(fin));
        (low..=self.end().max(acked)).contains(&at)
    }

    /// Whether `ack` acknowledges something that this side sent, and nothing that it did not.
    pub(super) fn may_acknowledge(&self, ack: u32) -> bool {
        self.position(ack).is_some_and(|at| (self.low..=self.end()).contains(&at))
    }

    /// Payload bytes sent, each counted once: those seen, and those of a gap that the receiver has
    /// acknowledged. `None` where a gap was never acknowledged, since nobody knows whether it is the
    /// capture's or the network's; and where the acknowledgements go past the last packet seen, since
    /// a FIN may be among what is missing.
    pub(super) fn bytes(&self) -> Option<u64> {
        if self.base.is_none() {
            return self.acked.is_none().then_some(0);
        }
        let tail_is_missing = self.fin.is_some_and(|(fin, _)| fin > self.next)
            || self.acked_position().is_some_and(|acked| acked > self.end());
        if self.inexact || !self.holes.is_empty() || tail_is_missing {
            return None;
        }
        u64::try_from(self.next - self.low).ok()
    }

    /// After everything sent, the FIN included.
    fn end(&self) -> i64 {
        self.fin.map_or(self.next, |(fin, _)| fin.max(self.next) + 1)
    }

    fn acked_position(&self) -> Option<i64> {
        self.acked.and_then(|acked| self.position(acked))
    }

    fn position(&self, seq: u32) -> Option<i64> {
        // The lower half of the position is what the sequence number tells.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let next = self.base?.wrapping_add(self.next as u32);
        Some(self.next + i64::from(seq.wrapping_sub(next).cast_signed()))
    }

    const fn is_near(&self, position: i64) -> bool {
        (position - self.next).abs() <= MAX_WINDOW
    }

    fn open_hole(&mut self, from: i64, to: i64) {
        if self.holes.len() == MAX_HOLES {
            self.inexact = true;
            return;
        }
        self.holes.push((from, to));
    }

    /// Marks bytes below `next` as seen. Whether some of them were seen before.
    fn fill(&mut self, from: i64, to: i64) -> bool {
        let mut new = 0;
        if from < self.low && self.isn.is_none() {
            // Sent before the first byte that was captured.
            let end = to.min(self.low);
            new += end - from;
            let old_low = std::mem::replace(&mut self.low, from);
            if end < old_low {
                self.open_hole(end, old_low);
            }
        }
        let mut left = SmallVec::new();
        for (start, end) in std::mem::take(&mut self.holes) {
            let (filled_from, filled_to) = (start.max(from), end.min(to));
            if filled_from >= filled_to {
                left.push((start, end));
                continue;
            }
            new += filled_to - filled_from;
            left.extend([(start, filled_from), (filled_to, end)].into_iter().filter(|h| h.0 < h.1));
        }
        self.holes = left;
        if self.holes.len() > MAX_HOLES {
            self.inexact = true;
            self.holes.truncate(MAX_HOLES);
        }
        new < to - from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { index: 1, time_ns: 0 };

    /// What happens to a stream.
    #[derive(Clone, Copy, Debug)]
    enum Do {
        Syn(u32),
        /// Sequence number and length.
        Data(u32, u32),
        Fin(u32),
        Ack(u32),
    }
    use Do::{Ack, Data, Fin, Syn};

    /// Name, steps; bytes, packets that repeat something, gaps of the capture.
    type Case<'a> = (&'a str, &'a [Do], Option<u64>, u32, u32);

    fn after(steps: &[Do]) -> (Stream, u32, u32) {
        let mut stream = Stream::default();
        let (mut resent, mut gaps) = (0, 0);
        for step in steps {
            match *step {
                Syn(isn) => stream.synchronise(isn),
                Data(seq, payload) => {
                    let placed = stream.place(seq, payload);
                    resent += u32::from(placed.resent);
                    gaps += placed.gaps;
                }
                Fin(seq) => resent += u32::from(stream.finish(seq, MARK)),
                Ack(ack) => gaps += stream.acknowledge(ack),
            }
        }
        (stream, resent, gaps)
    }

    #[test]
    fn each_byte_counts_once() {
        let many_holes: Vec<Do> = (0..70).map(|n| Data(1 + 20 * n, 10)).collect();
        let cases: &[Case<'_>] = &[
            ("nothing", &[], Some(0), 0, 0),
            ("in order", &[Syn(0), Data(1, 10), Data(11, 5), Fin(16), Ack(17)], Some(15), 0, 0),
            ("no payload", &[Syn(0), Data(1, 0), Ack(1)], Some(0), 0, 0),
            ("repeated", &[Syn(0), Data(1, 10), Data(1, 10)], Some(10), 1, 0),
            ("repeated with more", &[Syn(0), Data(1, 10), Data(1, 15)], Some(15), 1, 0),
            ("out of order", &[Syn(0), Data(11, 10), Data(1, 10)], Some(20), 0, 0),
            ("a gap in the middle", &[Syn(0), Data(1, 10), Data(21, 10)], None, 0, 0),
            (
                "a gap filled twice",
                &[Syn(0), Data(11, 5), Data(1, 10), Data(1, 10)],
                Some(15),
                1,
                0,
            ),
            (
                "a gap filled in part",
                &[Syn(0), Data(31, 5), Data(11, 10), Data(1, 10), Data(21, 10)],
                Some(35),
                0,
                0,
            ),
            ("an acknowledged gap", &[Syn(0), Data(11, 5), Ack(16)], Some(15), 0, 1),
            ("acknowledged before seen", &[Syn(0), Ack(16), Data(11, 5)], Some(15), 0, 1),
            ("acknowledged in part", &[Syn(0), Data(11, 5), Ack(6)], None, 0, 0),
            ("a gap before the FIN", &[Syn(0), Data(1, 5), Fin(11)], None, 0, 0),
            ("an acknowledged one", &[Syn(0), Data(1, 5), Fin(11), Ack(12)], Some(10), 0, 1),
            ("more acknowledged than seen", &[Syn(0), Data(1, 5), Ack(20)], None, 0, 0),
            ("only acknowledged", &[Ack(20)], None, 0, 0),
            ("a repeated FIN", &[Syn(0), Data(1, 5), Fin(6), Fin(6), Ack(7)], Some(5), 1, 0),
            ("a false FIN", &[Syn(0), Fin(6), Data(1, 20), Fin(21), Ack(22)], Some(20), 0, 0),
            ("a FIN in the middle", &[Syn(0), Data(1, 20), Fin(11), Ack(21)], Some(20), 0, 0),
            ("of another stream", &[Syn(0), Data(1, 5), Data(0x7000_0000, 9)], Some(5), 0, 0),
            (
                "across the wrap",
                &[Syn(u32::MAX - 4), Data(u32::MAX - 3, 10), Ack(6)],
                Some(10),
                0,
                0,
            ),
            ("without a SYN", &[Data(500, 10), Data(510, 10)], Some(20), 0, 0),
            (
                "without, out of order",
                &[Data(510, 10), Data(500, 10), Data(510, 1)],
                Some(20),
                1,
                0,
            ),
            ("below the SYN", &[Syn(100), Data(101, 5), Data(90, 5)], Some(5), 1, 0),
            ("a keepalive's byte", &[Syn(0), Data(1, 5), Data(5, 1)], Some(5), 1, 0),
            ("too many gaps", &many_holes, None, 0, 0),
        ];
        for (name, steps, bytes, resent, gaps) in cases {
            let (stream, got_resent, got_gaps) = after(steps);
            assert_eq!((stream.bytes(), got_resent, got_gaps), (*bytes, *resent, *gaps), "{name}");
        }
    }

    #[test]
    fn more_than_four_gigabytes_are_counted() {
        let mut stream = Stream::default();
        stream.synchronise(77);
        let (mut seq, step) = (78_u32, 1 << 20);
        for _ in 0..5000 {
            stream.place(seq, step);
            seq = seq.wrapping_add(step);
            stream.acknowledge(seq);
        }
        assert_eq!(stream.bytes(), Some(5000 << 20));
    }

    #[test]
    fn an_rst_counts_where_its_receiver_expects_it() {
        let open = [Syn(0), Data(1, 10), Ack(6)];
        let closed = [Syn(0), Data(1, 10), Fin(11), Ack(12)];
        for (name, steps, seq, want) in [
            ("at the end", &open[..], 11, true),
            ("what was acknowledged", &open, 6, true),
            ("in flight", &open, 8, true),
            ("acknowledged long ago", &open, 5, false),
            ("past the end", &open, 12, false),
            ("forged", &open, 0x4000_0000, false),
            ("after the FIN", &closed, 12, true),
            ("just before it", &closed, 11, true),
            ("before that", &closed, 10, false),
            ("of a silent side, as acknowledged", &[Ack(50)], 50, true),
            ("of a silent side, elsewhere", &[Ack(50)], 51, false),
            ("nothing is known", &[], 99, true),
        ] {
            assert_eq!(after(steps).0.may_reset_at(seq), want, "{name}");
        }
    }
}
