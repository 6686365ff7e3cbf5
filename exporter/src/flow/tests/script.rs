//! A connection written down step by step, as one socket has it.

use flowend_probe_types::{ACK, Addr, ErrorEvent, Event, EventKind, FIN, SYN, TcpEvent, TcpState};

use super::super::*;
use super::ends;

pub(super) const COOKIE: u64 = 7;
pub(super) const LISTENER: u64 = 3;
/// Initial sequence numbers: ours near the end of the space, so that it wraps.
pub(super) const OUR_ISN: u32 = u32::MAX - 4;
pub(super) const PEER_ISN: u32 = 1000;

/// A connection's events, written down step by step as one socket has them.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) events: Vec<Event>,
    pub(super) now_us: u64,
    pub(super) cookie: u64,
    pub(super) outgoing: bool,
    /// Payload sent and received so far, FINs excluded.
    pub(super) sent: u32,
    pub(super) received: u32,
    pub(super) fin_sent: u32,
    pub(super) fin_received: u32,
    /// SYNs sent.
    pub(super) syns: u32,
}

impl Script {
    pub(super) fn new(outgoing: bool) -> Self {
        Self {
            events: Vec::new(),
            now_us: 1_000,
            cookie: COOKIE,
            outgoing,
            sent: 0,
            received: 0,
            fin_sent: 0,
            fin_received: 0,
            syns: 0,
        }
    }

    pub(super) fn after(mut self, us: u64) -> Self {
        self.now_us += us;
        self
    }

    pub(super) fn moved(mut self, sent: u32, received: u32) -> Self {
        self.sent += sent;
        self.received += received;
        self
    }

    /// The socket's own counters at this moment, everything acknowledged.
    pub(super) fn event(&self, state: TcpState) -> TcpEvent {
        let syn = u32::from(self.outgoing);
        let snd_nxt = OUR_ISN.wrapping_add(1 + self.sent + self.fin_sent);
        TcpEvent {
            state: state as u8,
            local_port: if self.outgoing { 50000 } else { 80 },
            remote_port: if self.outgoing { 80 } else { 50000 },
            time_ns: self.now_us * 1000,
            cookie: self.cookie,
            cgroup_id: 42,
            bytes_acked: u64::from(syn + self.sent + self.fin_sent),
            bytes_received: u64::from(self.received + self.fin_received),
            local: v4([10, 0, 0, 1]),
            remote: v4([10, 0, 0, 2]),
            snd_nxt,
            snd_una: snd_nxt,
            rcv_nxt: PEER_ISN + 1 + self.received + self.fin_received,
            srtt_8us: 8 * 100,
            rtt_min_us: 90,
            segs_out: 3 + u32::from(self.sent > 0),
            segs_in: 3 + u32::from(self.received > 0),
            data_segs_out: u32::from(self.sent > 0),
            data_segs_in: u32::from(self.received > 0),
            total_retrans: self.syns.saturating_sub(1),
            ..TcpEvent::default()
        }
    }

    pub(super) fn push(mut self, kind: EventKind, mut event: TcpEvent) -> Self {
        event.kind = kind as u8;
        self.events.push(Event::Tcp(kind, event));
        self.now_us += 10;
        self
    }

    pub(super) fn out(self, flags: u8, state: TcpState) -> Self {
        let mut event = self.event(state);
        event.flags = flags;
        event.seq = event.snd_nxt;
        event.ack = event.rcv_nxt;
        self.push(EventKind::SegmentOut, event)
    }

