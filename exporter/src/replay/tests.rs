//! From packets to ends, as tables: each line of packets is a capture of raw IP.

mod doubt;

use flowend_probe_types::{ACK, FIN, PSH, RST, SYN};

use super::capture::Packet;
use super::engine::{Ended, Engine};
use crate::flow::ConnectionEnd;

/// Who sends: client 10.0.0.1:40000, server 10.0.0.2:`port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Server,
}
use Sender::{Client as C, Server as S};

/// Sender, flags, sequence number, acknowledgement number, payload.
pub(super) type Step = (Sender, u8, u32, u32, u16);

const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;
const RST_ACK: u8 = RST | ACK;
const CLIENT_PORT: u16 = 40_000;
/// Neither port is likely a server's.
const SERVER_PORT: u16 = 50_000;

pub(super) fn ip(step: Step, server_port: u16, window: u16) -> Vec<u8> {
    let (from, flags, seq, ack, payload) = step;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let (mut src, mut dst) = (CLIENT_PORT, server_port);
    if from == S {
        packet[15] = 2;
        packet[19] = 1;
        std::mem::swap(&mut src, &mut dst);
    }
    packet[2..4].copy_from_slice(&(40 + payload).to_be_bytes());
    packet.extend(src.to_be_bytes());
    packet.extend(dst.to_be_bytes());
    packet.extend(seq.to_be_bytes());
    packet.extend(ack.to_be_bytes());
    packet.extend([0x50, flags]);
    packet.extend(window.to_be_bytes());
    // The checksum is left to the card: no more than the sum of the pseudo header. The payload was not
    // captured.
    packet.extend((0x0a00 + 1 + 0x0a00 + 2 + 6 + 20 + payload).to_be_bytes());
    packet.extend([0; 2]);
    packet
}

/// Packets a millisecond apart.
fn ends_with(steps: &[Step], server_port: u16, limit: usize, local: &[&str]) -> Vec<Ended> {
    let local = local.iter().map(|range| range.parse().unwrap()).collect();
    let mut engine = Engine::new(limit, None, local);
    let mut ends = Vec::new();
    for (n, step) in (0_u64..).zip(steps) {
        let packet = Packet {
            index: n + 1,
            time_ns: n * 1_000_000,
            link: 101,
            bytes: &ip(*step, server_port, 1000),
            on_the_wire: 1500,
        };
        engine.packet(&packet).unwrap();
        ends.extend(std::iter::from_fn(|| engine.next_end()));
    }
    while engine.finish_one() {
        ends.extend(std::iter::from_fn(|| engine.next_end()));
    }
    assert_eq!(engine.summary().tcp, steps.len() as u64);
    assert_eq!(engine.summary().connections, ends.len() as u64);
    ends
}

/// Direction, reason, who ended it and who reset it, conn_state, history, bytes sent/received,
/// segments sent/received and retransmitted.
fn line(end: &ConnectionEnd) -> String {
    let side = |s: Option<crate::flow::Side>| s.map_or("-", crate::flow::Side::as_str);
    let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    format!(
        "{} {} {} {} {} {} {}/{} {}/{}+{}",
        end.direction.as_str(),
        end.reason.as_str(),
        side(end.by),
        side(end.reset_by),
        end.conn_state,
        end.history,
        count(end.counters.bytes_sent),
        count(end.counters.bytes_received),
        end.counters.segments_sent.unwrap(),
        end.counters.segments_received.unwrap(),
        end.counters.retransmits.unwrap(),
    )
}

fn check(name: &str, steps: &[Step], want: &[&str]) {
    let got: Vec<_> = ends_with(steps, SERVER_PORT, 10, &[]).iter().map(|e| line(&e.end)).collect();
    assert_eq!(got, want, "{name}");
}

const HANDSHAKE: [Step; 3] =
    [(C, SYN, 100, 0, 0), (S, SYN_ACK, 500, 101, 0), (C, ACK, 101, 501, 0)];

/// After the handshake.
fn established(then: &[Step]) -> Vec<Step> {
    [&HANDSHAKE, then].concat()
}

