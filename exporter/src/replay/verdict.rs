//! From the packets of a connection to its end.
//!
//! How it ended and by whom is for [`FlowTable`] to say, as in `run`: it gets the events that a probe
//! beside the client's socket would have sent. Over what comes out are laid the facts that a capture
//! has and a socket has not: packets, times, every letter of the history.

use std::net::IpAddr;

use flowend_probe_types::{ACK, Event, EventKind, FIN, RST, SYN, TcpEvent, TcpState};
use ipnet::IpNet;

use super::conversation::Conversation;
use super::history::Role;
use super::stream::Mark;
use super::table::Leaving;
use crate::flow::{
    ConnectionEnd, Counters, Direction, Endpoint, FlowEvent, FlowSettings, FlowTable, Isns, Rtt,
    Side,
};

/// Makes ends of conversations, each seen from its local side.
#[derive(Debug)]
pub(super) struct Verdicts {
    /// Holds one connection at a time.
    flows: FlowTable,
    local: Vec<IpNet>,
}

impl Verdicts {
    /// `local` are the addresses from whose side records are written; none: the client's.
    pub(super) fn new(local: Vec<IpNet>) -> Self {
        Self { flows: FlowTable::new(FlowSettings::default()), local }
    }

    /// The end of a connection that has left the table.
    pub(super) fn of(
        &mut self,
        conversation: Conversation,
        leaving: Leaving,
    ) -> Option<ConnectionEnd> {
        let mut end = None;
        let mut out = |event| {
            if let FlowEvent::End(e) = event {
                end = Some(e);
            }
        };
        for event in events(&conversation, leaving) {
            self.flows.apply(&event, &mut out);
        }
        match leaving {
            Leaving::Over | Leaving::Replaced => self.flows.finish(&mut out),
            Leaving::Open => self.flows.finish_open(&mut out),
        }
        let local = self.local_role(&conversation);
        end.map(|end| lay_over(seen_from(end, local), conversation, local))
    }

    /// The client's side, unless only the server's is local.
    fn local_role(&self, conversation: &Conversation) -> Role {
        let is_local = |endpoint: Endpoint| {
            let ip: IpAddr = endpoint.ip();
            self.local.iter().any(|range| range.contains(&ip))
        };
        if is_local(conversation.responder) && !is_local(conversation.originator) {
            Role::Responder
        } else {
            Role::Originator
        }
    }
}

/// What a probe beside the originator's socket would have sent.
///
/// The clock of these events is the number of the packet: their order counts, and the times of a
/// capture may be equal or go back. Sequence numbers are such that each closing segment is just what
/// its receiver expects: those that are not were sorted out before, packet by packet.
fn events(conversation: &Conversation, leaving: Leaving) -> Vec<Event> {
    let mut script = Script { conversation, state: TcpState::Established, events: Vec::new() };
    // An acknowledged SYN-ACK proves that there was a SYN before the capture.
    let answered = conversation.syn_ack.filter(|_| conversation.handshake_ack.is_some());
    if let Some(mark) = conversation.syn.or(answered) {
        script.state = TcpState::SynSent;
        script.add(EventKind::SegmentOut, SYN, script.state, mark);
    } else {
        // Nothing begins it and nothing closes it, but it is there.
        script.add(EventKind::SegmentOut, ACK, script.state, conversation.first);
    }
    if let Some(mark) = conversation.established.filter(|_| conversation.direction_is_known()) {
        script.state = TcpState::Established;
        script.add(EventKind::ActiveEstablished, 0, script.state, mark);
    }
    for (mark, role, flag) in closing(conversation) {
        script.close(role, flag, mark);
    }
    match leaving {
        Leaving::Over => script.add(EventKind::Closed, 0, script.state, conversation.last),
        // As a socket that went to CLOSE for no reason that was seen.
        Leaving::Replaced => {
            script.add(EventKind::Closed, 0, TcpState::Established, conversation.last);
        }
        Leaving::Open => {}
    }
    script.events
}

/// FINs and RST in the order of their packets.
fn closing(conversation: &Conversation) -> Vec<(Mark, Role, u8)> {
    let fins = [Role::Originator, Role::Responder]
        .into_iter()
        .filter_map(|role| Some((conversation.stream(role).fin()?, role, FIN)));
    let reset = conversation.reset.map(|(role, mark)| (mark, role, RST));
    let mut closing: Vec<_> = fins.chain(reset).collect();
    closing.sort_by_key(|(mark, _, _)| mark.index);
    closing
}

struct Script<'a> {
    conversation: &'a Conversation,
    state: TcpState,
    events: Vec<Event>,
}