    pub(super) fn r#in(self, flags: u8, state: TcpState) -> Self {
        let mut event = self.event(state);
        event.flags = flags;
        event.seq = event.rcv_nxt;
        event.ack = event.snd_nxt;
        self.push(EventKind::SegmentIn, event)
    }

    pub(super) fn syn_out(mut self) -> Self {
        self.syns += 1;
        let mut event = self.event(TcpState::SynSent);
        event.flags = SYN;
        event.seq = OUR_ISN;
        self.push(EventKind::SegmentOut, event)
    }

    pub(super) fn established(self) -> Self {
        if !self.outgoing {
            let listen = |s: &Self| TcpEvent {
                cookie: LISTENER,
                state: TcpState::Listen as u8,
                ..s.event(TcpState::Listen)
            };
            let syn = TcpEvent { flags: SYN, seq: PEER_ISN, ..listen(&self) };
            let s = self.push(EventKind::SegmentIn, syn);
            let syn_ack =
                TcpEvent { flags: SYN | ACK, seq: OUR_ISN, ack: PEER_ISN + 1, ..listen(&s) };
            let s = s.push(EventKind::SegmentOut, syn_ack);
            let event = TcpEvent { cgroup_id: 0, ..s.event(TcpState::SynRecv) };
            return s.push(EventKind::PassiveEstablished, event);
        }
        let s = self.syn_out();
        let syn_ack = TcpEvent {
            flags: SYN | ACK,
            seq: PEER_ISN,
            ack: OUR_ISN.wrapping_add(1),
            ..s.event(TcpState::SynSent)
        };
        let s = s.push(EventKind::SegmentIn, syn_ack);
        let event = TcpEvent { cgroup_id: 0, ..s.event(TcpState::SynSent) };
        s.push(EventKind::ActiveEstablished, event)
    }

    pub(super) fn fin_out(self, state: TcpState) -> Self {
        let mut s = self.out(FIN | ACK, state);
        s.fin_sent = 1;
        s
    }

    pub(super) fn fin_in(self, state: TcpState) -> Self {
        let mut s = self.r#in(FIN | ACK, state);
        s.fin_received = 1;
        s
    }

    pub(super) fn closed(self, from: TcpState) -> Self {
        let event = TcpEvent { cgroup_id: 0, ..self.event(from) };
        self.push(EventKind::Closed, event)
    }

    pub(super) fn gave_up(self, state: TcpState) -> Self {
        let event = self.event(state);
        self.push(EventKind::GaveUp, event)
    }

    /// The kernel's error report, at the same moment as the event before.
    pub(super) fn error(mut self, errno: u16) -> Self {
        let e = self.event(TcpState::Close);
        self.events.push(Event::Error(ErrorEvent {
            kind: EventKind::Error as u8,
            error: errno,
            local: e.local,
            local_port: e.local_port,
            remote: e.remote,
            remote_port: e.remote_port,
            time_ns: e.time_ns,
            ..ErrorEvent::default()
        }));
        self
    }

    /// CLOSE with keepalive on.
    pub(super) fn closed_with_keepalive(self, from: TcpState, keepalive_ms: u32) -> Self {
        let event = TcpEvent { cgroup_id: 0, keepalive_ms, ..self.event(from) };
        self.push(EventKind::Closed, event)
    }

    /// CLOSE after a segment with data that TCP did not take.
    pub(super) fn closed_by_late_data(self, from: TcpState) -> Self {
        let mut event = TcpEvent { cgroup_id: 0, ..self.event(from) };
        event.data_segs_in += 1;
        event.segs_in += 1;
        self.push(EventKind::Closed, event)
    }

    pub(super) fn forged(self, flags: u8, seq_off: u32) -> Self {
        let mut event = self.event(TcpState::Established);
        event.flags = flags;
        event.seq = event.rcv_nxt.wrapping_add(seq_off);
        event.ack = event.snd_nxt;
        self.push(EventKind::SegmentIn, event)
    }

    pub(super) fn ends(&self) -> Vec<ConnectionEnd> {
        ends(&self.events)
    }
}

pub(super) fn v4(octets: [u8; 4]) -> Addr {
    Addr::v4(u32::from_ne_bytes(octets))
}

pub(super) fn out() -> Script {
    Script::new(true)
}

pub(super) fn incoming() -> Script {
    Script::new(false)
}
