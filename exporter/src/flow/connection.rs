//! One connection of one socket: what was seen of it.

use flowend_probe_types::{ACK, Event, EventKind, FIN, RST, SYN, TcpEvent, TcpState};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::census::OpenSocket;
use super::embryo::Embryo;
use super::end::{Direction, Endpoint, Opened, Reason};
use super::verdict::{Context, Facts};
use super::{HALF_CLOSED_NS, SETTLE_NS, UNEXPLAINED_NS};

/// Closing segments of the peer that are remembered until CLOSE tells which was real.
///
/// The hook runs before TCP has checked a segment, so a forged or out-of-order one shows up too.
const CANDIDATES: usize = 4;

/// A FIN or RST of the peer that TCP may or may not have accepted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Candidate {
    pub(super) time_ns: u64,
    /// RST: its sequence number. FIN: the sequence number after it.
    pub(super) seq: u32,
    /// RST: its acknowledgement number.
    pub(super) ack: u32,
    /// Whether it was just what the socket expected when the hook ran.
    pub(super) exact: bool,
    /// RST: whether the socket had taken the peer's FIN, so that the number before the next counts, too.
    pub(super) after_fin: bool,
    /// Payload received up to and with this segment, if it is real.
    pub(super) received: u64,
    pub(super) has_data: bool,
}

/// A FIN or RST that TCP built itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Sent {
    pub(super) time_ns: u64,
    #[serde(with = "super::kept::state")]
    pub(super) state: TcpState,
    /// Payload, and the SYN of an opener, sent before it and with it.
    pub(super) sent: u64,
    /// Payload received.
    pub(super) received: u64,
    pub(super) has_data: bool,
    /// Whether nothing waited to be acknowledged.
    pub(super) is_idle: bool,
    pub(super) segs_out: u32,
    pub(super) data_segs_in: u32,
    pub(super) total_retrans: u32,
}

/// Establishment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Established {
    pub(super) time_ns: u64,
    /// Retransmissions of the handshake.
    pub(super) retransmits: u32,
}

/// CLOSE of the own socket.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Closed {
    pub(super) time_ns: u64,
    /// The state it left.
    #[serde(with = "super::kept::state")]
    pub(super) state: TcpState,
    /// As in [`TcpEvent::keepalive_ms`].
    pub(super) keepalive_ms: u32,
}

/// What the looks at the kernel's sockets told of a connection.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Looked {
    /// Looks in a row in which its socket was not to be found.
    pub(super) missed: u8,
    /// The first of them.
    pub(super) missed_ns: u64,
    /// The latest look in which it was there, or 0.
    pub(super) alive_ns: u64,
    /// Its direction was told by a listener, and not by its counters.
    pub(super) direction_is_likely: bool,
    /// Its socket is gone.
    pub(super) gone: bool,
    /// It was found in TIME-WAIT: its own FIN was acknowledged.
    pub(super) time_wait: bool,
    /// Whole intervals of progress of which was told.
    pub(super) intervals: u64,
}

/// What has been seen of one connection so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Connection {
    pub(super) cookie: u64,
    pub(super) listener: Option<u64>,
    pub(super) cgroup_id: u64,
    /// Cookie of the network namespace, or 0.
    pub(super) netns: u64,
    pub(super) direction: Direction,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) first_seen_ns: u64,
    pub(super) syn_ns: Option<u64>,
    pub(super) syn_ack_ns: Option<u64>,
    pub(super) established: Option<Established>,
    pub(super) isn_local: Option<u32>,
    pub(super) isn_remote: Option<u32>,
    pub(super) fin_out: Option<Sent>,
    pub(super) rst_out: Option<Sent>,
    #[serde(with = "super::kept::list")]
    pub(super) fins_in: SmallVec<[Candidate; 1]>,
    #[serde(with = "super::kept::list")]
    pub(super) rsts_in: SmallVec<[Candidate; 1]>,
    pub(super) gave_up: bool,
    pub(super) closed: Option<Closed>,
    /// The latest state that an event showed, other than CLOSE.
    #[serde(with = "super::kept::state")]
    pub(super) state: TcpState,
    /// The latest event with counters; that of CLOSE, once it came.
    #[serde(with = "super::kept::TcpEventFields")]
    pub(super) last: TcpEvent,
    /// The smoothed RTT at the last FIN: a delayed ACK of it inflates what CLOSE shows.
    pub(super) srtt_at_fin: Option<u32>,
    /// Whether sockops has told of this socket, and so will tell of its CLOSE.
    pub(super) watched: bool,
    pub(super) looked: Looked,
    /// Tells this connection from another one of the same cookie.
    pub(super) generation: u64,
}

