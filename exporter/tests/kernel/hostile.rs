//! Workloads that do their worst (testing/hostile.rs), each in a cgroup beside a quiet one: every connection of
//! the quiet one has its record, whole and right, memory stays within its bound, and what was lost is counted.

use std::collections::HashSet;
use std::io::Read as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::connections::Role::{Client, Server};
use super::json::{Line, of};
use super::losses::Frozen;
use super::support::{Cgroup, Flowend, Killed, Netns, Puppet, can_run, parse, wait_until};
use super::ways::{Conn, Pair, Seen, WAYS, sockets};

/// Small, so that every bound is reached in seconds.
const RING_BYTES: u64 = 1 << 20;
const MAX_FLOWS: u64 = 1000;
const QUEUE_RECORDS: u64 = 500;
const CACHE_BYTES: u64 = 1 << 20;

/// What one connection takes beside its place in the table: names, process, its place in its cgroup's lists, and a
/// half-open one; and a record in a queue (docs/performance.md).
const FLOW_BYTES: u64 = 2048;
const RECORD_BYTES: u64 = 2600;
/// The same for all: connections reported a moment ago, errors, events put in order, and the allocator's own.
const OVERHEAD: u64 = 16 << 20;

/// Rounds of the quiet workload's connections, one of each way to end: at least, and at most.
const ROUNDS: std::ops::Range<usize> = 5..100;
/// Rounds that flowend may still have to report while another one is made. A quiet workload has few connections at
/// a time, however slow flowend is on this machine, and however fast the puppets are.
const AHEAD: usize = 3;

/// Only the quiet workload's connections have an address that begins so.
const QUIET_NET: &str = "127.0.7.";
const QUIET_SERVER: &str = "127.0.7.1:0";
const NAME_SERVER: &str = "127.0.0.8:53";
/// What the puppet asks for.
const NAME: &str = "n00000000.flood.test";

/// A name server for the quiet workload: everything is at its server's address.
struct NameServer {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    fn new(netns: &Netns) -> Self {
        let socket = netns.inside(|| UdpSocket::bind(NAME_SERVER)).expect("port 53");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut room = [0; 512];
            while !is_done.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut room) else { continue };
                let mut answer = room[..length].to_vec();
                // An answer without error, with one record (RFC 1035, section 4.1.1).
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[6..8].copy_from_slice(&[0, 1]);
                // The question's name, A, IN, a minute, 127.0.7.1.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 7, 1]);
                socket.send_to(&answer, from).expect("an answer");
            }
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A quiet workload and a hostile one, each in a cgroup and a network namespace of its own.
struct Site {
    flowend: Flowend,
    pair: Pair,
    /// By which the quiet client looks names up.
    resolver: u32,
    made: Vec<Conn>,
    /// Sockets of the quiet workload whose end was told, and how much of flowend's stdout tells them, bytes.
    told: (HashSet<(SocketAddr, SocketAddr)>, usize),
    /// The most memory of its own that flowend had, bytes; and how much it had at first.
    memory: (u64, u64),
    _name_server: NameServer,
    quiet: Cgroup,
    hostile: Cgroup,
    netns: [Netns; 2],
}

impl Site {
    /// `reported`: whether the hostile one's connections make records, too.
    fn new(reported: bool) -> Self {
        let (quiet, hostile) = (Cgroup::new(), Cgroup::new());
        let netns = [Netns::new(), Netns::new()];
        // Addresses from which nobody answers.
        netns[1].ip(&["route", "add", "10.0.0.0/8", "dev", "lo"]);
        // Watched all the same: what is excluded as a whole has no programs.
        let dropped = format!("[{{cgroups=[\"{}\"],action=\"drop\"}}]", hostile.name);
        let rules =
            format!("--set=sampling.rules={}", if reported { "[]" } else { dropped.as_str() });
        let flowend = Flowend::run(&[
            "--output=json",
            &rules,
            &format!("--set=targets={},{}", quiet.name, hostile.name),
            &format!("--set=ring.bytes={RING_BYTES}"),
            &format!("--set=flows.max={MAX_FLOWS}"),
            &format!("--set=export.queue_records={QUEUE_RECORDS}"),
            &format!("--set=dns.cache_bytes={CACHE_BYTES}"),
        ]);
        let puppet = || {
            let netns = netns[0].file();
            Puppet::start(&["--cgroup".as_ref(), &quiet.folder, "--netns".as_ref(), &netns])
        };
        let mut pair = Pair::new(puppet(), puppet(), QUIET_SERVER);
        let resolver = parse(&pair.client.tell("udp 127.0.7.2:0")).id;
        let memory = own_memory(&flowend);
        Self {
            flowend,
            pair,
            resolver,
            made: Vec::new(),
            told: (HashSet::new(), 0),
            memory: (memory, memory),
            _name_server: NameServer::new(&netns[0]),
            quiet,
            hostile,
            netns,
        }
    }

    fn attack(&self, kind: &str, n: u32) -> Killed {
        let program = std::env::current_exe().expect("own path");
        let folder = program.ancestors().nth(2).expect("target folder");
        let child = Command::new(folder.join("examples/hostile"))
            .args([&self.hostile.folder, &self.netns[1].file()])
            .args([kind, &n.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("examples/hostile: {error}; `cargo build --examples` builds it")
            });
        Killed(child)
    }

