//! Attempts: refused, unanswered, unfinished, or slow to succeed.

use std::net::SocketAddr;

use flowend::clock::boot_ns;

use super::super::connections::Role;
use super::super::link::{Fate, Link};
use super::super::packet::{ACK, RST, SYN, Segment, unreachable};
use super::super::support::parse;
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, Row, both, only_client, only_server};
use super::made::{Made, Span};
use super::orderly::close_after;
use Role::{Client, Server};

const REFUSED: Row = Row::attempt("refused", "remote", "REJ", "Sr").reset_by("remote");
const UNANSWERED: Row = Row::attempt("connect_timeout", "none", "S0", "S").retransmitted();

pub(super) const CASES: &[Case] = &[
    Case {
        name: "nobody listens",
        what: "the server's kernel answers the SYN with an RST, and has no socket to report",
        make: Watched(|b| {
            let to = b.closed_port();
            attempt(b, to)
        }),
        ends: &[only_client(REFUSED)],
    },
    Case {
        name: "an ICMP error answers the SYN",
        what: "host or address unreachable, from a router",
        make: Watched(icmp),
        ends: &[only_client(Row::attempt("unreachable", "none", "S0", "S"))],
    },
    Case {
        name: "the client closes before an answer",
        what: "",
        make: Watched(give_up),
        ends: &[only_client(Row::attempt("aborted", "none", "S0", "S"))],
    },
    Case {
        name: "a SYN is answered, and the client resets",
        what: "as port scanners do",
        make: Watched(|b| half_open(b, true)),
        ends: &[only_server(Row::embryo("remote", "RSTO", "ShR").reset_by("remote"))],
    },
    Case {
        name: "the SYN is sent again",
        what: "the first one is lost; the connection begins with it all the same",
        make: Watched(|b| {
            lose_the_first_syn(b);
            let open = b.open();
            b.exchange(&open);
            close_after(b, open, Client)
        }),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").retransmitted().without_handshake_rtt(),
            Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
        )],
    },
    Case {
        name: "the SYN-ACK is sent again",
        what: "the first ones are lost, until the client has sent its SYN again, too",
        make: Watched(|b| {
            lose_syn_acks_until_the_syn_comes_again(b);
            let open = b.open();
            b.exchange(&open);
            close_after(b, open, Client)
        }),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").retransmitted().without_handshake_rtt(),
            Row::server("fin", "remote", "SF", "ShADadFf").half_closed().without_handshake_rtt(),
        )],
    },
];

/// As above, where flowend has no tracefs and so no word of ICMP errors.
pub(super) const WITHOUT_TRACEFS: &[Case] = &[Case {
    name: "an ICMP error answers the SYN, and flowend has no tracefs",
    what: "what ended the attempt cannot be known",
    make: Watched(icmp),
    ends: &[only_client(Row::attempt("aborted", "none", "S0", "S"))],
}];

/// Those that take as long as a SYN is sent again.
pub(super) const SLOW: &[Case] = &[
    Case {
        name: "packets to the server are dropped",
        what: "no answer to any SYN",
        make: Watched(|b| {
            b.lose(Client, |_| true);
            let to = b.closed_port();
            attempt(b, to)
        }),
        ends: &[only_client(UNANSWERED)],
    },
    Case {
        name: "the listener's backlog is full",
        what: "the kernel drops the SYN without a word; the connection that filled the backlog is reset with its listener",
        make: Watched(full_backlog),
        ends: &[
            only_client(UNANSWERED),
            both(
                Row::client("reset", "remote", "RSTR", "ShAr").moved(0, 0).reset_by("remote"),
                Row::server("reset", "local", "RSTR", "ShAr").moved(0, 0).reset_by("local"),
            ),
        ],
    },
    Case {
        name: "packets from the server are dropped",
        what: "the server answers each SYN, and hears no more",
        make: Watched(|b| {
            let listener = b.listen();
            b.lose(Server, |_| true);
            let made = attempt(b, listener.local);
            b.server.close(listener);
            made
        }),
        ends: &[both(UNANSWERED, Row::embryo("none", "S1", "Sh"))],
    },
    Case {
        name: "a SYN is answered and never completed",
        what: "as in a SYN flood",
        make: Watched(|b| half_open(b, false)),
        ends: &[only_server(Row::embryo("none", "S1", "Sh"))],
    },
];

