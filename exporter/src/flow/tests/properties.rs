//! Whatever order, loss and duplication the events meet: at most one record for each connection, exactly
//! one after a look at the kernel's sockets, and no field wrong.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

/// What happens to one event on its way.
#[derive(Clone, Copy, Debug)]
struct Fate {
    lost: bool,
    twice: bool,
    /// How much later it comes, ns; less than [`REORDER_NS`].
    late_ns: u64,
}

fn fate() -> impl Strategy<Value = Fate> {
    let late = prop_oneof![3 => Just(0), 1 => 0..REORDER_NS];
    (prop::bool::weighted(0.15), prop::bool::weighted(0.15), late)
        .prop_map(|(lost, twice, late_ns)| Fate { lost, twice, late_ns })
}

/// Every other world loses nothing.
fn fates() -> impl Strategy<Value = Vec<Fate>> {
    (any::<bool>(), prop::collection::vec(fate(), 1..80)).prop_map(|(loses, mut fates)| {
        for fate in &mut fates {
            fate.lost &= loses;
        }
        fates
    })
}

/// Some connections of the table of cases, beside each other, and the fate of each event.
fn world() -> impl Strategy<Value = (Vec<(usize, u64)>, Vec<Fate>)> {
    let count = reported_cases().len();
    (prop::collection::vec((0..count, 0..50_000_u64), 1..6), fates())
}

/// The cases of a kernel that reports errors.
fn reported_cases() -> Vec<(&'static str, Script, cases::Verdict)> {
    cases().into_iter().filter(|(name, ..)| !name.contains("no error report")).collect()
}

/// The events of case `which`, on a socket of its own, begun `after_us` later.
fn connection(which: usize, number: u64, after_us: u64) -> (Script, cases::Verdict) {
    let (_, mut script, verdict) = reported_cases().swap_remove(which);
    for event in &mut script.events {
        match event {
            Event::Tcp(_, e) => {
                if e.cookie == COOKIE {
                    e.cookie = COOKIE + number;
                }
                let port = if script.outgoing { &mut e.local_port } else { &mut e.remote_port };
                *port += number as u16;
                e.time_ns += after_us * 1000;
            }
            Event::Error(e) => {
                let port = if script.outgoing { &mut e.local_port } else { &mut e.remote_port };
                *port += number as u16;
                e.time_ns += after_us * 1000;
            }
            Event::Process(..) => {}
        }
    }
    script.cookie = COOKIE + number;
    (script, verdict)
}

fn time_of(event: &Event) -> u64 {
    match event {
        Event::Tcp(_, e) => e.time_ns,
        Event::Error(e) => e.time_ns,
        Event::Process(_, e) => e.time_ns,
    }
}

fn is_of(event: &Event, cookie: u64) -> bool {
    matches!(event, Event::Tcp(_, e) if e.cookie == cookie)
}

