//! Much data, over loopback, where the kernel hands on 64 kB at once.

use super::super::connections::Role;
use super::super::support::step;
use super::bench::Bench;
use super::case::Make::Watched;
use super::case::{Case, Row, both};
use super::made::{Made, Span};
use super::orderly::closed;
use Role::{Client, Server};

const GIB: u64 = 1 << 30;
/// So that the two numbers cannot be mixed up.
const UP: u64 = GIB + 1;
const DOWN: u64 = GIB - 1;
const BUSY: u64 = 20_000_000;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "1 GiB each way",
        what: "one byte more to the server, one less back",
        make: Watched(|b| {
            on_loopback(b, |b, c, s| {
                b.puppet(Client).post(&format!("exchange {c} {UP} {DOWN}"));
                b.puppet(Server).tell(&format!("exchange {s} {DOWN} {UP}"));
                b.puppet(Client).reply().expect("the exchange");
            })
        }),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(UP, DOWN),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(DOWN, UP).half_closed(),
        )],
    },
    Case {
        name: "closed while the server is still reading",
        what: "the FIN waits behind data that a busy reader has not taken",
        make: Watched(|b| {
            on_loopback(b, |b, c, s| {
                b.puppet(Server).post(&format!("recv {s} {BUSY}"));
                b.puppet(Client).tell(&format!("send {c} {BUSY}"));
            })
        }),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADaF").moved(BUSY, 0),
            Row::server("fin", "remote", "SF", "ShADaFf").moved(0, BUSY).half_closed(),
        )],
    },
];

/// A connection of two puppets in the server's namespace; the client closes right after its data.
fn on_loopback(b: &mut Bench, move_data: fn(&mut Bench, u32, u32)) -> Vec<Made> {
    b.move_to(Client, Server);
    let listener = b.listen();
    let from = flowend::clock::boot_ns();
    let c = b.client.connect(listener.local);
    let s = b.server.accept(listener);
    let open = b.opened(Some(listener), c, s, Span { from, to: flowend::clock::boot_ns() });
    move_data(b, c.id, s.id);
    let one = Span { from: flowend::clock::boot_ns(), ..open.began };
    b.client.close(c);
    // A reader that was told to read, and has not answered yet.
    b.server.finish();
    step();
    let one = Span { to: flowend::clock::boot_ns(), ..one };
    let from = flowend::clock::boot_ns();
    b.server.close(s);
    step();
    let other = Span { from, to: flowend::clock::boot_ns() };
    let made = closed(&open, Client, one, other);
    let mut made = b.done(&open, made);
    made[0].wire = None;
    b.move_to(Client, Client);
    made
}
