//! The state machine on events as the kernel gives them.

use flowend_probe_types::{ACK, Addr, Event, EventKind, FIN, PSH, RST, SYN, TcpEvent, TcpState};

use super::*;

const COOKIE: u64 = 7;
const LISTENER: u64 = 3;
/// Initial sequence numbers: ours near the end of the space, so that it wraps.
const OUR_ISN: u32 = u32::MAX - 4;
const PEER_ISN: u32 = 1000;

/// A connection's events, written down step by step as one socket has them.
#[derive(Clone)]
struct Script {
    events: Vec<Event>,
    now_us: u64,
    cookie: u64,
    outgoing: bool,
    /// Payload sent and received so far, FINs excluded.
    sent: u32,
    received: u32,
    fin_sent: u32,
    fin_received: u32,
}

impl Script {
    fn new(outgoing: bool) -> Self {
        Self {
            events: Vec::new(),
            now_us: 1_000,
            cookie: COOKIE,
            outgoing,
            sent: 0,
            received: 0,
            fin_sent: 0,
            fin_received: 0,
        }
    }

    fn after(mut self, us: u64) -> Self {
        self.now_us += us;
        self
    }

    fn moved(mut self, sent: u32, received: u32) -> Self {
        self.sent += sent;
        self.received += received;
        self
    }

    /// The socket's own counters at this moment, everything acknowledged.
    fn event(&self, state: TcpState) -> TcpEvent {
        let syn = u32::from(self.outgoing);
        let snd_nxt = OUR_ISN.wrapping_add(1 + self.sent + self.fin_sent);
        TcpEvent {
            state: state as u8,
            local_port: if self.outgoing { 50000 } else { 80 },
            remote_port: if self.outgoing { 80 } else { 50000 },
            time_ns: self.now_us * 1000,
            cookie: self.cookie,
            cgroup_id: 42,
            bytes_acked: u64::from(syn + self.sent + self.fin_sent),
            bytes_received: u64::from(self.received + self.fin_received),
            local: v4([10, 0, 0, 1]),
            remote: v4([10, 0, 0, 2]),
            snd_nxt,
            snd_una: snd_nxt,
            rcv_nxt: PEER_ISN + 1 + self.received + self.fin_received,
            srtt_8us: 8 * 100,
            rtt_min_us: 90,
            segs_out: 3 + u32::from(self.sent > 0),
            segs_in: 3 + u32::from(self.received > 0),
            data_segs_out: u32::from(self.sent > 0),
            data_segs_in: u32::from(self.received > 0),
            ..TcpEvent::default()
        }
    }

    fn push(mut self, kind: EventKind, mut event: TcpEvent) -> Self {
        event.kind = kind as u8;
        self.events.push(Event::Tcp(kind, event));
        self.now_us += 10;
        self
    }

    fn out(self, flags: u8, state: TcpState) -> Self {
        let mut event = self.event(state);
        event.flags = flags;
        event.seq = event.snd_nxt;
        event.ack = event.rcv_nxt;
        self.push(EventKind::SegmentOut, event)
    }

    fn r#in(self, flags: u8, state: TcpState) -> Self {
        let mut event = self.event(state);
        event.flags = flags;
        event.seq = event.rcv_nxt;
        event.ack = event.snd_nxt;
        self.push(EventKind::SegmentIn, event)
    }

    fn syn_out(self) -> Self {
        let mut event = self.event(TcpState::SynSent);
        event.flags = SYN;
        event.seq = OUR_ISN;
        self.push(EventKind::SegmentOut, event)
    }

    fn established(self) -> Self {
        if !self.outgoing {
            let listen = |s: &Self| TcpEvent {
                cookie: LISTENER,
                state: TcpState::Listen as u8,
                ..s.event(TcpState::Listen)
            };
            let syn = TcpEvent { flags: SYN, seq: PEER_ISN, ..listen(&self) };
            let s = self.push(EventKind::SegmentIn, syn);
            let syn_ack =
                TcpEvent { flags: SYN | ACK, seq: OUR_ISN, ack: PEER_ISN + 1, ..listen(&s) };
            let s = s.push(EventKind::SegmentOut, syn_ack);
            let event = TcpEvent { cgroup_id: 0, ..s.event(TcpState::SynRecv) };
            return s.push(EventKind::PassiveEstablished, event);
        }
        let s = self.syn_out();
        let syn_ack = TcpEvent {
            flags: SYN | ACK,
            seq: PEER_ISN,
            ack: OUR_ISN.wrapping_add(1),
            ..s.event(TcpState::SynSent)
        };
        let s = s.push(EventKind::SegmentIn, syn_ack);
        let event = TcpEvent { cgroup_id: 0, ..s.event(TcpState::SynSent) };
        s.push(EventKind::ActiveEstablished, event)
    }

    fn fin_out(self, state: TcpState) -> Self {
        let mut s = self.out(FIN | ACK, state);
        s.fin_sent = 1;
        s
    }

    fn fin_in(self, state: TcpState) -> Self {
        let mut s = self.r#in(FIN | ACK, state);
        s.fin_received = 1;
        s
    }

    fn closed(self, from: TcpState) -> Self {
        let event = TcpEvent { cgroup_id: 0, ..self.event(from) };
        self.push(EventKind::Closed, event)
    }

    fn gave_up(self, state: TcpState) -> Self {
        let event = self.event(state);
        self.push(EventKind::GaveUp, event)
    }

    fn forged(self, flags: u8, seq_off: u32) -> Self {
        let mut event = self.event(TcpState::Established);
        event.flags = flags;
        event.seq = event.rcv_nxt.wrapping_add(seq_off);
        event.ack = event.snd_nxt;
        self.push(EventKind::SegmentIn, event)
    }

    fn ends(&self) -> Vec<ConnectionEnd> {
        ends(&self.events)
    }
}

