//! The state machine on events as the kernel gives them.

use flowend_probe_types::{
    ACK, Addr, ErrorEvent, Event, EventKind, FIN, PSH, RST, SYN, TcpEvent, TcpState,
};

use super::*;
use cases::cases;
use script::{COOKIE, LISTENER, OUR_ISN, PEER_ISN, Script, incoming, out, v4};

mod cases;
mod fair;
mod handshake;
mod looks;
mod opened;
mod properties;
mod script;
mod unheard;

fn ends(events: &[Event]) -> Vec<ConnectionEnd> {
    let mut table = table(100);
    let mut ends = Vec::new();
    for event in events {
        table.apply(event, &mut keep(&mut ends));
    }
    table.finish(&mut keep(&mut ends));
    ends
}

fn table(max: usize) -> FlowTable {
    FlowTable::new(FlowSettings { max, ..FlowSettings::default() })
}

/// Collects the ends; begins and progresses were not asked for.
fn keep(ends: &mut Vec<ConnectionEnd>) -> impl FnMut(FlowEvent) {
    |event| match event {
        FlowEvent::Opened(_) => {}
        FlowEvent::End(end) => ends.push(end),
        other => panic!("{other:?}"),
    }
}

/// Counts the ends.
fn count(ends: &mut usize) -> impl FnMut(FlowEvent) {
    |event| *ends += usize::from(matches!(event, FlowEvent::End(_)))
}

#[test]
fn every_ending_has_its_verdict() {
    for (name, script, (reason, by, reset_by, conn_state, history)) in cases() {
        let ends = script.ends();
        let [end] = ends.as_slice() else { panic!("{name}: {} ends", ends.len()) };
        let got = (end.reason, end.by, end.reset_by, end.conn_state, end.history.as_str());
        assert_eq!(got, (reason, by, reset_by, conn_state, history), "{name}");
        let direction = if script.outgoing { Direction::Outgoing } else { Direction::Incoming };
        assert_eq!(end.direction, direction, "{name}");
        assert_eq!(end.counters.bytes_sent, Some(u64::from(script.sent)), "{name}");
        assert_eq!(end.counters.bytes_received, Some(u64::from(script.received)), "{name}");
        assert!(end.start_known, "{name}");
        assert_eq!(end.start_ns, 1_000_000, "{name}");
        assert_eq!(end.cgroup_id, Some(42), "{name}");
        assert_eq!(end.listener, (!script.outgoing).then_some(LISTENER), "{name}");
    }
}

#[test]
fn an_event_seen_twice_changes_nothing() {
    for (name, script, _) in cases() {
        let twice: Vec<Event> = script.events.iter().flat_map(|e| [*e, *e]).collect();
        let (mut once, mut doubled) = (script.ends(), ends(&twice));
        // Whether a SYN was retransmitted cannot be told then: that RTT is absent, not wrong.
        for end in once.iter_mut().chain(&mut doubled) {
            end.rtt.handshake_us = None;
        }
        assert_eq!(doubled, once, "{name}");
    }
}

#[test]
fn times_and_round_trips_are_those_of_the_events() {
    let script = out().established().after(300).moved(1, 1).fin_out(TcpState::FinWait1);
    let ends = script.after(2000).fin_in(TcpState::FinWait2).closed(TcpState::FinWait2).ends();
    // SYN at 1000 us, SYN-ACK 1010, established 1020, FIN 1330, the peer's 3340, CLOSE 3350.
    assert_eq!(ends[0].duration_ns(), Some(2_350_000));
    assert_eq!(ends[0].half_close_ns, Some(2_010_000));
    assert_eq!(
        ends[0].rtt,
        Rtt { handshake_us: Some(20), smoothed_us: Some(100), min_us: Some(90) }
    );
    assert_eq!(ends[0].isns, Some(Isns { client: OUR_ISN, server: PEER_ISN }));

    let accepted = incoming()
        .established()
        .fin_in(TcpState::Established)
        .fin_out(TcpState::LastAck)
        .closed(TcpState::LastAck);
    let ends = accepted.ends();
    assert_eq!(ends[0].rtt.handshake_us, Some(10));
    assert_eq!(ends[0].isns, Some(Isns { client: PEER_ISN, server: OUR_ISN }));
}

