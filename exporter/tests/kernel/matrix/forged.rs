//! Closing segments that the peer did not send.

use super::super::connections::Role;
use super::super::packet::{ACK, FIN, RST, Segment};
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::Made;
use super::orderly::closed;
use super::resets::made_in_turn;
use Role::{Client, Server};

/// Far outside any window.
const FAR: u32 = 1 << 29;
/// Inside the window, and past what is expected next.
const NEAR: u32 = 1000;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "forged RSTs and FINs at the client",
        what: "outside the window and inside it, none where the next byte is expected: TCP refuses them, the connection goes on, and the client closes it",
        make: Watched(|b| survive(b, Client)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(2 * UP, 2 * DOWN),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(2 * DOWN, 2 * UP).half_closed(),
        )],
    },
    Case {
        name: "forged RSTs and FINs at the server",
        what: "the same from the other side, and the server closes it",
        make: Watched(|b| survive(b, Server)),
        ends: &[both(
            Row::client("fin", "remote", "SF", "ShADadfF").moved(2 * UP, 2 * DOWN).half_closed(),
            Row::server("fin", "local", "SF", "ShADadf").moved(2 * DOWN, 2 * UP),
        )],
    },
    Case {
        name: "a forged RST with the exact sequence number",
        what: "the client's TCP takes it, and nobody can tell it from the server's; the server hears an RST when it sends",
        make: Watched(succumb),
        ends: &[both(
            Row::client("reset", "remote", "RSTR", "ShADadr").reset_by("remote"),
            Row::server("reset", "remote", "RSTO", "ShADadR")
                .moved(DOWN + 1, UP)
                .reset_by("remote"),
        )],
    },
];

/// The next segment that an end expects of the other.
fn next(b: &Bench, open: &Open, to: Role) -> Segment {
    let (client, server) = open.pair();
    let crossings = b.link.crossings(client, server);
    let sent = |from| crossings.iter().rev().filter(move |c| c.from == from && !c.forged);
    let last = |from| sent(from).next().expect("a segment").segment;
    let (from_peer, own) = (last(to.other()), last(to));
    Segment { flags: ACK, seq: from_peer.next_seq(), ack: own.next_seq(), payload: 0, ..from_peer }
}

fn forge(b: &mut Bench, open: &Open, victim: Role) {
    let next = next(b, open, victim);
    // RSTs first: one at the end of what arrived out of order would be taken (tcp_validate_incoming).
    for flags in [RST, RST | ACK, FIN | ACK] {
        for offset in [FAR, FAR.wrapping_neg(), NEAR] {
            let forged = Segment { flags, seq: next.seq.wrapping_add(offset), ..next };
            b.link.inject(victim, forged);
        }
    }
    b.link.settle();
}

fn survive(b: &mut Bench, victim: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let before = b.link.crossings(open.pair().0, open.pair().1).len();
    forge(b, &open, victim);
    let crossings = b.link.crossings(open.pair().0, open.pair().1);
    let challenged =
        crossings[before..].iter().filter(|c| c.from == victim && c.segment.is_pure_ack()).count();
    assert!(challenged >= 2, "the RSTs inside the window were not challenged: {crossings:#?}");
    b.exchange(&open);
    let one = b.close(&open, victim);
    let other = b.close(&open, victim.other());
    let made = closed(&open, victim, one, other);
    b.done(&open, made)
}

fn succumb(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    let forged = Segment { flags: RST, ..next(b, &open, Client) };
    let one = b.during(|b| b.link.inject(Client, forged));
    let other = b.during(|b| {
        b.server.tell(&format!("send {} 1", open.s.id));
    });
    b.client.close(open.c);
    b.server.close(open.s);
    let made = made_in_turn(&open, Client, one, other);
    b.done(&open, made)
}
