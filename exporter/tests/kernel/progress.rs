//! Begin and progress, end to end: the records of a connection's life, at a real receiver.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flowend::demo::{Item, Received, Receiver};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;

use super::connections::Role::{self, Client, Server};
use super::connections::of_socket;
use super::support::{
    Attributes, Cgroup, Flowend, Puppet, can_run, flat, int, step, text, wait_until,
};
use super::ways::{Conn, Pair, Way};

/// `progress.interval`.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the connection lives in which data moves, at least: three and a half intervals.
const LIFE: Duration = Duration::from_millis(3500);
/// How often data moves in that time: in far longer steps than progress comes, so that not every progress can
/// fall into a move.
const ROUNDS: u32 = 2;
/// The longest that a look at the sockets takes, by far.
const LOOK: Duration = Duration::from_millis(300);

/// What an application knows of its socket, and since when that stands.
#[derive(Clone, Debug)]
struct Standing {
    /// Before and after the move that led to it, ns since 1970.
    moved: (u64, u64),
    /// As attributes of a record: of the client, and of the server.
    counters: [Counters; 2],
}

/// The counters of a progress record, in the order of their keys.
type Counters = [i64; COUNTERS.len()];

const COUNTERS: [&str; 7] = [
    "flowend.bytes.sent",
    "flowend.bytes.received",
    "flowend.segments.sent",
    "flowend.segments.received",
    "flowend.retransmits",
    // These two do not add up.
    "flowend.rtt.smoothed_us",
    "flowend.rtt.min_us",
];
const ADDS_UP: usize = 5;

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_nanos()).expect("before 2554")
}

/// What the application's TCP_INFO says, with the bytes that it has moved.
fn counters(pair: &mut Pair, conn: &Conn, role: Role) -> Counters {
    let number = |n: usize| i64::try_from(n).expect("a small number");
    let (id, sent, received) = match role {
        Client => (conn.c.id, conn.up, conn.down),
        Server => (conn.s.id, conn.down, conn.up),
    };
    let told = pair.puppet(role).tell(&format!("info {id}"));
    let info: Vec<i64> = told.split(' ').map(|n| n.parse().expect("a number")).collect();
    let [rtt, min_rtt, retransmits, segs_out, segs_in] = info[..] else { panic!("{told}") };
    [number(sent), number(received), segs_out, segs_in, retransmits, rtt, min_rtt]
}

/// A connection that lives for [`LIFE`], with data moving both ways at its beginning and halfway.
fn live(pair: &mut Pair) -> (Conn, Vec<Standing>) {
    let mut standings = Vec::new();
    let before = unix_ns();
    let mut conn = pair.open(Way::Closed(Client));
    for round in 0..ROUNDS {
        let before = if round == 0 { before } else { unix_ns() };
        pair.transfer(&mut conn, Client, 20_000);
        pair.transfer(&mut conn, Server, 70_000);
        step();
        let counters = [counters(pair, &conn, Client), counters(pair, &conn, Server)];
        standings.push(Standing { moved: (before, unix_ns()), counters });
        std::thread::sleep(LIFE / ROUNDS);
    }
    (conn, standings)
}

/// One attempt at a port where nobody listens.
fn refused(pair: &mut Pair) -> (std::net::SocketAddr, std::net::SocketAddr) {
    let listener = pair.server.listen("127.0.0.1:0");
    pair.server.close(listener);
    let socket = pair.client.start_to_connect(listener.local, "from 127.0.0.1:0");
    pair.client.wait_until_connected(socket).expect_err("nobody listens");
    pair.client.close(socket);
    (socket.local, listener.local)
}

/// All connections of the test.
struct Made {
    older: Conn,
    short: Conn,
    long: Conn,
    standings: Vec<Standing>,
    refused: (std::net::SocketAddr, std::net::SocketAddr),
}

/// Older, short, long: two ends each. Refused: one.
const ENDS: usize = 7;

fn make(pair: &mut Pair, start: impl FnOnce() -> Flowend) -> (Flowend, Made) {
    let mut older = pair.open(Way::Closed(Server));
    let flowend = start();
    let mut short = pair.open(Way::Reset(Client));
    pair.end(&mut short);
    let refused = refused(pair);
    let (mut long, standings) = live(pair);
    pair.end(&mut long);
    pair.end(&mut older);
    (flowend, Made { older, short, long, standings, refused })
}

