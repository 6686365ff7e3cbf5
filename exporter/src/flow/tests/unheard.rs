//! Without sockops: segments, error reports and looks alone tell of a connection.

use std::collections::HashSet;

use super::*;

const NETNS: u64 = 77;
const SECOND: u64 = 1_000_000_000;

/// The events that come without sockops.
fn heard(script: &Script) -> Vec<Event> {
    let is_told = |event: &Event| match event {
        Event::Tcp(kind, _) => matches!(kind, EventKind::SegmentIn | EventKind::SegmentOut),
        Event::Error(_) | Event::Process(..) => true,
    };
    script.events.iter().copied().filter(is_told).collect()
}

fn has_errors(script: &Script) -> bool {
    script.events.iter().any(|event| matches!(event, Event::Error(_)))
}

/// A look that finds nothing but this in TIME-WAIT.
fn census(at_ns: u64, time_wait: Option<u64>, complete: bool) -> Census {
    let minisocket = |cookie| OpenSocket {
        cookie,
        netns: Some(NETNS),
        cgroup_id: None,
        state: TcpState::TimeWait,
        local: Endpoint { addr: v4([10, 0, 0, 1]), port: 0 },
        remote: Endpoint { addr: v4([10, 0, 0, 2]), port: 0 },
        direction: Direction::Unknown,
        direction_is_exact: false,
        watched: false,
        running: None,
    };
    Census {
        begun_ns: at_ns,
        done_ns: at_ns + 1_000_000,
        namespaces: HashSet::from([NETNS]),
        complete,
        deserted: HashSet::new(),
        open: HashSet::new(),
        sockets: time_wait.map(minisocket).into_iter().collect(),
    }
}

/// The end as it comes without sockops; of an orderly one the kernel keeps a minisocket.
fn end_of(name: &str, script: &Script, is_orderly: bool) -> ConnectionEnd {
    let errors_reported = has_errors(script);
    let mut table = FlowTable::new(FlowSettings { errors_reported, ..FlowSettings::default() });
    table.note_unheard(u64::MAX);
    let mut ends = Vec::new();
    for event in heard(script) {
        table.apply(&event, &mut keep(&mut ends));
    }
    let mut now_ns = script.now_us * 1000 + 2 * SECOND;
    table.tick(now_ns, &mut keep(&mut ends));
    if ends.is_empty() {
        let wanted: Vec<u64> = table.may_time_wait().collect();
        for _ in 0..LOOKS {
            let minisocket = wanted.first().copied().filter(|_| is_orderly);
            table.look(&census(now_ns, minisocket, minisocket.is_none()), &mut keep(&mut ends));
            now_ns += SECOND;
            table.tick(now_ns, &mut keep(&mut ends));
        }
    }
    // Nothing comes of the handshake, however long it is silent.
    table.tick(now_ns + 2 * HANDSHAKE_NS, &mut keep(&mut ends));
    assert_eq!(ends.len(), 1, "{name}: {ends:?}");
    ends.remove(0)
}

#[test]
fn each_ending_is_told_once_and_what_is_told_is_true() {
    for (name, script, (reason, by, reset_by, ..)) in cases() {
        let all = script.ends().remove(0);
        if reason == Reason::HandshakeFailed {
            continue;
        }
        let end = end_of(name, &script, reason == Reason::Fin);
        // As on kernels that do not tell the options of keepalive.
        let is_keepalive = reason == Reason::Timeout && reset_by == Some(Side::Local);
        let reason = if is_keepalive && !has_errors(&script) { Reason::Aborted } else { reason };
        if end.reason != Reason::Vanished {
            assert_eq!((end.reason, end.by, end.reset_by), (reason, by, reset_by), "{name}");
        }
        assert_eq!((end.direction, end.cgroup_id), (all.direction, Some(42)), "{name}");
        for (key, got, want) in [
            ("bytes sent", end.counters.bytes_sent, all.counters.bytes_sent),
            ("bytes received", end.counters.bytes_received, all.counters.bytes_received),
            ("start", end.start_known.then_some(end.start_ns), Some(all.start_ns)),
            ("client's ISN", end.isns.map(|i| i.client.into()), all.isns.map(|i| i.client.into())),
            ("server's ISN", end.isns.map(|i| i.server.into()), all.isns.map(|i| i.server.into())),
        ] {
            assert!(got.is_none() || got == want, "{name}: {key} {got:?}, not {want:?}");
        }
        let counters = Counters { bytes_sent: None, bytes_received: None, ..end.counters };
        assert_eq!(counters, Counters::default(), "{name}: nothing counts them");
        assert_eq!(end.rtt.handshake_us, None, "{name}");
    }
}

#[test]
fn an_accepted_connection_that_a_look_has_found_gets_its_start_with_its_fin() {
    let mut table = table(10);
    table.note_unheard(u64::MAX);
    let mut ends = Vec::new();
    let script = incoming().established().moved(3, 5);
    for event in heard(&script) {
        table.apply(&event, &mut keep(&mut ends));
    }
    // Ten seconds on it is one among the kernel's sockets.
    let mut look = census(10 * SECOND, Some(COOKIE), true);
    look.open = HashSet::from([COOKIE]);
    look.sockets[0].state = TcpState::Established;
    (look.sockets[0].watched, look.sockets[0].direction) = (true, Direction::Incoming);
    look.sockets[0].local.port = 80;
    look.sockets[0].remote.port = 50_000;
    table.look(&look, &mut keep(&mut ends));
    assert_eq!((table.len(), ends.len()), (1, 0));
    let script = Script { events: Vec::new(), ..script }.after(20_000_000);
    let script = script.fin_in(TcpState::Established).fin_out(TcpState::LastAck);
    for event in heard(&script) {
        table.apply(&event, &mut keep(&mut ends));
    }
    table.tick(script.now_us * 1000 + 2 * SECOND, &mut keep(&mut ends));
    let [end] = ends.as_slice() else { panic!("{ends:?}") };
    assert_eq!((end.start_known, end.start_ns), (true, 1_000_000));
    assert_eq!(end.isns, Some(Isns { client: PEER_ISN, server: OUR_ISN }));
    assert_eq!((end.listener, end.direction), (Some(LISTENER), Direction::Incoming));
    assert_eq!((end.reason, end.by), (Reason::Fin, Some(Side::Remote)));
}

#[test]
fn a_handshake_is_judged_again_once_establishments_are_told() {
    let silent = |from_s: u64| {
        let mut script = incoming().established();
        script.events.truncate(2);
        for event in &mut script.events {
            let Event::Tcp(_, event) = event else { panic!("{event:?}") };
            event.time_ns += from_s * SECOND;
            event.seq = event.seq.wrapping_add(from_s as u32);
            event.ack = event.ack.wrapping_add(from_s as u32);
        }
        script.events
    };
    let mut table = table(10);
    let mut ends = Vec::new();
    table.note_unheard(u64::MAX);
    for (from_s, told) in [(1, false), (4, true)] {
        if told {
            table.note_unheard(3 * SECOND);
        }
        for event in silent(from_s) {
            table.apply(&event, &mut keep(&mut ends));
        }
    }
    table.tick(2 * HANDSHAKE_NS, &mut keep(&mut ends));
    let [end] = ends.as_slice() else { panic!("{ends:?}") };
    assert_eq!((end.reason, end.start_ns), (Reason::HandshakeFailed, 4 * SECOND + 1_000_000));
    assert_eq!(table.stats().embryos_unfinished, 1);
}
