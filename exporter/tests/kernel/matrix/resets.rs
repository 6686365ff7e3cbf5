//! Endings by RST.

use super::super::connections::Role;
use super::super::link::Fate;
use super::super::packet::{FIN, RST};
use super::super::support::parse;
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::{Made, Span};
use Role::{Client, Server};

/// Sent late, to a socket that does not want it.
const LATE: u64 = 500;

/// The client's RST.
const BY_CLIENT: super::case::Ends = both(
    Row::client("reset", "local", "RSTO", "ShADadR").reset_by("local"),
    Row::server("reset", "remote", "RSTO", "ShADadR").reset_by("remote"),
);
/// The server's RST.
const BY_SERVER: super::case::Ends = both(
    Row::client("reset", "remote", "RSTR", "ShADadr").reset_by("remote"),
    Row::server("reset", "local", "RSTR", "ShADadr").reset_by("local"),
);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "reset by the client",
        what: "SO_LINGER with 0 s, then close()",
        make: Watched(|b| reset(b, Client)),
        ends: &[BY_CLIENT],
    },
    Case {
        name: "reset by the server",
        what: "SO_LINGER with 0 s, then close()",
        make: Watched(|b| reset(b, Server)),
        ends: &[BY_SERVER],
    },
    Case {
        name: "closed by the client with unread data",
        what: "",
        make: Watched(|b| close_with_unread_data(b, Client)),
        ends: &[BY_CLIENT],
    },
    Case {
        name: "closed by the server with unread data",
        what: "",
        make: Watched(|b| close_with_unread_data(b, Server)),
        ends: &[BY_SERVER],
    },
    Case {
        name: "reset by the client right after sending",
        what: "the data is on its way, and not acknowledged",
        make: Watched(reset_right_after_sending),
        ends: &[both(
            Row::client("reset", "local", "RSTO", "ShADadR").moved(UP + 10, DOWN).reset_by("local"),
            Row::server("reset", "remote", "RSTO", "ShADadR")
                .moved(DOWN, UP + 10)
                .reset_by("remote"),
        )],
    },
    Case {
        name: "half-closed by the client, then reset by the server",
        what: "",
        make: Watched(|b| {
            let open = b.open_and_exchange();
            b.shutdown(&open, Client);
            let ended = b.during(|b| b.server.reset(open.s));
            let made = Made::of(&open, ended, ended);
            b.done(&open, made)
        }),
        ends: &[both(
            Row::client("reset", "local", "RSTR", "ShADadFr").reset_by("remote"),
            Row::server("reset", "remote", "RSTR", "ShADadFr").reset_by("local"),
        )],
    },
    Case {
        name: "closed by the client, and the server keeps sending",
        what: "close() and not shutdown(): nobody is left to read. The client's kernel answers the data with an RST, after its socket is gone",
        make: Watched(|b| keep_sending(b, Client)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF"),
            Row::server("reset", "remote", "RSTO", "ShADadFR")
                .moved(DOWN + LATE, UP)
                .reset_by("remote"),
        )],
    },
    Case {
        name: "closed by the server, and the client keeps sending",
        what: "the same from the other side",
        make: Watched(|b| keep_sending(b, Server)),
        ends: &[both(
            Row::client("reset", "remote", "RSTR", "ShADadfr")
                .moved(UP + LATE, DOWN)
                .reset_by("remote"),
            Row::server("fin", "local", "SF", "ShADadf"),
        )],
    },
    Case {
        name: "closed by the client with data on its way to it",
        what: "the data arrives before the FIN is acknowledged: the socket itself resets",
        make: Watched(|b| close_with_data_on_its_way(b, Client)),
        ends: &[both(
            Row::client("reset", "local", "RSTO", "ShADadFR").reset_by("local"),
            Row::server("reset", "remote", "RSTO", "ShADadFR")
                .moved(DOWN + LATE, UP)
                .reset_by("remote"),
        )],
    },
    Case {
        name: "closed by the server with data on its way to it",
        what: "the same from the other side",
        make: Watched(|b| close_with_data_on_its_way(b, Server)),
        ends: &[both(
            Row::client("reset", "remote", "RSTR", "ShADadfr")
                .moved(UP + LATE, DOWN)
                .reset_by("remote"),
            Row::server("reset", "local", "RSTR", "ShADadfr").reset_by("local"),
        )],
    },
    Case {
        name: "the RST arrives twice",
        what: "",
        make: Watched(|b| {
            let open = b.open_and_exchange();
            b.link.on(|_, segment, _| match segment.has(RST) {
                true => Fate::Twice,
                false => Fate::Pass,
            });
            let ended = b.during(|b| b.client.reset(open.c));
            let made = Made::of(&open, ended, ended);
            b.done(&open, made)
        }),
        ends: &[BY_CLIENT],
    },
    Case {
        name: "the RST is lost",
        what: "an RST is not sent again; the server hears another one when it sends",
        make: Watched(lose_the_rst),
        ends: &[both(
            Row::client("reset", "local", "RSTO", "ShADadR").reset_by("local"),
            Row::server("reset", "remote", "RSTO", "ShADadR")
                .moved(DOWN + LATE, UP)
                .reset_by("remote"),
        )],
    },
    Case {
        name: "listener closed before it accepted",
        what: "the connection waits in the accept queue, and the kernel resets it",
        make: Watched(close_the_listener),
        ends: &[both(
            Row::client("reset", "remote", "RSTR", "ShAr").moved(0, 0).reset_by("remote"),
            Row::server("reset", "local", "RSTR", "ShAr").moved(0, 0).reset_by("local"),
        )],
    },
    Case {
        name: "the client's socket is destroyed",
        what: "`ss -K` (SOCK_DESTROY)",
        make: Watched(|b| destroy(b, Client)),
        ends: &[both(
            Row::client("aborted", "local", "RSTO", "ShADadR").reset_by("local"),
            Row::server("reset", "remote", "RSTO", "ShADadR").reset_by("remote"),
        )],
    },
    Case {
        name: "the server's socket is destroyed",
        what: "`ss -K` (SOCK_DESTROY)",
        make: Watched(|b| destroy(b, Server)),
        ends: &[both(
            Row::client("reset", "remote", "RSTR", "ShADadr").reset_by("remote"),
            Row::server("aborted", "local", "RSTR", "ShADadr").reset_by("local"),
        )],
    },
];

