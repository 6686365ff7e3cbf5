//! DNS messages out of TCP segments (RFC 7766, section 8: two bytes of length, then the message).
//!
//! The probe copies segments before TCP has checked them, each time that one is sent: a segment may be
//! forged, a repetition, early, or missing. Each direction of a connection is put together on its own
//! (`half.rs`); here is the table of connections and what bounds it. Pure: time comes with the segments.

mod half;
#[cfg(test)]
mod tests;

use std::fmt;

use flowend_probe_types::{ACK, DnsEvent, EventKind, FIN, RST, SYN};
use hashlink::LruCache;

use half::{Half, Piece};

/// The longest message with its length in front, bytes.
const MAX_FRAME: usize = 2 + u16::MAX as usize;

/// What streams may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    /// Connections followed at the same time; past it the one idle for longest is forgotten.
    pub(crate) connections: usize,
    /// Bytes of all that is kept of their payload; past it those idle for longest are forgotten.
    pub(crate) bytes: usize,
    /// Segments of one direction that wait for a missing one; past it the missing one is given up.
    pub(crate) held: usize,
}

impl Default for StreamLimits {
    /// A message of 64 KiB is 46 segments of an Ethernet, and all but one may wait.
    fn default() -> Self {
        Self { connections: 4096, bytes: 8 << 20, held: 64 }
    }
}

/// What became of the segments seen: `seen = control + taken + duplicate + dropped{cause} + waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamStats {
    /// Segments, or pieces of long ones.
    pub seen: u64,
    /// Without payload.
    pub control: u64,
    /// Part of a stream: what was new of them is in a message, or will be.
    pub taken: u64,
    /// All of it was there already.
    pub duplicate: u64,
    /// Dropped: of a connection that was not seen to be opened from here; or where in its stream a message
    /// begins was not known, and it did not begin one.
    pub no_start: u64,
    /// Dropped: it waited for a segment that did not come.
    pub gap: u64,
    /// Dropped: far from where its stream is; forged, or of a connection whose beginning was missed.
    pub far: u64,
    /// Dropped: its end was not copied. What was copied completes a message, but begins none.
    pub cut: u64,
    /// Dropped: no room.
    pub limit: u64,
    /// Waiting, measured: for a segment before them, or for the proof that they begin a message.
    pub waiting: u64,
    /// Messages put together.
    pub messages: u64,
    /// Connections followed, measured.
    pub connections: u64,
    /// Bytes kept of their payload, measured.
    pub bytes: u64,
}

impl StreamStats {
    /// Dropped for any cause.
    pub const fn dropped(&self) -> u64 {
        self.no_start + self.gap + self.far + self.cut + self.limit
    }

    /// Whether every segment seen is accounted for.
    pub const fn holds(&self) -> bool {
        self.seen == self.control + self.taken + self.duplicate + self.dropped() + self.waiting
    }
}

impl fmt::Display for StreamStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seen, control, taken, duplicate, no_start, gap, far, cut, limit, .. } = *self;
        write!(
            f,
            "dns segments: seen {seen} = control {control} + taken {taken} + duplicate {duplicate}"
        )?;
        let causes =
            [("no_start", no_start), ("gap", gap), ("far", far), ("cut", cut), ("limit", limit)];
        for (cause, n) in causes.into_iter().filter(|(_, n)| *n > 0) {
            write!(f, " + dropped{{{cause}}} {n}")?;
        }
        write!(f, " + waiting {}; messages {}", self.waiting, self.messages)
    }
}

/// Both directions of a connection to a DNS server.
#[derive(Debug)]
struct Connection {
    sent: Half,
    received: Half,
}

impl Connection {
    const fn new() -> Self {
        Self { sent: Half::new(EventKind::DnsQuery), received: Half::new(EventKind::DnsAnswer) }
    }

    fn bytes(&self) -> usize {
        self.sent.bytes() + self.received.bytes()
    }

    fn waiting(&self) -> u64 {
        self.sent.waiting() + self.received.waiting()
    }

    /// A SYN says where its direction begins. One on its way out is real: another than before is another
    /// connection of the same socket. One received may be forged: it counts until payload has come.
    fn begin(&mut self, kind: EventKind, first: u32, stats: &mut StreamStats) {
        if kind == EventKind::DnsStreamIn {
            return self.received.begin(first, stats);
        }
        if !self.sent.began_at(first) {
            stats.gap += self.waiting();
            *self = Self::new();
        }
        self.sent.begin(first, stats);
    }

    /// Nothing more comes, so nothing is kept that waits for more. Positions are, so that a repetition
    /// is known for one.
    fn release(&mut self, stats: &mut StreamStats) {
        self.sent.release(stats);
        self.received.release(stats);
    }
}