#[test]
fn a_retransmitted_syn_keeps_the_start_and_leaves_the_rtt_out() {
    let script = out().syn_out().after(1_000_000).established();
    let ends = script.fin_out(TcpState::FinWait1).closed(TcpState::FinWait2).ends();
    assert_eq!((ends[0].start_ns, ends[0].rtt.handshake_us), (1_000_000, None));
}

#[test]
fn one_socket_may_connect_twice() {
    let first = out().syn_out().r#in(RST | ACK, TcpState::SynSent).closed(TcpState::SynSent);
    let mut again = Script { events: first.events, ..out() }.after(100_000);
    again = again.established().moved(3, 0).fin_out(TcpState::FinWait1).closed(TcpState::FinWait2);
    let ends = again.ends();
    let reasons: Vec<_> = ends.iter().map(|e| (e.reason, e.counters.bytes_sent)).collect();
    assert_eq!(reasons, [(Reason::Refused, Some(0)), (Reason::Fin, Some(3))]);
}

/// The time at which the last event's verdict is due.
fn due(script: &Script) -> u64 {
    let mut table = table(10);
    let (mut last, mut ends) = (0, 0);
    for event in &script.events {
        table.apply(event, &mut count(&mut ends));
        assert_eq!(ends, 0, "too early");
        if let Event::Tcp(_, e) = event {
            last = e.time_ns;
        }
    }
    for wait in [SETTLE_NS, HALF_CLOSED_NS, UNEXPLAINED_NS] {
        let due = last + wait + REORDER_NS;
        table.tick(due - 1, &mut count(&mut ends));
        assert_eq!(ends, 0, "before {wait}");
        table.tick(due, &mut count(&mut ends));
        if ends > 0 {
            assert!(table.is_empty());
            return wait;
        }
    }
    panic!("never");
}

