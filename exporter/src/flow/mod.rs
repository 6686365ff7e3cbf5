//! The flow state machine: events of the probe in, ends of connections out.
//!
//! Pure: no I/O, no clock. Time comes with the events and with [`FlowTable::tick`]. Keyed by socket
//! cookie; a cookie is not a connection, since one socket may connect again.
//!
//! A connection is over when its socket goes to CLOSE. The verdict waits [`SETTLE_NS`] longer: an
//! application's RST leaves after CLOSE, and events of two CPUs may swap places in the ring.

mod connection;
mod end;
mod zeek;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use flowend_probe_types::{ACK, Event, EventKind, RST, SYN, TcpEvent, TcpState};
use hashlink::{LinkedHashMap, LruCache};
use smallvec::SmallVec;

use connection::{Connection, Embryo};
pub use end::{ConnectionEnd, Counters, Direction, Endpoint, Isns, Reason, Rtt, Side};

/// How long a closed connection waits for events that the ring may hold out of order, ns.
pub const SETTLE_NS: u64 = 10_000_000;

/// How long a closed connection waits when nothing explains its end yet, ns: an application's RST is
/// sent after CLOSE, and its process may lose the CPU or wait for memory in between.
pub const UNEXPLAINED_NS: u64 = 1_000_000_000;

/// How long a SYN is remembered for the accepted socket, ns: longer than the kernel answers it
/// (tcp_synack_retries = 5: 63 s).
pub const EMBRYO_NS: u64 = 130_000_000_000;

/// Embryonic connections remembered for one ISN. Clients choose it at random: more than two is an attack.
const SAME_ISN: usize = 4;

/// Connections remembered after their end, so that a late event does not make a second one.
const CONCLUDED: usize = 65_536;

/// What the table counts beside the ends that it yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Connections forgotten because the table was full; their ends come with an unknown start.
    pub evicted: u64,
    /// SYNs forgotten because the table of embryonic connections was full.
    pub embryos_evicted: u64,
    /// SYNs that no accepted socket followed within [`EMBRYO_NS`].
    pub embryos_unfinished: u64,
}

/// All connections that are open or about to be reported.
#[derive(Debug)]
pub struct FlowTable {
    connections: LinkedHashMap<u64, Connection>,
    /// By the client's ISN, which address translation does not rewrite.
    embryos: LinkedHashMap<u32, SmallVec<[Embryo; 1]>>,
    /// Over: the time at which the verdict is due, cookie, generation.
    closing: BinaryHeap<Reverse<(u64, u64, u64)>>,
    /// Cookies of connections that were reported: only a SYN opens another one.
    concluded: LruCache<u64, ()>,
    limit: usize,
    generation: u64,
    stats: FlowStats,
}

impl FlowTable {
    /// A table of at most `limit` connections, and of embryonic ones with as many different ISNs.
    pub fn new(limit: usize) -> Self {
        Self {
            connections: LinkedHashMap::new(),
            embryos: LinkedHashMap::new(),
            closing: BinaryHeap::new(),
            concluded: LruCache::new(CONCLUDED),
            limit: limit.max(1),
            generation: 0,
            stats: FlowStats::default(),
        }
    }

    /// Connections in the table.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is no connection.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// What was counted so far.
    pub const fn stats(&self) -> FlowStats {
        self.stats
    }

    /// Takes in one event; `out` gets each connection that it ends.
    pub fn apply(&mut self, event: &Event, out: &mut impl FnMut(ConnectionEnd)) {
        let Event::Tcp(kind, tcp) = event else { return };
        self.tick(tcp.time_ns, out);
        if connection::is_of_listener(event) {
            self.apply_to_listener(*kind, tcp);
        } else {
            self.apply_to_connection(*kind, tcp, out);
        }
    }

    /// Reports what is due at `now_ns` (`CLOCK_BOOTTIME`).
    pub fn tick(&mut self, now_ns: u64, out: &mut impl FnMut(ConnectionEnd)) {
        while let Some(Reverse((due, cookie, generation))) = self.closing.peek().copied() {
            if due > now_ns {
                break;
            }
            self.closing.pop();
            if self.connections.get(&cookie).is_some_and(|c| c.generation == generation) {
                self.conclude(cookie, out);
            }
        }
        while let Some((_, embryos)) = self.embryos.front() {
            if embryos.first().is_some_and(|e| e.syn_ns.saturating_add(EMBRYO_NS) > now_ns) {
                break;
            }
            let count = embryos.len() as u64;
            self.embryos.pop_front();
            self.stats.embryos_unfinished += count;
        }
    }

    /// Reports every connection that is over, without waiting; for the end of the program.
    pub fn finish(&mut self, out: &mut impl FnMut(ConnectionEnd)) {
        self.tick(u64::MAX, out);
    }

    /// Reports every connection that is over, and every other one as [`Reason::Open`], ended by nobody;
    /// for the end of a capture.
    pub fn finish_open(&mut self, out: &mut impl FnMut(ConnectionEnd)) {
        self.finish(out);
        while let Some((_, connection)) = self.connections.pop_front() {
            out(ConnectionEnd { reason: Reason::Open, by: None, ..connection.conclude() });
        }
    }