    /// A connection of each way to end, each after a lookup; all are open.
    fn open(&mut self) -> Vec<Conn> {
        WAYS.map(|way| {
            self.pair.client.tell(&format!("udp-look-up {} {NAME_SERVER} 1", self.resolver));
            let conn = self.pair.open(way);
            self.pair.half_close(&conn);
            conn
        })
        .into()
    }

    fn end(&mut self, mut conns: Vec<Conn>) {
        conns.iter_mut().for_each(|conn| self.pair.end(conn));
        self.made.extend(conns);
        self.memory.0 = self.memory.0.max(own_memory(&self.flowend));
    }

    /// Waits until flowend is no more than [`AHEAD`] rounds behind.
    fn wait_for_a_record(&mut self) {
        let Some(from) = self.made.len().checked_sub(AHEAD * WAYS.len()) else { return };
        let wanted = sockets(&self.made[from..from + WAYS.len()]);
        let (told, read) = &mut self.told;
        let flowend = &self.flowend;
        wait_until(
            || {
                let text = flowend.stdout_from(*read);
                *read += text.len();
                let ends = quiet_lines(&text).filter(|line| line.kind() == "end");
                told.extend(ends.map(|line| line.socket()));
                wanted.iter().any(|socket| told.contains(socket))
            },
            || format!("no records of {wanted:?}; {}", flowend.stderr()),
        );
    }

    /// The records of the quiet workload, without reading the others.
    fn lines(&self) -> Vec<Line> {
        quiet_lines(&self.flowend.stdout_from(0)).collect()
    }

    /// Each connection of the quiet workload has its record, and the rest holds, too. flowend's own messages.
    fn check(mut self) -> String {
        let wanted = sockets(&self.made);
        let missing = |lines: &[Line]| -> Vec<(SocketAddr, SocketAddr)> {
            let all = wanted.iter();
            all.filter(|socket| of(lines, "end", **socket).is_empty()).copied().collect()
        };
        let mut lines = self.lines();
        wait_until(
            || {
                lines = self.lines();
                missing(&lines).is_empty()
            },
            || format!("no records of {:?}; {}", missing(&self.lines()), self.flowend.stderr()),
        );
        let mut wrong = Vec::new();
        for conn in &self.made {
            for role in [Client, Server] {
                let ends = of(&lines, "end", conn.addresses(role));
                wrong.extend(
                    (ends.len() != 1).then(|| format!("{} records of {conn:?}", ends.len())),
                );
                wrong.extend(ends.iter().flat_map(|end| conn.problems(role, end, Seen::Whole)));
                wrong.extend(
                    ends.iter()
                        .filter(|end| !end.start_known())
                        .map(|end| format!("start unknown: {end:?}")),
                );
            }
            let end = of(&lines, "end", conn.addresses(Client))[0];
            let by_server = end.text("flowend.end.by") == Some("remote");
            let side = if by_server { "source" } else { "destination" };
            let names = &end.0["attributes"][format!("flowend.{side}.domains")];
            wrong.extend((names[0] != NAME).then(|| format!("{side} is not {NAME}: {end:?}")));
        }
        self.memory.0 = self.memory.0.max(own_memory(&self.flowend));
        let (highest, before) = self.memory;
        let bound = MAX_FLOWS * FLOW_BYTES + QUEUE_RECORDS * RECORD_BYTES + CACHE_BYTES + OVERHEAD;
        assert!(highest <= before + bound, "{highest} bytes, {before} at first");
        // It adds up: that is asserted there.
        let (status, messages) = self.flowend.stop();
        assert!(wrong.is_empty(), "{} wrong:\n{}\n{messages}", wrong.len(), wrong.join("\n"));
        assert_eq!(status, Some(0), "{messages}");
        let lost: Vec<_> = messages.lines().filter(|line| line.contains("by cgroup: ")).collect();
        let of_quiet = format!("of {} ", self.quiet.name);
        assert!(!lost.iter().any(|line| line.contains(&of_quiet)), "{messages}");
        messages
    }
}

fn quiet_lines(whole: &str) -> impl Iterator<Item = Line> {
    let ours = whole.lines().filter(|line| line.contains(QUIET_NET));
    ours.map(|line| Line(serde_json::from_str(line).expect("JSON")))
}

/// Memory of a process's own, bytes: without the ring, which is shared with the kernel.
fn own_memory(flowend: &Flowend) -> u64 {
    let file = format!("/proc/{}/status", flowend.pid());
    let status = std::fs::read_to_string(&file).expect(&file);
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("RssAnon");
    let kilobytes = line.trim().strip_suffix(" kB").and_then(|n| n.parse::<u64>().ok());
    kilobytes.expect("a number of kB") * 1024
}

/// The quiet workload goes on while the hostile one does its worst. flowend's messages, and the attacker's words.
fn under(test: &str, kind: &str, n: u32) -> Option<(String, String)> {
    can_run(test, &["ip"]).then(|| go_on(Site::new(true), kind, n))
}

