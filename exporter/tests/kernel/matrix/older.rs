//! Connections that were open before flowend ran.

use super::super::connections::Role;
use super::bench::{Bench, Open};
use super::case::Make::Older;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::Made;
use super::orderly::close_after;
use super::resets::{destroy_at, reset_at};
use super::timeouts::{give_up_sending_on, keepalive_on};
use Role::{Client, Server};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "older than flowend, closed by the client",
        what: "",
        make: Older(|b, open| close_after(b, open, Client)),
        ends: &[both(
            Row::client("fin", "local", "OTH", "ShADadF").older(),
            Row::server("fin", "remote", "OTH", "ShADadFf").older().half_closed(),
        )],
    },
    Case {
        name: "older than flowend, closed by the server",
        what: "",
        make: Older(|b, open| close_after(b, open, Server)),
        ends: &[both(
            Row::client("fin", "remote", "OTH", "ShADadfF").older().half_closed(),
            Row::server("fin", "local", "OTH", "ShADadf").older(),
        )],
    },
    Case {
        name: "older than flowend, half-closed by the client",
        what: "",
        make: Older(|b, open| half_close(b, open, Client)),
        ends: &[both(
            Row::client("fin", "local", "OTH", "ShADadFf").older().half_closed(),
            Row::server("fin", "remote", "OTH", "ShADadFf").older().half_closed(),
        )],
    },
    Case {
        name: "older than flowend, half-closed by the server",
        what: "",
        make: Older(|b, open| half_close(b, open, Server)),
        ends: &[both(
            Row::client("fin", "remote", "OTH", "ShADadfF").older().half_closed(),
            Row::server("fin", "local", "OTH", "ShADadfF").older().half_closed(),
        )],
    },
    Case {
        name: "older than flowend, closed by the client with unread data",
        what: "",
        make: Older(|b, open| {
            b.server.send(open.s, 500);
            b.link.settle();
            let ended = b.close(&open, Client);
            b.close(&open, Server);
            let made = Made::of(&open, ended, ended);
            b.done(&open, made)
        }),
        ends: &[both(
            Row::client("reset", "local", "OTH", "ShADadR")
                .older()
                .moved(UP, DOWN + 500)
                .reset_by("local"),
            Row::server("reset", "remote", "OTH", "ShADadR")
                .older()
                .moved(DOWN + 500, UP)
                .reset_by("remote"),
        )],
    },
    Case {
        name: "older than flowend, reset by the client",
        what: "",
        make: Older(|b, open| reset(b, open, Client)),
        ends: &[both(
            Row::client("reset", "local", "OTH", "ShADadR").older().reset_by("local"),
            Row::server("reset", "remote", "OTH", "ShADadR").older().reset_by("remote"),
        )],
    },
    Case {
        name: "older than flowend, reset by the server",
        what: "",
        make: Older(|b, open| reset(b, open, Server)),
        ends: &[both(
            Row::client("reset", "remote", "OTH", "ShADadr").older().reset_by("remote"),
            Row::server("reset", "local", "OTH", "ShADadr").older().reset_by("local"),
        )],
    },
    Case {
        name: "older than flowend, and the client gives up",
        what: "the server is cut off; it closes later, and is answered by an RST. No hook is called when such a socket is given up",
        make: Older(|b, open| {
            let made = give_up_sending_on(b, &open, Client, Some(500));
            b.done(&open, made)
        }),
        ends: &[both(
            Row::client("timeout or vanished", "none", "OTH", "ShADad")
                .older()
                .moved(UP + 50, DOWN),
            Row::server("reset", "local", "OTH", "ShADadfR").older().reset_by("remote"),
        )],
    },
    Case {
        name: "older than flowend, and its keepalive expires",
        what: "at the client; the idle server is cut off",
        make: Older(|b, open| {
            let made = keepalive_on(b, &open, Client);
            b.done(&open, made)
        }),
        ends: &[both(
            Row::client("timeout", "local", "OTH", "ShADadR").older().reset_by("local"),
            Row::server("reset", "local", "OTH", "ShADadfR").older().reset_by("remote"),
        )],
    },
    Case {
        name: "older than flowend, and the client's socket is destroyed",
        what: "`ss -K` (SOCK_DESTROY)",
        make: Older(|b, open| {
            let ended = destroy_at(b, &open, Client);
            b.close(&open, Client);
            b.close(&open, Server);
            let made = Made::of(&open, ended, ended);
            b.done(&open, made)
        }),
        ends: &[both(
            Row::client("aborted", "local", "OTH", "ShADadR").older().reset_by("local"),
            Row::server("reset", "remote", "OTH", "ShADadR").older().reset_by("remote"),
        )],
    },
    // The last one: all connections of the client's puppet die with it.
    Case {
        name: "older than flowend, and the client is killed",
        what: "",
        make: Older(|b, open| {
            let one = b.during(|b| b.kill(Client));
            let other = b.close(&open, Server);
            let made = super::orderly::closed(&open, Client, one, other);
            b.done(&open, made)
        }),
        ends: &[both(
            Row::client("fin", "local", "OTH", "ShADadF").older(),
            Row::server("fin", "remote", "OTH", "ShADadFf").older().half_closed(),
        )],
    },
];

fn half_close(b: &mut Bench, open: Open, first: Role) -> Vec<Made> {
    let one = b.shutdown(&open, first);
    let other = b.close(&open, first.other());
    b.close(&open, first);
    let made = Made::of(&open, other, other).both_half_closed(one, other);
    b.done(&open, made)
}

fn reset(b: &mut Bench, open: Open, first: Role) -> Vec<Made> {
    let ended = reset_at(b, &open, first);
    b.close(&open, first.other());
    let made = Made::of(&open, ended, ended);
    b.done(&open, made)
}
