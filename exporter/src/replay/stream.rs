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
    /// Ends beyond what was seen before.
    pub(super) advances: bool,
    /// Its gap in front was acknowledged already: the capture lacks it.
    pub(super) gaps: u32,
}

/// What the receiver of an RST may think of its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResetFit {
    /// Just what it expects.
    Expected,
    /// Past what was seen: forged, or the capture lacks what came before it.
    PastGap,
    /// It lies behind, or is of another stream.
    Outside,
}

/// The end of a stream.
#[derive(Clone, Copy, Debug)]
struct Fin {
    at: i64,
    mark: Mark,
    /// The other side has it, so it is real.
    acked: bool,
}

/// The sequence space of one sender. Positions count from the first byte after the SYN, or from the
/// first byte seen; they do not wrap.
///
/// Anybody can forge what lies far ahead, so that is believed only once another packet agrees: an
/// acknowledgement of more than was seen waits in `claimed`, a FIN past a gap in `early_fin`. A
/// segment of the sender's that shows how far it has come (it carries SND.NXT) refutes both.
#[derive(Debug, Default)]
pub(super) struct Stream {
    isn: Option<u32>,
    /// The sequence number of position 0.
    base: Option<u32>,
    low: i64,
    /// After the last payload byte seen.
    next: i64,
    has_payload: bool,
    /// The highest acknowledgement by the other side, of what was seen.
    acked: Option<i64>,
    /// The last acknowledgement number of more than was seen.
    claimed: Option<u32>,
    holes: SmallVec<[(i64, i64); 1]>,
    /// More holes than are remembered, or more was sent than was seen.
    inexact: bool,
    fin: Option<Fin>,
    early_fin: Option<(i64, Mark)>,
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
        let begin = isn.wrapping_add(1);
        match self.position(begin) {
            Some(at) if at == self.low => {}
            // The capture lacks the beginning.
            Some(at) if self.has_payload && at < self.low && self.is_near(at) => {
                self.open_hole(at, self.low);
                self.low = at;
            }
            Some(_) if self.has_payload => {}
            // Nothing yet, or the challenge ACK of an older connection (RFC 9293, section 3.5.1).
            _ => {
                self.base = Some(begin);
                (self.low, self.next, self.acked) = (0, 0, None);
                (self.fin, self.early_fin) = (None, None);
            }
        }
        self.reconcile();
    }

    /// Whether `seq` is where the stream begins, as far as it was seen or acknowledged.
    pub(super) fn begins_at(&self, seq: u32) -> bool {
        self.position(seq) == Some(self.low) || (self.base.is_none() && self.claimed == Some(seq))
    }

    /// Takes in payload; without any, where the sender stands.
    pub(super) fn place(&mut self, seq: u32, payload: u32) -> Placed {
        let mut placed = Placed::default();
        if self.base.is_none() {
            self.base = Some(seq);
        }
        let Some(from) = self.position(seq).filter(|p| self.is_near(*p)) else { return placed };
        // What the capture began with was a keepalive: it carries the number before SND.NXT.
        if self.isn.is_none() && !self.has_payload && self.fin.is_none() && from == self.low + 1 {
            (self.low, self.next) = (from, from);
        }
        let to = from + i64::from(payload);
        if payload > 0 && !self.fin.is_some_and(|fin| fin.acked && to > fin.at) {
            self.has_payload = true;
            // A FIN is the last thing in the sequence space: what lies beyond proves it false.
            self.fin = self.fin.filter(|fin| fin.at >= to);
            let before = self.next;
            placed.advances = to > before;
            if from > before {
                self.open_hole(before, from);
            }
            self.next = before.max(to);
            placed.resent = from < before && self.fill(from, to.min(before));
            self.accept_early_fin();
        }
        placed.gaps = self.reconcile();
        placed
    }

    /// A segment without payload carries the number of what its sender sends next: where that is just
    /// what was seen, nothing can lie beyond.
    pub(super) fn stands_at(&mut self, seq: u32) {
        if self.position(seq) == Some(self.end()) {
            self.claimed = None;
            self.early_fin = self.early_fin.filter(|(at, _)| *at <= self.next);
        }
    }

    /// Takes in an acknowledgement by the other side: how many gaps it proves to be the capture's.
    pub(super) fn acknowledge(&mut self, ack: u32) -> u32 {
        match self.position(ack) {
            Some(at) if !self.is_near(at) => 0,
            // Nothing was sent before the SYN: it is about an older connection.
            Some(at) if self.isn.is_some() && at < self.low => 0,
            Some(at) if at <= self.end() => self.believe(at),
            _ => {
                self.claimed = Some(ack);
                self.reconcile()
            }
        }
    }

    /// Takes in a FIN; `seq` is its own sequence number, after the payload. Whether it repeats one.
    pub(super) fn finish(&mut self, seq: u32, mark: Mark) -> bool {
        let Some(at) = self.position(seq).filter(|p| self.is_near(*p)) else { return false };
        let known = [self.fin.map(|fin| fin.at), self.early_fin.map(|(early, _)| early)];
        if known.contains(&Some(at)) {
            return true;
        }
        if at >= self.next && !self.fin.is_some_and(|fin| fin.acked) {
            self.early_fin = Some((at, mark));
            self.accept_early_fin();
            self.reconcile();
            if self.fin() == Some(mark) {
                // It says itself that nothing lies beyond.
                self.claimed = None;
            }
        }
        false
    }

    /// No more packets come: a FIN past a gap stands if nothing spoke against it.
    pub(super) fn settle(&mut self) {
        if let (None, Some((at, mark))) = (self.fin, self.early_fin) {
            self.fin = Some(Fin { at, mark, acked: false });
        }
    }

    /// More was sent than was seen.
    pub(super) const fn lacks_its_end(&mut self) {
        self.inexact = true;
    }

    /// The packet whose FIN ended the stream.
    pub(super) fn fin(&self) -> Option<Mark> {
        self.fin.map(|fin| fin.mark)
    }

    /// Whether this payload lies behind the stream's FIN.
    pub(super) fn is_behind_fin(&self, seq: u32, payload: u32) -> bool {
        let end = self.position(seq).map(|at| at + i64::from(payload));
        payload > 0 && self.fin.zip(end).is_some_and(|(fin, end)| end > fin.at)
    }

    /// What the receiver of an RST with this sequence number thinks of it. It expects one at or after
    /// what it acknowledged, and not past what was sent to it (RFC 5961, section 3.2). Linux takes the
    /// number before it, too, once it has the FIN (`tcp_reset_check`).
    pub(super) fn reset_fit(&self, seq: u32) -> ResetFit {
        let Some(at) = self.position(seq) else {
            // Nothing of the sender was seen, so all is known from the acknowledgements.
            let ahead = self.claimed.map_or(0, |ack| seq.wrapping_sub(ack).cast_signed());
            return match i64::from(ahead) {
                0 => ResetFit::Expected,
                1..=MAX_WINDOW => ResetFit::PastGap,
                _ => ResetFit::Outside,
            };
        };
        let acked = self.acked.unwrap_or(self.low).max(self.low);
        let low = self.fin.map_or(acked, |fin| acked.min(fin.at));
        if at < low || !self.is_near(at) {
            ResetFit::Outside
        } else if at <= self.end() || self.claimed == Some(seq) {
            ResetFit::Expected
        } else {
            ResetFit::PastGap
        }
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
            return self.claimed.is_none().then_some(0);
        }
        let tail_is_missing = self.fin.is_some_and(|fin| fin.at > self.next)
            || self.early_fin.is_some()
            || self.claimed.is_some();
        if self.inexact || !self.holes.is_empty() || tail_is_missing {
            return None;
        }
        u64::try_from(self.next - self.low).ok()
    }

    /// After everything sent, the FIN included.
    fn end(&self) -> i64 {
        self.fin.map_or(self.next, |fin| fin.at.max(self.next) + 1)
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

    /// What was claimed, if by now the sender was seen to have come that far: how many gaps it proves
    /// to be the capture's.
    fn reconcile(&mut self) -> u32 {
        let Some((ack, at)) = self.claimed.and_then(|ack| Some((ack, self.position(ack)?))) else {
            return 0;
        };
        if let Some((fin, mark)) = self.early_fin
            && fin + 1 == at
        {
            // Both sides agree on that FIN. The bytes before it are no gap worth a letter: Zeek
            // leaves out those at the very end, too.
            self.fin = Some(Fin { at: fin, mark, acked: true });
            (self.early_fin, self.next) = (None, fin);
        }
        let is_old = self.isn.is_some() && at < self.low;
        let is_open = self.is_near(at) && at > self.end() && !is_old;
        self.claimed = is_open.then_some(ack);
        if is_open || is_old || !self.is_near(at) { 0 } else { self.believe(at) }
    }

    fn believe(&mut self, at: i64) -> u32 {
        self.acked = self.acked.max(Some(at));
        let before = self.holes.len();
        self.holes.retain(|(_, to)| *to > at);
        let gaps = before - self.holes.len();
        self.accept_early_fin();
        if let Some(fin) = &mut self.fin {
            fin.acked |= at > fin.at;
        }
        u32::try_from(gaps).unwrap_or(u32::MAX)
    }

    /// A FIN that turns out to stand right behind everything else.
    fn accept_early_fin(&mut self) {
        let Some((at, mark)) = self.early_fin.filter(|(at, _)| *at >= self.next) else {
            self.early_fin = None;
            return;
        };
        if at == self.next && self.holes.is_empty() {
            self.fin = Some(Fin { at, mark, acked: false });
            self.early_fin = None;
        }
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
        /// A segment with nothing but an acknowledgement.
        Bare(u32),
    }
    use Do::{Ack, Bare, Data, Fin, Syn};

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
                Bare(seq) => {
                    stream.place(seq, 0);
                    stream.stands_at(seq);
                }
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
            ("an acknowledged one", &[Syn(0), Data(1, 5), Fin(11), Ack(12)], Some(10), 0, 0),
            ("one filled later", &[Syn(0), Data(1, 5), Fin(11), Data(6, 5)], Some(10), 0, 0),
            ("its FIN again", &[Syn(0), Data(1, 5), Fin(11), Fin(11), Ack(12)], Some(10), 1, 0),
            ("a FIN behind a hole", &[Syn(0), Data(11, 5), Fin(16), Ack(17)], Some(15), 0, 1),
            ("a forged FIN", &[Syn(0), Fin(999), Data(1, 5), Fin(6), Ack(7)], Some(5), 0, 0),
            ("a forged FIN, refuted", &[Syn(0), Fin(999), Data(1, 5), Bare(6)], Some(5), 0, 0),
            (
                "data behind an acknowledged FIN",
                &[Syn(0), Fin(1), Ack(2), Data(1, 9)],
                Some(0),
                0,
                0,
            ),
            ("more acknowledged than seen", &[Syn(0), Data(1, 5), Ack(20)], None, 0, 0),
            ("that, refuted", &[Syn(0), Data(1, 5), Ack(20), Bare(6)], Some(5), 0, 0),
            ("that, refuted by the FIN", &[Syn(0), Data(1, 5), Ack(20), Fin(6)], Some(5), 0, 0),
            ("that, caught up with", &[Syn(0), Data(1, 5), Ack(20), Data(6, 14)], Some(19), 0, 0),
            ("only acknowledged", &[Ack(20)], None, 0, 0),
            ("acknowledged below the SYN", &[Syn(100), Ack(77), Data(101, 5)], Some(5), 0, 0),
            ("a SYN after a stray ACK", &[Bare(90_000), Syn(0), Data(1, 5)], Some(5), 0, 0),
            ("a SYN after its data", &[Data(1, 5), Syn(0)], Some(5), 0, 0),
            ("a SYN after later data", &[Data(6, 5), Syn(0)], None, 0, 0),
            ("that gap, acknowledged", &[Data(6, 5), Syn(0), Ack(11)], Some(10), 0, 1),
            ("a keepalive first", &[Bare(10), Ack(11), Data(11, 5), Ack(16)], Some(5), 0, 0),
            ("only keepalives", &[Bare(10), Ack(11), Bare(10), Ack(11), Bare(10)], Some(0), 0, 0),
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
        use ResetFit::{Expected, Outside, PastGap};
        let open = [Syn(0), Data(1, 10), Ack(6)];
        let closed = [Syn(0), Data(1, 10), Fin(11), Ack(12)];
        let claimed = [Syn(0), Data(1, 10), Ack(6), Ack(30)];
        for (name, steps, seq, want) in [
            ("at the end", &open[..], 11, Expected),
            ("what was acknowledged", &open, 6, Expected),
            ("in flight", &open, 8, Expected),
            ("acknowledged long ago", &open, 5, Outside),
            ("past the end", &open, 12, PastGap),
            ("forged", &open, 0x4000_1000, Outside),
            ("after the FIN", &closed, 12, Expected),
            ("just before it", &closed, 11, Expected),
            ("before that", &closed, 10, Outside),
            ("a claim moves no bound", &claimed, 6, Expected),
            ("where the claim is", &claimed, 30, Expected),
            ("elsewhere", &claimed, 29, PastGap),
            ("below the SYN", &[Syn(100), Ack(77)], 77, Outside),
            ("of a silent side, as acknowledged", &[Ack(50)], 50, Expected),
            ("of a silent side, past that", &[Ack(50)], 51, PastGap),
            ("of a silent side, before that", &[Ack(50)], 49, Outside),
            ("nothing is known", &[], 99, Expected),
        ] {
            assert_eq!(after(steps).0.reset_fit(seq), want, "{name}");
        }
    }
}