/// The end of an embryonic connection has no event; any time after the SYN may be told.
fn any_time_after(from: u64) -> Span {
    Span { from, to: from + 60_000_000_000 }
}

/// An attempt that fails.
fn attempt(b: &mut Bench, to: SocketAddr) -> Vec<Made> {
    let open = b.attempt(to);
    let ended = fail(b, &open);
    b.client.close(open.c);
    let made = Made::of(&open, ended, any_time_after(open.began.from));
    b.done(&open, made)
}

/// Waits for the failure of an attempt; its socket stays.
pub(super) fn fail(b: &mut Bench, open: &Open) -> Span {
    let from = open.began.from;
    let failed = b.client.wait_until_connected(open.c);
    assert!(failed.is_err(), "connected to {}", open.server_address);
    Span { from, to: boot_ns() }
}

fn icmp(b: &mut Bench) -> Vec<Made> {
    b.link.on(|from, segment, packet| {
        if from == Client && segment.has(SYN) {
            let router = Link::address_between(segment.dst.ip());
            return Fate::Answer(unreachable(router, packet));
        }
        Fate::Pass
    });
    let to = b.closed_port();
    let made = attempt(b, to);
    let syns = made[0].wire.iter().flatten().filter(|c| c.segment.has(SYN)).count();
    assert_eq!(syns, 1, "the ICMP error was not taken: the SYN was sent again");
    made
}

fn give_up(b: &mut Bench) -> Vec<Made> {
    let to = b.closed_port();
    b.link.go_dark();
    let open = b.attempt(to);
    b.link.wait_for(open.pair(), |c| c.segment.has(SYN));
    let ended = b.during(|b| b.client.close(open.c));
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

/// Loses the client's first SYN.
fn lose_the_first_syn(b: &Bench) {
    let mut lost = false;
    b.lose(Client, move |segment| segment.has(SYN) && !std::mem::replace(&mut lost, true));
}

/// Both sides repeat theirs after a second; which is first is chance.
fn lose_syn_acks_until_the_syn_comes_again(b: &Bench) {
    let mut syns = 0;
    b.link.on(move |from, segment, _| {
        syns += u32::from(from == Client && segment.has(SYN));
        if syns < 2 && from == Server && segment.has(SYN | ACK) { Fate::Drop } else { Fate::Pass }
    });
}

/// A SYN from an address where no socket is, and perhaps an RST after its answer.
fn half_open(b: &mut Bench, reset: bool) -> Vec<Made> {
    let listener = b.listen();
    let server = super::made::canonical(listener.local);
    let client = (Link::address_between(server.ip()), 40_000).into();
    // Nobody there answers.
    b.lose(Server, move |segment| segment.dst == client);
    let syn = Segment { src: client, dst: server, flags: SYN, seq: 77, ack: 0, payload: 0 };
    let began = b.during(|b| b.link.inject(Server, syn));
    let answer = b.link.wait_for((client, server), |c| c.segment.has(SYN | ACK));
    assert_eq!(answer.segment.ack, syn.next_seq());
    if reset {
        let rst = Segment { flags: RST, seq: syn.next_seq(), ..syn };
        b.during(|b| b.link.inject(Server, rst));
    }
    let nobody = super::super::support::Socket { id: 0, local: client, peer: Some(server) };
    let open = b.opened(Some(listener), nobody, listener, began);
    let ended = any_time_after(began.from);
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

/// A backlog of 0 takes one connection.
fn full_backlog(b: &mut Bench) -> Vec<Made> {
    let listener = b.listen_with("backlog 0");
    let mut c = None;
    let began = b.during(|b| {
        c = Some(parse(&b.client.tell(&format!("connect {}", listener.local))));
    });
    let waiting = b.opened(None, c.expect("connected"), listener, began);
    let mut all = attempt(b, listener.local);
    let ended = b.during(|b| b.server.close(listener));
    b.client.close(waiting.c);
    let made = Made::of(&waiting, ended, ended);
    all.extend(b.done(&waiting, made));
    all
}