impl Connection {
    /// A connection first heard of through `event`.
    pub(super) fn new(event: &TcpEvent, generation: u64) -> Self {
        Self {
            cookie: event.cookie,
            listener: None,
            cgroup_id: event.cgroup_id,
            netns: event.netns,
            direction: Direction::Unknown,
            local: Endpoint::local_of(event),
            remote: Endpoint::remote_of(event),
            first_seen_ns: event.time_ns,
            syn_ns: None,
            syn_ack_ns: None,
            established: None,
            isn_local: None,
            isn_remote: None,
            fin_out: None,
            rst_out: None,
            fins_in: SmallVec::new(),
            rsts_in: SmallVec::new(),
            gave_up: false,
            closed: None,
            state: TcpState::from_kernel(event.state),
            last: *event,
            srtt_at_fin: None,
            watched: false,
            looked: Looked::default(),
            generation,
        }
    }

    /// A connection older than the probe, found among the kernel's sockets.
    pub(super) fn found(socket: &OpenSocket, at_ns: u64, generation: u64) -> Self {
        let event = TcpEvent {
            cookie: socket.cookie,
            cgroup_id: socket.cgroup_id.unwrap_or(0),
            netns: socket.netns.unwrap_or(0),
            state: socket.state as u8,
            time_ns: at_ns,
            local: socket.local.addr,
            local_port: socket.local.port,
            remote: socket.remote.addr,
            remote_port: socket.remote.port,
            ..TcpEvent::default()
        };
        Self::new(&event, generation)
    }

    /// An accepted connection: what the listener saw of its handshake comes first.
    pub(super) fn adopt(&mut self, embryo: Embryo) {
        self.listener = Some(embryo.listener);
        self.cgroup_id = embryo.cgroup_id;
        self.syn_ns = Some(embryo.syn_ns);
        self.syn_ack_ns = embryo.syn_ack.map(|syn_ack| syn_ack.time_ns);
        self.first_seen_ns = self.first_seen_ns.min(embryo.syn_ns);
        self.fins_in.extend(embryo.fin);
    }

    /// The same where nothing tells of establishments: a segment of the socket itself shows that there was one.
    pub(super) fn adopt_unheard(&mut self, embryo: Embryo, event: &TcpEvent) {
        // An accepted socket does not count its SYN as acknowledged.
        let isn = event.snd_una.wrapping_sub(event.bytes_acked as u32).wrapping_sub(1);
        let is_its_own = embryo.syn_ack.is_none_or(|syn_ack| syn_ack.isn == isn);
        self.isn_local = is_its_own.then_some(isn);
        self.isn_remote = Some(isn_of_peer(event));
        self.direction = Direction::Incoming;
        self.adopt(embryo);
    }

    /// Whether its SYN may be among those that listeners received, though no establishment was told. Not once
    /// it was reported with another start and other ids.
    pub(super) const fn may_be_unheard(&self) -> bool {
        !self.begins_seen()
            && self.closed.is_none()
            && self.looked.intervals == 0
            && !matches!(self.direction, Direction::Outgoing)
    }

