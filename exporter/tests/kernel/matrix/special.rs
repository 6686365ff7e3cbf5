//! Fast Open and MPTCP.

use super::super::connections::Role;
use super::super::packet::SYN;
use super::super::support::{Socket, parse};
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Row, UP, both};
use super::made::Made;
use super::orderly::close_after;
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
            Row::client("fin", "local", "SF", "ShADadF").moved(EARLY + UP, DOWN).may_retransmit(),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(DOWN, EARLY + UP).half_closed(),
        )],
    },
    Case {
        name: "MPTCP",
        what: "IPPROTO_MPTCP at both ends: its one subflow is a TCP connection with its own record",
        make: Watched(|b| mptcp(b, true, true)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF"),
            Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
        )],
    },
    Case {
        name: "MPTCP at the client only",
        what: "it falls back to TCP",
        make: Watched(|b| mptcp(b, true, false)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF"),
            Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
        )],
    },
    Case {
        name: "MPTCP at the server only",
        what: "its listener accepts TCP",
        make: Watched(|b| mptcp(b, false, true)),
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

fn mptcp(b: &mut Bench, client: bool, server: bool) -> Vec<Made> {
    let option = |yes| if yes { "mptcp" } else { "" };
    let listener = b.listen_with(option(server));
    let open = b.open_to(listener, option(client));
    b.exchange(&open);
    close_after(b, open, Client)
}
