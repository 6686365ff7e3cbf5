//! One connection of one socket: what was seen of it, and the verdict when it is over.

use flowend_probe_types::{ACK, Event, EventKind, FIN, RST, SYN, TcpEvent, TcpState};
use smallvec::SmallVec;

use super::end::{ConnectionEnd, Counters, Direction, Endpoint, Isns, Reason, Rtt, Side};
use super::zeek;
use super::{SETTLE_NS, UNEXPLAINED_NS};

/// Closing segments of the peer that are remembered until CLOSE tells which was real.
///
/// The hook runs before TCP has checked a segment, so a forged or out-of-order one shows up too.
const CANDIDATES: usize = 4;

/// An RST past a gap is what closed the socket only when CLOSE followed within this time, ns.
const PAST_A_GAP_NS: u64 = 10_000_000;

/// A FIN or RST of the peer that TCP may or may not have accepted.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    time_ns: u64,
    /// RST: its sequence number. FIN: the sequence number after it.
    seq: u32,
    /// RST: its acknowledgement number.
    ack: u32,
    /// Whether it was just what the socket expected when the hook ran.
    exact: bool,
}

/// A segment that TCP built itself.
#[derive(Clone, Copy, Debug)]
struct Sent {
    time_ns: u64,
    state: TcpState,
}

/// What has been seen of one connection so far.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) cookie: u64,
    pub(super) listener: Option<u64>,
    cgroup_id: u64,
    pub(super) direction: Direction,
    local: Endpoint,
    remote: Endpoint,
    first_seen_ns: u64,
    syn_ns: Option<u64>,
    syn_count: u32,
    syn_ack_ns: Option<u64>,
    syn_ack_count: u32,
    established_ns: Option<u64>,
    isn_local: Option<u32>,
    isn_remote: Option<u32>,
    fin_out: Option<Sent>,
    rst_out: Option<Sent>,
    fins_in: SmallVec<[Candidate; 1]>,
    rsts_in: SmallVec<[Candidate; 1]>,
    gave_up: bool,
    closed: Option<TcpEvent>,
    /// The latest event with counters, and the smoothed RTT at the last FIN.
    last: TcpEvent,
    srtt_at_fin: Option<u32>,
    /// Whether sockops reports the CLOSE of this socket.
    pub(super) watched: bool,
    /// Tells this connection from another one of the same cookie.
    pub(super) generation: u64,
}

/// A SYN that a listener received, until the accepted socket is established.
#[derive(Clone, Debug)]
pub(super) struct Embryo {
    pub(super) listener: u64,
    pub(super) cgroup_id: u64,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) syn_ns: u64,
    pub(super) syn_ack_ns: Option<u64>,
    pub(super) syn_ack_count: u32,
}

impl Connection {
    /// A connection first heard of through `event`.
    pub(super) fn new(event: &TcpEvent, generation: u64) -> Self {
        Self {
            cookie: event.cookie,
            listener: None,
            cgroup_id: event.cgroup_id,
            direction: Direction::Unknown,
            local: Endpoint::local_of(event),
            remote: Endpoint::remote_of(event),
            first_seen_ns: event.time_ns,
            syn_ns: None,
            syn_count: 0,
            syn_ack_ns: None,
            syn_ack_count: 0,
            established_ns: None,
            isn_local: None,
            isn_remote: None,
            fin_out: None,
            rst_out: None,
            fins_in: SmallVec::new(),
            rsts_in: SmallVec::new(),
            gave_up: false,
            closed: None,
            last: *event,
            srtt_at_fin: None,
            watched: false,
            generation,
        }
    }

    /// An accepted connection: what the listener saw of its handshake comes first.
    pub(super) fn adopt(&mut self, embryo: Embryo) {
        self.listener = Some(embryo.listener);
        self.cgroup_id = embryo.cgroup_id;
        self.syn_ns = Some(embryo.syn_ns);
        self.syn_count = 1;
        self.syn_ack_ns = embryo.syn_ack_ns;
        self.syn_ack_count = embryo.syn_ack_count;
        self.first_seen_ns = self.first_seen_ns.min(embryo.syn_ns);
    }

    /// Whether `event` opens another connection on the same socket (reconnect after a refusal, or
    /// after connect(AF_UNSPEC)): a SYN with a new ISN, or any SYN after CLOSE.
    pub(super) fn is_reopened_by(&self, event: &TcpEvent) -> bool {
        event.is_syn_sent() && (self.closed.is_some() || self.isn_local != Some(event.seq))
    }

