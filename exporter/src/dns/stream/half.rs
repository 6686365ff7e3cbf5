//! One direction of a connection: segments in any order to messages in order.

use std::collections::VecDeque;

use flowend_probe_types::EventKind;

use super::{MAX_FRAME, StreamStats};

/// Payload farther than this from where a stream is cannot be its: more than a message ahead, and more
/// than any window that a DNS server's sender has open behind.
const WINDOW: u32 = 1 << 18;

/// A missing segment is given up when another has waited for it this long, ns: later than any
/// retransmission that a resolver would wait for.
const GAP_NS: u64 = 10_000_000_000;

/// Pieces from elsewhere, one after another, after which the position is no longer believed that a SYN
/// told: they may be forged, but a socket that connects anew, and whose SYN was lost on its way to us, is
/// elsewhere, too.
const MAX_FAR: u32 = 16;

/// The same of a position that nobody told.
const MAX_FAR_SHOWN: u32 = 2;

/// Length of a DNS header: no message is shorter (RFC 1035, section 4.1.1).
const DNS_HEADER: usize = 12;

/// What is known of where messages begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nothing.
    Unknown,
    /// Something looks like the beginning of a message, and what follows has to show that it is.
    Likely,
    /// It was one.
    Shown,
    /// By the SYN.
    Told,
}

/// Payload as it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    /// Of its first byte.
    pub(super) seq: u32,
    pub(super) bytes: &'a [u8],
    /// Whether bytes are missing at its end.
    pub(super) cut: bool,
    pub(super) time_ns: u64,
}

/// A piece that waits for those before it.
#[derive(Debug)]
struct Held {
    seq: u32,
    bytes: Vec<u8>,
    cut: bool,
    time_ns: u64,
}

/// Where a piece lies.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Where nothing is known yet.
    Anywhere,
    /// Next, after this many bytes that are there already.
    Next(usize),
    /// There already.
    Old,
    /// After a gap.
    Ahead,
    /// Nowhere near.
    Far,
}

/// What the beginning of a stream would be, were this it.
#[derive(Debug, PartialEq, Eq)]
enum Looks {
    /// Messages from beginning to end.
    Whole,
    /// The beginning of one.
    Begun,
    /// No message.
    Wrong,
}

type Out<'a> = dyn FnMut(&[u8]) + 'a;

/// One direction.
#[derive(Debug)]
pub(super) struct Half {
    /// What it carries.
    kind: EventKind,
    start: Start,
    /// Sequence number of the byte that comes next; means nothing while the start is unknown.
    next: u32,
    /// As the SYN said.
    first: Option<u32>,
    /// Begun and not complete, with its length in front. While the beginning is only likely: all since.
    message: Vec<u8>,
    /// Segments that are in `message`, while the beginning is only likely.
    unproven: u64,
    /// In order of their sequence numbers.
    held: VecDeque<Held>,
    /// Pieces from far away since the last one that was taken.
    far: u32,
    /// Whether some was taken for certain.
    has_payload: bool,
    /// Sequence number of the FIN.
    fin: Option<u32>,
}

impl Half {
    pub(super) const fn new(kind: EventKind) -> Self {
        Self {
            kind,
            start: Start::Unknown,
            next: 0,
            first: None,
            message: Vec::new(),
            unproven: 0,
            held: VecDeque::new(),
            far: 0,
            has_payload: false,
            fin: None,
        }
    }

    /// The first byte of payload will be this one, unless some was taken already.
    pub(super) fn begin(&mut self, first: u32, stats: &mut StreamStats) {
        if self.has_payload || self.began_at(first) {
            return;
        }
        stats.no_start += std::mem::take(&mut self.unproven);
        self.message = Vec::new();
        (self.start, self.next, self.first) = (Start::Told, first, Some(first));
    }

    /// Whether a SYN said so before.
    pub(super) fn began_at(&self, first: u32) -> bool {
        self.first == Some(first)
    }

    /// Takes in a piece of payload that is not empty. At most `room` pieces wait for a missing one.
    pub(super) fn take(
        &mut self,
        piece: Piece<'_>,
        room: usize,
        stats: &mut StreamStats,
        out: &mut Out<'_>,
    ) {
        // Each round that comes back here has let go of something, or made the place unknown.
        loop {
            let place = self.place(piece);
            if self.is_refuted_by(piece, &place) || self.has_no_room(piece, &place, room) {
                self.give_up(stats, out);
                continue;
            }
            match place {
                Place::Anywhere => {
                    if !self.try_start(piece, stats, out) {
                        stats.no_start += 1;
                    }
                }
                Place::Next(known) => self.append(piece, known, stats, out),
                Place::Old => stats.duplicate += 1,
                Place::Ahead => self.hold(piece, stats),
                Place::Far => {
                    self.far += 1;
                    stats.far += 1;
                }
            }
            return self.drain(stats, out);
        }
    }

