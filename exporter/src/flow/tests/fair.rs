//! One cgroup that does too much, and another that does not.

use super::*;

/// The cgroup of all scripts.
const QUIET: u64 = 42;
const HOSTILE: u64 = 66;
const SECOND: u64 = 1_000_000_000;

fn of_cgroup(mut script: Script, cgroup_id: u64) -> Script {
    for event in &mut script.events {
        if let Event::Tcp(_, tcp) = event
            && tcp.cgroup_id != 0
        {
            tcp.cgroup_id = cgroup_id;
        }
    }
    script
}

fn apply(table: &mut FlowTable, script: &Script, ends: &mut Vec<ConnectionEnd>) {
    for event in &script.events {
        table.apply(event, &mut keep(ends));
    }
}

/// Begun after all with a lower cookie were established.
fn later(mut script: Script) -> Script {
    for event in &mut script.events {
        if let Event::Tcp(_, tcp) = event {
            tcp.time_ns += script.cookie * 100_000;
        }
    }
    script
}

/// A SYN and its SYN-ACK at a listener of this cgroup.
fn half_open(cgroup_id: u64, isn: u32, at_ns: u64) -> [Event; 2] {
    let mut syn = incoming().event(TcpState::Listen);
    (syn.cookie, syn.cgroup_id, syn.time_ns) = (LISTENER + cgroup_id, cgroup_id, at_ns);
    let mut syn_ack = syn;
    (syn.kind, syn.flags, syn.seq) = (EventKind::SegmentIn as u8, SYN, isn);
    (syn_ack.kind, syn_ack.flags) = (EventKind::SegmentOut as u8, SYN | ACK);
    (syn_ack.seq, syn_ack.ack, syn_ack.time_ns) = (1, isn.wrapping_add(1), at_ns + 1000);
    [Event::Tcp(EventKind::SegmentIn, syn), Event::Tcp(EventKind::SegmentOut, syn_ack)]
}

#[test]
fn in_a_full_table_a_flood_forgets_its_own_connections() {
    let (mut table, mut ends) = (table(10), Vec::new());
    for cookie in 1..=3 {
        apply(&mut table, &Script { cookie, ..out() }.established(), &mut ends);
    }
    for cookie in 100..200 {
        let script = later(Script { cookie, ..out() }.established());
        apply(&mut table, &of_cgroup(script, HOSTILE), &mut ends);
    }
    table.tick(SECOND, &mut keep(&mut ends));
    assert_eq!((table.len(), table.stats().evicted), (10, 93));
    assert_eq!(table.evicted().iter().collect::<Vec<_>>(), [(HOSTILE, 93)]);
    assert!(ends.is_empty());
    for cookie in 1..=3 {
        let script = Script { cookie, events: Vec::new(), ..out().established() };
        let late = script.after(2_000_000).fin_out(TcpState::FinWait1).closed(TcpState::FinWait2);
        apply(&mut table, &late, &mut ends);
    }
    table.finish(&mut keep(&mut ends));
    assert_eq!(ends.len(), 3);
    assert!(ends.iter().all(|end| end.start_known && end.cgroup_id == Some(QUIET)), "{ends:?}");
}

#[test]
fn what_is_over_makes_room_before_what_is_open() {
    let (mut table, mut ends) = (table(10), Vec::new());
    for cookie in 1..=3 {
        apply(&mut table, &Script { cookie, ..out() }.established(), &mut ends);
    }
    // Of one cgroup alone, and more than there is room for, while it is not known yet whether events were lost: each
    // waits for its verdict.
    table.note_checked(0);
    for cookie in 100..200 {
        let script = Script { cookie, ..out() }.established().fin_out(TcpState::FinWait1);
        apply(&mut table, &later(script.closed(TcpState::FinWait2)), &mut ends);
    }
    table.tick(SECOND, &mut keep(&mut ends));
    assert_eq!((table.len(), table.stats().evicted), (10, 0));
    assert_eq!(ends.len(), 93, "reported, to make room");
    table.note_checked(u64::MAX);
    table.finish_open(&mut keep(&mut ends));
    assert!(ends.iter().all(|end| end.start_known), "{ends:?}");
    let open = |end: &&ConnectionEnd| end.reason == Reason::Open;
    assert_eq!((ends.len(), ends.iter().filter(open).count()), (103, 3));
}

