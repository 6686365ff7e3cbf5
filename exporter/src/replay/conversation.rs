//! One TCP connection of a capture: what its packets say.
//!
//! Both sides are seen at once, so what a kernel knows about its socket is told by packets here: that
//! a connection came about, that a segment was accepted, that it is over.

use std::sync::Arc;

use flowend_probe_types::{ACK, FIN, RST, SYN};

use super::history::{History, Role, Scaled};
use super::ip::TcpPacket;
use super::stream::{Mark, ResetFit, Stream};
use crate::flow::Endpoint;

/// Ports below this are given out to services (RFC 6335, section 6).
const SYSTEM_PORTS: u16 = 1024;

/// Ports above those, at which a well-known service usually listens.
const SERVER_PORTS: [u16; 24] = [
    1433, 1521, 1883, 2049, 2181, 2379, 3000, 3306, 3389, 4317, 4318, 5000, 5432, 5672, 5900, 6379,
    6443, 8000, 8080, 8443, 9092, 9200, 11211, 27017,
];

/// A TCP packet of the capture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Which and when.
    pub(super) mark: Mark,
    /// What.
    pub(super) tcp: TcpPacket,
}

impl Arrival {
    pub(super) const fn source(&self) -> Endpoint {
        Endpoint { addr: self.tcp.segment.src, port: self.tcp.segment.src_port }
    }

    pub(super) const fn destination(&self) -> Endpoint {
        Endpoint { addr: self.tcp.segment.dst, port: self.tcp.segment.dst_port }
    }

    const fn has(&self, flags: u8) -> bool {
        self.tcp.segment.flags & flags == flags
    }

    /// SYN together with FIN or RST: no stack sends it, none may act on it.
    const fn is_nonsense(&self) -> bool {
        self.has(SYN) && self.tcp.segment.flags & (FIN | RST) != 0
    }
}

/// What a packet of the same two endpoints is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belongs {
    /// It is one of its packets.
    Here,
    /// It begins another one: this one is over, or never came about.
    ToNext,
    /// It wants to begin another one, though this one has not ended: what is answered decides.
    ToRival,
}

/// A connection of a capture.
#[derive(Debug)]
pub(super) struct Conversation {
    /// Who opened it, or is taken for it.
    pub(super) originator: Endpoint,
    pub(super) responder: Endpoint,
    pub(super) first: Mark,
    pub(super) last: Mark,
    /// The originator's first SYN, and how many there were.
    pub(super) syn: Option<Mark>,
    pub(super) syn_count: u32,
    /// The responder's first SYN-ACK, and how many there were.
    pub(super) syn_ack: Option<Mark>,
    pub(super) syn_ack_count: u32,
    /// The first ACK of the SYN-ACK.
    pub(super) handshake_ack: Option<Mark>,
    /// The first packet that shows that the responder accepted.
    pub(super) established: Option<Mark>,
    /// The RST that counted.
    pub(super) reset: Option<(Role, Mark)>,
    /// The last RST past what was seen of its sender: real if the capture lacks what came before it.
    doubtful_reset: Option<(Role, Mark)>,
    /// The SYN came again after it was refused.
    is_asked_again: bool,
    /// The originator sent something else than an RST.
    is_originator_alive: bool,
    pub(super) history: History,
    streams: [Stream; 2],
    /// A connection of the same endpoints that somebody tried to open before this one had ended.
    pub(super) rival: Option<Box<Conversation>>,
    /// Names of both addresses as they stood at the first packet: originator's, responder's.
    pub(super) names: [Vec<Arc<str>>; 2],
}

