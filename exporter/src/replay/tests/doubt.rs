//! What a capture leaves in doubt: forged segments, gaps of the capture, attempts that go on.

use super::*;

#[test]
fn an_older_connections_half_is_no_part_of_this_one() {
    let recovered = [
        &[(C, SYN, 100, 0, 0), (S, ACK, 90_000, 77, 0), (C, RST, 77, 0, 0)][..],
        &HANDSHAKE,
        &[
            (C, ACK, 101, 501, 10),
            (S, ACK, 501, 111, 0),
            (C, FIN_ACK, 111, 501, 0),
            (S, FIN_ACK, 501, 112, 0),
            (C, ACK, 112, 502, 0),
        ],
    ]
    .concat();
    check("RFC 9293, section 3.5.1", &recovered, &["outgoing fin local - SF SaRhADFf 10/0 7/4+1"]);
}

#[test]
fn an_attempt_that_asks_again_is_one_connection() {
    let refused = [(C, SYN, 100, 0, 0), (S, RST_ACK, 0, 101, 0)];
    let fins = [(C, FIN_ACK, 101, 501, 0), (S, FIN_ACK, 501, 102, 0)];
    let twice = [refused, refused].concat();
    let then = |rest: &[Step]| [&twice[..], &HANDSHAKE, rest].concat();
    let cases: &[(&str, Vec<Step>, &str, u64)] = &[
        ("refused", twice.clone(), "outgoing refused remote remote REJ Sr 0/0 2/2+1", 3),
        (
            "a SYN too many",
            [&twice[..], &refused[..1]].concat(),
            "outgoing refused remote remote REJ Sr 0/0 3/2+2",
            3,
        ),
        ("accepted", then(&fins), "outgoing fin local - SF SrhAFf 0/0 5/4+2", 8),
        (
            "accepted and reset",
            then(&[(C, ACK, 101, 501, 5), (S, ACK, 501, 106, 0), (C, RST_ACK, 106, 501, 0)]),
            "outgoing reset local local RSTO SrhADaR 5/0 6/4+2",
            9,
        ),
        (
            "a forged refusal, which the client ignores",
            [&refused[..], &HANDSHAKE[1..], &fins].concat(),
            "outgoing fin local - SF SrhAFf 0/0 3/3+0",
            5,
        ),
        (
            "one that it heeds",
            [&refused[..], &HANDSHAKE[1..2], &[(C, RST, 101, 0, 0)]].concat(),
            "outgoing refused remote remote REJ SrhR 0/0 2/2+0",
            1,
        ),
    ];
    for (name, steps, want, end_ms) in cases {
        check(name, steps, &[want]);
        let end = ends_with(steps, SERVER_PORT, 10, &[]).remove(0).end;
        assert_eq!((end.start_ns, end.end_ns), (0, end_ms * 1_000_000), "{name}");
    }
}

#[test]
fn a_refused_attempt_that_goes_on_is_open_again() {
    let mut engine = Engine::new(1, None, Vec::new());
    let steps = [(C, SYN, 100, 0, 0), (S, RST_ACK, 0, 101, 0), HANDSHAKE[1], HANDSHAKE[2]];
    let mut packet = |n, step, port| {
        let bytes = ip(step, port, 1000);
        engine.packet(&Packet { index: n, time_ns: n, link: 101, bytes: &bytes, on_the_wire: 1500 })
    };
    for (n, step) in (1..).zip(steps) {
        packet(n, step, SERVER_PORT).unwrap();
    }
    assert!(packet(9, HANDSHAKE[0], 1).is_err(), "there is no room beside one that is open");
}

