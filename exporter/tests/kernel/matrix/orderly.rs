//! Endings by FIN.

use super::super::connections::Role;
use super::super::link::Fate;
use super::super::packet::FIN;
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::{Made, Span};
use Role::{Client, Server};

/// Sent after the first FIN.
const LATE: u64 = 2000;

const CLOSED_BY_CLIENT: Row = Row::client("fin", "local", "SF", "ShADadF");
const SERVER_AFTER_CLIENT: Row = Row::server("fin", "remote", "SF", "ShADadFf").half_closed();

pub(super) const CASES: &[Case] = &[
    Case {
        name: "closed by the client",
        what: "the server closes a little later",
        make: Watched(|b| close(b, Client)),
        ends: &[both(CLOSED_BY_CLIENT, SERVER_AFTER_CLIENT)],
    },
    Case {
        name: "closed by the server",
        what: "the client closes a little later",
        make: Watched(|b| close(b, Server)),
        ends: &[both(
            Row::client("fin", "remote", "SF", "ShADadfF").half_closed(),
            Row::server("fin", "local", "SF", "ShADadf"),
        )],
    },
    Case {
        name: "closed by the client, answered at once",
        what: "the server's FIN comes with the ACK of the client's, so the client's socket still sees it",
        make: Watched(close_and_answer_at_once),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadFf").half_closed(),
            SERVER_AFTER_CLIENT,
        )],
    },
    Case {
        name: "closed by both at the same time",
        what: "the FINs cross, so each side was first in its own eyes",
        make: Watched(close_both),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadFf").half_closed(),
            Row::server("fin", "local", "SF", "ShADadfF").half_closed(),
        )],
    },
    Case {
        name: "half-closed by the client",
        what: "the server goes on sending for a while",
        make: Watched(|b| half_close(b, Client)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadFf").moved(UP, DOWN + LATE).half_closed(),
            SERVER_AFTER_CLIENT.moved(DOWN + LATE, UP),
        )],
    },
    Case {
        name: "half-closed by the server",
        what: "the client goes on sending for a while",
        make: Watched(|b| half_close(b, Server)),
        ends: &[both(
            Row::client("fin", "remote", "SF", "ShADadfF").moved(UP + LATE, DOWN).half_closed(),
            Row::server("fin", "local", "SF", "ShADadfF").moved(DOWN, UP + LATE).half_closed(),
        )],
    },
    Case {
        name: "the client is killed",
        what: "SIGKILL, and the kernel closes its sockets",
        make: Watched(|b| kill(b, Client)),
        ends: &[both(CLOSED_BY_CLIENT, SERVER_AFTER_CLIENT)],
    },
    Case {
        name: "the server is killed",
        what: "SIGKILL, and the kernel closes its sockets",
        make: Watched(|b| kill(b, Server)),
        ends: &[both(
            Row::client("fin", "remote", "SF", "ShADadfF").half_closed(),
            Row::server("fin", "local", "SF", "ShADadf"),
        )],
    },
    Case {
        name: "nothing was sent",
        what: "",
        make: Watched(|b| {
            let open = b.open();
            close_after(b, open, Client)
        }),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShAaF").moved(0, 0),
            Row::server("fin", "remote", "SF", "ShAaFf").moved(0, 0).half_closed(),
        )],
    },
    Case {
        name: "one byte",
        what: "from the client, and none back",
        make: Watched(|b| {
            let open = b.open();
            b.client.send(open.c, 1);
            b.link.settle();
            b.server.recv(open.s, 1);
            close_after(b, open, Client)
        }),
        ends: &[both(CLOSED_BY_CLIENT_ONE_BYTE, SERVER_ONE_BYTE)],
    },
    Case {
        name: "data in the FIN segment",
        what: "the client's last 2000 bytes; the FIN is in the last segment of them",
        make: Watched(|b| {
            let open = b.open_and_exchange();
            data_in_the_fin(b, open, LATE)
        }),
        ends: &[both(
            CLOSED_BY_CLIENT.moved(UP + LATE, DOWN),
            SERVER_AFTER_CLIENT.moved(DOWN, UP + LATE),
        )],
    },
    Case {
        name: "nothing but data in the FIN segment",
        what: "the handshake, then one segment of the client with 50 bytes and the FIN",
        make: Watched(|b| {
            let open = b.open();
            data_in_the_fin(b, open, 50)
        }),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADaF").moved(50, 0),
            Row::server("fin", "remote", "SF", "ShADaFf").moved(0, 50).half_closed(),
        )],
    },
    Case {
        name: "the FIN arrives twice",
        what: "",
        make: Watched(|b| {
            let open = b.open_and_exchange();
            b.link.on(|from, segment, _| match (from, segment.has(FIN)) {
                (Client, true) => Fate::Twice,
                _ => Fate::Pass,
            });
            close_after(b, open, Client)
        }),
        ends: &[both(CLOSED_BY_CLIENT, SERVER_AFTER_CLIENT)],
    },
];