    /// Whether this is the next byte that TCP expects.
    pub(super) fn is_next(&self, seq: u32) -> bool {
        self.start != Start::Unknown && self.next == seq
    }

    /// A FIN with this sequence number. A forged one is no harm: it counts when all before it has come.
    pub(super) const fn note_fin(&mut self, seq: u32) {
        self.fin = Some(seq);
    }

    /// Whether all has come up to the FIN.
    pub(super) fn is_finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.is_next(fin))
    }

    /// Pieces that wait.
    pub(super) fn waiting(&self) -> u64 {
        self.held.len() as u64 + self.unproven
    }

    /// Bytes kept.
    pub(super) fn bytes(&self) -> usize {
        self.message.capacity() + self.held.iter().map(Held::cost).sum::<usize>()
    }

    /// Lets go of what waits for more.
    pub(super) fn release(&mut self, stats: &mut StreamStats) {
        stats.gap += self.waiting();
        self.held = VecDeque::new();
        self.unproven = 0;
        if !std::mem::take(&mut self.message).is_empty() {
            self.start = Start::Unknown;
        }
    }

    fn place(&self, piece: Piece<'_>) -> Place {
        if self.start == Start::Unknown {
            return Place::Anywhere;
        }
        let length = u32::try_from(piece.bytes.len()).unwrap_or(u32::MAX);
        let ahead = piece.seq.wrapping_sub(self.next);
        let behind = self.next.wrapping_sub(piece.seq);
        if behind < length {
            return Place::Next(usize::try_from(behind).unwrap_or(0));
        }
        match (behind <= WINDOW, ahead <= WINDOW) {
            (true, _) => Place::Old,
            (_, true) => Place::Ahead,
            _ => Place::Far,
        }
    }

    /// Whether a piece that is in itself whole messages shows that what was taken for the position is not.
    /// No position is given up for one segment from far away, which may be forged.
    fn is_refuted_by(&self, piece: Piece<'_>, place: &Place) -> bool {
        let elsewhere = match self.start {
            Start::Unknown => false,
            Start::Likely => !matches!(place, Place::Old),
            Start::Shown => matches!(place, Place::Far) && self.far >= MAX_FAR_SHOWN,
            Start::Told => matches!(place, Place::Far) && self.far >= MAX_FAR,
        };
        elsewhere && !piece.cut && looks(self.kind, piece.bytes) == Looks::Whole
    }

    fn has_no_room(&self, piece: Piece<'_>, place: &Place, room: usize) -> bool {
        let Some(oldest) = self.held.iter().map(|held| held.time_ns).min() else { return false };
        let bytes: usize = self.held.iter().map(|held| held.bytes.len()).sum();
        *place == Place::Ahead
            && (self.held.len() >= room.max(1)
                || bytes + piece.bytes.len() > MAX_FRAME
                || piece.time_ns.saturating_sub(oldest) > GAP_NS)
    }

    /// Takes the beginning of this piece for that of a message. False where it cannot be, or where what
    /// follows it was not copied.
    fn try_start(&mut self, piece: Piece<'_>, stats: &mut StreamStats, out: &mut Out<'_>) -> bool {
        if piece.cut || looks(self.kind, piece.bytes) == Looks::Wrong {
            return false;
        }
        (self.start, self.next) = (Start::Likely, piece.seq);
        self.append(piece, 0, stats, out);
        true
    }

    fn append(
        &mut self,
        piece: Piece<'_>,
        known: usize,
        stats: &mut StreamStats,
        out: &mut Out<'_>,
    ) {
        let new = &piece.bytes[known..];
        self.next = self.next.wrapping_add(u32::try_from(new.len()).unwrap_or(0));
        self.far = 0;
        if self.start == Start::Likely {
            self.unproven += 1;
            self.message.extend_from_slice(new);
            self.prove(stats, out);
        } else {
            self.has_payload = true;
            *(if piece.cut { &mut stats.cut } else { &mut stats.taken }) += 1;
            self.feed(new, out);
        }
        if piece.cut {
            // Where the next message begins is in what was not copied.
            self.give_up(stats, out);
        }
    }

    /// Whether what has come since the likely beginning is messages from beginning to end.
    fn prove(&mut self, stats: &mut StreamStats, out: &mut Out<'_>) {
        match looks(self.kind, &self.message) {
            Looks::Whole => {
                self.start = Start::Shown;
                self.has_payload = true;
                stats.taken += std::mem::take(&mut self.unproven);
                let proven = std::mem::take(&mut self.message);
                self.feed(&proven, out);
            }
            Looks::Begun if self.message.len() <= MAX_FRAME => {}
            _ => self.give_up(stats, out),
        }
    }

    /// Hands out what is complete, and keeps the rest.
    fn feed(&mut self, mut new: &[u8], out: &mut Out<'_>) {
        loop {
            if self.message.is_empty() {
                // The usual case, in which nothing is copied.
                while let Some((message, rest)) = split_message(new) {
                    if !message.is_empty() {
                        out(message);
                    }
                    new = rest;
                }
            }
            let missing = match frame_length(&self.message) {
                Some(length) => length - self.message.len(),
                None => 2 - self.message.len(),
            };
            let (now, later) = new.split_at(missing.min(new.len()));
            self.message.extend_from_slice(now);
            new = later;
            if let Some((message, [])) = split_message(&self.message) {
                if !message.is_empty() {
                    out(message);
                }
                self.message = Vec::new();
            } else if new.is_empty() {
                return;
            }
        }
    }

    fn hold(&mut self, piece: Piece<'_>, stats: &mut StreamStats) {
        let Piece { seq, bytes, cut, time_ns } = piece;
        let distance = |seq: u32| seq.wrapping_sub(self.next);
        if self.held.iter().any(|held| held.seq == seq && held.bytes.len() >= bytes.len()) {
            stats.duplicate += 1;
            return;
        }
        let at = self.held.partition_point(|held| distance(held.seq) <= distance(seq));
        self.held.insert(at, Held { seq, bytes: bytes.to_vec(), cut, time_ns });
    }

    /// Takes those that no longer wait.
    fn drain(&mut self, stats: &mut StreamStats, out: &mut Out<'_>) {
        while let Some(held) = self.held.pop_front() {
            match self.place(held.piece()) {
                Place::Next(known) => self.append(held.piece(), known, stats, out),
                Place::Old => stats.duplicate += 1,
                Place::Ahead => return self.held.push_front(held),
                Place::Anywhere => self.retry(&held, stats, out),
                Place::Far => stats.gap += 1,
            }
        }
    }

    /// The position is no longer known; what waited may tell it anew.
    fn give_up(&mut self, stats: &mut StreamStats, out: &mut Out<'_>) {
        stats.no_start += std::mem::take(&mut self.unproven);
        self.message = Vec::new();
        self.start = Start::Unknown;
        self.far = 0;
        while self.start == Start::Unknown
            && let Some(held) = self.held.pop_front()
        {
            self.retry(&held, stats, out);
        }
    }

    fn retry(&mut self, held: &Held, stats: &mut StreamStats, out: &mut Out<'_>) {
        if !self.try_start(held.piece(), stats, out) {
            stats.gap += 1;
        }
    }
}