fn reset(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let ended = reset_at(b, &open, first);
    b.close(&open, first.other());
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

/// One side resets an open connection.
pub(super) fn reset_at(b: &mut Bench, open: &Open, first: Role) -> Span {
    let socket = Bench::socket(open, first);
    b.during(|b| b.puppet(first).reset(socket))
}

fn close_with_unread_data(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open();
    b.client.tell(&format!("send {} {UP}", open.c.id));
    b.server.tell(&format!("send {} {DOWN}", open.s.id));
    b.link.settle();
    let ended = b.close(&open, first);
    b.close(&open, first.other());
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

fn reset_right_after_sending(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.client.tell(&format!("linger0 {}", open.c.id));
    let ended = b.during(|b| {
        b.client.send(open.c, 10);
        b.client.close(open.c);
    });
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

fn keep_sending(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let second = first.other();
    let one = b.close(&open, first);
    let other = b.during(|b| {
        b.puppet(second).tell(&format!("send {} {LATE}", Bench::socket(&open, second).id));
    });
    b.close(&open, second);
    let made = made_in_turn(&open, first, one, other);
    b.done(&open, made)
}

fn close_with_data_on_its_way(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let second = first.other();
    b.link.on(move |from, _, _| if from == second { Fate::Hold } else { Fate::Pass });
    let ended = b.during(|b| {
        b.puppet(second).tell(&format!("send {} {LATE}", Bench::socket(&open, second).id));
        b.puppet(first).close(Bench::socket(&open, first));
        b.link.wait_for(open.pair(), |c| c.from == first && c.segment.has(FIN));
        b.link.release();
    });
    b.close(&open, second);
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

fn lose_the_rst(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.lose(Client, |segment| segment.has(RST));
    let one = reset_at(b, &open, Client);
    b.link.pass();
    let other = b.during(|b| {
        b.server.tell(&format!("send {} {LATE}", open.s.id));
    });
    b.close(&open, Server);
    let made = made_in_turn(&open, Client, one, other);
    b.done(&open, made)
}

fn close_the_listener(b: &mut Bench) -> Vec<Made> {
    let listener = b.listen();
    let mut c = None;
    let began = b.during(|b| {
        c = Some(parse(&b.client.tell(&format!("connect {}", listener.local))));
    });
    let open = b.opened(None, c.expect("connected"), listener, began);
    let ended = b.during(|b| b.server.close(listener));
    b.client.close(open.c);
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

fn destroy(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let ended = destroy_at(b, &open, first);
    b.close(&open, Client);
    b.close(&open, Server);
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}

/// SOCK_DESTROY of one side's socket.
pub(super) fn destroy_at(b: &mut Bench, open: &Open, role: Role) -> Span {
    let (client, server) = open.pair();
    let (own, peer) = match role {
        Client => (client, server),
        Server => (server, client),
    };
    let filter = format!("sport = :{} and dport = :{}", own.port(), peer.port());
    b.during(|b| b.link.netns(role).exec(&["ss", "--kill", "--tcp", &filter]))
}

/// The first side's socket is gone before the other's.
pub(super) fn made_in_turn(open: &Open, first: Role, one: Span, other: Span) -> Made {
    match first {
        Client => Made::of(open, one, other),
        Server => Made::of(open, other, one),
    }
}