fn go_on(mut site: Site, kind: &str, n: u32) -> (String, String) {
    let stay = site.open();
    let mut attack = site.attack(kind, n);
    let mut rounds = 0;
    let status = loop {
        if rounds < ROUNDS.end {
            let conns = site.open();
            site.end(conns);
            site.wait_for_a_record();
            rounds += 1;
        } else {
            site.memory.0 = site.memory.0.max(own_memory(&site.flowend));
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = attack.0.try_wait().expect("wait");
        if let Some(status) = status.filter(|_| rounds >= ROUNDS.start) {
            break status;
        }
    };
    assert!(status.success(), "{kind}: {status}");
    let mut said = String::new();
    attack.0.stdout.as_mut().expect("stdout").read_to_string(&mut said).expect("its words");
    // Open through all of it.
    site.end(stay);
    (site.check(), said)
}

/// The lines of the ledger, and what stands for losses, on stderr of the test: figures for the documents.
fn tell(kind: &str, messages: &str) {
    use std::io::Write as _;
    let words = ["seen ", "events lost", "by cgroup", "forgotten", "not reported"];
    for line in messages.lines().filter(|line| words.iter().any(|word| line.contains(word))) {
        // Not eprintln: the harness would keep it to itself.
        let _ = writeln!(std::io::stderr(), "{kind}: {line}");
    }
}

#[test]
fn many_short_connections_cost_no_other_record() {
    if let Some((messages, _)) =
        under("many_short_connections_cost_no_other_record", "churn", 50_000)
    {
        tell("churn", &messages);
    }
}

/// Run by hand: `cargo test --release -p flowend --test kernel -- --ignored a_million_short`.
#[test]
#[ignore = "a million connections take minutes"]
fn a_million_short_connections_cost_no_other_record() {
    let test = "a_million_short_connections_cost_no_other_record";
    if !can_run(test, &["ip"]) {
        return;
    }
    // Two million records would be most of the work, and of the test's memory.
    let (messages, _) = go_on(Site::new(false), "churn", 1_000_000);
    tell("a million", &messages);
    assert!(messages.contains("filtered{rule} "), "{messages}");
}

#[test]
fn a_storm_of_resets_costs_no_other_record() {
    if let Some((messages, _)) = under("a_storm_of_resets_costs_no_other_record", "resets", 20_000)
    {
        tell("resets", &messages);
    }
}

#[test]
fn a_full_table_forgets_the_connections_of_whoever_holds_most() {
    let test = "a_full_table_forgets_the_connections_of_whoever_holds_most";
    if let Some((messages, _)) = under(test, "hold", 2000) {
        tell("hold", &messages);
        // Both ends of 2,000, and there is room for 1,000.
        assert!(
            messages.contains("connections forgotten because flows.max was reached"),
            "{messages}"
        );
        assert!(messages.contains("connections of /flowend-test-"), "{messages}");
    }
}

#[test]
fn a_scan_costs_no_other_record() {
    if let Some((messages, _)) = under("a_scan_costs_no_other_record", "scan", 20_000) {
        tell("scan", &messages);
    }
}

#[test]
fn a_syn_flood_costs_no_other_record() {
    if let Some((messages, _)) = under("a_syn_flood_costs_no_other_record", "syn", 50_000) {
        tell("syn", &messages);
        assert!(messages.contains("a SYN flood?"), "more than flows.max wait: {messages}");
        assert!(messages.contains("handshakes of /flowend-test-"), "{messages}");
    }
}

#[test]
fn forged_resets_and_fins_end_nothing() {
    if let Some((messages, said)) = under("forged_resets_and_fins_end_nothing", "rst", 20_000) {
        tell("rst", &messages);
        assert_eq!(said.split_whitespace().count(), 2, "{said}");
    }
}

#[test]
fn headers_full_of_options_cost_no_other_record() {
    let test = "headers_full_of_options_cost_no_other_record";
    if let Some((messages, _)) = under(test, "options", 20_000) {
        tell("options", &messages);
    }
}

/// With nobody who reads it, the ring is as full as one cgroup can make it. There is room for another's events.
#[test]
fn a_ring_full_of_one_cgroups_events_has_room_for_anothers() {
    if !can_run("a_ring_full_of_one_cgroups_events_has_room_for_anothers", &["ip"]) {
        return;
    }
    let mut site = Site::new(true);
    let stay = site.open();
    let frozen = Frozen::new(&site.flowend);
    // Some 4 MiB of events.
    for kind in ["churn", "syn", "options"] {
        assert!(site.attack(kind, 2000).0.wait().expect("wait").success(), "{kind}");
    }
    for _ in 0..2 {
        let conns = site.open();
        site.end(conns);
    }
    site.end(stay);
    drop(frozen);
    let hostile = format!("of {} ", site.hostile.name);
    let messages = site.check();
    tell("frozen", &messages);
    assert!(messages.contains("the ring was full: events lost: "), "{messages}");
    let line = messages.lines().find(|line| line.contains("by cgroup: ")).unwrap_or_default();
    assert!(line.contains("events of") && line.contains(&hostile), "{messages}");
}