/// What is right, or absent.
fn assert_true(end: &ConnectionEnd, script: &Script, verdict: &cases::Verdict, lossy: bool) {
    let (reason, by, reset_by, ..) = *verdict;
    let what = format!("{end:?}\nof {verdict:?}");
    let direction = if script.outgoing { Direction::Outgoing } else { Direction::Incoming };
    assert!([direction, Direction::Unknown].contains(&end.direction), "{what}");
    assert!(end.reason == reason || (lossy && end.reason == Reason::Vanished), "{what}");
    assert!(end.by == by || (lossy && end.by.is_none()), "{what}");
    assert!(end.reset_by == reset_by || (lossy && end.reset_by.is_none()), "{what}");
    let known = |got: Option<u64>, want: u32| got.is_none_or(|n| n == u64::from(want));
    assert!(known(end.counters.bytes_sent, script.sent), "{what}");
    assert!(known(end.counters.bytes_received, script.received), "{what}");
    let start = script.events.iter().find(|e| matches!(e, Event::Tcp(..))).map_or(0, time_of);
    assert!(!end.start_known || end.start_ns == start, "{what}");
    let whole = script.ends().swap_remove(0);
    assert!(end.half_close_ns.is_none() || end.half_close_ns == whole.half_close_ns, "{what}");
    assert!(end.isns.is_none() || end.isns == whole.isns, "{what}");
    let (rtt, full) = (end.rtt.handshake_us, whole.rtt.handshake_us);
    assert!(rtt.is_none() || rtt == full, "{what}");
    if !lossy {
        let mut same = end.clone();
        same.cookie = whole.cookie;
        (same.local, same.remote) = (whole.local, whole.remote);
        let shift = same.start_ns - whole.start_ns;
        (same.start_ns, same.end_ns) = (whole.start_ns, same.end_ns - shift);
        assert_eq!(same, whole, "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_connection_has_one_record_and_nothing_in_it_is_wrong((picks, fates) in world()) {
        let connections: Vec<_> = picks
            .iter()
            .zip(0..)
            .map(|(&(which, after_us), number)| connection(which, number, after_us))
            .collect();
        let (arriving, lost_ns, heard_of) = arrivals(&connections, &fates);
        let told = told(&arriving, &lost_ns, None);

        let ends = ends_of_opened(told);
        prop_assert!(ends.len() <= connections.len(), "somebody else's records: {ends:?}");
        for (script, verdict) in &connections {
            // The table knows the time of a loss, and not whose event it was.
            let begun = script.events.iter().map(time_of).min().unwrap_or(0);
            let lossy = lost_ns.iter().any(|lost| *lost >= begun);
            let own: Vec<_> = ends.iter().filter(|end| end.cookie == script.cookie).collect();
            // A SYN-ACK that comes in makes no connection by itself.
            let may_be_none = lossy && !opens_any(&arriving, script.cookie);
            prop_assert!(own.len() == 1 || (may_be_none && own.is_empty()),
                "{} records of {verdict:?}", own.len());
            if let [end] = own.as_slice() {
                assert_true(end, script, verdict, lossy);
            }
        }
        prop_assert!(!lost_ns.is_empty() || heard_of.len() == connections.len());
    }

    #[test]
    fn a_table_handed_over_at_any_moment_goes_on_as_if_nothing_had_been(
        (picks, fates) in world(),
        moment in any::<prop::sample::Index>(),
    ) {
        let connections: Vec<_> = picks
            .iter()
            .zip(0..)
            .map(|(&(which, after_us), number)| connection(which, number, after_us))
            .collect();
        let (arriving, lost_ns, _) = arrivals(&connections, &fates);
        let moment = moment.index(arriving.len() + 1);
        let expected = told(&arriving, &lost_ns, None);
        prop_assert_eq!(told(&arriving, &lost_ns, Some(moment)), expected);
    }
}

/// What comes out of the ring: late, twice, or not at all. When each event comes, the times of those that were lost, and
/// the sockets of which any event came.
fn arrivals(
    connections: &[(Script, cases::Verdict)],
    fates: &[Fate],
) -> (Vec<(u64, Event)>, Vec<u64>, HashSet<u64>) {
    let mut arriving: Vec<(u64, Event)> = Vec::new();
    let mut heard_of: HashSet<u64> = HashSet::new();
    let mut lost_ns = Vec::new();
    let mut fates = fates.iter().cycle();
    for (script, _) in connections {
        for event in &script.events {
            let fate = fates.next().copied().unwrap();
            if fate.lost {
                lost_ns.push(time_of(event));
                continue;
            }
            if is_of(event, script.cookie) {
                heard_of.insert(script.cookie);
            }
            for _ in 0..=u8::from(fate.twice) {
                arriving.push((time_of(event) + fate.late_ns, *event));
            }
        }
    }
    arriving.sort_by_key(|(at, _)| *at);
    (arriving, lost_ns, heard_of)
}

/// What a table says of them, and of two looks afterwards that find no socket. Before the event with that number
/// another table takes its place.
fn told(arriving: &[(u64, Event)], lost_ns: &[u64], hand_over: Option<usize>) -> Vec<FlowEvent> {
    let settings = FlowSettings { errors_reported: true, ..FlowSettings::default() };
    let mut table = FlowTable::new(settings);
    let mut told = Vec::new();
    let mut newest = 0;
    for (n, (at, event)) in arriving.iter().enumerate() {
        if hand_over == Some(n) {
            table = handed_over(table, settings);
        }
        // The source says so before it hands out what came after the loss.
        for lost in lost_ns.iter().filter(|lost| **lost <= *at) {
            table.note_loss(LostOf::Anybody, *lost);
        }
        table.apply(event, &mut |event| told.push(event));
        newest = newest.max(*at);
    }
    if hand_over == Some(arriving.len()) {
        table = handed_over(table, settings);
    }
    for lost in lost_ns {
        table.note_loss(LostOf::Anybody, *lost);
    }
    table.tick(newest + UNEXPLAINED_NS + REORDER_NS, &mut |event| told.push(event));
    for n in 1..=2 {
        let at = newest + (n + 1) * UNEXPLAINED_NS;
        let census = Census { begun_ns: at, done_ns: at, complete: true, ..Census::default() };
        table.look(&census, &mut |event| told.push(event));
    }
    table.tick(newest + 10 * UNEXPLAINED_NS, &mut |event| told.push(event));
    assert!(table.is_empty());
    told
}

/// The table of another process.
fn handed_over(mut table: FlowTable, settings: FlowSettings) -> FlowTable {
    let bytes = postcard::to_stdvec(&table.hand_over()).unwrap();
    assert!(table.is_empty());
    let mut next = FlowTable::new(settings);
    next.take_in(postcard::from_bytes(&bytes).unwrap());
    next
}

/// The ends, of which each connection was opened before: once, or once more with its cgroup.
fn ends_of_opened(told: Vec<FlowEvent>) -> Vec<ConnectionEnd> {
    let mut open: HashMap<u64, Opened> = HashMap::new();
    let mut ends = Vec::new();
    for event in told {
        match event {
            FlowEvent::Opened(new) => {
                if let Some(before) = open.insert(new.cookie, new) {
                    assert_eq!((before.cgroup_id, new.cgroup_id), (None, Some(42)), "{new:?}");
                }
            }
            FlowEvent::End(end) => {
                if end.is_of_listener() {
                    assert!(!open.contains_key(&end.cookie), "{end:?}");
                } else {
                    let opened = open.remove(&end.cookie).expect("opened before its end");
                    let ends = (end.local, end.remote, end.cgroup_id);
                    assert_eq!((opened.local, opened.remote, opened.cgroup_id), ends);
                    // The SYN may be heard of later.
                    assert!(end.start_ns <= opened.start_ns, "{opened:?}\n{end:?}");
                }
                ends.push(end);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    ends
}

/// Whether an event came that tells of a connection.
fn opens_any(arriving: &[(u64, Event)], cookie: u64) -> bool {
    arriving.iter().any(|(_, event)| match event {
        Event::Tcp(kind, e) => e.cookie == cookie && opens(*kind, e),
        _ => false,
    })
}
