//! One TCP connection of a capture: what its packets say.
//!
//! Both sides are seen at once, so what a kernel knows about its socket is told by packets here: that
//! a connection came about, that a segment was accepted, that it is over.

use std::sync::Arc;

use flowend_probe_types::{ACK, FIN, RST, SYN};

use super::history::{History, Role, Scaled};
use super::ip::TcpPacket;
use super::stream::{Mark, Stream};
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
            history: History::new(is_flipped),
            streams: Default::default(),
            rival: None,
            names: Default::default(),
        }
    }

    /// What this side sent.
    pub(super) const fn stream(&self, role: Role) -> &Stream {
        &self.streams[role as usize]
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
            // Data after a FIN, and that FIN was real: its connection's SYN is not in the capture.
            let is_another = is_over && own.is_behind_fin(segment.seq, segment.payload);
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
        let segment = &packet.tcp.segment;
        let was_closing = self.reset.is_some() || self.streams.iter().any(|s| s.fin().is_some());
        self.last = packet.mark;
        let packets = &mut self.streams[role as usize].packets;
        *packets = packets.saturating_add(1);
        if packet.tcp.bad_checksum {
            self.history.scaled(role, Scaled::Checksum);
        }
        self.history.segment(role, segment);
        // A SYN's window says nothing yet, and nobody waits for one that is closing.
        if packet.tcp.window == 0 && segment.flags & (SYN | FIN | RST) == 0 && !was_closing {
            self.history.scaled(role, Scaled::ZeroWindow);
        }
        if packet.is_nonsense() {
            return;
        }
        if packet.has(RST) {
            self.reset_by(role, packet);
            return;
        }
        if packet.has(SYN) && !self.synchronise(role, packet) {
            return;
        }
        if packet.has(ACK) {
            let gaps = self.streams[role.peer() as usize].acknowledge(segment.ack);
            self.gaps(role.peer(), gaps);
            self.establish(role, packet);
        }
        self.place(role, packet);
    }

    fn role_of(&self, packet: &Arrival) -> Role {
        if packet.source() == self.originator { Role::Originator } else { Role::Responder }
    }

    /// Whether the SYN or SYN-ACK is this connection's: a forged one acknowledges something else, or
    /// comes with another ISN.
    fn synchronise(&mut self, role: Role, packet: &Arrival) -> bool {
        let segment = &packet.tcp.segment;
        let is_forged = packet.has(ACK)
            && self.syn.is_some()
            && !self.stream(role.peer()).may_acknowledge(segment.ack);
        let stream = &mut self.streams[role as usize];
        if is_forged || stream.isn().is_some_and(|isn| isn != segment.seq) {
            return false;
        }
        if stream.isn().is_some() {
            stream.resent = stream.resent.saturating_add(1);
        }
        stream.synchronise(segment.seq);
        match (role, packet.has(ACK)) {
            (Role::Originator, false) => {
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
        match role {
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
        let counts = if answers_the_syn {
            // RFC 9293, section 3.10.7.3: in SYN-SENT an RST counts if it acknowledges the SYN.
            packet.has(ACK) && self.stream(Role::Originator).may_acknowledge(segment.ack)
        } else {
            self.stream(role).may_reset_at(segment.seq)
        };
        if counts && !self.is_over() {
            self.reset = Some((role, packet.mark));
        }
    }

    fn place(&mut self, role: Role, packet: &Arrival) {
        let segment = &packet.tcp.segment;
        // A SYN takes one sequence number, in front of its payload (Fast Open, RFC 7413).
        let seq = segment.seq.wrapping_add(u32::from(packet.has(SYN)));
        let stream = &mut self.streams[role as usize];
        let placed = stream.place(seq, segment.payload);
        let repeats_fin =
            packet.has(FIN) && stream.finish(seq.wrapping_add(segment.payload), packet.mark);
        if placed.resent || repeats_fin {
            stream.resent = stream.resent.saturating_add(1);
        }
        if placed.resent {
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
