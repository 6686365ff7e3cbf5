//! Fast Open and MPTCP.

use super::super::connections::Role;
use super::super::packet::{FIN, SYN};
use super::super::support::{Socket, parse};
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::{Made, Span};
use super::orderly::{close_after, closed};
use Role::{Client, Server};

/// Sent with the SYN.
const EARLY: u64 = 70;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "Fast Open",
        what: "70 bytes come with the SYN (RFC 7413)",
        make: Watched(|b| fast_open(b, true)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(EARLY + UP, DOWN),
            Row::server("fin", "remote", "SF", "ShADadFf")
                .moved(DOWN, EARLY + UP)
                .half_closed()
                .without_handshake_rtt(),
        )],
    },
    Case {
        name: "Fast Open, and the server does not take the data",
        what: "it is sent again after the handshake",
        make: Watched(|b| fast_open(b, false)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(EARLY + UP, DOWN),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(DOWN, EARLY + UP).half_closed(),
        )],
    },
    Case {
        name: "MPTCP",
        what: "closed by the client, then by the server. The one subflow is a TCP connection, with its own record; its FINs wait until both sides have closed, and either may be first",
        make: Watched(|b| mptcp(b, Multipath::Both)),
        ends: &[both(
            Row::client("fin", "local or remote", "SF", "ShADadFf or ShADadfF").half_closed(),
            Row::server("fin", "local or remote", "SF", "ShADadFf or ShADadfF").half_closed(),
        )],
    },
    Case {
        name: "MPTCP at the client only",
        what: "it falls back to TCP; its socket stays until it has seen the server's FIN",
        make: Watched(|b| mptcp(b, Multipath::Client)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadFf").half_closed(),
            Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
        )],
    },
    Case {
        name: "MPTCP at the server only",
        what: "its listener accepts TCP",
        make: Watched(|b| mptcp(b, Multipath::Server)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF"),
            Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
        )],
    },
];

fn fast_open(b: &mut Bench, taken: bool) -> Vec<Made> {
    // The bits of the server: enabled, data without a cookie, all listeners.
    b.link.server.set("ipv4/tcp_fastopen", if taken { "1543" } else { "5" });
    let listener = b.listen();
    let mut sockets = None;
    let began = b.during(|b| {
        let c: Socket = parse(&b.client.tell(&format!("fast-open {} {EARLY}", listener.local)));
        sockets = Some((c, b.server.accept(listener)));
    });
    let (c, s) = sockets.expect("connected");
    let open: Open = b.opened(Some(listener), c, s, began);
    let syn = b.link.wait_for(open.pair(), |c| c.segment.has(SYN));
    assert_eq!(u64::from(syn.segment.payload), EARLY, "data in the SYN");
    b.server.recv(open.s, usize::try_from(EARLY).expect("small"));
    b.exchange(&open);
    close_after(b, open, Client)
}

/// Which side uses IPPROTO_MPTCP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Multipath {
    Both,
    Client,
    Server,
}

fn mptcp(b: &mut Bench, which: Multipath) -> Vec<Made> {
    let option = |yes| if yes { "mptcp" } else { "" };
    let before = agreed(b);
    let listener = b.listen_with(option(which != Multipath::Client));
    let open = b.open_to(listener, option(which != Multipath::Server));
    assert_eq!(agreed(b) - before, u32::from(which == Multipath::Both), "the sides' agreement");
    b.exchange(&open);
    let one = b.close(&open, Client);
    let other = b.during(|b| {
        b.server.close(open.s);
        // MPTCP closes its subflow when it comes to it.
        for from in [Client, Server] {
            b.link.wait_for(open.pair(), |c| c.from == from && c.segment.has(FIN));
        }
    });
    let made = match which {
        // Its worker may come to it before the server closes.
        Multipath::Both => {
            let whole = Span { from: one.from, to: other.to };
            Made::of(&open, whole, whole).both_half_closed(whole, whole)
        }
        Multipath::Client => Made::of(&open, other, other).both_half_closed(one, other),
        Multipath::Server => closed(&open, Client, one, other),
    };
    b.done(&open, made)
}

/// Handshakes of the client's namespace in which the server agreed to MPTCP.
fn agreed(b: &Bench) -> u32 {
    let text = b.link.client.inside(|| std::fs::read_to_string("/proc/thread-self/net/netstat"));
    let text = text.expect("the counters of the namespace");
    let mut lines = text.lines().filter(|line| line.starts_with("MPTcpExt:"));
    let (names, values) = lines.next().zip(lines.next()).expect("the counters of MPTCP");
    let mut counters = names.split(' ').zip(values.split(' '));
    let (_, n) = counters.find(|(name, _)| *name == "MPCapableSYNACKRX").expect("the counter");
    n.parse().expect("a number")
}