#[test]
fn the_verdict_waits_longer_for_an_rst_that_would_explain_it() {
    use TcpState::{Established, FinWait1, FinWait2};
    let half_closed = out().established().fin_out(FinWait1);
    assert_eq!(due(&half_closed.clone().closed(FinWait2)), HALF_CLOSED_NS);
    assert_eq!(due(&half_closed.fin_in(FinWait2).closed(FinWait2)), SETTLE_NS);
    assert_eq!(due(&out().established().r#in(RST, Established).closed(Established)), SETTLE_NS);
    let unexplained = out().established().closed(Established);
    assert_eq!(due(&unexplained), UNEXPLAINED_NS);
    assert_eq!(due(&unexplained.after(400_000).out(RST, TcpState::Close)), SETTLE_NS);
}

#[test]
fn a_late_event_makes_no_second_connection() {
    for (name, script, _) in cases() {
        let mut table = table(10);
        let mut ends = 0;
        for event in &script.events {
            table.apply(event, &mut count(&mut ends));
        }
        table.finish(&mut count(&mut ends));
        for event in script.clone().after(5_000_000).out(RST, TcpState::Close).events {
            // A SYN or an establishment would be another connection's.
            let Event::Tcp(kind, e) = event else { continue };
            if e.cookie == COOKIE && e.flags != SYN && kind != EventKind::ActiveEstablished {
                table.apply(&event, &mut count(&mut ends));
            }
        }
        table.finish(&mut count(&mut ends));
        assert_eq!(ends, 1, "{name}");
    }
}

#[test]
fn unacknowledged_bytes_were_sent() {
    let mut script = out().established().moved(100, 0).closed(TcpState::Established);
    let Some(Event::Tcp(_, closed)) = script.events.last_mut() else { panic!() };
    closed.bytes_acked -= 60;
    closed.snd_una = closed.snd_una.wrapping_sub(60);
    let ends = script.out(RST, TcpState::Close).ends();
    assert_eq!(ends[0].counters.bytes_sent, Some(100));
}

#[test]
fn an_rst_past_a_gap_closes_only_when_close_follows_at_once() {
    let gap = |after| {
        out()
            .established()
            .moved(5, 5)
            .forged(RST, 3000)
            .after(after)
            .closed(TcpState::Established)
            .ends()
    };
    assert_eq!((gap(0)[0].reason, gap(0)[0].reset_by), (Reason::Reset, Some(Side::Remote)));
    assert_eq!(gap(50_000)[0].reason, Reason::Vanished);
}

#[test]
fn a_syn_that_never_left_the_host_is_outgoing_all_the_same() {
    let script = out().gave_up(TcpState::SynSent).closed(TcpState::SynSent);
    let ends = script.ends();
    let got = (ends[0].reason, ends[0].direction, ends[0].start_known);
    assert_eq!(got, (Reason::ConnectTimeout, Direction::Outgoing, false));
}

#[test]
fn a_closed_listener_is_no_connection() {
    assert!(out().closed(TcpState::Listen).ends().is_empty());
    assert!(out().closed(TcpState::Close).ends().is_empty());
}

#[test]
fn a_connection_older_than_the_probe_ends_with_an_unknown_start() {
    let script = out().moved(5, 5).fin_out(TcpState::FinWait1).after(50).fin_in(TcpState::FinWait2);
    let ends = script.ends();
    let [end] = ends.as_slice() else { panic!("{} ends", ends.len()) };
    assert_eq!(
        (end.reason, end.by, end.direction),
        (Reason::Fin, Some(Side::Local), Direction::Unknown)
    );
    assert_eq!((end.start_known, end.duration_ns(), end.conn_state), (false, None, "OTH"));
    // Whether a SYN is among the acknowledged bytes depends on the direction.
    assert_eq!(end.counters.bytes_sent, None);
    assert_eq!((end.client(), end.server(), end.isns), (None, None, None));

    let half = out().moved(5, 5).fin_out(TcpState::FinWait1);
    assert!(half.ends().is_empty(), "one FIN is no end");

    let reset = out().moved(5, 5).out(RST | ACK, TcpState::Close).ends();
    assert_eq!((reset[0].reason, reset[0].reset_by), (Reason::Reset, Some(Side::Local)));
}

#[test]
fn a_syn_is_matched_by_its_isn_and_its_addresses() {
    // Two clients choose the same ISN; and the SYN-ACK shows a translated address at egress.
    let mut script = incoming().established();
    let Event::Tcp(_, syn) = script.events[0] else { panic!() };
    let other = TcpEvent { remote_port: 50001, time_ns: 1, ..syn };
    script.events.insert(0, Event::Tcp(EventKind::SegmentIn, other));
    let Event::Tcp(_, syn_ack) = &mut script.events[2] else { panic!() };
    syn_ack.local = v4([192, 0, 2, 1]);
    let ends = script
        .fin_in(TcpState::Established)
        .fin_out(TcpState::LastAck)
        .closed(TcpState::LastAck)
        .ends();
    assert_eq!(ends[0].start_ns, 1_000_000);
    assert_eq!(ends[0].local.ip().to_string(), "10.0.0.1");
}

#[test]
fn what_a_listener_sends_to_a_stranger_is_no_connection() {
    let listen = |s: &Script| TcpEvent { cookie: LISTENER, ..s.event(TcpState::Listen) };
    let s = incoming();
    let rst = TcpEvent { flags: RST, ..listen(&s) };
    let s = s
        .push(EventKind::SegmentOut, rst)
        .push(EventKind::SegmentIn, TcpEvent { flags: FIN | PSH, ..rst });
    assert!(s.ends().is_empty());
}

#[test]
fn the_table_is_bounded_and_forgets_the_one_idle_for_longest() {
    let mut table = table(2);
    let mut ends = Vec::new();
    for cookie in 1..=3 {
        let script = Script { cookie, ..out() }.after(cookie * 1000).established();
        for event in &script.events {
            table.apply(event, &mut keep(&mut ends));
        }
    }
    table.tick(1_000_000_000, &mut keep(&mut ends));
    assert_eq!((table.len(), table.stats().evicted), (2, 1));
    // The forgotten one's end is still reported, as one whose start is unknown.
    let mut late =
        Script { cookie: 1, ..out() }.moved(5, 0).after(2_000_000).fin_out(TcpState::FinWait1);
    late = late.closed(TcpState::FinWait2);
    for event in &late.events {
        table.apply(event, &mut keep(&mut ends));
    }
    table.finish(&mut keep(&mut ends));
    assert_eq!(ends.len(), 1);
    assert_eq!(
        (ends[0].start_known, ends[0].reason, ends[0].by),
        (false, Reason::Fin, Some(Side::Local))
    );
}

#[test]
fn a_flood_of_syns_with_one_isn_is_bounded() {
    let mut table = table(100_000);
    let none = &mut |_| panic!("no connection");
    for n in 0..100_000_u32 {
        let mut syn = incoming().event(TcpState::Listen);
        syn.kind = EventKind::SegmentIn as u8;
        (syn.cookie, syn.flags, syn.seq) = (LISTENER, SYN, 0);
        syn.remote_port = n as u16;
        syn.remote = v4(n.to_be_bytes());
        table.apply(&Event::Tcp(EventKind::SegmentIn, syn), none);
    }
    table.tick(HANDSHAKE_NS, none);
    assert_eq!(table.stats().embryos_evicted, 100_000 - embryo::SAME_ISN as u64);
    table.tick(2 * HANDSHAKE_NS, none);
    assert_eq!(table.stats().embryos_unfinished, embryo::SAME_ISN as u64);
}

#[test]
fn syns_that_nobody_follows_are_forgotten_and_counted() {
    let mut table = table(4);
    let none = &mut |_| panic!("no connection");
    for n in 0..10 {
        let script = incoming();
        let mut syn = script.event(TcpState::Listen);
        syn.kind = EventKind::SegmentIn as u8;
        (syn.cookie, syn.flags, syn.seq) = (LISTENER, SYN, n);
        table.apply(&Event::Tcp(EventKind::SegmentIn, syn), none);
    }
    table.tick(HANDSHAKE_NS, none);
    assert_eq!(table.stats().embryos_evicted, 6);
    table.tick(2 * HANDSHAKE_NS, none);
    assert_eq!(table.stats().embryos_unfinished, 4);
}

#[test]
fn an_error_on_a_connection_that_lives_on_does_not_end_it() {
    // Something waits in the error queue (no errno), or an ICMP error is for the application to read.
    for errno in [0, 113] {
        let s = out().established().moved(5, 5).fin_in(TcpState::Established).error(errno);
        let ends = s.fin_out(TcpState::LastAck).closed(TcpState::LastAck).ends();
        assert_eq!((ends[0].reason, ends[0].by), (Reason::Fin, Some(Side::Remote)), "{errno}");
    }
}

#[test]
fn who_closed_first_is_told_by_the_segments_while_the_own_fin_waits_behind_data() {
    // close() with data in the send queue, and the peer's RST comes first.
    let s = out().established().moved(5, 0).r#in(RST, TcpState::FinWait1);
    let ends = s.closed(TcpState::FinWait1).ends();
    assert_eq!((ends[0].by, ends[0].reset_by), (Some(Side::Remote), Some(Side::Remote)));
    // Or its FIN does.
    let s = out().established().moved(5, 0).fin_in(TcpState::FinWait1).after(100);
    let ends = s.fin_out(TcpState::Closing).closed(TcpState::Closing).ends();
    assert_eq!((ends[0].by, ends[0].reason), (Some(Side::Remote), Reason::Fin));
}

#[test]
fn a_fin_that_comes_again_counts_no_bytes_twice() {
    // Older than the probe, in CLOSE-WAIT already; the peer has not heard our ACK.
    let mut script = out().moved(0, 700);
    script.fin_received = 1;
    let mut again = script.event(TcpState::CloseWait);
    (again.flags, again.seq) = (FIN | ACK, again.rcv_nxt.wrapping_sub(1));
    let script = script.push(EventKind::SegmentIn, again);
    let ends = script.fin_out(TcpState::LastAck).ends();
    assert_eq!(ends[0].counters.bytes_received, Some(700));
}

#[test]
fn nothing_is_judged_before_losses_are_known() {
    let mut table = table(10);
    let ends = &mut Vec::new();
    table.note_checked(2_000_000);
    for event in &out().syn_out().closed(TcpState::SynSent).events {
        table.apply(event, &mut keep(ends));
    }
    // The RST was lost, as the counters say after this turn.
    table.tick(9_000_000_000, &mut keep(ends));
    assert!(ends.is_empty());
    table.note_loss(LostOf::Anybody, 3_000_000);
    table.note_checked(9_000_000_000);
    table.tick(9_000_000_000, &mut keep(ends));
    assert_eq!(ends[0].reason, Reason::Vanished);
}

/// As docs/performance.md and config/flowend.toml say: 0.7 kB, with its place in the table.
#[test]
fn a_connection_takes_no_more_memory_than_the_documents_say() {
    // Two links and the hash table's slot beside it; the table is at least half full.
    let in_the_table = size_of::<Connection>() + 2 * size_of::<usize>() + 2 * 16;
    assert!(in_the_table <= 700, "{in_the_table} bytes");
}

/// Reset by the own kernel, and closed.
fn reset_by_the_kernel(keepalive_ms: u32) -> Script {
    let s = out().established().after(9_000_000).out(RST | ACK, TcpState::Established);
    s.closed_with_keepalive(TcpState::Established, keepalive_ms)
}

/// The reasons that a table gives that gets error reports, too, and these events.
fn reasons_with_reports(events: impl IntoIterator<Item = Event>) -> Vec<Reason> {
    let mut table =
        FlowTable::new(FlowSettings { errors_reported: true, ..FlowSettings::default() });
    let mut ends = Vec::new();
    for event in events {
        table.apply(&event, &mut keep(&mut ends));
    }
    table.finish(&mut keep(&mut ends));
    ends.iter().map(|end| end.reason).collect()
}

#[test]
fn an_error_report_may_come_late() {
    let s = reset_by_the_kernel(0);
    assert_eq!(due(&s), UNEXPLAINED_NS);
    for (after_us, reason) in [(900_000, Reason::Timeout), (1_100_000, Reason::Aborted)] {
        let events = s.clone().after(after_us).error(110).events;
        assert_eq!(reasons_with_reports(events), [reason], "{after_us} us");
    }
}

/// The application may take the error first, and a virtual CPU may stand still with the kernel's jiffies.
#[test]
fn keepalive_is_told_by_the_options_where_no_report_comes() {
    for (keepalive_ms, reason) in
        [(3_000, Reason::Timeout), (9_050, Reason::Timeout), (9_200, Reason::Aborted)]
    {
        let events = reset_by_the_kernel(keepalive_ms).events;
        assert_eq!(reasons_with_reports(events), [reason], "{keepalive_ms} ms");
    }
}

/// Of a client with a port of its own that tries again.
#[test]
fn an_error_of_the_attempt_before_is_not_the_next_ones() {
    let first = out().syn_out().closed(TcpState::SynSent).error(113);
    let second = Script { cookie: 77, ..out() }.after(100_000).syn_out().closed(TcpState::SynSent);
    let later = second.clone().error(113);
    for (second, want) in [
        (second, [Reason::Unreachable, Reason::Aborted]),
        (later, [Reason::Unreachable, Reason::Unreachable]),
    ] {
        let events = first.events.iter().chain(&second.events).copied();
        assert_eq!(reasons_with_reports(events), want);
    }
}

/// Error reports are of the whole machine: a port scan that nobody watches brings thousands.
#[test]
fn other_errors_do_not_change_what_is_told_of_a_connection() {
    let attempt = out().syn_out().closed(TcpState::SynSent);
    let s = reset_by_the_kernel(0).error(110);
    let of_others = |count: usize| {
        let Some(Event::Error(report)) = s.events.last().copied() else { unreachable!() };
        (0..count).map(move |n| {
            let addr = Addr::v4(u32::try_from(n).unwrap().to_be());
            Event::Error(ErrorEvent { remote: addr, error: 111, ..report })
        })
    };
    let limit = errors::LIMIT;
    for (script, others, reason) in [
        (&s, limit - 1, Reason::Timeout),
        // Its own is forgotten, and without keepalive nothing else explains the RST.
        (&s, limit, Reason::Aborted),
        (&attempt, limit, Reason::Aborted),
        (&attempt, limit + 1, Reason::Vanished),
        (&reset_by_the_kernel(3_000), limit + 1, Reason::Vanished),
    ] {
        let events = script.events.iter().copied().chain(of_others(others));
        assert_eq!(reasons_with_reports(events), [reason], "{others} others");
    }
}

#[test]
fn a_half_close_is_not_measured_from_a_fin_that_was_sent_before_unseen() {
    let before = out().established().moved(1, 1);
    let lost_ns = before.now_us * 1000;
    // The first FIN is lost on its way to user space; the one that is sent again is not.
    let script = before.after(200_000).fin_out(TcpState::FinWait1).after(1000);
    let script = script.fin_in(TcpState::FinWait2).closed(TcpState::FinWait2);
    assert!(script.ends()[0].half_close_ns.is_some());
    let mut table = table(10);
    let mut ends = Vec::new();
    table.note_loss(LostOf::Anybody, lost_ns);
    for event in &script.events {
        table.apply(event, &mut keep(&mut ends));
    }
    table.finish(&mut keep(&mut ends));
    assert_eq!((ends[0].reason, ends[0].half_close_ns), (Reason::Fin, None));
}