    /// What a look at the kernel's sockets adds while the socket is there.
    pub(super) fn look(&mut self, socket: &OpenSocket, begun_ns: u64) {
        (self.looked.missed, self.looked.missed_ns, self.looked.alive_ns) = (0, 0, begun_ns);
        let knows_better = self.looked.direction_is_likely && socket.direction_is_exact;
        if self.direction == Direction::Unknown || knows_better {
            self.direction = socket.direction;
            self.looked.direction_is_likely = !socket.direction_is_exact;
        }
        if let (0, Some(id)) = (self.cgroup_id, socket.cgroup_id) {
            self.cgroup_id = id;
        }
        if let (0, Some(netns)) = (self.netns, socket.netns) {
            self.netns = netns;
        }
    }

    /// What a look adds that finds it in TIME-WAIT.
    pub(super) fn look_at_minisocket(&mut self, socket: &OpenSocket) {
        self.looked.time_wait = true;
        // Only sockops tells it otherwise.
        if let (0, Some(netns)) = (self.netns, socket.netns) {
            self.netns = netns;
        }
    }

    /// Whether `event` opens another connection on the same socket (reconnect after a refusal, or
    /// after connect(AF_UNSPEC)). A retransmitted SYN has the same ISN; and of a connection that was found
    /// while it was being opened, the first SYN to be seen is its own.
    pub(super) fn is_reopened_by(&self, event: &TcpEvent) -> bool {
        let is_its_own = match self.isn_local {
            Some(isn) => isn == event.seq,
            None => self.state == TcpState::SynSent && self.rsts_in.is_empty() && !self.gave_up,
        };
        event.is_syn_sent()
            && event.time_ns >= self.first_seen_ns
            && (self.closed.is_some() || !is_its_own)
    }

    /// How long the verdict still waits, for a connection that is over.
    pub(super) fn settling(&self) -> Option<u64> {
        if self.closed.is_some() {
            let facts = Facts::of(self, &Context::default());
            return Some(match facts.reason {
                Reason::Vanished => UNEXPLAINED_NS,
                // An error report would tell more, and may come late.
                Reason::Aborted | Reason::Timeout if !self.gave_up => UNEXPLAINED_NS,
                // After a shutdown() the application may reset all the same.
                Reason::Fin if facts.rests_on_absence() => HALF_CLOSED_NS,
                _ => SETTLE_NS,
            });
        }
        if self.looked.gone {
            return Some(SETTLE_NS);
        }
        // Without sockops it is over with both FINs, or an RST. Should CLOSE be seen all the same (the
        // callbacks may have been asked for by a flowend before this one), it brings the counters.
        let is_over = !self.watched
            && (self.rst_out.is_some()
                || self.rsts_in.iter().any(|c| c.exact)
                || (self.fin_out.is_some() && self.accepted_fin().is_some()));
        is_over.then_some(UNEXPLAINED_NS)
    }

    /// Whether only a look at the kernel's sockets can tell if it is over.
    pub(super) fn needs_look(&self) -> bool {
        !self.watched
            && self.settling().is_none()
            && (self.fin_out.is_some() || !self.fins_in.is_empty() || !self.rsts_in.is_empty())
    }

    /// Whether a look may find it in TIME-WAIT, and only that would say how it ended.
    pub(super) fn may_time_wait(&self) -> bool {
        !self.watched && self.closed.is_none() && self.fin_out.is_some()
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
        if event.netns != 0 {
            self.netns = event.netns;
        }
        // Its SYN was not seen: dropped on this host, or sent before the probe came.
        if event.state == TcpState::SynSent as u8 && self.direction == Direction::Unknown {
            self.direction = Direction::Outgoing;
        }
        if event.state != TcpState::Close as u8 {
            self.state = TcpState::from_kernel(event.state);
        }
        match kind {
            EventKind::SegmentOut => self.sent(event),
            EventKind::SegmentIn => self.received(event),
            EventKind::ActiveEstablished => self.established(event, Direction::Outgoing),
            EventKind::PassiveEstablished => self.established(event, Direction::Incoming),
            EventKind::GaveUp => {
                self.watched = true;
                self.gave_up = true;
                self.last = *event;
            }
            EventKind::Closed if event.state == TcpState::Close as u8 => {}
            EventKind::Closed => {
                self.watched = true;
                self.last = *event;
                self.closed = Some(Closed {
                    time_ns: event.time_ns,
                    state: TcpState::from_kernel(event.state),
                    keepalive_ms: event.keepalive_ms,
                });
            }
            EventKind::Error
            | EventKind::Connect
            | EventKind::Bind
            | EventKind::DnsQuery
            | EventKind::DnsAnswer
            | EventKind::DnsStreamOut
            | EventKind::DnsStreamIn => {}
        }
    }