    /// How long the verdict still waits, for a connection that is over.
    pub(super) fn settling(&self) -> Option<u64> {
        if self.closed.is_some() {
            let explained = self.facts().reason != Reason::Vanished;
            return Some(if explained { SETTLE_NS } else { UNEXPLAINED_NS });
        }
        // Without sockops it is over with both FINs, or an RST. Should CLOSE be seen all the same (the
        // callbacks may have been asked for by a flowend before this one), it brings the counters.
        let is_over = !self.watched
            && (self.rst_out.is_some()
                || self.rsts_in.iter().any(|c| c.exact)
                || (self.fin_out.is_some() && self.fins_in.iter().any(|c| c.exact)));
        is_over.then_some(UNEXPLAINED_NS)
    }

    /// Takes in one event of this socket.
    pub(super) fn apply(&mut self, kind: EventKind, event: &TcpEvent) {
        if self.closed.is_some() && kind != EventKind::SegmentOut {
            // Only the RST of the application follows CLOSE; anything else is a duplicate.
            return;
        }
        if event.cgroup_id != 0 {
            self.cgroup_id = event.cgroup_id;
        }
        // Its SYN was not seen: dropped on this host, or sent before the probe came.
        if event.state == TcpState::SynSent as u8 && self.direction == Direction::Unknown {
            self.direction = Direction::Outgoing;
        }
        match kind {
            EventKind::SegmentOut => self.sent(event),
            EventKind::SegmentIn => self.received(event),
            EventKind::ActiveEstablished => self.established(event, Direction::Outgoing),
            EventKind::PassiveEstablished => self.established(event, Direction::Incoming),
            EventKind::GaveUp => {
                self.watched = true;
                self.gave_up = true;
            }
            EventKind::Closed if event.state == TcpState::Close as u8 => {}
            EventKind::Closed => {
                self.watched = true;
                self.last = *event;
                self.closed = Some(*event);
            }
            EventKind::Connect | EventKind::Bind | EventKind::DnsQuery | EventKind::DnsAnswer => {}
        }
    }

    fn sent(&mut self, event: &TcpEvent) {
        let sent = Sent { time_ns: event.time_ns, state: TcpState::from_kernel(event.state) };
        if event.flags & RST != 0 {
            self.rst_out.get_or_insert(sent);
        } else if event.flags & (SYN | ACK) == SYN {
            self.direction = Direction::Outgoing;
            self.isn_local = Some(event.seq);
            // The first SYN seen may be a retransmission of one that left before the probe came.
            if self.syn_count == 0 && event.total_retrans == 0 {
                self.syn_ns = Some(event.time_ns);
                self.watched = true;
            }
            self.syn_count += 1;
            self.last = *event;
        } else if event.flags & SYN != 0 {
            // With Fast Open the SYN-ACK leaves from the accepted socket itself.
            self.isn_local = Some(event.seq);
            self.syn_ack_ns.get_or_insert(event.time_ns);
            self.syn_ack_count += 1;
        } else if event.flags & FIN != 0 && self.closed.is_none() {
            self.fin_out.get_or_insert(sent);
            self.srtt_at_fin = Some(event.srtt_8us);
            self.last = *event;
        }
    }

    fn received(&mut self, event: &TcpEvent) {
        if event.flags & RST != 0 {
            // RFC 9293, 3.10.7: in SYN-SENT the ACK must be that of the SYN, later the sequence
            // number must be the next expected one (or the one before it, after the peer's FIN).
            let exact = if event.state == TcpState::SynSent as u8 {
                event.ack == event.snd_nxt
            } else {
                event.seq == event.rcv_nxt || event.seq == event.rcv_nxt.wrapping_sub(1)
            };
            remember(
                &mut self.rsts_in,
                Candidate { time_ns: event.time_ns, seq: event.seq, ack: event.ack, exact },
            );
            self.last = *event;
        } else if event.flags & SYN != 0 {
            if event.flags & ACK != 0 && event.state == TcpState::SynSent as u8 {
                self.isn_remote = Some(event.seq);
                self.syn_ack_ns.get_or_insert(event.time_ns);
                self.syn_ack_count += 1;
            }
        } else if event.flags & FIN != 0 {
            let after = event.seq.wrapping_add(event.payload).wrapping_add(1);
            remember(
                &mut self.fins_in,
                Candidate {
                    time_ns: event.time_ns,
                    seq: after,
                    ack: event.ack,
                    exact: event.seq == event.rcv_nxt,
                },
            );
            self.srtt_at_fin = Some(event.srtt_8us);
            self.last = *event;
        }
    }