fn v4(octets: [u8; 4]) -> Addr {
    Addr::v4(u32::from_ne_bytes(octets))
}

fn ends(events: &[Event]) -> Vec<ConnectionEnd> {
    let mut table = FlowTable::new(100);
    let mut ends = Vec::new();
    for event in events {
        table.apply(event, &mut |end| ends.push(end));
    }
    table.finish(&mut |end| ends.push(end));
    ends
}

fn out() -> Script {
    Script::new(true)
}

fn incoming() -> Script {
    Script::new(false)
}

/// reason, by, reset_by, conn_state, history
type Verdict = (Reason, Option<Side>, Option<Side>, &'static str, &'static str);

/// Endings as the design's table has them, each with what one socket sees of it.
fn cases() -> Vec<(&'static str, Script, Verdict)> {
    use Reason::*;
    use Side::{Local, Remote};
    use TcpState::{Close, CloseWait, Established, FinWait1, FinWait2, LastAck, SynSent};
    vec![
        (
            "own FIN first, the peer's seen",
            out()
                .established()
                .moved(10, 20)
                .fin_out(FinWait1)
                .after(500)
                .fin_in(FinWait2)
                .closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADadFf"),
        ),
        (
            "own full close, the peer's FIN never seen",
            out().established().moved(10, 0).fin_out(FinWait1).closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADaF"),
        ),
        (
            "the peer's FIN first",
            out()
                .established()
                .moved(1, 2)
                .fin_in(Established)
                .after(500)
                .fin_out(LastAck)
                .closed(LastAck),
            (Fin, Some(Remote), None, "SF", "ShADadfF"),
        ),
        (
            "accepted, the peer closes",
            incoming()
                .established()
                .moved(1, 2)
                .fin_in(Established)
                .fin_out(LastAck)
                .closed(LastAck),
            (Fin, Some(Remote), None, "SF", "ShADadFf"),
        ),
        (
            "accepted, own FIN first",
            incoming()
                .established()
                .moved(0, 2)
                .fin_out(FinWait1)
                .fin_in(FinWait2)
                .closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADafF"),
        ),
        (
            "both FINs cross",
            out().established().fin_out(FinWait1).fin_in(FinWait1).closed(TcpState::Closing),
            (Fin, Some(Local), None, "SF", "ShAaFf"),
        ),
        (
            "reset by the application: CLOSE comes before its RST",
            out().established().moved(5, 0).closed(Established).out(RST | ACK, Close),
            (Reset, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "reset by the peer",
            out().established().moved(5, 0).r#in(RST | ACK, Established).closed(Established),
            (Reset, Some(Remote), Some(Remote), "RSTR", "ShADar"),
        ),
        (
            "accepted, reset by the peer",
            incoming().established().moved(0, 5).r#in(RST, Established).closed(Established),
            (Reset, Some(Remote), Some(Remote), "RSTO", "ShADaR"),
        ),
        (
            "own FIN, then the peer resets: who ended it is who sent the FIN",
            out().established().moved(5, 0).fin_out(FinWait1).r#in(RST, FinWait2).closed(FinWait2),
            (Reset, Some(Local), Some(Remote), "RSTR", "ShADaFr"),
        ),
        (
            "the peer's FIN, then an own RST",
            out()
                .established()
                .moved(5, 5)
                .fin_in(Established)
                .closed(CloseWait)
                .out(RST | ACK, Close),
            (Reset, Some(Remote), Some(Local), "RSTO", "ShADadfR"),
        ),
        (
            "refused",
            out().syn_out().r#in(RST | ACK, SynSent).closed(SynSent),
            (Refused, Some(Remote), Some(Remote), "REJ", "Sr"),
        ),
        (
            "never answered",
            out().syn_out().after(1_000_000).syn_out().gave_up(SynSent).closed(SynSent),
            (ConnectTimeout, None, None, "S0", "S"),
        ),
        (
            "closed before an answer",
            out().syn_out().closed(SynSent),
            (Aborted, None, None, "S0", "S"),
        ),
        (
            "given up while established",
            out().established().moved(5, 0).gave_up(Established).closed(Established),
            (Timeout, None, None, "S1", "ShADa"),
        ),
        (
            "own FIN never acknowledged",
            out().established().moved(5, 0).fin_out(FinWait1).gave_up(FinWait1).closed(FinWait1),
            (Timeout, Some(Local), None, "S2", "ShADaF"),
        ),
        (
            "destroyed while established (ss -K)",
            out().established().moved(5, 0).out(RST | ACK, Established).closed(Established),
            (Aborted, Some(Local), Some(Local), "RSTO", "ShADaR"),
        ),
        (
            "the closing segments were lost",
            out().established().moved(5, 0).closed(Established),
            (Vanished, None, None, "S1", "ShADa"),
        ),
        (
            "a forged RST outside the window, then an orderly end",
            out()
                .established()
                .moved(5, 5)
                .forged(RST, 70_000)
                .fin_out(FinWait1)
                .fin_in(FinWait2)
                .closed(FinWait2),
            (Fin, Some(Local), None, "SF", "ShADadFf"),
        ),
        (
            "an inexact RST inside the window, then an orderly end",
            out()
                .established()
                .moved(5, 5)
                .forged(RST, 100)
                .fin_in(Established)
                .fin_out(LastAck)
                .closed(LastAck),
            (Fin, Some(Remote), None, "SF", "ShADadfF"),
        ),
        (
            "a forged FIN, then an own reset",
            out()
                .established()
                .moved(5, 5)
                .forged(FIN | ACK, 500)
                .after(1000)
                .closed(Established)
                .out(RST, Close),
            (Reset, Some(Local), Some(Local), "RSTO", "ShADadR"),
        ),
        (
            "more forged segments than are remembered, then a reset",
            (1..20)
                .fold(out().established().moved(5, 5), |s, n| {
                    s.forged(RST, n * 10).forged(FIN, n * 10)
                })
                .r#in(RST, Established)
                .closed(Established),
            (Reset, Some(Remote), Some(Remote), "RSTR", "ShADadr"),
        ),
    ]
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
    let mut again = Script { events: first.events, ..out() }.after(100);
    again = again.established().moved(3, 0).fin_out(TcpState::FinWait1).closed(TcpState::FinWait2);
    let ends = again.ends();
    let reasons: Vec<_> = ends.iter().map(|e| (e.reason, e.counters.bytes_sent)).collect();
    assert_eq!(reasons, [(Reason::Refused, Some(0)), (Reason::Fin, Some(3))]);
}

/// The time at which the last event's verdict is due.
fn due(script: &Script) -> u64 {
    let mut table = FlowTable::new(10);
    let mut last = 0;
    for event in &script.events {
        table.apply(event, &mut |_| panic!("too early"));
        if let Event::Tcp(_, e) = event {
            last = e.time_ns;
        }
    }
    let mut ends = 0;
    for wait in [SETTLE_NS, UNEXPLAINED_NS] {
        table.tick(last + wait - 1, &mut |_| panic!("before {wait}"));
        table.tick(last + wait, &mut |_| ends += 1);
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
    assert_eq!(due(&out().established().fin_out(FinWait1).closed(FinWait2)), SETTLE_NS);
    assert_eq!(due(&out().established().r#in(RST, Established).closed(Established)), SETTLE_NS);
    let unexplained = out().established().closed(Established);
    assert_eq!(due(&unexplained), UNEXPLAINED_NS);
    assert_eq!(due(&unexplained.after(400_000).out(RST, TcpState::Close)), SETTLE_NS);
}

#[test]
fn a_late_event_makes_no_second_connection() {
    for (name, script, _) in cases() {
        let mut table = FlowTable::new(10);
        let mut ends = 0;
        for event in &script.events {
            table.apply(event, &mut |_| ends += 1);
        }
        table.finish(&mut |_| ends += 1);
        for event in script.clone().after(5_000_000).out(RST, TcpState::Close).events {
            // A SYN or an establishment would be another connection's.
            let Event::Tcp(kind, e) = event else { continue };
            if e.cookie == COOKIE && e.flags != SYN && kind != EventKind::ActiveEstablished {
                table.apply(&event, &mut |_| ends += 1);
            }
        }
        table.finish(&mut |_| ends += 1);
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
fn a_lost_event_leaves_fields_out_and_makes_none_wrong() {
    // Whatever single event is lost: direction, sides and byte counts are right or absent.
    for (name, script, (reason, by, reset_by, ..)) in cases() {
        for lost in 0..script.events.len() {
            let mut events = script.events.clone();
            events.remove(lost);
            for end in ends(&events) {
                let what = format!("{name} without event {lost}: {end:?}");
                let direction =
                    if script.outgoing { Direction::Outgoing } else { Direction::Incoming };
                assert!([direction, Direction::Unknown].contains(&end.direction), "{what}");
                assert!(
                    end.reason == reason
                        || end.reason == Reason::Vanished
                        || is_softer(end.reason, reason),
                    "{what}"
                );
                assert!(
                    end.by.is_none() || by.is_none() || end.by == by || reset_by.is_some(),
                    "{what}"
                );
                let sent = end.counters.bytes_sent;
                assert!(sent.is_none_or(|n| n == u64::from(script.sent)), "{what}");
            }
        }
    }
}

/// Without the event that tells them apart, a refusal or a timeout of an attempt is an abort, and an
/// end that an RST cut short looks orderly.
const fn is_softer(seen: Reason, real: Reason) -> bool {
    use Reason::{Aborted, ConnectTimeout, Fin, Refused, Reset};
    matches!((seen, real), (Aborted, Refused | ConnectTimeout) | (Fin, Reset))
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
    let mut table = FlowTable::new(2);
    let mut ends = Vec::new();
    for cookie in 1..=3 {
        let script = Script { cookie, ..out() }.established();
        for event in &script.events {
            table.apply(event, &mut |end| ends.push(end));
        }
    }
    assert_eq!((table.len(), table.stats().evicted), (2, 1));
    // The forgotten one's end is still reported, as one whose start is unknown.
    let mut late = Script { cookie: 1, ..out() }.moved(5, 0).after(100).fin_out(TcpState::FinWait1);
    late = late.closed(TcpState::FinWait2);
    for event in &late.events {
        table.apply(event, &mut |end| ends.push(end));
    }
    table.finish(&mut |end| ends.push(end));
    assert_eq!(ends.len(), 1);
    assert_eq!(
        (ends[0].start_known, ends[0].reason, ends[0].by),
        (false, Reason::Fin, Some(Side::Local))
    );
}

#[test]
fn a_flood_of_syns_with_one_isn_is_bounded() {
    let mut table = FlowTable::new(100_000);
    let none = &mut |_| panic!("no connection");
    for n in 0..100_000_u32 {
        let mut syn = incoming().event(TcpState::Listen);
        syn.kind = EventKind::SegmentIn as u8;
        (syn.cookie, syn.flags, syn.seq) = (LISTENER, SYN, 0);
        syn.remote_port = n as u16;
        syn.remote = v4(n.to_be_bytes());
        table.apply(&Event::Tcp(EventKind::SegmentIn, syn), none);
    }
    assert_eq!(table.stats().embryos_evicted, 100_000 - SAME_ISN as u64);
    table.tick(2 * EMBRYO_NS, none);
    assert_eq!(table.stats().embryos_unfinished, SAME_ISN as u64);
}

#[test]
fn syns_that_nobody_follows_are_forgotten_and_counted() {
    let mut table = FlowTable::new(4);
    let none = &mut |_| panic!("no connection");
    for n in 0..10 {
        let script = incoming();
        let mut syn = script.event(TcpState::Listen);
        syn.kind = EventKind::SegmentIn as u8;
        (syn.cookie, syn.flags, syn.seq) = (LISTENER, SYN, n);
        table.apply(&Event::Tcp(EventKind::SegmentIn, syn), none);
    }
    assert_eq!(table.stats().embryos_evicted, 6);
    table.tick(2 * EMBRYO_NS, none);
    assert_eq!(table.stats().embryos_unfinished, 4);
}