    fn apply_to_connection(
        &mut self,
        kind: EventKind,
        event: &TcpEvent,
        out: &mut impl FnMut(ConnectionEnd),
    ) {
        if self.connections.get(&event.cookie).is_some_and(|c| c.is_reopened_by(event)) {
            self.conclude(event.cookie, out);
        }
        // To the back: the front is the one idle for longest.
        if self.connections.to_back(&event.cookie).is_none() {
            if !opens(kind, event)
                || (!begins(kind, event) && self.concluded.contains_key(&event.cookie))
            {
                return;
            }
            self.concluded.remove(&event.cookie);
            self.make_room(out);
            self.generation += 1;
            self.connections.insert(event.cookie, Connection::new(event, self.generation));
        }
        if kind == EventKind::PassiveEstablished
            && let Some(embryo) = self.take_embryo(event)
            && let Some(connection) = self.connections.get_mut(&event.cookie)
        {
            connection.adopt(embryo);
        }
        let Some(connection) = self.connections.get_mut(&event.cookie) else { return };
        let before = connection.settling();
        connection.apply(kind, event);
        let settling = connection.settling();
        if let Some(wait) = settling
            && settling != before
        {
            let due = event.time_ns.saturating_add(wait);
            self.closing.push(Reverse((due, event.cookie, connection.generation)));
        }
    }

    /// SYN, SYN-ACK and RST of an embryonic connection carry the listener's cookie.
    fn apply_to_listener(&mut self, kind: EventKind, event: &TcpEvent) {
        if event.flags & RST != 0 {
            return;
        }
        match (kind, event.flags & (SYN | ACK)) {
            (EventKind::SegmentIn, SYN) => self.syn_received(event),
            (EventKind::SegmentOut, flags) if flags == SYN | ACK => self.syn_ack_sent(event),
            _ => {}
        }
    }

    fn syn_received(&mut self, event: &TcpEvent) {
        let embryo = Embryo {
            listener: event.cookie,
            cgroup_id: event.cgroup_id,
            local: Endpoint::local_of(event),
            remote: Endpoint::remote_of(event),
            syn_ns: event.time_ns,
            syn_ack_ns: None,
            syn_ack_count: 0,
        };
        if self.embryos.len() >= self.limit
            && !self.embryos.contains_key(&event.seq)
            && let Some((_, evicted)) = self.embryos.pop_front()
        {
            self.stats.embryos_evicted += evicted.len() as u64;
        }
        let same_isn = self.embryos.entry(event.seq).or_insert_with(SmallVec::new);
        // A retransmitted SYN changes nothing: the connection began with the first one.
        if !same_isn.iter().any(|e| e.local == embryo.local && e.remote == embryo.remote) {
            if same_isn.len() == SAME_ISN {
                same_isn.remove(0);
                self.stats.embryos_evicted += 1;
            }
            same_isn.push(embryo);
            // The oldest ISN in front: expiry looks no further than the first that is young.
            self.embryos.to_back(&event.seq);
        }
    }

    /// At egress a translated packet may show other addresses: ISN and listener are what matches.
    fn syn_ack_sent(&mut self, event: &TcpEvent) {
        let Some(same_isn) = self.embryos.get_mut(&event.ack.wrapping_sub(1)) else { return };
        if let Some(embryo) = same_isn.iter_mut().find(|e| e.listener == event.cookie) {
            embryo.syn_ack_ns = Some(event.time_ns);
            embryo.syn_ack_count += 1;
        }
    }

    /// The SYN of an accepted socket: same addresses and ports, and the ISN just before what the
    /// socket expects next. With Fast Open too: data of the SYN is counted after the callback
    /// (net/ipv4/tcp_fastopen.c, tcp_fastopen_create_child).
    fn take_embryo(&mut self, event: &TcpEvent) -> Option<Embryo> {
        let isn = event.rcv_nxt.wrapping_sub(1);
        let (local, remote) = (Endpoint::local_of(event), Endpoint::remote_of(event));
        let fits = |e: &Embryo| e.local == local && e.remote == remote;
        let same_isn = self.embryos.get_mut(&isn)?;
        let at = same_isn.iter().position(fits)?;
        let embryo = same_isn.remove(at);
        if same_isn.is_empty() {
            self.embryos.remove(&isn);
        }
        Some(embryo)
    }

    fn make_room(&mut self, out: &mut impl FnMut(ConnectionEnd)) {
        while self.connections.len() >= self.limit {
            let Some((&cookie, oldest)) = self.connections.front() else { return };
            if oldest.settling().is_some() {
                self.conclude(cookie, out);
            } else {
                self.connections.pop_front();
                self.stats.evicted += 1;
            }
        }
    }

    fn conclude(&mut self, cookie: u64, out: &mut impl FnMut(ConnectionEnd)) {
        if let Some(connection) = self.connections.remove(&cookie) {
            self.concluded.insert(cookie, ());
            out(connection.conclude());
        }
    }
}

/// Whether an event of an unknown socket is a connection's: a SYN-ACK or SYN that comes in is not
/// yet one, and a listener that is closed never was one.
const fn opens(kind: EventKind, event: &TcpEvent) -> bool {
    match kind {
        EventKind::SegmentIn => event.flags & SYN == 0,
        EventKind::Closed => {
            event.state != TcpState::Listen as u8 && event.state != TcpState::Close as u8
        }
        EventKind::SegmentOut
        | EventKind::ActiveEstablished
        | EventKind::PassiveEstablished
        | EventKind::GaveUp => true,
        EventKind::Connect | EventKind::Bind | EventKind::DnsQuery | EventKind::DnsAnswer => false,
    }
}

/// Whether an event begins a connection on a socket that had one before: its SYN, or, with that lost,
/// its establishment.
const fn begins(kind: EventKind, event: &TcpEvent) -> bool {
    matches!(kind, EventKind::ActiveEstablished) || event.is_syn_sent()
}

#[cfg(test)]
mod tests;
