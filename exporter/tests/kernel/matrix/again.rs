//! The same ports, or the same socket, once more.

use super::super::connections::Role;
use super::super::support::{Socket, parse};
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, Ends, Row, both, only_client};
use super::made::Made;
use super::orderly::closed;
use Role::{Client, Server};

const CLOSED_BY_CLIENT: Ends = both(
    Row::client("fin", "local", "SF", "ShADadF"),
    Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
);
const CLOSED_BY_SERVER: Ends = both(
    Row::client("fin", "remote", "SF", "ShADadfF").half_closed(),
    Row::server("fin", "local", "SF", "ShADadf"),
);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "the same ports again, the client's in TIME-WAIT",
        what: "two connections, two records",
        make: Watched(|b| same_ports(b, Client)),
        ends: &[CLOSED_BY_CLIENT, CLOSED_BY_CLIENT],
    },
    Case {
        name: "the same ports again, the server's in TIME-WAIT",
        what: "two connections, two records",
        make: Watched(|b| same_ports(b, Server)),
        ends: &[CLOSED_BY_SERVER, CLOSED_BY_SERVER],
    },
    Case {
        name: "the same socket again after a refusal",
        what: "two connections, two records",
        make: Watched(after_refusal),
        ends: &[
            only_client(Row::attempt("refused", "remote", "REJ", "Sr").reset_by("remote")),
            CLOSED_BY_CLIENT,
        ],
    },
    Case {
        name: "the same socket again after connect(AF_UNSPEC)",
        what: "two connections, two records",
        make: Watched(after_disconnect),
        ends: &[
            both(
                Row::client("reset", "local", "RSTO", "ShADadR").reset_by("local"),
                Row::server("reset", "remote", "RSTO", "ShADadR").reset_by("remote"),
            ),
            CLOSED_BY_CLIENT,
        ],
    },
];

fn with_wire(b: &Bench, made: Made) -> Made {
    Made { wire: Some(b.link.crossings(made.client, made.server)), ..made }
}

/// Each connection's part of what the link saw begins with its SYN.
fn split_at(b: &Bench, made: &mut [Made]) {
    let [first, second] = made else { panic!("two connections") };
    let all = b.link.crossings(first.client, first.server);
    let at = all
        .iter()
        .rposition(|c| c.segment.has(super::super::packet::SYN) && c.from == Client)
        .expect("a second SYN");
    first.wire = Some(all[..at].to_vec());
    second.wire = Some(all[at..].to_vec());
}

fn same_ports(b: &mut Bench, first: Role) -> Vec<Made> {
    let listener = b.listen();
    // Bound in both: ports that were chosen by connect() alone are not given out again so soon.
    let any = format!("from {}", b.host(Client));
    let one = b.open_to(listener, &any);
    let mut all = vec![exchange_and_close(b, &one, first)];
    let same = format!("from {}", one.client_address);
    let two = b.open_to(listener, &same);
    all.push(exchange_and_close(b, &two, first));
    assert_eq!(all[0].client, all[1].client, "the same ports");
    b.done(&two, all[1].clone());
    split_at(b, &mut all);
    all
}

fn exchange_and_close(b: &mut Bench, open: &Open, first: Role) -> Made {
    b.exchange(open);
    let one = b.close(open, first);
    let other = b.close(open, first.other());
    closed(open, first, one, other)
}

/// Connects a socket once more.
fn reconnect(b: &mut Bench, c: Socket, listener: Socket) -> Open {
    let mut sockets = None;
    let began = b.during(|b| {
        let c = parse(&b.client.tell(&format!("reconnect {} {}", c.id, listener.local)));
        sockets = Some((c, b.server.accept(listener)));
    });
    let (c, s) = sockets.expect("connected");
    b.opened(Some(listener), c, s, began)
}

fn after_refusal(b: &mut Bench) -> Vec<Made> {
    let to = b.closed_port();
    let attempt = b.attempt(to);
    let ended = super::handshakes::fail(b, &attempt);
    b.link.settle();
    let refused = with_wire(b, Made::of(&attempt, ended, ended));
    let listener = b.listen();
    let open = reconnect(b, attempt.c, listener);
    let made = exchange_and_close(b, &open, Client);
    let mut all = vec![refused];
    all.extend(b.done(&open, made));
    all
}

fn after_disconnect(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    let ended = b.during(|b| {
        b.client.tell(&format!("disconnect {}", open.c.id));
    });
    b.server.close(open.s);
    b.link.settle();
    let first = with_wire(b, Made::of(&open, ended, ended));
    let listener = open.listener.expect("a listener");
    let again = reconnect(b, open.c, listener);
    let second = exchange_and_close(b, &again, Client);
    let mut all = vec![first];
    all.extend(b.done(&again, second));
    all
}
