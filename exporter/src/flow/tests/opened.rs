//! When a connection is first heard of, and what is known of it then.

use super::*;

/// Opened and ended connections in the order in which they are told: cookie, start, cgroup.
fn told(scripts: &[Script]) -> Vec<(&'static str, u64, u64, Option<u64>)> {
    let mut table = table(10);
    let mut told = Vec::new();
    let mut take = |event| match event {
        FlowEvent::Opened(c) => told.push(("opened", c.cookie, c.start_ns / 1000, c.cgroup_id)),
        FlowEvent::End(c) => told.push(("end", c.cookie, c.start_ns / 1000, c.cgroup_id)),
        other => panic!("{other:?}"),
    };
    for event in scripts.iter().flat_map(|script| &script.events) {
        table.apply(event, &mut take);
    }
    table.finish(&mut take);
    told
}

#[test]
fn a_connection_is_opened_once_as_of_its_syn() {
    for script in [out(), incoming()] {
        let script = script.after(100).established().after(500).fin_out(TcpState::FinWait1);
        let script = script.fin_in(TcpState::FinWait2).closed(TcpState::FinWait2);
        let want = [("opened", COOKIE, 1100, Some(42)), ("end", COOKIE, 1100, Some(42))];
        assert_eq!(told(&[script]), want);
    }
}

#[test]
fn an_accepted_connection_without_its_syn_is_opened_again_when_its_cgroup_is_known() {
    let mut script = incoming().established();
    script.events.drain(..2);
    let script = script.fin_in(TcpState::Established).fin_out(TcpState::LastAck);
    let want = [
        ("opened", COOKIE, 1020, None),
        ("opened", COOKIE, 1020, Some(42)),
        ("end", COOKIE, 1020, Some(42)),
    ];
    assert_eq!(told(&[script.closed(TcpState::LastAck)]), want);
}

#[test]
fn a_socket_that_connects_again_opens_another_connection_after_the_end_of_the_first() {
    let first = out().syn_out().r#in(RST | ACK, TcpState::SynSent).closed(TcpState::SynSent);
    let second = Script { events: Vec::new(), now_us: first.now_us + 100_000, ..out() };
    let second = second.established().fin_out(TcpState::FinWait1).closed(TcpState::FinWait2);
    let want = [
        ("opened", COOKIE, 1000, Some(42)),
        ("end", COOKIE, 1000, Some(42)),
        ("opened", COOKIE, 101_030, Some(42)),
        ("end", COOKIE, 101_030, Some(42)),
    ];
    assert_eq!(told(&[first, second]), want);
}

#[test]
fn a_failed_handshake_was_never_opened() {
    let mut script = incoming().established();
    script.events.truncate(2);
    let mut table = table(10);
    let mut told = Vec::new();
    for event in &script.events {
        table.apply(event, &mut |event| told.push(event));
    }
    table.tick(2 * HANDSHAKE_NS, &mut |event| told.push(event));
    let [FlowEvent::End(end)] = told.as_slice() else { panic!("{told:?}") };
    assert!(end.is_of_listener() && end.reason == Reason::HandshakeFailed, "{end:?}");
}
