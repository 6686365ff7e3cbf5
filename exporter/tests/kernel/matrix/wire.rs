//! A wire that is slow, loses and reorders: bytes, retransmissions and RTTs stay true.

use std::time::Duration;

use super::super::connections::Role;
use super::super::link::Fate;
use super::super::packet::{FIN, Segment};
use super::bench::{Bench, Open};
use super::case::Make::Watched;
use super::case::{Case, DOWN, Ends, Row, UP, both};
use super::made::Made;
use super::orderly::closed;
use Role::{Client, Server};

/// Two segments.
const LAST: u64 = 2000;
/// Each way, where segments are lost.
const MUCH: u64 = 100_000;
const DELAY: Duration = Duration::from_millis(20);

const FIN_LOST: Ends = both(
    Row::client("fin", "local", "SF", "ShADadF").retransmitted(),
    Row::server("fin", "remote", "SF", "ShADadFf").half_closed(),
);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "20 ms each way",
        what: "RTTs are compared with what TCP_INFO tells the applications",
        make: Watched(|b| slow(b, None)),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(MUCH, MUCH),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(MUCH, MUCH).half_closed(),
        )],
    },
    Case {
        name: "20 ms each way, and every 20th segment with data is lost",
        what: "RTTs and retransmissions are compared with TCP_INFO, retransmissions with the wire",
        make: Watched(|b| slow(b, Some(20))),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(MUCH, MUCH).retransmitted(),
            Row::server("fin", "remote", "SF", "ShADadFf")
                .moved(MUCH, MUCH)
                .retransmitted()
                .half_closed(),
        )],
    },
    Case {
        name: "the FIN is lost",
        what: "and sent again",
        make: Watched(lose_the_fin),
        ends: &[FIN_LOST],
    },
    Case {
        name: "the last data is lost",
        what: "so the FIN comes before it",
        make: Watched(lose_the_last_data),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(UP + LAST, DOWN).retransmitted(),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(DOWN, UP + LAST).half_closed(),
        )],
    },
    Case {
        name: "the FIN overtakes the last data",
        what: "",
        make: Watched(overtake),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(UP + LAST, DOWN),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(DOWN, UP + LAST).half_closed(),
        )],
    },
    Case {
        name: "the server has not read yet when the FIN comes",
        what: "50 kB wait in its receive queue",
        make: Watched(unread_when_the_fin_comes),
        ends: &[both(
            Row::client("fin", "local", "SF", "ShADadF").moved(UP + 50_000, DOWN),
            Row::server("fin", "remote", "SF", "ShADadFf").moved(DOWN, UP + 50_000).half_closed(),
        )],
    },
];

/// Both send much at the same time, over a slow wire that may lose each nth segment with data.
fn slow(b: &mut Bench, lose_each: Option<u32>) -> Vec<Made> {
    b.link.set_delay(DELAY);
    let open = b.open();
    if let Some(n) = lose_each {
        let mut seen = [0_u32; 2];
        b.link.on(move |from, segment, _| {
            let count = &mut seen[usize::from(from == Server)];
            *count += u32::from(segment.payload > 0);
            if segment.payload > 0 && *count % n == 0 { Fate::Drop } else { Fate::Pass }
        });
    }
    let exchange = |id| format!("exchange {id} {MUCH} {MUCH}");
    b.client.post(&exchange(open.c.id));
    b.server.tell(&exchange(open.s.id));
    b.client.reply().expect("the exchange");
    b.link.settle();
    let infos = [Client, Server].map(|role| (role, b.info(&open, role)));
    b.link.pass();
    let one = b.close(&open, Client);
    let other = b.close(&open, Server);
    b.link.set_delay(Duration::ZERO);
    let mut made = closed(&open, Client, one, other);
    made.infos.extend(infos);
    b.done(&open, made)
}

fn lose_the_fin(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    lose_first(b, |segment| segment.has(FIN));
    let made = close_and_recover(b, &open, 0);
    b.done(&open, made)
}

fn lose_the_last_data(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    lose_first(b, |segment| segment.payload > 0);
    let made = close_and_recover(b, &open, LAST);
    b.done(&open, made)
}

fn lose_first(b: &Bench, fits: fn(&Segment) -> bool) {
    let mut lost = false;
    b.lose(Client, move |segment| {
        let lose = !lost && fits(segment);
        lost |= lose;
        lose
    });
}

/// The client sends and closes; the server reads until the FIN, and closes.
fn close_and_recover(b: &mut Bench, open: &Open, last: u64) -> Made {
    let one = b.during(|b| {
        b.client.tell(&format!("send {} {last}", open.c.id));
        b.client.close(open.c);
        assert_eq!(b.server.drain(open.s), last);
    });
    let other = b.close(open, Server);
    closed(open, Client, one, other)
}

fn overtake(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    let mut overtaken = false;
    b.link.on(move |from, segment, _| {
        if from == Client && segment.has(FIN) {
            return Fate::PassAndRelease;
        }
        if from == Client && segment.payload > 0 && !overtaken {
            overtaken = true;
            return Fate::Hold;
        }
        Fate::Pass
    });
    let made = close_and_recover(b, &open, LAST);
    b.done(&open, made)
}

fn unread_when_the_fin_comes(b: &mut Bench) -> Vec<Made> {
    let open = b.open_and_exchange();
    let one = b.during(|b| {
        b.client.send(open.c, 50_000);
        b.client.close(open.c);
    });
    assert_eq!(b.server.drain(open.s), 50_000);
    b.link.settle();
    let other = b.close(&open, Server);
    let made = closed(&open, Client, one, other);
    b.done(&open, made)
}