const CLOSED_BY_CLIENT_ONE_BYTE: Row = Row::client("fin", "local", "SF", "ShADaF").moved(1, 0);
const SERVER_ONE_BYTE: Row =
    Row::server("fin", "remote", "SF", "ShADaFf").moved(0, 1).half_closed();

/// After an exchange, one side closes, and then the other.
pub(super) fn close(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    close_after(b, open, first)
}

/// One side closes, and then the other.
pub(super) fn close_after(b: &mut Bench, open: Open, first: Role) -> Vec<Made> {
    let one = b.close(&open, first);
    let other = b.close(&open, first.other());
    let made = closed(&open, first, one, other);
    b.done(&open, made)
}

/// What is true when one side closed before the other: it leaves for TIME-WAIT before the second FIN.
pub(super) fn closed(open: &Open, first: Role, one: Span, other: Span) -> Made {
    let (at_client, at_server) = match first {
        Client => (one, other),
        Server => (other, one),
    };
    Made::of(open, at_client, at_server).half_closed(first.other(), one, other)
}

fn close_and_answer_at_once(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.lose(Server, |segment| segment.is_pure_ack());
    let both = b.during(|b| {
        b.client.close(open.c);
        b.link.wait_for(open.pair(), |c| c.segment.has(FIN));
        b.server.drain(open.s);
        b.server.close(open.s);
    });
    let made = Made::of(&open, both, both).both_half_closed(both, both);
    b.done(&open, made)
}

fn close_both(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.link.on(|_, _, _| Fate::Hold);
    let both = b.during(|b| {
        b.client.close(open.c);
        b.server.close(open.s);
        for from in [Client, Server] {
            b.link.wait_for(open.pair(), |c| c.from == from && c.segment.has(FIN));
        }
        b.link.release();
    });
    let made = Made::of(&open, both, both).both_half_closed(both, both);
    b.done(&open, made)
}

fn half_close(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let second = first.other();
    let (reader, writer) = (Bench::socket(&open, first), Bench::socket(&open, second));
    let one = b.shutdown(&open, first);
    for _ in 0..2 {
        b.puppet(second).send(writer, 1000);
        b.link.settle();
    }
    b.puppet(first).recv(reader, 2000);
    b.link.settle();
    let other = b.close(&open, second);
    b.close(&open, first);
    let made = Made::of(&open, other, other).both_half_closed(one, other);
    b.done(&open, made)
}

fn kill(b: &mut Bench, first: Role) -> Vec<Made> {
    let mut open = b.open_and_exchange();
    let one = b.during(|b| b.kill(first));
    if first == Server {
        // Its listener died with it.
        open.listener = None;
    }
    let other = b.close(&open, first.other());
    let made = closed(&open, first, one, other);
    b.done(&open, made)
}

fn data_in_the_fin(b: &mut Bench, open: Open, n: u64) -> Vec<Made> {
    b.client.tell(&format!("cork {}", open.c.id));
    let one = b.during(|b| {
        b.client.tell(&format!("send {} {n}", open.c.id));
        b.client.close(open.c);
    });
    let fin = b.link.wait_for(open.pair(), |c| c.from == Client && c.segment.has(FIN));
    assert!(fin.segment.payload > 0, "{fin:?}");
    assert_eq!(b.server.drain(open.s), n);
    let other = b.close(&open, Server);
    let made = closed(&open, Client, one, other);
    b.done(&open, made)
}