/// The handshake, 10 bytes each way, and an orderly end by the client.
fn whole() -> Vec<Step> {
    established(&[
        (C, PSH | ACK, 101, 501, 10),
        (S, ACK, 501, 111, 0),
        (S, PSH | ACK, 501, 111, 20),
        (C, ACK, 111, 521, 0),
        (C, FIN_ACK, 111, 521, 0),
        (S, FIN_ACK, 521, 112, 0),
        (C, ACK, 112, 522, 0),
    ])
}

/// Connections of different kinds, for other tests.
pub(super) fn connections() -> Vec<Vec<Step>> {
    vec![
        whole(),
        whole()[3..].to_vec(),
        whole()[1..].to_vec(),
        vec![(C, SYN, 100, 0, 0), (S, RST_ACK, 0, 101, 0)],
        established(&[(C, RST_ACK, 101, 501, 0), (S, ACK, 501, 101, 40)]),
        established(&[(C, ACK, 101, 501, 10), (C, ACK, 101, 501, 10), (S, RST, 9, 0, 0)]),
        vec![(C, SYN, 100, 0, 0), (C, SYN, 100, 0, 0), (C, SYN, 100, 0, 0)],
        [&whole()[..], &[(S, FIN_ACK, 521, 112, 0), (C, ACK, 112, 522, 0)]].concat(),
    ]
}

#[test]
fn orderly_ends() {
    check("by the client", &whole(), &["outgoing fin local - SF ShADadFf 10/20 6/4+0"]);
    let by_server = established(&[
        (S, FIN_ACK, 501, 101, 7),
        (C, ACK, 101, 509, 0),
        (C, FIN_ACK, 101, 509, 0),
        (S, ACK, 509, 102, 0),
    ]);
    check(
        "by the server, with data in the FIN",
        &by_server,
        &["outgoing fin remote - SF ShAfFa 0/7 4/3+0"],
    );
    let late = [&whole()[..], &[(S, FIN_ACK, 521, 112, 0), (C, ACK, 112, 522, 0)]].concat();
    check("a repeated FIN and its ACK", &late, &["outgoing fin local - SF ShADadFf 10/20 7/5+0"]);
    let rst = [&whole()[..], &[(C, RST, 112, 0, 0)]].concat();
    check(
        "an RST after both FINs changes nothing",
        &rst,
        &["outgoing fin local - SF ShADadFfR 10/20 7/4+0"],
    );
}

#[test]
fn resets() {
    check(
        "refused",
        &[(C, SYN, 100, 0, 0), (S, RST_ACK, 0, 101, 0)],
        &["outgoing refused remote remote REJ Sr 0/0 1/1+0"],
    );
    check(
        "by the client",
        &established(&[(C, RST_ACK, 101, 501, 0)]),
        &["outgoing reset local local RSTO ShAR 0/0 3/1+0"],
    );
    check(
        "by the server, after the client's FIN",
        &established(&[(C, FIN_ACK, 101, 501, 5), (S, RST, 501, 0, 0)]),
        &["outgoing reset local remote RSTR ShAFr 5/0 3/2+0"],
    );
    check(
        "given up before an answer",
        &[(C, SYN, 100, 0, 0), (C, RST, 101, 0, 0)],
        &["outgoing aborted local local RSTOS0 SR 0/0 2/0+0"],
    );
    check(
        "a SYN scan",
        &[(C, SYN, 100, 0, 0), (S, SYN_ACK, 500, 101, 0), (C, RST, 101, 0, 0)],
        &["outgoing reset local local RSTO ShR 0/0 2/1+0"],
    );
    check(
        "SYN-ACK and RST, no SYN",
        &[(S, SYN_ACK, 500, 101, 0), (S, RST, 501, 0, 0)],
        &["outgoing reset remote remote RSTRH ^hr -/0 0/2+0"],
    );
}