    fn sent(&mut self, event: &TcpEvent) {
        if event.flags & RST != 0 {
            self.rst_out.get_or_insert_with(|| Sent::of(event));
        } else if event.flags & (SYN | ACK) == SYN {
            self.direction = Direction::Outgoing;
            self.isn_local = Some(event.seq);
            // The first SYN seen may be a retransmission of one that left before the probe came.
            if self.syn_ns.is_none() && event.total_retrans == 0 {
                self.syn_ns = Some(event.time_ns);
            }
            if self.closed.is_none() {
                self.last = *event;
            }
        } else if event.flags & SYN != 0 {
            // With Fast Open the SYN-ACK leaves from the accepted socket itself.
            self.isn_local = Some(event.seq);
            self.syn_ack_ns.get_or_insert(event.time_ns);
        } else if event.flags & FIN != 0 && self.closed.is_none() {
            self.fin_out.get_or_insert_with(|| Sent::of(event));
            self.srtt_at_fin = Some(event.srtt_8us);
            self.last = *event;
        }
    }

    fn received(&mut self, event: &TcpEvent) {
        if event.flags & RST != 0 {
            remember(&mut self.rsts_in, Candidate::rst(event, self.isn_local));
            self.last = *event;
        } else if event.flags & SYN != 0 {
            if event.flags & ACK != 0 && event.state == TcpState::SynSent as u8 {
                self.isn_remote = Some(event.seq);
                self.syn_ack_ns.get_or_insert(event.time_ns);
            }
        } else if event.flags & FIN != 0 {
            remember(&mut self.fins_in, Candidate::fin(event));
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
        self.established.get_or_insert(Established {
            time_ns: event.time_ns,
            retransmits: event.total_retrans,
        });
        // snd_nxt and rcv_nxt are ISN + 1 here, unless the opener's data went with the SYN (Fast Open):
        // then the segments told the ISNs already, or, with them lost, nothing does.
        let no_data_yet = self.direction == Direction::Incoming || event.bytes_acked <= 1;
        if self.direction == Direction::Incoming {
            self.isn_local = Some(event.snd_nxt.wrapping_sub(1));
        } else if no_data_yet {
            self.isn_local.get_or_insert(event.snd_nxt.wrapping_sub(1));
        }
        self.isn_remote.get_or_insert(event.rcv_nxt.wrapping_sub(1));
        self.last = *event;
    }

    /// The peer's FIN, if TCP took it: it is the last thing in the sequence space.
    pub(super) fn accepted_fin(&self) -> Option<&Candidate> {
        self.fins_in.iter().find(|c| match self.closed {
            Some(_) => c.seq == self.last.rcv_nxt,
            None => c.exact || c.seq == self.last.rcv_nxt,
        })
    }

    /// The latest moment of which anything is known.
    pub(super) fn last_ns(&self) -> u64 {
        self.last.time_ns.max(self.first_seen_ns).max(self.looked.alive_ns)
    }

    /// Whether its handshake was seen, and so everything since.
    pub(super) const fn begins_seen(&self) -> bool {
        self.syn_ns.is_some() || self.established.is_some()
    }

    /// What is known of it at its beginning.
    pub(super) fn opened(&self) -> Opened {
        Opened {
            cookie: self.cookie,
            cgroup_id: (self.cgroup_id != 0).then_some(self.cgroup_id),
            local: self.local,
            remote: self.remote,
            start_ns: self.start_ns(),
            start_known: self.syn_ns.is_some(),
        }
    }

    /// Its SYN, or its first sight.
    pub(super) fn start_ns(&self) -> u64 {
        self.syn_ns.unwrap_or(self.first_seen_ns)
    }
}

impl Candidate {
    fn rst(event: &TcpEvent, isn_local: Option<u32>) -> Self {
        // RFC 9293, 3.10.7: in SYN-SENT the ACK must be that of the SYN, later the sequence
        // number must be the next expected one (or the one before it, after the peer's FIN).
        let state = TcpState::from_kernel(event.state);
        let after_fin =
            matches!(state, TcpState::CloseWait | TcpState::LastAck | TcpState::Closing);
        let exact = if state == TcpState::SynSent {
            // Where the answer comes at once, over loopback, TCP has not moved on from its SYN yet
            // (net/ipv4/tcp_output.c, tcp_connect).
            event.ack == event.snd_nxt
                || isn_local.is_some_and(|isn| event.ack == isn.wrapping_add(1))
        } else {
            event.seq == event.rcv_nxt || (after_fin && event.seq == event.rcv_nxt.wrapping_sub(1))
        };
        Self {
            time_ns: event.time_ns,
            seq: event.seq,
            ack: event.ack,
            exact,
            after_fin,
            received: event.bytes_received,
            has_data: event.payload > 0,
        }
    }

