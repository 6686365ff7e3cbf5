//! What is counted and measured of a connection that is over: bytes, segments, RTTs.

use flowend_probe_types::TcpState;

use super::connection::Connection;
use super::end::{Counters, Direction, Isns, Rtt, Side};
use super::verdict::{Context, Facts};

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

pub(super) fn counters(c: &Connection, facts: &Facts, context: &Context) -> Counters {
    // The opener's SYN counts as acknowledged (or outstanding); the accepter's does not.
    let syn = match c.direction {
        Direction::Outgoing => Some(1),
        Direction::Incoming => Some(0),
        Direction::Unknown => None,
    };
    let last = &c.last;
    if c.closed.is_none() {
        // Nothing follows a FIN; and the socket's other counters went on after the last event.
        return Counters {
            bytes_sent: c.fin_out.zip(syn).and_then(|(fin, syn)| fin.sent.checked_sub(syn)),
            bytes_received: c.accepted_fin().map(|fin| fin.received),
            ..Counters::default()
        };
    }
    let outstanding = u64::from(last.snd_nxt.wrapping_sub(last.snd_una));
    let bytes_sent = syn
        .zip(fin_sent(c, facts))
        .map(|(syn, fin)| (last.bytes_acked + outstanding).saturating_sub(syn + fin));
    Counters {
        bytes_sent,
        bytes_received: fin_received(c, facts, context)
            .map(|fin| last.bytes_received.saturating_sub(fin)),
        segments_sent: Some(last.segs_out),
        segments_received: Some(last.segs_in),
        retransmits: Some(last.total_retrans),
    }
}

/// Whether an own FIN is among what was sent, at CLOSE.
const fn fin_sent(c: &Connection, facts: &Facts) -> Option<u64> {
    match (c.fin_out, facts.state) {
        (Some(_), _) => Some(1),
        // The FIN event is missing: it may or may not have left.
        (None, TcpState::FinWait1) => None,
        (None, TcpState::LastAck | TcpState::Closing) if facts.reset_by.is_some() => None,
        (None, TcpState::FinWait2 | TcpState::LastAck | TcpState::Closing | TcpState::TimeWait) => {
            Some(1)
        }
        (None, _) => Some(0),
    }
}

/// Whether the peer's FIN is among what was received, at CLOSE.
fn fin_received(c: &Connection, facts: &Facts, context: &Context) -> Option<u64> {
    match (facts.fin_remote, facts.state) {
        (Some(_), _) | (None, TcpState::CloseWait | TcpState::LastAck | TcpState::Closing) => {
            Some(1)
        }
        // It may have come, and its event be lost.
        (None, TcpState::FinWait2 | TcpState::TimeWait)
            if context.lost_since(c.fin_out.map(|fin| fin.time_ns)) =>
        {
            None
        }
        (None, _) => Some(0),
    }
}

/// Which kinds of segments each side sent, from the socket's counters.
pub(super) fn segments(
    c: &Connection,
    closing_sent: u32,
    closing_received: u32,
) -> Option<Segments> {
    let last = &c.last;
    if (last.segs_in == 0 && last.segs_out == 0) || c.established.is_none() {
        return None;
    }
    let outgoing = u32::from(c.direction == Direction::Outgoing);
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

pub(super) fn rtt(c: &Connection) -> Rtt {
    let from = match c.direction {
        Direction::Outgoing => c.syn_ns,
        Direction::Incoming => c.syn_ack_ns,
        Direction::Unknown => None,
    };
    // With a retransmission nobody knows which one was answered. With Fast Open the accepted socket is
    // established before its SYN-ACK leaves.
    let handshake_ns = c
        .established
        .filter(|established| established.retransmits == 0)
        .zip(from)
        .and_then(|(established, from)| established.time_ns.checked_sub(from));
    let known = |us: u32| (us != 0 && us != u32::MAX).then_some(us);
    Rtt {
        handshake_us: handshake_ns.map(|ns| ns / 1000),
        smoothed_us: known(c.srtt_at_fin.unwrap_or(c.last.srtt_8us)).map(|s| s >> 3),
        min_us: known(c.last.rtt_min_us),
    }
}

pub(super) fn isns(c: &Connection) -> Option<Isns> {
    let (local, remote) = c.isn_local.zip(c.isn_remote)?;
    match c.direction {
        Direction::Outgoing => Some(Isns { client: local, server: remote }),
        Direction::Incoming => Some(Isns { client: remote, server: local }),
        Direction::Unknown => None,
    }
}
