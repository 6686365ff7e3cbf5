//! Looks at the kernel's sockets: connections older than the probe, and ones whose end was not seen.

use std::collections::HashSet;

use super::*;

const NETNS: u64 = 77;
const SECOND: u64 = 1_000_000_000;

fn socket(cookie: u64, state: TcpState) -> OpenSocket {
    OpenSocket {
        cookie,
        netns: Some(NETNS),
        cgroup_id: Some(42),
        state,
        local: Endpoint { addr: v4([10, 0, 0, 1]), port: 50_000 },
        remote: Endpoint { addr: v4([10, 0, 0, 2]), port: 80 },
        direction: Direction::Outgoing,
        direction_is_exact: true,
        watched: true,
        running: None,
    }
}

fn census(at_s: u64, sockets: Vec<OpenSocket>) -> Census {
    let is_open = |s: &&OpenSocket| s.state != TcpState::TimeWait;
    Census {
        open: sockets.iter().filter(is_open).map(|s| s.cookie).collect(),
        begun_ns: at_s * SECOND,
        done_ns: at_s * SECOND + 1_000_000,
        namespaces: HashSet::from([NETNS]),
        complete: true,
        deserted: HashSet::new(),
        sockets,
    }
}

fn apply(table: &mut FlowTable, script: &Script, ends: &mut Vec<ConnectionEnd>) {
    for event in &script.events {
        table.apply(event, &mut keep(ends));
    }
}

#[test]
fn a_connection_older_than_the_probe_is_found_and_ends_like_any_other() {
    let mut table = table(10);
    let mut ends = Vec::new();
    table.look(&census(1, vec![socket(COOKIE, TcpState::Established)]), &mut keep(&mut ends));
    assert_eq!((table.len(), table.stats().found), (1, 1));
    let script = out().after(5_000_000).moved(5, 7).fin_out(TcpState::FinWait1).after(500);
    apply(&mut table, &script.fin_in(TcpState::FinWait2), &mut ends);
    table.finish(&mut keep(&mut ends));
    let end = &ends[0];
    assert_eq!(
        (end.reason, end.by, end.direction),
        (Reason::Fin, Some(Side::Local), Direction::Outgoing)
    );
    assert_eq!((end.start_known, end.duration_ns(), end.conn_state), (false, None, "OTH"));
    let bytes = (end.counters.bytes_sent, end.counters.bytes_received);
    assert_eq!(bytes, (Some(5), Some(7)));
    assert_eq!((end.cgroup_id, ends.len()), (Some(42), 1));
}

#[test]
fn what_is_being_accepted_or_of_no_target_or_over_is_not_taken_in() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    apply(
        &mut table,
        &out().established().fin_out(TcpState::FinWait1).closed(TcpState::FinWait2),
        ends,
    );
    table.finish(&mut keep(ends));
    assert_eq!(ends.len(), 1);
    let other = OpenSocket { watched: false, ..socket(3, TcpState::Established) };
    let sockets = vec![
        socket(2, TcpState::SynRecv),
        other,
        socket(COOKIE, TcpState::Established),
        socket(4, TcpState::TimeWait),
    ];
    table.look(&census(9, sockets), &mut keep(ends));
    assert!(table.is_empty());
}

#[test]
fn an_attempt_older_than_the_probe_is_found_and_its_syn_makes_no_second_one() {
    for script in [out().after(5_000_000), out().after(5_000_000).syn_out()] {
        let mut table = table(10);
        let ends = &mut Vec::new();
        table.look(&census(1, vec![socket(COOKIE, TcpState::SynSent)]), &mut keep(ends));
        let script = script.r#in(RST | ACK, TcpState::SynSent).closed(TcpState::SynSent);
        apply(&mut table, &script, ends);
        table.finish(&mut keep(ends));
        let got = (ends[0].reason, ends[0].by, ends[0].direction, ends.len());
        assert_eq!(got, (Reason::Refused, Some(Side::Remote), Direction::Outgoing, 1));
    }
}

