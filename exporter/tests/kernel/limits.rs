//! More connections than the flow table may hold: the longest idle are forgotten, and each of them still
//! has its one record.

use std::time::{Duration, Instant};

use super::connections::Role::{Client, Server};
use super::json::{Line, lines, of, wait_for_each};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};
use super::ways::{Conn, Pair, Seen, WAYS, sockets};

/// Sockets that the table holds.
const MAX: usize = 10;
const CONNECTIONS: usize = 25;
/// Both ends are watched.
const SOCKETS: usize = 2 * CONNECTIONS;

/// How soon a look is taken after the FIN of a connection that was forgotten.
const LOOK: Duration = Duration::from_secs(1);
/// A record too many is there by then: longer than a verdict waits.
const GRACE: Duration = Duration::from_millis(1500);

fn start(cgroup: &Cgroup, settings: &[&str]) -> Flowend {
    let (target, max) = (format!("targets={}", cgroup.name), format!("flows.max={MAX}"));
    let mut args = vec!["--output=json", "--set", &target, "--set", &max];
    for setting in settings {
        args.extend(["--set", *setting]);
    }
    Flowend::run(&args)
}

/// Connections that are all open at the end of it, some of them half-closed.
fn open_all(pair: &mut Pair) -> Vec<Conn> {
    let ways = WAYS.iter().cycle().take(CONNECTIONS);
    ways.map(|way| {
        let conn = pair.open(*way);
        pair.half_close(&conn);
        conn
    })
    .collect()
}

fn pair(cgroup: &Cgroup) -> Pair {
    Pair::new(Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup), "127.0.0.1:0")
}

/// Each end is there once and true; how many have an unknown start.
fn assert_each_once(conns: &[Conn], lines: &[Line], flowend: &Flowend) -> usize {
    let mut wrong = Vec::new();
    let mut unknown = 0;
    for conn in conns {
        for role in [Client, Server] {
            let ends = of(lines, "end", conn.addresses(role));
            let [end] = ends.as_slice() else {
                wrong.push(format!("{role:?} of {conn:?}: {} records", ends.len()));
                continue;
            };
            unknown += usize::from(!end.start_known());
            let seen = if end.start_known() { Seen::Whole } else { Seen::End };
            // Processes are remembered of as many sockets as the table holds; the listener is not among them.
            let lacks = |words: &String| words.contains("process.pid None") && role == Server;
            wrong.extend(conn.problems(role, end, seen).into_iter().filter(|words| !lacks(words)));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), flowend.stderr());
    let ends = lines.iter().filter(|line| line.kind() == "end").count();
    assert_eq!(ends, 2 * conns.len(), "records of nobody's connections");
    unknown
}

/// How many were forgotten, by flowend's own words.
fn forgotten(messages: &str) -> usize {
    let words = " connections forgotten because flows.max was reached";
    let count = |line: &str| line.split_once(words)?.0.rsplit(' ').next()?.parse::<usize>().ok();
    messages.lines().filter_map(count).sum()
}

#[test]
fn past_the_limit_each_end_is_still_reported_once() {
    if !can_run("past_the_limit_each_end_is_still_reported_once", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    // No look but those that are asked for.
    let flowend = start(&cgroup, &["flows.look_interval=1h"]);
    let mut pair = pair(&cgroup);
    let mut conns = open_all(&mut pair);

    // The last ones are known. They go first: then there is room for the others to come back in.
    let known_from = CONNECTIONS - MAX / 2;
    let (older, known) = conns.split_at_mut(known_from);
    known.iter_mut().for_each(|conn| pair.end(conn));
    let start = Instant::now();
    older.iter_mut().for_each(|conn| pair.end(conn));
    let took = start.elapsed();
    wait_for_each(&flowend, "end", &sockets(&conns));
    std::thread::sleep(GRACE);

    let lines = lines(&flowend);
    let unknown = assert_each_once(&conns, &lines, &flowend);
    for (n, conn) in conns.iter().enumerate() {
        for role in [Client, Server] {
            let is_known = of(&lines, "end", conn.addresses(role))[0].start_known();
            assert_eq!(is_known, n >= known_from, "connection {n}, {role:?}");
        }
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert_eq!(unknown, SOCKETS - MAX);
    // Slower than that, and a look finds some of them again while others close: those may be forgotten twice.
    if took < LOOK {
        assert_eq!(forgotten(&messages), unknown, "{messages}");
    } else {
        assert!(forgotten(&messages) >= unknown, "{messages}");
    }
    let ledger =
        format!("json: seen {SOCKETS} = exported {SOCKETS} + sampled_out 0 + filtered{{self}} 0");
    assert!(messages.contains(&ledger), "{messages}");
}

/// A progress of each connection that a look has found.
fn found_again(flowend: &Flowend) -> Vec<Line> {
    let is_found = |line: &Line| line.kind() == "progress" && !line.start_known();
    let mut found: Vec<_> = lines(flowend).into_iter().filter(is_found).collect();
    found.sort_by_key(Line::socket);
    found.dedup_by_key(|line| line.socket());
    found
}

#[test]
fn forgotten_connections_are_found_again_where_there_is_room() {
    if !can_run("forgotten_connections_are_found_again_where_there_is_room", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let flowend = start(
        &cgroup,
        &["flows.look_interval=100ms", r#"events=["end", "progress"]"#, "progress.interval=1s"],
    );
    let mut pair = pair(&cgroup);
    let mut conns = open_all(&mut pair);
    let (older, known) = conns.split_at_mut(CONNECTIONS - MAX / 2);
    // A full table stays as it is, whatever the looks find: its connections report progress, no others do.
    wait_for_each(&flowend, "progress", &sockets(&*known));
    for line in lines(&flowend) {
        assert!(line.start_known(), "{line:?}");
        assert!(sockets(&*known).contains(&line.socket()), "{line:?}");
    }

    known.iter_mut().for_each(|conn| pair.end(conn));
    let many = || found_again(&flowend).len();
    wait_until(|| many() >= MAX, || format!("{} found; {}", many(), flowend.stderr()));
    let found = found_again(&flowend);
    assert_eq!(found.len(), MAX, "no more than there is room for");
    for line in found {
        let direction = line.text("flowend.connection.direction");
        let is_end = |role, want| {
            direction == Some(want) && older.iter().any(|c| c.addresses(role) == line.socket())
        };
        assert!(is_end(Client, "outgoing") || is_end(Server, "incoming"), "{line:?}");
    }

    older.iter_mut().for_each(|conn| pair.end(conn));
    wait_for_each(&flowend, "end", &sockets(&conns));
    std::thread::sleep(GRACE);
    let unknown = assert_each_once(&conns, &lines(&flowend), &flowend);
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert_eq!(unknown, SOCKETS - MAX);
    assert!(forgotten(&messages) >= unknown, "found ones may be forgotten again: {messages}");
}