#[test]
fn accepted_connections_count_for_the_cgroup_of_their_listener() {
    let (mut table, mut ends) = (table(10), Vec::new());
    apply(&mut table, &Script { cookie: 1, ..out() }.established(), &mut ends);
    for cookie in 100..200 {
        let script = later(Script { cookie, ..incoming() }.established());
        apply(&mut table, &of_cgroup(script, HOSTILE), &mut ends);
    }
    table.tick(SECOND, &mut keep(&mut ends));
    assert_eq!(table.evicted().iter().collect::<Vec<_>>(), [(HOSTILE, 91)]);
}

#[test]
fn a_syn_flood_forgets_its_own_handshakes() {
    let (mut table, mut ends) = (table(10), Vec::new());
    let mut give = |events: [Event; 2]| {
        events.iter().for_each(|event| table.apply(event, &mut keep(&mut ends)));
    };
    give(half_open(QUIET, 1, 1_000_000));
    for n in 0..1000 {
        give(half_open(HOSTILE, 100 + n, 2_000_000 + u64::from(n)));
    }
    table.tick(SECOND, &mut keep(&mut ends));
    assert_eq!(table.stats().embryos_evicted, 991);
    assert_eq!(table.handshakes_lost().iter().collect::<Vec<_>>(), [(HOSTILE, 991)]);
    table.tick(HANDSHAKE_NS + SECOND, &mut keep(&mut ends));
    let quiet: Vec<_> = ends.iter().filter(|end| end.cgroup_id == Some(QUIET)).collect();
    assert_eq!((quiet.len(), ends.len()), (1, 10));
}

#[test]
fn what_a_full_table_judges_before_its_time_is_judged_with_care() {
    // Of what the application sends after its close(), the RST comes a moment later.
    let closing = Script { cookie: 1, ..out() }
        .established()
        .fin_out(TcpState::FinWait1)
        .closed(TcpState::FinWait2);
    let (mut table, mut ends) = (table(1), Vec::new());
    apply(&mut table, &closing, &mut ends);
    let next = Script { cookie: 2, ..out() }.after(2_000).established();
    apply(&mut table, &next, &mut ends);
    table.tick(SECOND, &mut keep(&mut ends));
    assert_eq!(ends.iter().map(|end| end.reason).collect::<Vec<_>>(), [Reason::Vanished]);
    assert_eq!(closing.ends()[0].reason, Reason::Fin);
}

#[test]
fn failed_handshakes_of_one_cgroup_do_not_use_up_anothers_records() {
    let settings =
        FlowSettings { max: 1000, handshakes_failed_per_second: 3, ..FlowSettings::default() };
    let (mut table, mut ends) = (FlowTable::new(settings), Vec::new());
    for n in 0..100 {
        for event in half_open(HOSTILE, n, 1_000_000 + u64::from(n)) {
            table.apply(&event, &mut keep(&mut ends));
        }
    }
    for event in half_open(QUIET, 1000, 2_000_000) {
        table.apply(&event, &mut keep(&mut ends));
    }
    table.tick(HANDSHAKE_NS + SECOND, &mut keep(&mut ends));
    let of = |id| ends.iter().filter(|end| end.cgroup_id == Some(id)).count();
    assert_eq!((of(HOSTILE), of(QUIET)), (3, 1));
    assert_eq!(table.handshakes_lost().iter().collect::<Vec<_>>(), [(HOSTILE, 97)]);
}

#[test]
fn what_one_cgroup_lost_makes_no_other_doubtful() {
    // A refusal whose RST was not seen: without a loss the attempt was aborted.
    for (lost, want) in [
        (LostOf::Anybody, Reason::Vanished),
        (LostOf::Holder(QUIET), Reason::Vanished),
        (LostOf::Holder(HOSTILE), Reason::Aborted),
        // A network that answered by ICMP would have explained it.
        (LostOf::Errors, Reason::Vanished),
    ] {
        let (mut table, mut ends) = (table(10), Vec::new());
        apply(&mut table, &out().syn_out().closed(TcpState::SynSent), &mut ends);
        table.note_loss(lost, 3_000_000);
        table.finish(&mut keep(&mut ends));
        assert_eq!(ends[0].reason, want, "{lost:?}");
    }
}