#[test]
fn a_connection_whose_end_was_lost_is_ended_by_two_looks() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    apply(&mut table, &out().established(), ends);
    table.look(&census(5, vec![socket(COOKIE, TcpState::Established)]), &mut keep(ends));
    table.look(&census(35, vec![]), &mut keep(ends));
    table.tick(36 * SECOND, &mut keep(ends));
    assert!(ends.is_empty(), "one look may miss a socket");
    assert!(!table.wants_look(35 * SECOND) && table.wants_look(37 * SECOND));
    table.look(&census(37, vec![]), &mut keep(ends));
    table.tick(38 * SECOND, &mut keep(ends));
    let end = &ends[0];
    assert_eq!((end.reason, end.by, table.stats().gone), (Reason::Vanished, None, 1));
    assert_eq!((end.end_ns, end.duration_ns()), (35 * SECOND + 1_000_000, None));
    assert_eq!((table.len(), ends.len()), (0, 1));
}

#[test]
fn a_socket_is_gone_only_where_its_namespace_was_looked_at() {
    for (netns, namespaces, complete, gone) in [
        (NETNS, &[NETNS][..], false, true),
        (NETNS, &[5][..], true, false),
        (0, &[NETNS][..], true, true),
        (0, &[NETNS][..], false, false),
    ] {
        let mut table = table(10);
        let ends = &mut Vec::new();
        let mut script = out().established();
        for event in &mut script.events {
            if let Event::Tcp(_, e) = event {
                e.netns = netns;
            }
        }
        apply(&mut table, &script, ends);
        for at_s in [30, 31] {
            let namespaces = namespaces.iter().copied().collect();
            table.look(&Census { namespaces, complete, ..census(at_s, vec![]) }, &mut keep(ends));
        }
        table.tick(40 * SECOND, &mut keep(ends));
        assert_eq!(ends.len(), usize::from(gone), "{netns} {namespaces:?} {complete}");
    }
}

#[test]
fn in_a_deserted_namespace_only_what_may_have_ended_unseen_is_given_up() {
    for (lost_ns, gone) in [(0, false), (2_000_000_000, true)] {
        let mut table = table(10);
        let ends = &mut Vec::new();
        let mut script = out().established();
        for event in &mut script.events {
            if let Event::Tcp(_, e) = event {
                e.netns = 5;
            }
        }
        apply(&mut table, &script, ends);
        if lost_ns > 0 {
            table.note_loss(LostOf::Anybody, lost_ns);
        }
        for at_s in [30, 31] {
            let deserted = HashSet::from([5]);
            table.look(&Census { deserted, ..census(at_s, vec![]) }, &mut keep(ends));
        }
        table.tick(40 * SECOND, &mut keep(ends));
        assert_eq!(ends.len(), usize::from(gone));
    }
}

#[test]
fn an_error_tells_when_and_why_an_older_connection_ended() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    table.look(&census(1, vec![socket(COOKIE, TcpState::Established)]), &mut keep(ends));
    apply(&mut table, &out().after(5_000_000).error(110), ends);
    for at_s in [30, 31] {
        table.look(&census(at_s, vec![]), &mut keep(ends));
    }
    table.tick(40 * SECOND, &mut keep(ends));
    assert_eq!((ends[0].reason, ends[0].by, ends.len()), (Reason::Timeout, None, 1));
    assert_eq!((ends[0].end_ns, ends[0].end_known), (5_001_000_000, true));
}

#[test]
fn a_connection_younger_than_the_look_is_left_alone() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    apply(&mut table, &out().after(5_000_000).established(), ends);
    for _ in 0..5 {
        table.look(&census(5, vec![]), &mut keep(ends));
    }
    table.tick(9 * SECOND, &mut keep(ends));
    assert!(ends.is_empty());
}

#[test]
fn time_wait_explains_the_end_of_an_older_connection() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    table.look(&census(1, vec![socket(COOKIE, TcpState::Established)]), &mut keep(ends));
    apply(&mut table, &out().after(5_000_000).moved(5, 0).fin_out(TcpState::FinWait1), ends);
    table.tick(7 * SECOND, &mut keep(ends));
    assert!(table.wants_look(7 * SECOND), "one FIN of an older connection: only a look can tell");
    for at_s in [7, 8] {
        table.look(&census(at_s, vec![socket(COOKIE, TcpState::TimeWait)]), &mut keep(ends));
    }
    table.tick(9 * SECOND, &mut keep(ends));
    assert_eq!((ends[0].reason, ends[0].by, ends.len()), (Reason::Fin, Some(Side::Local), 1));
    assert_eq!(ends[0].counters.bytes_sent, Some(5));
}