impl Held {
    fn piece(&self) -> Piece<'_> {
        Piece { seq: self.seq, bytes: &self.bytes, cut: self.cut, time_ns: self.time_ns }
    }

    fn cost(&self) -> usize {
        self.bytes.capacity() + size_of::<Self>()
    }
}

/// The length of a message with the two bytes in front of it that say it.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<2>()?;
    Some(2 + usize::from(u16::from_be_bytes(*length)))
}

/// The first message, if it is complete, and what follows.
fn split_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (frame, rest) = bytes.split_at_checked(frame_length(bytes)?)?;
    Some((&frame[2..], rest))
}

/// What `bytes` would be, were they the beginning of a stream: each message as long as a header, and
/// a query where queries are sent (QR bit, RFC 1035, section 4.1.1).
fn looks(kind: EventKind, mut bytes: &[u8]) -> Looks {
    if bytes.is_empty() {
        return Looks::Wrong;
    }
    let is_answer = kind == EventKind::DnsAnswer;
    while !bytes.is_empty() {
        let is_short = frame_length(bytes).is_some_and(|length| length < 2 + DNS_HEADER);
        let is_other = bytes.get(4).is_some_and(|flags| (flags & 0x80 != 0) != is_answer);
        if is_short || is_other {
            return Looks::Wrong;
        }
        let Some((_, rest)) = split_message(bytes) else { return Looks::Begun };
        bytes = rest;
    }
    Looks::Whole
}