impl Conversation {
    /// Begins with a packet, which is to be [applied](Self::apply) then.
    pub(super) fn new(first: &Arrival) -> Self {
        let (source, destination) = (first.source(), first.destination());
        // A SYN-ACK is the server's. Without any SYN ports have to tell.
        let is_flipped = if first.has(SYN) && !first.is_nonsense() {
            first.has(ACK)
        } else {
            is_likely_server(source.port) && !is_likely_server(destination.port)
        };
        let (originator, responder) =
            if is_flipped { (destination, source) } else { (source, destination) };
        Self {
            originator,
            responder,
            first: first.mark,
            last: first.mark,
            syn: None,
            syn_count: 0,
            syn_ack: None,
            syn_ack_count: 0,
            handshake_ack: None,
            established: None,
            reset: None,
            doubtful_reset: None,
            is_asked_again: false,
            is_originator_alive: false,
            history: History::new(is_flipped),
            streams: Default::default(),
            rival: None,
            names: Default::default(),
        }
    }

    /// What this side sent.
    pub(super) fn stream(&self, role: Role) -> &Stream {
        &self.streams[self.index(role)]
    }

    /// Whether a SYN or SYN-ACK told who the client is.
    pub(super) const fn direction_is_known(&self) -> bool {
        self.syn.is_some() || self.syn_ack.is_some()
    }

    /// Whether both sides are closed.
    pub(super) fn is_over(&self) -> bool {
        self.end().is_some()
    }

    /// The packet with which both sides were closed.
    pub(super) fn end(&self) -> Option<Mark> {
        let fins = self.stream(Role::Originator).fin().zip(self.stream(Role::Responder).fin());
        let last_fin = fins.map(|(a, b)| if a.index > b.index { a } else { b });
        self.reset.map(|(_, mark)| mark).or(last_fin)
    }

    /// What a packet of the same endpoints is to this connection.
    pub(super) fn belongs(&self, packet: &Arrival) -> Belongs {
        let role = self.role_of(packet);
        let own = self.stream(role);
        let segment = &packet.tcp.segment;
        if packet.is_nonsense() || packet.has(RST) {
            return Belongs::Here;
        }
        let is_over = self.is_over();
        if !packet.has(SYN) {
            // Data after a FIN, about data that the peer never sent: of a connection whose SYN is not
            // in the capture. A stray packet of this one fits at least on one side.
            let is_another = is_over
                && packet.has(ACK)
                && own.is_behind_fin(segment.seq, segment.payload)
                && !self.stream(role.peer()).may_acknowledge(segment.ack);
            return if is_another { Belongs::ToNext } else { Belongs::Here };
        }
        let is_syn_ack = packet.has(ACK);
        let opens = if is_syn_ack { Role::Responder } else { Role::Originator };
        match own.isn() {
            Some(isn) if isn == segment.seq => Belongs::Here,
            // The SYN was captured after what it began.
            None if role == opens && own.begins_at(segment.seq.wrapping_add(1)) => Belongs::Here,
            None if is_syn_ack && self.stream(role.peer()).may_acknowledge(segment.ack) => {
                Belongs::Here
            }
            // Both sides opened it at the same time (RFC 9293, section 3.5).
            None if !is_syn_ack && self.syn.is_some() && self.established.is_none() && !is_over => {
                Belongs::Here
            }
            _ if is_over => Belongs::ToNext,
            // A SYN-ACK alone proves nothing: it may be forged, or late.
            _ if is_syn_ack => Belongs::Here,
            Some(_) if self.established.is_none() => Belongs::ToNext,
            _ => Belongs::ToRival,
        }
    }

    /// Whether a packet shows that a rival connection, of which only SYNs were seen, is the real one.
    pub(super) fn is_answered_by(&self, packet: &Arrival) -> bool {
        self.role_of(packet) == Role::Responder
            && packet.has(ACK)
            && packet.tcp.segment.flags & (SYN | RST) != 0
            && self.stream(Role::Originator).may_acknowledge(packet.tcp.segment.ack)
    }

    /// Whether a packet repeats the SYN of this connection.
    pub(super) fn is_repeated_by(&self, packet: &Arrival) -> bool {
        packet.has(SYN)
            && !packet.has(ACK)
            && self.stream(self.role_of(packet)).isn() == Some(packet.tcp.segment.seq)
    }

