//! What the counters of a socket must be, from the segments that crossed the wire.

use std::ops::RangeInclusive;

use super::super::connections::Role;
use super::super::link::Crossing;
use super::super::packet::{FIN, RST, SYN};

/// The bounds of an end's segments sent, segments received, and retransmits.
///
/// Up to the first FIN or RST every segment is counted, but the handshake of an accepted socket: its listener
/// answers the SYN. Of what follows, the ACKs in TIME-WAIT and RSTs in CLOSE are not the socket's; and one segment
/// that came just before may have crossed it on the wire.
pub(super) fn bounds(
    wire: &[Crossing],
    role: Role,
) -> (RangeInclusive<u64>, RangeInclusive<u64>, RangeInclusive<u64>) {
    let is_closing = |c: &Crossing| c.segment.has(FIN) || c.segment.has(RST);
    let first_closing = wire.iter().position(is_closing).unwrap_or(wire.len());
    let is_own = |c: &&Crossing| c.from == role && !c.forged;
    let is_peers = |c: &&Crossing| c.from != role;
    let is_counted = |c: &&Crossing| role == Role::Client || !c.segment.has(SYN);
    let number = |n: usize| u64::try_from(n).expect("a small number");
    let sent = |part: &[Crossing]| number(part.iter().filter(is_own).filter(is_counted).count());
    let received = |part: &[Crossing]| -> u64 {
        part.iter().filter(is_peers).filter(is_counted).map(|c| u64::from(c.delivered)).sum()
    };
    let with_syn = number(wire.iter().filter(is_own).count());
    let with_peers_syn: u64 = wire.iter().filter(is_peers).map(|c| u64::from(c.delivered)).sum();
    (
        sent(&wire[..first_closing])..=with_syn,
        received(&wire[..first_closing]).saturating_sub(1)..=with_peers_syn,
        retransmits(wire, role),
    )
}

/// Segments that repeat sequence numbers; a retransmission of the SYN-ACK may be counted, or not.
fn retransmits(wire: &[Crossing], role: Role) -> RangeInclusive<u64> {
    let mut next: Option<u32> = None;
    let (mut least, mut syn_acks) = (0, 0);
    for c in wire.iter().filter(|c| c.from == role && !c.forged) {
        if c.segment.next_seq() == c.segment.seq {
            continue;
        }
        let is_new =
            next.is_none_or(|next| c.segment.next_seq().wrapping_sub(next).cast_signed() > 0);
        if is_new {
            next = Some(c.segment.next_seq());
        } else if c.segment.has(SYN) && role == Role::Server {
            syn_acks += 1;
        } else {
            least += 1;
        }
    }
    least..=least + syn_acks
}