/// The log records of one kind of a socket, by time.
fn of(
    received: &Received,
    kind: &str,
    (local, peer): (std::net::SocketAddr, std::net::SocketAddr),
) -> Vec<LogRecord> {
    let (logs, _) = of_socket(received, local, peer);
    let name = format!("flowend.tcp.{kind}");
    let mut logs: Vec<LogRecord> = logs
        .into_iter()
        .map(|l: Item<_>| l.item)
        .filter(|l: &LogRecord| l.event_name == name)
        .collect();
    logs.sort_by_key(|log| log.time_unix_nano);
    logs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_s_life_is_told_by_begin_progress_and_end() {
    if !can_run("a_connection_s_life_is_told_by_begin_progress_and_end", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let receiver = Receiver::start().await.expect("a receiver");
    let settings = [
        format!("otlp.endpoint={}", receiver.endpoint()),
        format!("targets={}", cgroup.name),
        "export.interval=20ms".into(),
        r#"events=["end", "begin", "progress"]"#.into(),
        "progress.interval=1s".into(),
    ];
    let args: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let (made, messages) = tokio::task::block_in_place(|| {
        let mut pair =
            Pair::new(Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup), "127.0.0.1:0");
        let (flowend, made) = make(&mut pair, || Flowend::run(&args));
        wait_until(|| receiver.received().spans.len() >= ENDS, || flowend.stderr());
        // The receiver was there: what is queued is sent before the end.
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        (made, messages)
    });
    let received = receiver.received();

    assert_eq!(received.spans.len(), ENDS, "a span is the whole connection: there is one");
    for role in [Client, Server] {
        check_long(&received, &made, role);
        let Made { older, short, .. } = &made;
        for (conn, kind, n) in [(older, "begin", 0), (short, "begin", 1), (short, "progress", 0)] {
            let got = of(&received, kind, conn.addresses(role)).len();
            assert_eq!(got, n, "{kind} of {conn:?}, {role:?}");
        }
        check_older(&received, older, role);
        for conn in [older, short, &made.long] {
            check_ids(&received, conn.addresses(role));
        }
    }
    for (kind, n) in [("begin", 0), ("progress", 0), ("end", 1)] {
        assert_eq!(of(&received, kind, made.refused).len(), n, "{kind} of the refused attempt");
    }
    check_ledger(&received, &messages);
}

/// Its records, and each progress against what the application knew at that moment.
fn check_long(received: &Received, made: &Made, role: Role) {
    let Made { long, standings, .. } = made;
    let [begins, progresses, ends] =
        ["begin", "progress", "end"].map(|kind| of(received, kind, long.addresses(role)));
    let ([begin], [end]) = (begins.as_slice(), ends.as_slice()) else {
        panic!("{role:?}: {} begins, {} ends", begins.len(), ends.len());
    };
    let opened = standings[0].moved;
    assert!((opened.0..opened.1).contains(&begin.time_unix_nano), "{begin:?}");
    let begun = flat(&begin.attributes);
    for key in
        COUNTERS.iter().chain(&["flowend.duration_us", "flowend.end.reason", "source.address"])
    {
        assert!(!begun.contains_key(*key), "{key} at the begin: {begin:?}");
    }

    // A progress is due with each whole interval of the connection's life, and comes with the next look.
    // Looks are half a second and as long as they take apart; they may not take so long that one
    // interval becomes two.
    let times: Vec<u64> = std::iter::once(begin.time_unix_nano)
        .chain(progresses.iter().map(|log| log.time_unix_nano))
        .chain([end.time_unix_nano])
        .collect();
    let interval = nanos(INTERVAL);
    let whole = |at: u64| (at - times[0]) / interval;
    for (progress, n) in times[1..times.len() - 1].iter().zip(1..) {
        assert_eq!(whole(*progress), n, "{role:?}: one with each interval: {times:?}");
    }
    assert!(times[times.len() - 1] - times[times.len() - 2] < 2 * interval, "{role:?}: {times:?}");
    let life = end.time_unix_nano - begin.time_unix_nano;
    assert!(progresses.len() as u64 <= life / interval, "{} in {life} ns", progresses.len());

    let mut exact = 0;
    let mut before = [0; COUNTERS.len()];
    for log in &progresses {
        let a = flat(&log.attributes);
        let got = COUNTERS.map(|key| int(&a, key));
        exact += usize::from(check_counters(log, got, standings, role));
        let falls = (0..ADDS_UP).find(|n| got[*n] < before[*n]);
        assert_eq!(falls.map(|n| COUNTERS[n]), None, "{got:?} after {before:?}");
        before = got;
        assert_eq!(a["flowend.start_known"], Value::BoolValue(true));
        let since_us = (log.time_unix_nano - begin.time_unix_nano).cast_signed() / 1000;
        // The begin is told at the establishment, the duration from the SYN.
        let handshake_us = int(&a, "flowend.rtt.handshake_us");
        let duration = int(&a, "flowend.duration_us");
        assert!(
            (since_us..=since_us + handshake_us + 1000).contains(&duration),
            "{duration} {since_us}"
        );
        check_open(&a);
    }
    assert!(exact > 0, "no progress while nothing moved: {standings:?}");
    let a = flat(&end.attributes);
    let last = standings[standings.len() - 1].counters[role as usize];
    assert_eq!(["flowend.bytes.sent", "flowend.bytes.received"].map(|k| int(&a, k)), last[..2]);
}

/// Whether the counters are those that the application had at that moment, and nothing moved then; fails if
/// they are not between those before and those after.
fn check_counters(log: &LogRecord, got: Counters, standings: &[Standing], role: Role) -> bool {
    let at = log.time_unix_nano;
    let of = |standing: &Standing| standing.counters[role as usize];
    let least = standings.iter().rev().find(|s| s.moved.1 + nanos(LOOK) <= at).map(of);
    let most = standings.iter().rev().find(|s| s.moved.0 <= at).map(of).expect("it was open");
    if least == Some(most) {
        assert_eq!(got, most, "{role:?}: {COUNTERS:?}: {log:?}");
        return true;
    }
    let least = least.unwrap_or_default();
    for n in 0..ADDS_UP {
        let range = least[n]..=most[n];
        assert!(range.contains(&got[n]), "{role:?}: {} {} not in {range:?}", COUNTERS[n], got[n]);
    }
    false
}

/// An open connection was not ended by anyone.
fn check_open(a: &Attributes) {
    let of_ends = ["flowend.end.by", "flowend.end.reason", "flowend.conn_state", "source.address"];
    for key in of_ends {
        assert!(!a.contains_key(key), "{key}: {a:?}");
    }
}

/// One that is older than flowend reports progress from its first sight, with all that was moved before.
fn check_older(received: &Received, conn: &Conn, role: Role) {
    let progresses = of(received, "progress", conn.addresses(role));
    assert!(progresses.len() >= 2, "{role:?}: {} progresses", progresses.len());
    let (sent, got) = if role == Client { (conn.up, conn.down) } else { (conn.down, conn.up) };
    for log in &progresses {
        let a = flat(&log.attributes);
        let direction = if role == Client { "outgoing" } else { "incoming" };
        assert_eq!(text(&a, "flowend.connection.direction"), direction, "{log:?}");
        assert_eq!(a["flowend.start_known"], Value::BoolValue(false), "{log:?}");
        assert!(!a.contains_key("flowend.duration_us"), "nobody saw its start: {log:?}");
        let bytes = ["flowend.bytes.sent", "flowend.bytes.received"].map(|key| int(&a, key));
        assert_eq!(bytes.map(|n| usize::try_from(n).expect("not negative")), [sent, got]);
        check_open(&a);
    }
}

/// All records of a socket have the ids of its span.
fn check_ids(received: &Received, (local, peer): (std::net::SocketAddr, std::net::SocketAddr)) {
    let (logs, spans) = of_socket(received, local, peer);
    let [span] = spans.as_slice() else { panic!("{} spans of {local}, {peer}", spans.len()) };
    let ids = (&span.item.trace_id, &span.item.span_id);
    for log in &logs {
        assert_eq!((&log.item.trace_id, &log.item.span_id), ids, "{:?}", log.item);
        assert_eq!(
            log.item.severity_text == "WARN",
            log.item.event_name == "flowend.tcp.end"
                && flat(&log.item.attributes).contains_key("error.type")
        );
    }
}

/// A line for each kind of log record, one for the spans, and all that was sent is there.
fn check_ledger(received: &Received, messages: &str) {
    let lines: Vec<&str> =
        messages.lines().filter_map(|line| Some(&line[line.find("otlp.")?..])).collect();
    let lines: Vec<&str> = lines.into_iter().filter(|line| line.contains(": seen ")).collect();
    let count = |kind| {
        let name = format!("flowend.tcp.{kind}");
        received.logs.iter().filter(|log| log.item.event_name == name).count()
    };
    let line = |output: &str, n: usize| {
        format!(
            "{output}: seen {n} = exported {n} + sampled_out 0 + filtered{{self}} 0 + in_flight 0"
        )
    };
    let want = [
        line("otlp.logs", ENDS),
        line("otlp.logs begin", 4),
        line("otlp.logs progress", count("progress")),
        line("otlp.traces", ENDS),
    ];
    assert_eq!(lines, want, "{messages}");
    assert_eq!((count("end"), count("begin")), (ENDS, 4));
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a short time")
}