#[test]
fn forged_segments_end_nothing() {
    let forged = established(&[
        (S, RST, 77_000, 0, 0),
        (C, RST, 102, 0, 0),
        (S, ACK, 501, 101, 0),
        (C, FIN_ACK, 101, 501, 0),
        (S, FIN_ACK, 501, 102, 0),
    ]);
    check("RSTs", &forged, &["outgoing fin local - SF ShArRaFf 0/0 4/4+0"]);
    let not_for_this_syn = [(C, SYN, 100, 0, 0), (S, RST_ACK, 0, 7, 0), (S, RST, 0, 0, 0)];
    check(
        "RSTs that do not acknowledge the SYN",
        &not_for_this_syn,
        &["outgoing open - - S0 Sr 0/0 1/2+0"],
    );
    let syn_ack = [
        (C, SYN, 100, 0, 0),
        (S, SYN_ACK, 9_000, 7, 0),
        (S, SYN_ACK, 500, 101, 0),
        (C, ACK, 101, 501, 0),
        (C, FIN_ACK, 101, 501, 0),
        (S, FIN_ACK, 501, 102, 0),
    ];
    check("a SYN-ACK", &syn_ack, &["outgoing fin local - SF ShhAFf 0/0 3/3+0"]);
    let fin = established(&[
        (C, FIN_ACK, 111, 501, 0),
        (C, ACK, 101, 501, 50),
        (S, ACK, 501, 151, 0),
        (S, FIN_ACK, 501, 151, 0),
    ]);
    check("a FIN that data follows", &fin, &["outgoing open - - S3 ShAFDaf 50/0 4/3+0"]);
}

#[test]
fn what_the_capture_leaves_open() {
    check(
        "unanswered",
        &[(C, SYN, 100, 0, 0), (C, SYN, 100, 0, 0)],
        &["outgoing open - - S0 S 0/0 2/0+1"],
    );
    check("established", &HANDSHAKE, &["outgoing open - - S1 ShA 0/0 2/1+0"]);
    check("closed by the client", &whole()[..8], &["outgoing open - - S2 ShADadF 10/20 5/3+0"]);
    check(
        "one side only",
        &[(C, SYN, 100, 0, 0), (C, ACK, 101, 501, 0), (C, FIN_ACK, 101, 501, 3)],
        &["outgoing open - - SH SAF 3/- 3/0+0"],
    );
    check(
        "SYN-ACK and FIN, no SYN",
        &[(S, SYN_ACK, 500, 101, 0), (S, FIN_ACK, 501, 101, 0)],
        &["outgoing open - - SHR ^hf -/0 0/2+0"],
    );
}

#[test]
fn without_a_syn() {
    let steps = &whole()[3..];
    check("from the middle", steps, &["unknown fin local - OTH DadAFf 10/20 4/3+0"]);
    check("the server's packet first", &steps[2..], &["unknown fin remote - OTH DafF 20/0 2/3+0"]);
    check("an RST alone", &[(S, RST, 1, 0, 0)], &["unknown reset local local OTH R 0/0 1/0+0"]);
    check(
        "only ACKs",
        &[(C, ACK, 5, 9, 0), (S, ACK, 9, 5, 0)],
        &["unknown open - - OTH Aa 0/0 1/1+0"],
    );
    let ends = ends_with(&steps[2..], 443, 10, &[]);
    assert_eq!(
        line(&ends[0].end),
        "unknown fin local - OTH ^dAFf 0/20 3/2+0",
        "flipped by its port"
    );
    assert!(!ends[0].end.start_known);
    assert_eq!((ends[0].end.isns, ends[0].end.duration_ns()), (None, None));
    // Both ports are likely a server's: nothing is known better than who sent first.
    let mut both = ends_with(&[(S, ACK, 1, 1, 1)], 443, 10, &[]);
    assert_eq!(both.remove(0).end.history, "^d");
}

#[test]
fn handshakes_of_other_kinds() {
    let both = [
        (C, SYN, 100, 0, 0),
        (S, SYN, 500, 0, 0),
        (C, SYN_ACK, 100, 501, 0),
        (S, SYN_ACK, 500, 101, 0),
        (C, FIN_ACK, 101, 501, 0),
        (S, FIN_ACK, 501, 102, 0),
    ];
    check("simultaneous", &both, &["outgoing fin local - SF SsFf 0/0 3/3+1"]);
    let late_syn = [HANDSHAKE[1], HANDSHAKE[0], HANDSHAKE[2], (C, RST_ACK, 101, 501, 0)];
    check(
        "SYN captured after the SYN-ACK",
        &late_syn,
        &["outgoing reset local local RSTO ^hSAR 0/0 3/1+0"],
    );
    let lost = [HANDSHAKE[0], HANDSHAKE[2], (S, ACK, 501, 101, 9), (S, RST, 510, 0, 0)];
    check("SYN-ACK not captured", &lost, &["outgoing reset remote remote RSTR SAdr 0/9 2/2+0"]);
    let fast_open = [
        (C, SYN, 100, 0, 10),
        (S, SYN_ACK, 500, 111, 0),
        (C, FIN_ACK, 111, 501, 0),
        (S, FIN_ACK, 501, 112, 0),
    ];
    check("Fast Open", &fast_open, &["outgoing fin local - SF ShFf 10/0 2/2+0"]);
    let nonsense = [(C, SYN | FIN, 100, 0, 0), HANDSHAKE[0], (S, RST_ACK, 0, 101, 0)];
    check(
        "SYN with FIN is no part of it",
        &nonsense,
        &[
            "unknown vanished - - OTH Q 0/0 1/0+0",
            "outgoing refused remote remote REJ Sr 0/0 1/1+0",
        ],
    );
}