    fn established(&mut self, event: &TcpEvent, direction: Direction) {
        self.watched = true;
        // Where both sides sent a SYN (simultaneous open) the callback is that of an accepted socket.
        if self.direction == Direction::Unknown {
            self.direction = direction;
        }
        self.established_ns.get_or_insert(event.time_ns);
        // snd_nxt and rcv_nxt are ISN + 1 here, unless the opener's data went with the SYN (Fast Open):
        // then the segments told the ISNs already.
        if self.direction == Direction::Incoming {
            self.isn_local = Some(event.snd_nxt.wrapping_sub(1));
        }
        self.isn_local.get_or_insert(event.snd_nxt.wrapping_sub(1));
        self.isn_remote.get_or_insert(event.rcv_nxt.wrapping_sub(1));
        self.last = *event;
    }

    /// The verdict.
    pub(super) fn conclude(&self) -> ConnectionEnd {
        let facts = self.facts();
        ConnectionEnd {
            cookie: self.cookie,
            listener: self.listener,
            cgroup_id: (self.cgroup_id != 0).then_some(self.cgroup_id),
            direction: self.direction,
            local: self.local,
            remote: self.remote,
            start_ns: self.syn_ns.unwrap_or(self.first_seen_ns),
            start_known: facts.start_known,
            end_ns: self.end_ns(&facts),
            by: facts.by,
            reason: facts.reason,
            reset_by: facts.reset_by,
            conn_state: zeek::conn_state(&facts),
            history: zeek::history(&facts),
            half_close_ns: facts
                .fin_local
                .zip(facts.fin_remote)
                .map(|(local, remote)| local.abs_diff(remote)),
            counters: self.counters(&facts),
            rtt: self.rtt(),
            isns: self.isns(),
        }
    }

    fn end_ns(&self, facts: &Facts) -> u64 {
        match self.closed {
            Some(closed) => closed.time_ns,
            None => [facts.fin_local, facts.fin_remote, facts.rst_local, facts.rst_remote]
                .into_iter()
                .flatten()
                .max()
                .unwrap_or(self.last.time_ns),
        }
    }

