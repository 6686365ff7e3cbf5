//! Events that the ring had no room for: they make records late, and never wrong, double or absent for a
//! connection that flowend has heard of.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::connections::Role::{self, Client, Server};
use super::json::{Line, lines, of, wait_for_each};
use super::stress::plan::{Planned, SERVER};
use super::stress::{load, serve};
use super::support::{Cgroup, Flowend, Netns, Puppet, can_run, step, wait_until};
use super::ways::{self, Conn, Pair, Seen, WAYS, Way};

/// The smallest ring: it holds 26 events, fewer than two connections make.
const RING: &str = "ring.bytes=4096";
/// Connections that make more events than the ring holds, many times over.
const FILLERS: usize = 10;
/// A record too many is there by then: the looks are over, and a SYN-ACK whose ACK was lost is given up.
const GRACE: Duration = Duration::from_secs(5);

/// Two network namespaces, with a client and a server each, all in one cgroup, and flowend outside.
struct Arena {
    pairs: [Pair; 2],
    flowend: Flowend,
    /// Dropped last: the puppets are in them.
    cgroup: Cgroup,
    netns: [Netns; 2],
}

impl Arena {
    fn new() -> Self {
        let (cgroup, netns) = (Cgroup::new(), [Netns::new(), Netns::new()]);
        let flowend = Flowend::run(&[
            "--output=json",
            "--set",
            &format!("targets={}", cgroup.name),
            "--set",
            RING,
            "--set=flows.look_interval=1s",
            "--set",
            r#"events=["end", "progress"]"#,
            "--set=progress.interval=1s",
        ]);
        // The addresses tell the namespaces apart.
        let pairs =
            [(&netns[0], "127.0.0.2:0"), (&netns[1], "127.0.0.3:0")].map(|(netns, host)| {
                let puppet = || {
                    let (cgroup, netns) = (&cgroup.folder, netns.file());
                    Puppet::start(&["--cgroup".as_ref(), cgroup, "--netns".as_ref(), &netns])
                };
                Pair::new(puppet(), puppet(), host)
            });
        Self { pairs, flowend, cgroup, netns }
    }

    /// A connection of each way to end, in both namespaces; no faster than `pace`.
    fn open(&mut self, pace: impl Fn()) -> Vec<(usize, Conn)> {
        let pairs = self.pairs.iter_mut().enumerate();
        pairs
            .flat_map(|(n, pair)| {
                WAYS.map(|way| {
                    let conn = pair.open(way);
                    pair.half_close(&conn);
                    pace();
                    (n, conn)
                })
            })
            .collect()
    }

    fn end(&mut self, conns: &mut [(usize, Conn)]) {
        conns.iter_mut().for_each(|(n, conn)| self.pairs[*n].end(conn));
    }