    /// Takes in one packet of this connection.
    pub(super) fn apply(&mut self, packet: &Arrival) {
        let role = self.role_of(packet);
        self.last = packet.mark;
        let packets = &mut self.stream_mut(role).packets;
        *packets = packets.saturating_add(1);
        self.tell(role, packet);
        if packet.is_nonsense() {
            return;
        }
        if packet.has(RST) {
            self.reset_by(role, packet);
            return;
        }
        self.is_originator_alive |= role == Role::Originator;
        // Whoever has sent an RST sends nothing else any more.
        self.doubtful_reset = self.doubtful_reset.filter(|(by, _)| *by != role);
        if packet.has(SYN) && !self.synchronise(role, packet) {
            return;
        }
        if packet.has(ACK) {
            let gaps = self.stream_mut(role.peer()).acknowledge(packet.tcp.segment.ack);
            self.gaps(role.peer(), gaps);
            self.establish(role, packet);
        }
        self.place(role, packet);
    }

    /// No more packets come: what was in doubt and was not refuted counts.
    pub(super) fn settle(&mut self) {
        self.streams.iter_mut().for_each(Stream::settle);
        if !self.is_over()
            && let Some((role, mark)) = self.doubtful_reset
        {
            self.reset = Some((role, mark));
            self.stream_mut(role).lacks_its_end();
        }
        if self.is_scan() {
            self.turn();
        }
    }

    /// A SYN-ACK that comes first is a server's, unless the supposed client knows of nothing and says
    /// so: then somebody probes it.
    fn is_scan(&self) -> bool {
        self.syn.is_none()
            && self.syn_ack == Some(self.first)
            && !self.is_originator_alive
            && self.stream(Role::Originator).packets > 0
    }

    /// The first packet's sender is the originator after all, as of any connection without a SYN.
    fn turn(&mut self) {
        std::mem::swap(&mut self.originator, &mut self.responder);
        self.streams.swap(0, 1);
        self.names.swap(0, 1);
        self.history.turn();
        self.reset = self.reset.map(|(role, mark)| (role.peer(), mark));
        (self.syn_ack, self.syn_ack_count) = (None, 0);
        self.established = None;
    }

    /// The letters that the packet alone gives.
    fn tell(&mut self, role: Role, packet: &Arrival) {
        if packet.tcp.bad_checksum {
            self.history.scaled(role, Scaled::Checksum);
        }
        self.history.segment(role, &packet.tcp.segment);
        if packet.tcp.window == 0 {
            self.history.zero_window(role, packet.tcp.segment.flags);
        }
    }

    /// A socket connected to itself (RFC 9293, section 3.5, both ends at once) has one sequence space.
    fn index(&self, role: Role) -> usize {
        if self.is_with_itself() { 0 } else { role as usize }
    }

    fn is_with_itself(&self) -> bool {
        self.originator == self.responder
    }

    fn stream_mut(&mut self, role: Role) -> &mut Stream {
        let index = self.index(role);
        &mut self.streams[index]
    }

    fn role_of(&self, packet: &Arrival) -> Role {
        if packet.source() == self.originator { Role::Originator } else { Role::Responder }
    }

    /// An RST answered the SYN. Some clients ask again then, with the same SYN: to the application
    /// that is one attempt, so it is one connection.
    fn is_refused(&self) -> bool {
        self.syn.is_some()
            && self.established.is_none()
            && matches!(self.reset, Some((Role::Responder, _)))
    }

    /// Whether the SYN or SYN-ACK is this connection's: a forged one acknowledges something else, or
    /// comes with another ISN.
    fn synchronise(&mut self, role: Role, packet: &Arrival) -> bool {
        let segment = &packet.tcp.segment;
        let is_forged = packet.has(ACK)
            && self.syn.is_some()
            && !self.stream(role.peer()).may_acknowledge(segment.ack);
        let is_refused = self.is_refused();
        let stream = self.stream_mut(role);
        if is_forged || stream.isn().is_some_and(|isn| isn != segment.seq) {
            return false;
        }
        if stream.isn().is_some() {
            stream.resent = stream.resent.saturating_add(1);
        }
        stream.synchronise(segment.seq);
        match (role, packet.has(ACK)) {
            (Role::Originator, false) => {
                self.is_asked_again |= is_refused;
                self.syn.get_or_insert(packet.mark);
                self.syn_count = self.syn_count.saturating_add(1);
            }
            (Role::Responder, true) => {
                self.syn_ack.get_or_insert(packet.mark);
                self.syn_ack_count = self.syn_ack_count.saturating_add(1);
            }
            // Of a simultaneous open.
            _ => {}
        }
        true
    }