    /// Sorts what was seen into what is true.
    fn facts(&self) -> Facts {
        let state = self.closed.map_or(TcpState::Unknown, |c| TcpState::from_kernel(c.state));
        let fin_remote = self.accepted_fin();
        let rst_remote = self.accepted_rst(state);
        let fin_local = self.fin_out.map(|f| f.time_ns);
        let rst_local = self.rst_out.map(|r| r.time_ns);
        let established = self.established_ns.is_some();

        let (reason, reset_by) = if state == TcpState::SynSent
            || (!self.watched
                && !established
                && rst_remote.is_some()
                && self.direction == Direction::Outgoing)
        {
            match (rst_remote, self.gave_up) {
                (Some(_), _) => (Reason::Refused, Some(Side::Remote)),
                (None, true) => (Reason::ConnectTimeout, None),
                (None, false) => (Reason::Aborted, rst_local.map(|_| Side::Local)),
            }
        } else if self.gave_up {
            (Reason::Timeout, None)
        } else if let Some(rst) = self.rst_out {
            // The application resets in CLOSE; in any other state the socket was destroyed.
            let reason = if rst.state == TcpState::Close { Reason::Reset } else { Reason::Aborted };
            (reason, Some(Side::Local))
        } else if rst_remote.is_some() {
            (Reason::Reset, Some(Side::Remote))
        } else {
            match state {
                TcpState::LastAck | TcpState::FinWait2 | TcpState::Closing | TcpState::TimeWait => {
                    (Reason::Fin, None)
                }
                TcpState::Unknown if fin_local.is_some() && fin_remote.is_some() => {
                    (Reason::Fin, None)
                }
                _ => (Reason::Vanished, None),
            }
        };

        let by = [
            fin_local.map(|t| (t, Side::Local)),
            rst_local.map(|t| (t, Side::Local)),
            fin_remote.map(|t| (t, Side::Remote)),
            rst_remote.map(|t| (t, Side::Remote)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(t, _)| *t)
        .map(|(_, side)| side);
        // The state says who closed first, even where the FIN itself was not seen.
        let by = match state {
            TcpState::LastAck | TcpState::CloseWait if fin_remote.is_none() => Some(Side::Remote),
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing if fin_local.is_none() => {
                Some(Side::Local)
            }
            _ => by,
        };

        Facts {
            direction: self.direction,
            start_known: self.syn_ns.is_some(),
            established,
            syn_ack_seen: established || self.syn_ack_ns.is_some(),
            state,
            reason,
            by,
            reset_by,
            fin_local,
            fin_remote,
            rst_local,
            rst_remote,
            // An own RST is counted only where it left before the counters were read, at CLOSE.
            segments: self.segments(
                u32::from(fin_local.is_some())
                    + u32::from(self.rst_out.is_some_and(|r| r.state != TcpState::Close)),
                u32::from(fin_remote.is_some()) + u32::from(rst_remote.is_some()),
            ),
        }
    }

    /// The time of the peer's FIN, if TCP took one: then it is the last thing in the sequence space.
    fn accepted_fin(&self) -> Option<u64> {
        self.fins_in
            .iter()
            .find(|c| match self.closed {
                Some(closed) => c.seq == closed.rcv_nxt,
                None => c.exact,
            })
            .map(|c| c.time_ns)
    }

    /// The time of the peer's RST, if that is what closed the socket.
    fn accepted_rst(&self, state: TcpState) -> Option<u64> {
        let Some(closed) = self.closed else {
            return self.rsts_in.iter().find(|c| c.exact).map(|c| c.time_ns);
        };
        let exact = self.rsts_in.iter().find(|c| match state {
            TcpState::SynSent => c.ack == closed.snd_nxt || c.exact,
            // Orderly ends are explained already: an RST then changed nothing.
            TcpState::TimeWait => false,
            _ => c.seq == closed.rcv_nxt || c.seq == closed.rcv_nxt.wrapping_sub(1),
        });
        // With segments missing, an RST at the end of what was received out of order counts, too
        // (net/ipv4/tcp_input.c, tcp_validate_incoming); the socket goes to CLOSE at once then.
        let past_a_gap = || {
            let is_open =
                matches!(state, TcpState::Established | TcpState::CloseWait | TcpState::FinWait1);
            self.rsts_in.iter().find(|c| {
                is_open
                    && self.rst_out.is_none()
                    && !self.gave_up
                    && c.seq.wrapping_sub(closed.rcv_nxt) < 1 << 30
                    && closed.time_ns.saturating_sub(c.time_ns) < PAST_A_GAP_NS
            })
        };
        exact.or_else(past_a_gap).map(|c| c.time_ns)
    }

    fn counters(&self, facts: &Facts) -> Counters {
        let last = &self.last;
        if self.closed.is_none() && !self.has_counters() {
            return Counters::default();
        }
        // The opener's SYN counts as acknowledged (or outstanding); the accepter's does not.
        let syn = match self.direction {
            Direction::Outgoing => Some(1),
            Direction::Incoming => Some(0),
            Direction::Unknown => None,
        };
        let fin_sent = match (facts.fin_local, facts.state) {
            (Some(_), _) => Some(1),
            // The FIN event is missing: it may or may not have left.
            (None, TcpState::FinWait1) => None,
            (None, TcpState::LastAck | TcpState::Closing) if facts.reset_by.is_some() => None,
            (
                None,
                TcpState::FinWait2 | TcpState::LastAck | TcpState::Closing | TcpState::TimeWait,
            ) => Some(1),
            (None, _) => Some(0),
        };
        let fin_received = u64::from(
            facts.fin_remote.is_some()
                || matches!(
                    facts.state,
                    TcpState::CloseWait | TcpState::LastAck | TcpState::Closing
                ),
        );
        let outstanding = u64::from(last.snd_nxt.wrapping_sub(last.snd_una));
        let watched_end = self.closed.is_some();
        Counters {
            bytes_sent: syn
                .zip(fin_sent)
                .filter(|_| watched_end)
                .map(|(syn, fin)| (last.bytes_acked + outstanding).saturating_sub(syn + fin)),
            bytes_received: watched_end.then(|| last.bytes_received.saturating_sub(fin_received)),
            segments_sent: Some(last.segs_out),
            segments_received: Some(last.segs_in),
            retransmits: Some(last.total_retrans),
        }
    }

    const fn has_counters(&self) -> bool {
        self.last.segs_in != 0 || self.last.segs_out != 0
    }

    /// Which kinds of segments each side sent, from the socket's counters.
    fn segments(&self, closing_sent: u32, closing_received: u32) -> Option<Segments> {
        if !self.has_counters() || self.established_ns.is_none() {
            return None;
        }
        let last = &self.last;
        let outgoing = u32::from(self.direction == Direction::Outgoing);
        // The opener's segs_out holds its SYN and segs_in the SYN-ACK; the accepted socket begins
        // to count with the ACK that completes the handshake.
        let sent_other = last.segs_out.saturating_sub(last.data_segs_out + outgoing + closing_sent);
        let received_other =
            last.segs_in.saturating_sub(last.data_segs_in + outgoing + closing_received);
        Some(Segments {
            local: Sides { data: last.data_segs_out > 0, pure_acks: sent_other > 0 },
            remote: Sides { data: last.data_segs_in > 0, pure_acks: received_other > 0 },
        })
    }

    fn rtt(&self) -> Rtt {
        let handshake = match self.direction {
            Direction::Outgoing if self.syn_count == 1 => self.syn_ns.zip(self.established_ns),
            Direction::Incoming if self.syn_ack_count == 1 => {
                self.syn_ack_ns.zip(self.established_ns)
            }
            _ => None,
        };
        let known = |us: u32| (us != 0 && us != u32::MAX).then_some(us);
        Rtt {
            // With Fast Open the accepted socket is established before its SYN-ACK leaves.
            handshake_us: handshake.and_then(|(from, to)| to.checked_sub(from)).map(|ns| ns / 1000),
            smoothed_us: known(self.srtt_at_fin.unwrap_or(self.last.srtt_8us)).map(|s| s >> 3),
            min_us: known(self.last.rtt_min_us),
        }
    }

    fn isns(&self) -> Option<Isns> {
        let (local, remote) = self.isn_local.zip(self.isn_remote)?;
        match self.direction {
            Direction::Outgoing => Some(Isns { client: local, server: remote }),
            Direction::Incoming => Some(Isns { client: remote, server: local }),
            Direction::Unknown => None,
        }
    }
}

/// Keeps a candidate once, the first time it was seen; of too many, those that fit the socket.
fn remember(candidates: &mut SmallVec<[Candidate; 1]>, new: Candidate) {
    if candidates.iter().any(|c| c.seq == new.seq && c.ack == new.ack) {
        return;
    }
    if candidates.len() < CANDIDATES {
        candidates.push(new);
    } else if new.exact
        && let Some(slot) = candidates.iter_mut().find(|c| !c.exact)
    {
        *slot = new;
    }
}

/// What is true of a connection that is over.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) direction: Direction,
    pub(super) start_known: bool,
    pub(super) established: bool,
    pub(super) syn_ack_seen: bool,
    /// The state it left for CLOSE; `Unknown` where CLOSE was not seen.
    pub(super) state: TcpState,
    pub(super) reason: Reason,
    pub(super) by: Option<Side>,
    pub(super) reset_by: Option<Side>,
    fin_local: Option<u64>,
    fin_remote: Option<u64>,
    rst_local: Option<u64>,
    rst_remote: Option<u64>,
    pub(super) segments: Option<Segments>,
}

impl Facts {
    pub(super) const fn fin_of(&self, side: Side) -> Option<u64> {
        match side {
            Side::Local => self.fin_local,
            Side::Remote => self.fin_remote,
        }
    }

    pub(super) const fn rst_of(&self, side: Side) -> Option<u64> {
        match side {
            Side::Local => self.rst_local,
            Side::Remote => self.rst_remote,
        }
    }
}

/// Kinds of segments by side.
#[derive(Debug)]
pub(super) struct Segments {
    local: Sides,
    remote: Sides,
}

/// Kinds of segments one side sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sides {
    pub(super) data: bool,
    pub(super) pure_acks: bool,
}

impl Segments {
    pub(super) const fn of(&self, side: Side) -> Sides {
        match side {
            Side::Local => self.local,
            Side::Remote => self.remote,
        }
    }
}

/// Whether an event is of a listener, which is no connection itself.
pub(super) const fn is_of_listener(event: &Event) -> bool {
    matches!(event, Event::Tcp(EventKind::SegmentIn | EventKind::SegmentOut, e) if e.state == TcpState::Listen as u8)
}