#[test]
fn the_peers_fin_out_of_order_is_known_by_the_state_of_ours() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    table.look(&census(1, vec![socket(COOKIE, TcpState::Established)]), &mut keep(ends));
    // Its FIN, 100 bytes ahead of what is received; they come, and then our FIN leaves from LAST-ACK.
    let mut script = out().after(5_000_000).moved(0, 5);
    script = script.forged(FIN | ACK, 100);
    script = script.after(1000).moved(0, 100);
    script.fin_received = 1;
    apply(&mut table, &script.fin_out(TcpState::LastAck), ends);
    table.finish(&mut keep(ends));
    assert_eq!((ends[0].reason, ends[0].by, ends.len()), (Reason::Fin, Some(Side::Remote), 1));
    assert_eq!(ends[0].counters.bytes_received, Some(105));
}

#[test]
fn a_connection_that_lives_on_reports_its_progress() {
    let mut table = FlowTable::new(FlowSettings {
        begins: true,
        progress_ns: Some(10 * SECOND),
        ..FlowSettings::default()
    });
    let mut events = Vec::new();
    for event in &out().established().events {
        table.apply(event, &mut |e| events.push(e));
    }
    let counters = Counters { bytes_sent: Some(9), ..Counters::default() };
    let running = Running { counters, srtt_us: Some(70), ..Running::default() };
    for at_s in [5, 11, 15, 22] {
        let here = OpenSocket { running: Some(running), ..socket(COOKIE, TcpState::Established) };
        table.tick(at_s * SECOND, &mut |e| events.push(e));
        table.look(&census(at_s, vec![here]), &mut |e| events.push(e));
    }
    let told: Vec<_> = events
        .iter()
        .map(|event| match event {
            FlowEvent::Opened(c) => ("opened", c.start_ns / SECOND, None, Reason::Open),
            FlowEvent::Begin(c) => ("begin", c.end_ns / SECOND, c.counters.bytes_sent, c.reason),
            FlowEvent::Progress(c) => {
                ("progress", c.end_ns / SECOND, c.counters.bytes_sent, c.reason)
            }
            FlowEvent::End(c) => panic!("{c:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [
            ("opened", 0, None, Reason::Open),
            ("begin", 0, None, Reason::Open),
            ("progress", 11, Some(9), Reason::Open),
            ("progress", 22, Some(9), Reason::Open)
        ]
    );
    let FlowEvent::Begin(begin) = &events[1] else { panic!() };
    assert_eq!((begin.isns.is_some(), begin.rtt.handshake_us), (true, Some(20)));
}

#[test]
fn an_exact_direction_takes_the_place_of_a_likely_one() {
    for (first, then, want) in [
        ((Direction::Incoming, false), (Direction::Outgoing, true), Direction::Outgoing),
        ((Direction::Outgoing, true), (Direction::Incoming, false), Direction::Outgoing),
        ((Direction::Unknown, false), (Direction::Incoming, false), Direction::Incoming),
    ] {
        let mut table = table(1);
        let ends = &mut Vec::new();
        for (at_s, (direction, direction_is_exact)) in [(1, first), (2, then)] {
            let here = OpenSocket {
                direction,
                direction_is_exact,
                ..socket(COOKIE, TcpState::Established)
            };
            table.look(&census(at_s, vec![here]), &mut keep(ends));
        }
        apply(&mut table, &out().after(5_000_000).out(RST, TcpState::Close), ends);
        table.finish(&mut keep(ends));
        assert_eq!(ends[0].direction, want);
    }
}

#[test]
fn a_full_table_takes_no_found_connection_in() {
    let mut table = table(1);
    let ends = &mut Vec::new();
    let both = vec![socket(1, TcpState::Established), socket(2, TcpState::Established)];
    table.look(&census(1, both), &mut keep(ends));
    assert_eq!((table.len(), table.stats().evicted), (1, 0));
}
