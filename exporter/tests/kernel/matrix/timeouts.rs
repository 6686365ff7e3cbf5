//! Endings by the kernel's patience: the peer is cut off.

use std::time::Duration;

use flowend::clock::boot_ns;

use super::super::connections::Role;
use super::super::support::wait_until;
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::{Made, Span};
use super::resets::made_in_turn;
use Role::{Client, Server};

/// Sent into the dark.
const LOST: u64 = 50;

/// The other side does not know, closes later, and is answered by an RST.
const SERVER_LATER: Row = Row::server("reset", "local", "RSTO", "ShADadfR").reset_by("remote");
const CLIENT_LATER: Row = Row::client("reset", "local", "RSTR", "ShADadFr").reset_by("remote");

pub(super) const CASES: &[Case] = &[
    Case {
        name: "the server is cut off, and the client gives up",
        what: "its data is not acknowledged; the server closes later, and is answered by an RST",
        make: Watched(|b| give_up_sending(b, Client, None)),
        ends: &[both(
            Row::client("timeout", "none", "S1", "ShADad").moved(UP + LOST, DOWN).retransmitted(),
            SERVER_LATER,
        )],
    },
    Case {
        name: "the client is cut off, and the server gives up",
        what: "the same from the other side",
        make: Watched(|b| give_up_sending(b, Server, None)),
        ends: &[both(
            CLIENT_LATER,
            Row::server("timeout", "none", "S1", "ShADad").moved(DOWN + LOST, UP).retransmitted(),
        )],
    },
    Case {
        name: "TCP_USER_TIMEOUT at the client",
        what: "the server is cut off for longer",
        make: Watched(|b| give_up_sending(b, Client, Some(500))),
        ends: &[both(
            Row::client("timeout", "none", "S1", "ShADad").moved(UP + LOST, DOWN).retransmitted(),
            SERVER_LATER,
        )],
    },
    Case {
        name: "TCP_USER_TIMEOUT at the server",
        what: "the client is cut off for longer",
        make: Watched(|b| give_up_sending(b, Server, Some(500))),
        ends: &[both(
            CLIENT_LATER,
            Row::server("timeout", "none", "S1", "ShADad").moved(DOWN + LOST, UP).retransmitted(),
        )],
    },
    Case {
        name: "keepalive expires at the client",
        what: "the idle server is cut off; the client's kernel sends an RST, which is lost",
        make: Watched(|b| keepalive(b, Client)),
        ends: &[both(
            Row::client("timeout", "local", "RSTO", "ShADadR").reset_by("local"),
            SERVER_LATER,
        )],
    },
    Case {
        name: "keepalive expires at the server",
        what: "the same from the other side",
        make: Watched(|b| keepalive(b, Server)),
        ends: &[both(
            CLIENT_LATER,
            Row::server("timeout", "local", "RSTR", "ShADadr").reset_by("local"),
        )],
    },
    Case {
        name: "the client's FIN is never acknowledged",
        what: "the server is cut off when the client closes",
        make: Watched(|b| close_into_the_dark(b, Client)),
        ends: &[both(
            Row::client("timeout", "local", "S2", "ShADadF").retransmitted(),
            SERVER_LATER,
        )],
    },
    Case {
        name: "the server's FIN is never acknowledged",
        what: "the client is cut off when the server closes",
        make: Watched(|b| close_into_the_dark(b, Server)),
        ends: &[both(
            CLIENT_LATER,
            Row::server("timeout", "local", "S3", "ShADadf").retransmitted(),
        )],
    },
    Case {
        name: "half-closed by the client, which is cut off then",
        what: "the server goes on sending, and gives up",
        make: Watched(half_close_and_cut_off),
        ends: &[both(
            Row::client("reset", "local", "RSTR", "ShADadFr").reset_by("remote"),
            Row::server("timeout", "remote", "S2", "ShADadF")
                .moved(DOWN + LOST, UP)
                .retransmitted(),
        )],
    },
    Case {
        name: "the client's link goes down",
        what: "its last data finds no way out until TCP_USER_TIMEOUT, and was not sent",
        make: Watched(link_down),
        ends: &[both(Row::client("timeout", "none", "S1", "ShADad"), SERVER_LATER)],
    },
];

/// Waits until the kernel has given up on a socket: `TCP_INFO` says CLOSE by what ends a read.
fn until_given_up(b: &mut Bench, open: &Open, role: Role) -> Span {
    let from = boot_ns();
    let socket = Bench::socket(open, role);
    let end = b.puppet(role).ask(&format!("drain {}", socket.id));
    // The puppet's own patience ends with EAGAIN.
    let given_up = end.as_ref().is_err_and(|words| !words.contains("(os error 11)"));
    assert!(given_up, "the {role:?} did not give up: {end:?}");
    Span { from, to: boot_ns() }
}