#[test]
fn payload_is_counted_once() {
    let lossy = established(&[
        (C, ACK, 101, 501, 100),
        (C, ACK, 101, 501, 100),
        (C, ACK, 301, 501, 100),
        (S, ACK, 501, 201, 0),
        (S, ACK, 501, 401, 0),
        (S, ACK, 501, 401, 30),
        (S, ACK, 601, 401, 30),
        (C, RST_ACK, 401, 501, 0),
    ]);
    check(
        "repeated, lacking in the capture, lost",
        &lossy,
        &["outgoing reset local local RSTO ShADTaGdR 300/- 6/5+1"],
    );
}

#[test]
fn one_pair_of_ports_twice() {
    let again: Vec<Step> = whole()
        .into_iter()
        .map(|(f, flags, seq, ack, n)| (f, flags, seq + 9000, ack + 9000, n))
        .collect();
    let one = "outgoing fin local - SF ShADadFf 10/20 6/4+0";
    check("after an orderly end", &[whole(), again.clone()].concat(), &[one, one]);
    check(
        "SYN-ACK without its SYN",
        &[&whole()[..], &again[1..3]].concat(),
        &[one, "outgoing open - - S1 ^hA 0/0 1/1+0"],
    );
    check(
        "data without a handshake",
        &[&whole()[..], &again[3..5]].concat(),
        &[one, "unknown open - - OTH Da 10/0 1/1+0"],
    );
    check(
        "another attempt",
        &[(C, SYN, 100, 0, 0), (C, SYN, 9100, 0, 0), (S, RST_ACK, 0, 9101, 0)],
        &[
            "outgoing vanished - - S0 S 0/0 1/0+0",
            "outgoing refused remote remote REJ Sr 0/0 1/1+0",
        ],
    );
    check(
        "the end of the first was not captured",
        &[&HANDSHAKE[..], &again[..]].concat(),
        &["outgoing vanished - - S1 ShA 0/0 2/1+0", one],
    );
    // RFC 5961: the challenged client resets the old connection, and tries again.
    let challenged = [
        &HANDSHAKE[..],
        &[
            (C, SYN, 9100, 0, 0),
            (S, ACK, 501, 101, 0),
            (C, RST, 101, 0, 0),
            (C, SYN, 9100, 0, 0),
            (S, SYN_ACK, 9500, 9101, 0),
        ],
    ]
    .concat();
    check(
        "an open one, replaced",
        &challenged,
        &["outgoing reset local local RSTO ShAaR 0/0 3/2+0", "outgoing open - - S1 Sh 0/0 2/1+1"],
    );
    let forged =
        [&HANDSHAKE[..], &[(C, SYN, 9100, 0, 0), (S, ACK, 501, 101, 0)], &whole()[3..]].concat();
    check(
        "a forged SYN",
        &forged,
        &["outgoing fin local - SF ShAaDdFf 10/20 6/5+0", "outgoing open - - S0 S 0/0 1/0+0"],
    );
}