#[test]
fn what_lies_past_the_end_proves_nothing() {
    let data = [(C, ACK, 101, 501, 10), (S, ACK, 501, 111, 0)];
    let behind_fin = established(&[
        (C, FIN_ACK, 101, 501, 0),
        (S, ACK, 501, 102, 0),
        (C, ACK, 102, 501, 10),
        (S, FIN_ACK, 501, 102, 0),
        (C, ACK, 102, 502, 0),
    ]);
    check(
        "payload behind an acknowledged FIN",
        &behind_fin,
        &["outgoing fin local - SF ShAFaDf 0/0 5/3+0"],
    );
    let behind_both = established(&[
        (C, FIN_ACK, 101, 501, 0),
        (S, FIN_ACK, 501, 102, 0),
        (C, ACK, 102, 502, 10),
        (S, RST, 502, 0, 0),
    ]);
    check("payload behind both FINs", &behind_both, &["outgoing fin local - SF ShAFfDr 0/0 4/3+0"]);
    let forged_ack = (S, ACK, 501, 0x2000_0000, 0);
    let reset = established(&[&data[..], &[forged_ack, (C, RST, 111, 0, 0)]].concat());
    check(
        "a forged ACK far ahead, then an RST",
        &reset,
        &["outgoing reset local local RSTO ShADaR 10/0 4/3+0"],
    );
    let closed = [
        &data[..],
        &[forged_ack, (C, FIN_ACK, 111, 501, 0), (S, FIN_ACK, 501, 112, 0), (C, ACK, 112, 502, 0)],
    ]
    .concat();
    check(
        "a forged ACK far ahead, then FINs",
        &established(&closed),
        &["outgoing fin local - SF ShADaFf 10/0 5/4+0"],
    );
    let fins = established(&[
        (C, FIN_ACK, 1101, 501, 0),
        (S, FIN_ACK, 1501, 101, 0),
        (C, ACK, 101, 501, 10),
        (S, ACK, 501, 111, 10),
        (C, ACK, 111, 511, 0),
        (C, FIN_ACK, 111, 511, 0),
        (S, FIN_ACK, 511, 112, 0),
        (C, ACK, 112, 512, 0),
    ]);
    check(
        "forged FINs far ahead, then the real ones",
        &fins,
        &["outgoing fin local - SF ShAFfDdFf 10/10 7/4+0"],
    );
    let end = ends_with(&fins, SERVER_PORT, 10, &[]).remove(0).end;
    assert_eq!((end.end_ns, end.half_close_ns), (9_000_000, Some(1_000_000)));
}

#[test]
fn closing_segments_past_a_gap_of_the_capture_count() {
    let lost = [(S, ACK, 501, 101, 10), (S, ACK, 611, 101, 10), (C, ACK, 101, 511, 0)];
    check(
        "an RST behind a gap",
        &established(&[&lost[..], &[(S, RST, 700, 0, 0)]].concat()),
        &["outgoing reset remote remote RSTR ShAdr 0/- 3/4+0"],
    );
    check(
        "an RST whose data the capture lacks",
        &established(&[(C, ACK, 101, 501, 10), (C, RST_ACK, 211, 501, 0)]),
        &["outgoing reset local local RSTO ShADR -/0 4/1+0"],
    );
    check(
        "one that its sender refutes",
        &established(&[(C, RST_ACK, 211, 501, 0), (C, ACK, 101, 501, 0)]),
        &["outgoing open - - S1 ShAR 0/0 4/1+0"],
    );
    check(
        "an RST where the other side says the gap ends",
        &established(&[(C, ACK, 101, 601, 10), (S, RST, 601, 0, 0)]),
        &["outgoing reset remote remote RSTR ShADr 10/- 3/2+0"],
    );
    check(
        "a FIN behind a gap, acknowledged",
        &established(&[
            (C, FIN_ACK, 201, 501, 0),
            (S, ACK, 501, 202, 0),
            (S, FIN_ACK, 501, 202, 0),
        ]),
        &["outgoing fin local - SF ShAFaf 100/0 3/3+0"],
    );
    check(
        "FINs behind gaps, of which nothing more is told",
        &established(&[(C, FIN_ACK, 201, 501, 0), (S, FIN_ACK, 601, 101, 0)]),
        &["outgoing fin local - SF ShAFf -/- 3/2+0"],
    );
    // A new connection of the same ports is what ends this doubt.
    let again = [(C, SYN, 9100, 0, 0), (S, SYN_ACK, 9500, 9101, 0)];
    check(
        "an RST behind a gap, and a new connection",
        &established(&[&[(C, RST_ACK, 211, 501, 0)][..], &again].concat()),
        &["outgoing reset local local RSTO ShAR -/0 3/1+0", "outgoing open - - S1 Sh 0/0 1/1+0"],
    );
}

