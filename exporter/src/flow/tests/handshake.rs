//! Handshakes that were never completed, seen by the listener.

use super::*;

const SECOND: u64 = 1_000_000_000;

/// A SYN, and SYN-ACKs at these times after it, s; the ISN and the client's port are `n`.
fn attempt(n: u32, at_us: u64, syn_acks_s: &[u64]) -> Script {
    let script = Script { now_us: at_us, ..incoming() };
    let listen = |s: &Script| {
        let mut event = s.event(TcpState::Listen);
        (event.cookie, event.remote_port) = (LISTENER, n as u16);
        event
    };
    let syn = TcpEvent { flags: SYN, seq: n, ..listen(&script) };
    let mut script = script.push(EventKind::SegmentIn, syn);
    for after_s in syn_acks_s {
        script.now_us = at_us + after_s * 1_000_000 + 20;
        let syn_ack = TcpEvent { flags: SYN | ACK, seq: OUR_ISN, ack: n + 1, ..listen(&script) };
        script = script.push(EventKind::SegmentOut, syn_ack);
    }
    script
}

/// The client's segment in place of the last ACK.
fn instead(script: Script, flags: u8, n: u32) -> Script {
    let mut event = script.event(TcpState::Listen);
    (event.cookie, event.remote_port) = (LISTENER, n as u16);
    (event.flags, event.seq, event.ack) = (flags, n + 1, OUR_ISN.wrapping_add(1));
    script.push(EventKind::SegmentIn, event)
}

fn ends_by(table: &mut FlowTable, script: &Script, now_ns: u64) -> Vec<ConnectionEnd> {
    let mut ends = Vec::new();
    for event in &script.events {
        table.apply(event, &mut keep(&mut ends));
    }
    table.tick(now_ns, &mut keep(&mut ends));
    ends
}

#[test]
fn an_answered_syn_that_is_never_completed_is_a_failed_handshake() {
    let script = attempt(7, 1_000, &[0, 1, 3]);
    let dead = 1_000_000 + HANDSHAKE_NS;
    assert!(ends_by(&mut table(10), &script, dead - 1 + REORDER_NS).is_empty(), "too early");
    let ends = ends_by(&mut table(10), &script, dead + REORDER_NS);
    let [end] = ends.as_slice() else { panic!("{} ends", ends.len()) };
    assert_eq!((end.reason, end.by, end.reset_by), (Reason::HandshakeFailed, None, None));
    assert_eq!((end.conn_state, end.history.as_str()), ("S1", "Sh"));
    assert_eq!((end.direction, end.listener), (Direction::Incoming, Some(LISTENER)));
    assert_eq!((end.start_ns, end.end_ns), (1_000_000, 3 * SECOND + 1_020_000));
    assert_eq!(end.isns, Some(Isns { client: 7, server: OUR_ISN }));
    assert_eq!(end.remote.port, 7);
}

#[test]
fn a_client_that_resets_instead_is_named() {
    let script = instead(attempt(7, 1_000, &[0]), RST, 7);
    let ends = ends_by(&mut table(10), &script, 10 * SECOND);
    let end = &ends[0];
    assert_eq!((end.reason, end.by), (Reason::HandshakeFailed, Some(Side::Remote)));
    assert_eq!((end.reset_by, end.conn_state), (Some(Side::Remote), "RSTO"));
    assert_eq!((end.history.as_str(), ends.len()), ("ShR", 1));
}

#[test]
fn a_syn_ack_after_the_rst_says_that_it_was_refused() {
    let reset = instead(attempt(7, 1_000, &[0]), RST, 7);
    let again = attempt(7, 1_000, &[1]);
    let mut script = reset;
    script.events.push(again.events[1]);
    let mut table = table(10);
    assert!(ends_by(&mut table, &script, 10 * SECOND).is_empty());
    let ends = ends_by(&mut table, &Script { events: vec![], ..script }, 2 * HANDSHAKE_NS);
    assert_eq!((ends[0].reset_by, ends.len()), (None, 1));
}

#[test]
fn a_syn_without_an_answer_is_only_counted() {
    let mut table = table(10);
    assert!(ends_by(&mut table, &attempt(7, 1_000, &[]), 2 * HANDSHAKE_NS).is_empty());
    assert_eq!(table.stats().embryos_unfinished, 1);
}

#[test]
fn a_flood_is_a_counter_and_not_a_flood() {
    let settings =
        FlowSettings { max: 1000, handshakes_failed_per_second: 3, ..FlowSettings::default() };
    let mut table = FlowTable::new(settings);
    let mut ends = Vec::new();
    for n in 0..100 {
        for event in attempt(n, 1_000 + u64::from(n) * 10, &[0]).events {
            table.apply(&event, &mut keep(&mut ends));
        }
    }
    table.tick(HANDSHAKE_NS + SECOND, &mut keep(&mut ends));
    assert_eq!((ends.len(), table.stats().handshakes_unreported), (3, 97));
}

#[test]
fn where_events_were_lost_no_handshake_is_said_to_have_failed() {
    let mut table = table(10);
    let script = attempt(7, 1_000, &[0]);
    table.note_loss(LostOf::Anybody, 1_000_000);
    assert!(ends_by(&mut table, &script, 2 * HANDSHAKE_NS).is_empty());
    assert_eq!(table.stats().embryos_unfinished, 1);
}

#[test]
fn the_ack_of_the_handshake_may_carry_the_fin() {
    let mut script = incoming().established();
    // Just before the establishment, at the listener.
    script.now_us -= 11;
    script = fin_at_listener(script).after(1);
    script.fin_received = 1;
    let ends = script.fin_out(TcpState::LastAck).closed(TcpState::LastAck).ends();
    let got = (ends[0].reason, ends[0].by, ends[0].half_close_ns.is_some(), ends.len());
    assert_eq!(got, (Reason::Fin, Some(Side::Remote), true, 1));
    assert_eq!(ends[0].counters.bytes_received, Some(0));
}

/// The FIN of the script's own client.
fn fin_at_listener(script: Script) -> Script {
    let mut event = script.event(TcpState::Listen);
    (event.cookie, event.flags) = (LISTENER, FIN | ACK);
    (event.seq, event.ack) = (PEER_ISN + 1, OUR_ISN.wrapping_add(1));
    script.push(EventKind::SegmentIn, event)
}