    /// Connections that begin and end, so that there is no room left in the ring of a flowend that stands still.
    fn fill(&mut self) -> Vec<(usize, Conn)> {
        let pairs = self.pairs.iter_mut().enumerate();
        pairs
            .flat_map(|(n, pair)| {
                (0..FILLERS)
                    .map(|_| {
                        let mut conn = pair.open(Way::Closed(Client));
                        pair.end(&mut conn);
                        (n, conn)
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

/// A flowend that stands still: SIGSTOP until this is dropped.
pub(super) struct Frozen(Pid);

impl Frozen {
    pub(super) fn new(flowend: &Flowend) -> Self {
        let pid = flowend.pid();
        let frozen = Self(Pid::from_raw(pid.cast_signed()));
        kill(frozen.0, Signal::SIGSTOP).expect("SIGSTOP");
        let tasks = || fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
        let is_still = |task: std::io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.expect("a thread").path().join("stat"));
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T')))
        };
        wait_until(|| tasks().all(is_still), || "it does not stand still".into());
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).expect("SIGCONT");
    }
}

fn sockets(conns: &[(usize, Conn)]) -> Vec<(SocketAddr, SocketAddr)> {
    ways::sockets(conns.iter().map(|(_, conn)| conn))
}

/// What is wrong with the ends of these connections; `at_least` for each.
fn wrong(conns: &[(usize, Conn)], lines: &[Line], at_least: usize) -> Vec<String> {
    let mut wrong = Vec::new();
    for (_, conn) in conns {
        for role in [Client, Server] {
            let ends = of(lines, "end", conn.addresses(role));
            if ends.len() < at_least || ends.len() > 1 {
                wrong.push(format!("{role:?} of {conn:?}: {} records", ends.len()));
            }
            wrong.extend(ends.iter().flat_map(|end| conn.problems(role, end, Seen::Parts)));
        }
    }
    wrong
}

fn assert_lost(flowend: Flowend) {
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert!(messages.contains("the ring was full: events lost: "), "{messages}");
    assert!(messages.contains("raise ring.bytes"), "{messages}");
}

#[test]
fn what_a_burst_hides_is_told_late_and_once() {
    if !can_run("what_a_burst_hides_is_told_late_and_once", &["ip"]) {
        return;
    }
    let mut arena = Arena::new();
    let (mut stay, mut hidden) = (arena.open(step), arena.open(step));
    wait_for_each(&arena.flowend, "progress", &sockets(&hidden));

    // Their ends are lost, and the beginnings of others.
    let frozen = Frozen::new(&arena.flowend);
    let mut fillers = arena.fill();
    arena.end(&mut hidden);
    let (mut unborn, mut twice_hidden) = (arena.open(|| ()), arena.open(|| ()));
    drop(frozen);
    wait_for_each(&arena.flowend, "end", &sockets(&hidden));
    // Found by looks alone.
    wait_for_each(&arena.flowend, "progress", &sockets(&unborn));
    wait_for_each(&arena.flowend, "progress", &sockets(&twice_hidden));

    // These have neither a beginning nor an end.
    let frozen = Frozen::new(&arena.flowend);
    fillers.extend(arena.fill());
    arena.end(&mut twice_hidden);
    drop(frozen);
    wait_for_each(&arena.flowend, "end", &sockets(&twice_hidden));

    let before = lines(&arena.flowend);
    for conns in [&stay, &unborn] {
        for socket in sockets(conns) {
            assert!(of(&before, "end", socket).is_empty(), "{socket:?} is open");
        }
    }
    for conn in stay.iter_mut().chain(&mut unborn) {
        arena.end(std::slice::from_mut(conn));
        // No faster than the ring is read.
        wait_for_each(&arena.flowend, "end", &sockets(std::slice::from_ref(conn)));
    }
    std::thread::sleep(GRACE);

    let lines = lines(&arena.flowend);
    let groups = [(&stay, 1), (&hidden, 1), (&unborn, 1), (&twice_hidden, 1), (&fillers, 0)];
    let mut problems: Vec<String> =
        groups.iter().flat_map(|(conns, at_least)| wrong(conns, &lines, *at_least)).collect();
    for (conns, known) in [(&stay, true), (&hidden, true), (&unborn, false), (&twice_hidden, false)]
    {
        for socket in sockets(conns) {
            let told = of(&lines, "end", socket).iter().all(|end| end.start_known() == known);
            problems.extend((!told).then(|| format!("{socket:?}: start_known is not {known}")));
        }
    }
    let ours: Vec<_> = groups.iter().flat_map(|(conns, _)| sockets(conns)).collect();
    problems.extend(
        lines.iter().filter(|l| !ours.contains(&l.socket())).map(|l| format!("nobody's: {l:?}")),
    );
    assert!(problems.is_empty(), "{} wrong:\n{}", problems.len(), problems.join("\n"));
    assert_lost(arena.flowend);
}

/// What is wrong with the records of the load's connections: one each at most, and none says what is not so.
fn wrong_of_load(lines: &[Line], connections: u32) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for line in lines {
        let (local, peer) = line.socket();
        let (role, planned) = match (local, peer) {
            (client, SERVER) => (Client, Planned::of_client(client)),
            (SERVER, client) => (Server, Planned::of_client(client)),
            _ => continue,
        };
        let planned = planned.filter(|p| p.number < connections && usize::from(p.round) < 2);
        let Some(planned) = planned else {
            wrong.push(format!("nobody's connection: {line:?}"));
            continue;
        };
        if line.kind() == "end" && !seen.insert(line.socket()) {
            wrong.push(format!("a second record: {line:?}"));
        }
        wrong.extend(wrong_of_planned(planned, role, line));
    }
    wrong
}

fn wrong_of_planned(planned: Planned, role: Role, line: &Line) -> Vec<String> {
    let is_client = role == Client;
    let (up, down) = (planned.up().cast_signed() as i64, planned.down().cast_signed() as i64);
    let (sent, received) = if is_client { (up, down) } else { (down, up) };
    let by = if planned.client_closes() == is_client { "local" } else { "remote" };
    let mut wrong = Vec::new();
    for (key, words) in [
        (
            "flowend.connection.direction",
            [if is_client { "outgoing" } else { "incoming" }, "unknown"],
        ),
        ("flowend.end.by", [by, "none"]),
        ("flowend.end.reason", ["fin", "vanished"]),
    ] {
        let is_right = line.text(key).is_none_or(|got| words.contains(&got));
        wrong.extend((!is_right).then(|| format!("{key} is not one of {words:?}: {line:?}")));
    }
    let ends = [("flowend.bytes.sent", sent), ("flowend.bytes.received", received)];
    for (key, want) in ends.into_iter().filter(|_| line.kind() == "end") {
        let is_right = line.int(key).is_none_or(|got| got == want);
        wrong.extend((!is_right).then(|| format!("{key} is not {want}: {line:?}")));
    }
    for key in ["flowend.end.reset_by", "error.type"] {
        wrong.extend(line.text(key).map(|got| format!("{key} {got}: {line:?}")));
    }
    wrong
}

#[test]
fn under_a_load_past_the_ring_no_record_is_double_or_wrong() {
    const CONNECTIONS: u32 = 300;
    if !can_run("under_a_load_past_the_ring_no_record_is_double_or_wrong", &["ip"]) {
        return;
    }
    let mut arena = Arena::new();
    let (mut stay, mut close) = (arena.open(step), arena.open(step));
    // Begun without a loss: only then is it certain that flowend has heard of them.
    wait_for_each(&arena.flowend, "progress", &[sockets(&stay), sockets(&close)].concat());

    let servers = [0, 1].map(|n| serve(&arena.cgroup, &arena.netns[n]));
    let clients = [0, 1].map(|n| {
        let round = n.to_string();
        let args = ["client", "4", &round, "0", &CONNECTIONS.to_string()];
        super::support::Killed(load(&arena.cgroup, &arena.netns[n], &args))
    });
    arena.end(&mut close);
    for mut client in clients {
        assert!(client.0.wait().expect("wait").success());
    }
    wait_for_each(&arena.flowend, "end", &sockets(&close));
    for conn in &mut stay {
        arena.end(std::slice::from_mut(conn));
        wait_for_each(&arena.flowend, "end", &sockets(std::slice::from_ref(conn)));
    }
    std::thread::sleep(GRACE);
    drop(servers);

    let lines = lines(&arena.flowend);
    let mut problems = wrong(&stay, &lines, 1);
    problems.extend(wrong(&close, &lines, 1));
    problems.extend(wrong_of_load(&lines, CONNECTIONS));
    assert!(problems.is_empty(), "{} wrong:\n{}", problems.len(), problems.join("\n"));
    assert_lost(arena.flowend);
}