#[test]
fn a_capture_may_begin_with_a_keepalive() {
    let steps = [
        (C, ACK, 110, 501, 0),
        (S, ACK, 501, 111, 0),
        (C, ACK, 111, 501, 5),
        (S, ACK, 501, 116, 0),
    ];
    check("its number is no byte", &steps, &["unknown open - - OTH AaD 5/0 2/2+0"]);
}

#[test]
fn a_syn_ack_without_its_syn() {
    for (name, then, want) in [
        ("closed", &whole()[3..], "outgoing fin local - SF ^hADadFf 10/20 5/4+0"),
        ("open", &whole()[3..6], "outgoing open - - S1 ^hADad 10/20 2/3+0"),
        ("closed by one side", &whole()[3..8], "outgoing open - - S2 ^hADadF 10/20 4/3+0"),
        ("reset", &[(S, RST, 501, 0, 0)], "outgoing reset remote remote RSTR ^hAr 0/0 1/2+0"),
    ] {
        let steps = [&HANDSHAKE[1..], then].concat();
        check(name, &steps, &[want]);
        let end = ends_with(&steps, SERVER_PORT, 10, &[]).remove(0).end;
        assert_eq!((end.start_known, end.duration_ns()), (false, None), "{name}");
    }
    // A scan: nobody opened anything.
    let scan = [HANDSHAKE[1], (C, RST, 101, 0, 0)];
    check("answered by an RST only", &scan, &["unknown reset remote remote OTH Hr 0/- 1/1+0"]);
    let end = ends_with(&scan, SERVER_PORT, 10, &[]).remove(0).end;
    assert_eq!((end.local.port, end.remote.port), (SERVER_PORT, CLIENT_PORT));
    check("unanswered", &HANDSHAKE[1..2], &["outgoing open - - OTH ^h -/0 0/1+0"]);
}

#[test]
fn a_socket_connected_to_itself_is_both_sides() {
    let steps: [Step; 8] = [
        (C, SYN, 100, 0, 0),
        (C, SYN_ACK, 100, 101, 0),
        (C, ACK, 101, 101, 0),
        (C, PSH | ACK, 101, 101, 5),
        (C, ACK, 106, 106, 0),
        (C, FIN_ACK, 106, 106, 0),
        (C, FIN_ACK, 106, 107, 0),
        (C, ACK, 107, 107, 0),
    ];
    for (steps, want) in [
        (&steps[..5], "outgoing open - - S1 SAD 5/5 5/5+1"),
        (&steps[..], "outgoing fin local - SF SADF 5/5 8/8+2"),
    ] {
        let mut engine = Engine::new(10, None, Vec::new());
        for (n, step) in (1..).zip(steps) {
            let mut bytes = ip(*step, CLIENT_PORT, 1000);
            bytes[19] = 1;
            // The sum of the pseudo header, with that address.
            let sum = u16::from_be_bytes([bytes[36], bytes[37]]) - 1;
            bytes[36..38].copy_from_slice(&sum.to_be_bytes());
            let packet =
                Packet { index: n, time_ns: n, link: 101, bytes: &bytes, on_the_wire: 1500 };
            engine.packet(&packet).unwrap();
        }
        assert!(engine.finish_one());
        let end = engine.next_end().unwrap().end;
        assert_eq!(line(&end), want);
        assert_eq!(end.local, end.remote);
    }
}

#[test]
fn only_what_ends_at_or_before_the_last_number_is_a_retransmission_to_zeek() {
    check(
        "repeats 5 bytes and brings 5 more",
        &established(&[(C, ACK, 101, 501, 10), (C, ACK, 106, 501, 10), (S, ACK, 501, 116, 0)]),
        &["outgoing open - - S1 ShADa 15/0 4/2+1"],
    );
    check(
        "out of order",
        &established(&[(C, ACK, 111, 501, 10), (C, ACK, 101, 501, 10), (S, ACK, 501, 121, 0)]),
        &["outgoing open - - S1 ShADa 20/0 4/2+0"],
    );
}