/// The connections to DNS servers, each until it is the one idle for longest and there is no room.
#[derive(Debug)]
pub(crate) struct Streams {
    connections: LruCache<u64, Connection>,
    limits: StreamLimits,
    /// Kept by all connections together, bytes.
    bytes: usize,
    stats: StreamStats,
}

impl Default for Streams {
    fn default() -> Self {
        Self::new(StreamLimits::default())
    }
}

impl Streams {
    /// None is known yet.
    pub(crate) fn new(limits: StreamLimits) -> Self {
        Self {
            connections: LruCache::new_unbounded(),
            limits,
            bytes: 0,
            stats: StreamStats::default(),
        }
    }

    /// Takes in one segment, or a piece of one, and hands each message that it completes to `out`, with
    /// the facts of this segment. Events of other kinds are none of its business.
    pub(crate) fn take(
        &mut self,
        kind: EventKind,
        facts: &DnsEvent,
        payload: &[u8],
        out: &mut dyn FnMut(EventKind, &DnsEvent, &[u8]),
    ) {
        if !matches!(kind, EventKind::DnsStreamOut | EventKind::DnsStreamIn) {
            return;
        }
        self.stats.seen += 1;
        if payload.is_empty() {
            self.stats.control += 1;
        }
        if !self.connections.contains_key(&facts.cookie) {
            // Only who connects asks: a peer that comes from port 53 could have its own words echoed to it,
            // and answer them.
            let connects = kind == EventKind::DnsStreamOut && facts.flags & (SYN | ACK) == SYN;
            if !connects {
                self.stats.no_start += u64::from(!payload.is_empty());
                return;
            }
            self.make_room_for_one();
            self.connections.insert(facts.cookie, Connection::new());
        }
        let Self { connections, stats, limits, .. } = self;
        let Some(connection) = connections.get_mut(&facts.cookie) else { return };
        let before = connection.bytes();
        apply(connection, kind, facts, payload, *limits, stats, out);
        self.bytes = self.bytes - before + connection.bytes();
        while self.bytes > self.limits.bytes && self.forget_idlest() {}
    }

    /// What became of the segments so far.
    pub(crate) fn stats(&self) -> StreamStats {
        StreamStats {
            waiting: self.connections.iter().map(|(_, connection)| connection.waiting()).sum(),
            connections: self.connections.len() as u64,
            bytes: self.bytes as u64,
            ..self.stats
        }
    }

    fn make_room_for_one(&mut self) {
        while self.connections.len() >= self.limits.connections.max(1) && self.forget_idlest() {}
    }

    fn forget_idlest(&mut self) -> bool {
        let Some((_, connection)) = self.connections.remove_lru() else { return false };
        self.bytes -= connection.bytes();
        self.stats.limit += connection.waiting();
        true
    }
}

fn apply(
    connection: &mut Connection,
    kind: EventKind,
    facts: &DnsEvent,
    payload: &[u8],
    limits: StreamLimits,
    stats: &mut StreamStats,
    out: &mut dyn FnMut(EventKind, &DnsEvent, &[u8]),
) {
    let mut seq = facts.seq;
    if facts.flags & SYN != 0 {
        // Payload of Fast Open (RFC 7413) comes after the SYN's own sequence number.
        seq = seq.wrapping_add(1);
        connection.begin(kind, seq, stats);
    }
    let (half, message_kind) = match kind {
        EventKind::DnsStreamOut => (&mut connection.sent, EventKind::DnsQuery),
        _ => (&mut connection.received, EventKind::DnsAnswer),
    };
    let piece = Piece { seq, bytes: payload, cut: facts.cut != 0, time_ns: facts.time_ns };
    let mut messages = 0;
    if !payload.is_empty() {
        half.take(piece, limits.held, stats, &mut |message| {
            messages += 1;
            let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
            let facts = DnsEvent { kind: message_kind as u8, cut: 0, len, ..*facts };
            out(message_kind, &facts, message);
        });
    }
    stats.messages += messages;
    if facts.flags & FIN != 0 {
        let length = u32::try_from(payload.len()).unwrap_or(0);
        half.note_fin(seq.wrapping_add(length));
    }
    // One received is believed where TCP would believe it (RFC 5961, section 3.2).
    let is_reset =
        facts.flags & RST != 0 && (kind == EventKind::DnsStreamOut || half.is_next(facts.seq));
    let is_over = connection.sent.is_finished() && connection.received.is_finished();
    if is_reset || is_over {
        connection.release(stats);
    }
}