impl Script<'_> {
    /// A FIN or RST, and the state it leaves the originator's socket in.
    fn close(&mut self, role: Role, flag: u8, mark: Mark) {
        let kind = match role {
            Role::Originator => EventKind::SegmentOut,
            Role::Responder => EventKind::SegmentIn,
        };
        if flag == RST {
            // An application's RST leaves in CLOSE; one that gives up the handshake before it.
            let is_close = role == Role::Originator && self.state != TcpState::SynSent;
            let state = if is_close { TcpState::Close } else { self.state };
            self.add(kind, RST | ACK, state, mark);
            return;
        }
        self.add(kind, FIN | ACK, self.state, mark);
        self.state = match (role, self.state) {
            (Role::Originator, TcpState::CloseWait) => TcpState::LastAck,
            (Role::Originator, _) => TcpState::FinWait2,
            (Role::Responder, TcpState::FinWait2) => TcpState::TimeWait,
            (Role::Responder, _) => TcpState::CloseWait,
        };
    }

    fn add(&mut self, kind: EventKind, flags: u8, state: TcpState, mark: Mark) {
        let conversation = self.conversation;
        let isn = |role| conversation.stream(role).isn().unwrap_or_default();
        let (own, peer) = (isn(Role::Originator), isn(Role::Responder));
        // What has been sent and received so far: the SYN, and a FIN, take one number each.
        let fins = |sent: EventKind| {
            let is_fin =
                |e: &Event| matches!(e, Event::Tcp(k, t) if *k == sent && t.flags & FIN != 0);
            u32::from(self.events.iter().any(is_fin))
        };
        let snd_nxt = own.wrapping_add(1 + fins(EventKind::SegmentOut));
        let rcv_nxt = peer.wrapping_add(1 + fins(EventKind::SegmentIn));
        let event = TcpEvent {
            kind: kind as u8,
            flags,
            state: state as u8,
            local_port: conversation.originator.port,
            remote_port: conversation.responder.port,
            time_ns: mark.index,
            cookie: conversation.first.index,
            local: conversation.originator.addr,
            remote: conversation.responder.addr,
            seq: match kind {
                EventKind::SegmentOut if flags & SYN != 0 => own,
                EventKind::SegmentOut => snd_nxt,
                _ => rcv_nxt,
            },
            ack: if kind == EventKind::SegmentOut { rcv_nxt } else { snd_nxt },
            snd_nxt,
            snd_una: snd_nxt,
            rcv_nxt,
            ..TcpEvent::default()
        };
        self.events.push(Event::Tcp(kind, event));
    }
}

/// The end as the local side has it, of one as the originator has it.
fn seen_from(end: ConnectionEnd, local: Role) -> ConnectionEnd {
    if local == Role::Originator {
        return end;
    }
    let other = |side| match side {
        Side::Local => Side::Remote,
        Side::Remote => Side::Local,
    };
    ConnectionEnd {
        direction: match end.direction {
            Direction::Outgoing => Direction::Incoming,
            Direction::Incoming => Direction::Outgoing,
            Direction::Unknown => Direction::Unknown,
        },
        local: end.remote,
        remote: end.local,
        by: end.by.map(other),
        reset_by: end.reset_by.map(other),
        ..end
    }
}

/// Lays what the packets say over the verdict.
fn lay_over(end: ConnectionEnd, conversation: Conversation, local: Role) -> ConnectionEnd {
    let (own, peer) = (conversation.stream(local), conversation.stream(local.peer()));
    let fins = own.fin().zip(peer.fin());
    let isn = |role| conversation.stream(role).isn();
    let isns = isn(Role::Originator).zip(isn(Role::Responder));
    let start = conversation.syn.unwrap_or(conversation.first).time_ns;
    ConnectionEnd {
        start_ns: start,
        start_known: conversation.syn.is_some(),
        end_ns: conversation.end().unwrap_or(conversation.last).time_ns.max(start),
        conn_state: conn_state(end.conn_state, &conversation),
        half_close_ns: fins.map(|(a, b)| a.time_ns.abs_diff(b.time_ns)),
        counters: Counters {
            bytes_sent: own.bytes(),
            bytes_received: peer.bytes(),
            segments_sent: Some(own.packets),
            segments_received: Some(peer.packets),
            retransmits: Some(own.resent),
        },
        rtt: Rtt { handshake_us: handshake_us(&conversation, local), ..Rtt::default() },
        isns: isns
            .filter(|_| conversation.direction_is_known())
            .map(|(client, server)| Isns { client, server }),
        history: conversation.history.into_letters(),
        ..end
    }
}

/// Zeek's states of a handshake of which only a part was seen: a socket is never in them.
fn conn_state(verdict: &'static str, conversation: &Conversation) -> &'static str {
    let fin = |role| conversation.stream(role).fin().is_some();
    let reset_by_responder = matches!(conversation.reset, Some((Role::Responder, _)));
    let no_syn_but_syn_ack = conversation.syn.is_none() && conversation.syn_ack.is_some();
    match verdict {
        "OTH" if no_syn_but_syn_ack && reset_by_responder => "RSTRH",
        "OTH"
            if no_syn_but_syn_ack
                && conversation.reset.is_none()
                && fin(Role::Responder)
                && !fin(Role::Originator) =>
        {
            "SHR"
        }
        "S0" if fin(Role::Originator) && conversation.stream(Role::Responder).packets == 0 => "SH",
        other => other,
    }
}

/// SYN to SYN-ACK for the client, SYN-ACK to ACK for the server; not with a retransmission, which
/// leaves open what was answered.
fn handshake_us(conversation: &Conversation, local: Role) -> Option<u64> {
    let (count, from, to) = match local {
        Role::Originator => (conversation.syn_count, conversation.syn, conversation.syn_ack),
        Role::Responder => {
            (conversation.syn_ack_count, conversation.syn_ack, conversation.handshake_ack)
        }
    };
    let ns = to?.time_ns.checked_sub(from?.time_ns)?;
    (count == 1).then_some(ns / 1000)
}
