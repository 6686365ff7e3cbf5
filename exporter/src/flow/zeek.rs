//! Zeek's `conn_state` and `history` (documentation of conn.log), from what one socket saw.

use super::end::{Direction, Reason, Side};
use super::verdict::Facts;

/// Zeek's summary of a connection. Originator is the client, responder the server.
pub(super) fn conn_state(facts: &Facts) -> &'static str {
    let client = match facts.direction {
        Direction::Outgoing => Side::Local,
        Direction::Incoming => Side::Remote,
        Direction::Unknown => return "OTH",
    };
    if !facts.start_known {
        return "OTH";
    }
    match facts.reason {
        Reason::Refused => "REJ",
        Reason::Fin => "SF",
        // A SYN-ACK counts as establishment, whether the last ACK came or not.
        _ => match facts.reset_by {
            Some(side) if side == client && facts.syn_ack_seen => "RSTO",
            Some(side) if side == client => "RSTOS0",
            Some(_) if facts.syn_ack_seen => "RSTR",
            Some(_) => "REJ",
            None if !facts.syn_ack_seen => "S0",
            None => match (facts.fin_of(client), facts.fin_of(other(client))) {
                (None, None) => "S1",
                (Some(_), None) => "S2",
                (None, Some(_)) => "S3",
                (Some(_), Some(_)) => "SF",
            },
        },
    }
}

const fn other(side: Side) -> Side {
    match side {
        Side::Local => Side::Remote,
        Side::Remote => Side::Local,
    }
}

/// The letters of a connection: handshake, then `ADad` from the counters, then FIN and RST in the
/// order of their times. Upper case is the client; with the direction unknown, the own socket.
pub(super) fn history(facts: &Facts) -> String {
    let client = match facts.direction {
        Direction::Incoming => Side::Remote,
        Direction::Outgoing | Direction::Unknown => Side::Local,
    };
    let mut letters = String::with_capacity(12);
    let mut put = |seen: bool, side: Side, letter: char| {
        if seen {
            letters.push(if side == client { letter.to_ascii_uppercase() } else { letter });
        }
    };
    if facts.direction != Direction::Unknown {
        put(facts.start_known, client, 's');
        put(facts.start_known && facts.syn_ack_seen, other(client), 'h');
    }
    if let Some(segments) = &facts.segments {
        for side in [client, other(client)] {
            let s = segments.of(side);
            put(s.pure_acks, side, 'a');
            put(s.data, side, 'd');
        }
    }
    let mut closing: Vec<(u64, Side, char)> = Vec::with_capacity(4);
    for side in [Side::Local, Side::Remote] {
        closing.extend(facts.fin_of(side).map(|at| (at, side, 'f')));
        closing.extend(facts.rst_of(side).map(|at| (at, side, 'r')));
    }
    closing.sort_by_key(|c| c.0);
    for (_, side, letter) in closing {
        put(true, side, letter);
    }
    letters
}