    fn fin(event: &TcpEvent) -> Self {
        let end = event.seq.wrapping_add(event.payload);
        // Earlier segments may sit in the backlog: they are between what is counted and this one. One
        // that comes again ends before what is counted, its FIN included.
        let ahead = i64::from(end.wrapping_sub(event.rcv_nxt).cast_signed());
        Self {
            time_ns: event.time_ns,
            seq: end.wrapping_add(1),
            ack: event.ack,
            exact: event.seq == event.rcv_nxt,
            after_fin: false,
            received: event.bytes_received.saturating_add_signed(ahead),
            has_data: event.payload > 0,
        }
    }

    /// A FIN that a listener received together with the ACK of its SYN-ACK.
    pub(super) fn first_fin(event: &TcpEvent) -> Self {
        Self {
            time_ns: event.time_ns,
            seq: event.seq.wrapping_add(event.payload).wrapping_add(1),
            ack: event.ack,
            exact: false,
            after_fin: false,
            received: u64::from(event.payload),
            has_data: event.payload > 0,
        }
    }
}

impl Sent {
    fn of(event: &TcpEvent) -> Self {
        let outstanding = u64::from(event.snd_nxt.wrapping_sub(event.snd_una));
        let sent = event.bytes_acked + outstanding;
        // The hook runs before TCP moves on: a FIN sent for the first time is not counted yet, and one
        // that is sent again is, with its payload.
        let sent = if event.flags & FIN == 0 {
            sent
        } else if event.seq == event.snd_nxt {
            sent + u64::from(event.payload)
        } else {
            sent.saturating_sub(1)
        };
        Self {
            time_ns: event.time_ns,
            state: TcpState::from_kernel(event.state),
            sent,
            received: event.bytes_received,
            has_data: event.payload > 0,
            is_idle: event.snd_nxt == event.snd_una,
            segs_out: event.segs_out,
            data_segs_in: event.data_segs_in,
            total_retrans: event.total_retrans,
        }
    }
}

/// Keeps a candidate once, the first time it was seen, or the first time that it fitted the socket; of
/// too many, those that fit.
fn remember(candidates: &mut SmallVec<[Candidate; 1]>, new: Candidate) {
    if let Some(same) = candidates.iter_mut().find(|c| c.seq == new.seq && c.ack == new.ack) {
        if new.exact && !same.exact {
            *same = new;
        }
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

/// The peer's ISN, of any event of a socket that is established: payload and FIN count in both.
pub(super) const fn isn_of_peer(event: &TcpEvent) -> u32 {
    event.rcv_nxt.wrapping_sub(event.bytes_received as u32).wrapping_sub(1)
}

/// Whether an event is of a listener, which is no connection itself.
pub(super) const fn is_of_listener(event: &Event) -> bool {
    matches!(event, Event::Tcp(EventKind::SegmentIn | EventKind::SegmentOut, e) if e.state == TcpState::Listen as u8)
}