/// The link is back; the other side closes, and an RST answers.
fn close_the_other(b: &mut Bench, open: &Open, first: Role) -> Span {
    // The last segments into the dark are lost first.
    b.link.settle();
    b.link.pass();
    b.close(open, first.other())
}

fn give_up_sending(b: &mut Bench, first: Role, user_timeout_ms: Option<u32>) -> Vec<Made> {
    let open = b.open_and_exchange();
    let made = give_up_sending_on(b, &open, first, user_timeout_ms);
    b.done(&open, made)
}

/// Sends into the dark until the kernel gives up; then the other side closes.
pub(super) fn give_up_sending_on(
    b: &mut Bench,
    open: &Open,
    first: Role,
    user_timeout_ms: Option<u32>,
) -> Made {
    let socket = Bench::socket(open, first);
    if let Some(ms) = user_timeout_ms {
        b.puppet(first).tell(&format!("user-timeout {} {ms}", socket.id));
    }
    b.link.go_dark();
    b.puppet(first).tell(&format!("send {} {LOST}", socket.id));
    let one = until_given_up(b, open, first);
    b.puppet(first).close(socket);
    let other = close_the_other(b, open, first);
    made_in_turn(open, first, one, other)
}

fn keepalive(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    let made = keepalive_on(b, &open, first);
    b.done(&open, made)
}

/// Probes into the dark until the kernel gives up; then the other side closes.
pub(super) fn keepalive_on(b: &mut Bench, open: &Open, first: Role) -> Made {
    let socket = Bench::socket(open, first);
    b.link.go_dark();
    b.puppet(first).tell(&format!("keepalive {} 1 1 1", socket.id));
    let one = until_given_up(b, open, first);
    b.puppet(first).close(socket);
    let other = close_the_other(b, open, first);
    made_in_turn(open, first, one, other)
}

fn close_into_the_dark(b: &mut Bench, first: Role) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.link.go_dark();
    let from = boot_ns();
    b.puppet(first).close(Bench::socket(&open, first));
    until_gone(b, &open, first);
    let one = Span { from, to: boot_ns() };
    let other = close_the_other(b, &open, first);
    let made = made_in_turn(&open, first, one, other);
    b.done(&open, made)
}

/// Until the kernel has no socket of this connection any more at an end: its ports tell.
fn until_gone(b: &Bench, open: &Open, role: Role) {
    let (client, server) = open.pair();
    let (own, peer) = match role {
        Client => (client, server),
        Server => (server, client),
    };
    let ports = [own, peer].map(|address| format!(":{:04X}", address.port()));
    // sl local_address rem_address st ...
    let is_open = |table: &str| {
        table.lines().any(|line| {
            let mut ends = line.split_whitespace().skip(1).zip(&ports);
            ends.all(|(end, port)| end.ends_with(port))
        })
    };
    let netns = b.link.netns(role);
    wait_until(
        || {
            // The kernel walks all of its table each time.
            std::thread::sleep(Duration::from_millis(200));
            netns.inside(|| {
                ["tcp", "tcp6"].iter().all(|file| {
                    // Of the thread: the process is in another namespace.
                    let file = format!("/proc/thread-self/net/{file}");
                    !is_open(&std::fs::read_to_string(&file).expect("the table of sockets"))
                })
            })
        },
        || format!("the {role:?}'s socket is still there"),
    );
}

fn half_close_and_cut_off(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.shutdown(&open, Client);
    b.link.go_dark();
    b.server.tell(&format!("send {} {LOST}", open.s.id));
    // A reader is told of the FIN, and not of the error after it.
    let from = boot_ns();
    until_gone(b, &open, Server);
    let one = Span { from, to: boot_ns() };
    b.server.close(open.s);
    b.link.settle();
    b.link.pass();
    // Half-closed, it has nothing to send; the keepalive probe is answered by an RST.
    let other = b.during(|b| {
        b.client.tell(&format!("keepalive {} 1 1 3", open.c.id));
        let end = b.client.ask(&format!("drain {}", open.c.id));
        assert!(end.is_err(), "no RST: {end:?}");
    });
    b.client.close(open.c);
    let made = made_in_turn(&open, Server, one, other);
    b.done(&open, made)
}

fn link_down(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    b.client.tell(&format!("user-timeout {} 500", open.c.id));
    b.link.set_up(Client, false);
    let sent = b.client.ask(&format!("send {} {LOST}", open.c.id));
    assert_eq!(sent, Ok(String::new()), "the socket takes it all the same");
    let one = until_given_up(b, &open, Client);
    b.client.close(open.c);
    b.link.set_up(Client, true);
    let other = close_the_other(b, &open, Client);
    let made = made_in_turn(&open, Client, one, other);
    let mut made = b.done(&open, made);
    // What did not leave the host was not on the wire.
    made[0].wire = None;
    made
}