    /// The responder has accepted when it acknowledges what the originator sent. Without the SYN the
    /// connection was there before the capture.
    fn establish(&mut self, role: Role, packet: &Arrival) {
        let acknowledges = self.stream(role.peer()).may_acknowledge(packet.tcp.segment.ack);
        if self.is_refused() {
            // A SYN-ACK behind the RST is no use to a client that has given up, unless it asked again
            // or answers it.
            let goes_on = acknowledges
                && match role {
                    Role::Originator => !packet.has(SYN),
                    Role::Responder => self.is_asked_again,
                };
            if !goes_on {
                return;
            }
            self.reset = None;
            self.established = Some(packet.mark);
        }
        match role {
            Role::Originator if acknowledges && self.is_with_itself() => {
                self.established.get_or_insert(packet.mark);
            }
            Role::Responder if acknowledges || self.syn.is_none() => {
                self.established.get_or_insert(packet.mark);
            }
            Role::Originator if acknowledges && self.syn_ack.is_some() && !packet.has(SYN) => {
                self.handshake_ack.get_or_insert(packet.mark);
            }
            _ => {}
        }
    }

    fn reset_by(&mut self, role: Role, packet: &Arrival) {
        let segment = &packet.tcp.segment;
        let answers_the_syn = role == Role::Responder
            && self.syn.is_some()
            && self.stream(role).isn().is_none()
            && self.established.is_none();
        let fit = if !answers_the_syn {
            self.stream(role).reset_fit(segment.seq)
        } else if packet.has(ACK) && self.stream(Role::Originator).may_acknowledge(segment.ack) {
            // RFC 9293, section 3.10.7.3: in SYN-SENT an RST counts if it acknowledges the SYN.
            ResetFit::Expected
        } else {
            ResetFit::Outside
        };
        let is_refused_again = self.is_refused() && self.is_asked_again;
        if self.is_over() && !is_refused_again {
            return;
        }
        match fit {
            ResetFit::Expected => {
                self.stream_mut(role).stands_at(segment.seq);
                self.reset = Some((role, packet.mark));
                self.is_asked_again = false;
            }
            ResetFit::PastGap => self.doubtful_reset = Some((role, packet.mark)),
            ResetFit::Outside => {}
        }
    }

    fn place(&mut self, role: Role, packet: &Arrival) {
        let segment = &packet.tcp.segment;
        // A SYN takes one sequence number, in front of its payload (Fast Open, RFC 7413).
        let seq = segment.seq.wrapping_add(u32::from(packet.has(SYN)));
        let stream = self.stream_mut(role);
        let placed = stream.place(seq, segment.payload);
        if segment.payload == 0 && segment.flags & (SYN | FIN) == 0 {
            stream.stands_at(seq);
        }
        let repeats_fin =
            packet.has(FIN) && stream.finish(seq.wrapping_add(segment.payload), packet.mark);
        if placed.resent || repeats_fin {
            stream.resent = stream.resent.saturating_add(1);
        }
        if placed.resent && !placed.advances {
            self.history.scaled(role, Scaled::Resent);
        }
        self.gaps(role, placed.gaps);
    }

    fn gaps(&mut self, role: Role, count: u32) {
        for _ in 0..count {
            self.history.scaled(role, Scaled::Gap);
        }
    }
}

/// Whether a service usually listens at this port.
fn is_likely_server(port: u16) -> bool {
    port < SYSTEM_PORTS || SERVER_PORTS.binary_search(&port).is_ok()
}