#[test]
fn the_local_side_tells_the_record() {
    let from = |local: &[&str], steps: &[Step]| {
        let end = ends_with(steps, SERVER_PORT, 10, local).remove(0).end;
        format!("{} from {} by {}", line(&end), end.local, end.source())
    };
    let (client, server) = ("10.0.0.1:40000", "10.0.0.2:50000");
    let by_client =
        format!("outgoing fin local - SF ShADadFf 10/20 6/4+0 from {client} by {client}");
    for local in
        [&[][..], &["10.0.0.1/32"], &["10.0.0.0/8"], &["10.0.0.2/32", "10.0.0.1/32"], &["fd00::/8"]]
    {
        assert_eq!(from(local, &whole()), by_client, "{local:?}");
    }
    assert_eq!(
        from(&["10.0.0.2/32"], &whole()),
        format!("incoming fin remote - SF ShADadFf 20/10 4/6+0 from {server} by {client}")
    );
    assert_eq!(
        from(&["10.0.0.2/32"], &HANDSHAKE),
        format!("incoming open - - S1 ShA 0/0 1/2+0 from {server} by {client}"),
        "nobody ended it: the source is the client"
    );
    assert_eq!(
        from(&["10.0.0.2/32"], &whole()[3..]),
        format!("unknown fin remote - OTH DadAFf 20/10 3/4+0 from {server} by {client}")
    );
}

#[test]
fn times_are_the_captures() {
    let of = |local: &[&str]| ends_with(&whole(), SERVER_PORT, 10, local).remove(0).end;
    let (client, server) = (of(&[]), of(&["10.0.0.2/32"]));
    assert_eq!((client.start_ns, client.end_ns), (0, 8_000_000), "the second FIN");
    assert_eq!(client.half_close_ns, Some(1_000_000));
    assert_eq!((client.rtt.handshake_us, server.rtt.handshake_us), (Some(1000), Some(1000)));
    assert_eq!(client.isns, server.isns);
    assert!(client.isns.is_some_and(|isns| (isns.client, isns.server) == (100, 500)));
    let open = ends_with(&whole()[..7], SERVER_PORT, 10, &[]).remove(0).end;
    assert_eq!(open.end_ns, 6_000_000, "the last packet");
    let repeated = [&HANDSHAKE[..1], &HANDSHAKE[..]].concat();
    let end = ends_with(&repeated, SERVER_PORT, 10, &[]).remove(0).end;
    assert_eq!(end.rtt.handshake_us, None, "which of the two SYNs was answered?");
}

#[test]
fn a_zero_window_is_told_of_a_syn_ack_too() {
    let mut engine = Engine::new(10, None, Vec::new());
    let steps =
        established(&[(S, ACK, 501, 101, 0), (C, FIN_ACK, 101, 501, 0), (S, ACK, 501, 102, 0)]);
    for (n, step) in (1_u64..).zip(steps) {
        let window = u16::from(step.0 == C);
        let bytes = ip(step, SERVER_PORT, window);
        let packet = Packet { index: n, time_ns: n, link: 101, bytes: &bytes, on_the_wire: 1500 };
        engine.packet(&packet).unwrap();
    }
    assert!(engine.finish_one());
    assert_eq!(engine.next_end().unwrap().end.history, "ShwAaF");
}

#[test]
fn past_flows_max_those_that_are_over_go_first() {
    let one = |port: u16, steps: &[Step], engine: &mut Engine, first: u64| {
        (first..).zip(steps).try_for_each(|(n, step)| {
            let bytes = ip(*step, port, 1000);
            let packet =
                Packet { index: n, time_ns: n, link: 101, bytes: &bytes, on_the_wire: 1500 };
            engine.packet(&packet)
        })
    };
    let mut engine = Engine::new(2, None, Vec::new());
    one(1, &HANDSHAKE, &mut engine, 1).unwrap();
    one(2, &whole(), &mut engine, 100).unwrap();
    assert!(engine.next_end().is_none());
    one(3, &HANDSHAKE, &mut engine, 200).unwrap();
    assert_eq!(engine.next_end().unwrap().end.remote.port, 2);
    assert!(one(4, &HANDSHAKE, &mut engine, 300).is_err(), "both are open");
    assert!(one(3, &whole()[3..], &mut engine, 400).is_ok());
    one(4, &HANDSHAKE, &mut engine, 500).unwrap();
    assert_eq!(engine.next_end().unwrap().end.remote.port, 3);
    let left = std::iter::from_fn(|| engine.finish_one().then(|| engine.next_end().unwrap()));
    assert_eq!(left.map(|e| e.end.remote.port).collect::<Vec<_>>(), [1, 4]);
}
