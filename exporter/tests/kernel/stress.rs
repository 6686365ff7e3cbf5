//! Connections as fast as two cores can open and close them: each end is reported once and truly.
//!
//! `cargo xtask stress` is the whole of it: 100,000 connections twice, with the release build of flowend
//! that TEST_FLOWEND names. A plain `cargo test` makes as many as a debug build takes in within seconds.

#[path = "../../testing/plan.rs"]
pub(crate) mod plan;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flowend::demo::Receiver;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;

use super::support::{Cgroup, Flowend, Killed, Netns, can_run};
use super::telemetry;
use plan::{Planned, SERVER};

const ROUNDS: u8 = 2;
const THREADS: &str = "8";

/// Connections of each round, unless TEST_CONNECTIONS says more.
const CONNECTIONS: u32 = 1_500;

/// Connections made in one go. The next ones wait until flowend has seen the ends of those before these: what is asked is
/// whether an end is lost or wrong, and not whether a thread that reads beside fifteen others that are busy, on
/// two cores, can keep up with them.
const PART: u32 = 10_000;

/// Room for two parts and more, with about 14 events for each connection, in what the shares of the two cgroups leave of it.
const RING_BYTES: u64 = 1 << 27;

/// The default of flows.max.
const MAX_FLOWS: u64 = 262_144;

/// When nothing has come for so long, nothing more will.
const QUIET: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Logs,
    Spans,
}

/// How often each end was reported by each signal, and what was wrong.
struct Tally {
    connections: u32,
    times: Vec<u8>,
    reports: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn new(connections: u32) -> Self {
        let ends = usize::from(ROUNDS) * connections as usize * 2;
        Self { connections, times: vec![0; ends * 2], reports: 0, wrong: Vec::new() }
    }

    /// The reports that there must be.
    fn expected(&self) -> usize {
        self.times.len()
    }

    /// Takes in what has come since the last time. Says whether anything has.
    fn take(&mut self, receiver: &Receiver) -> bool {
        let received = receiver.take();
        let before = self.reports;
        for log in &received.logs {
            self.add(Signal::Logs, &log.item.attributes);
        }
        for span in &received.spans {
            self.add(Signal::Spans, &span.item.attributes);
        }
        self.reports > before
    }

    fn add(&mut self, signal: Signal, attributes: &[KeyValue]) {
        self.reports += 1;
        if let Err(problem) = self.check(signal, attributes) {
            self.wrong.push(format!("{signal:?}: {problem}"));
        }
    }

    fn check(&mut self, signal: Signal, attributes: &[KeyValue]) -> Result<(), String> {
        let facts = Facts::of(attributes)?;
        let (side, planned) = match (facts.local, facts.peer) {
            (client, SERVER) => (Side::Client, Planned::of_client(client)),
            (SERVER, client) => (Side::Server, Planned::of_client(client)),
            _ => (Side::Client, None),
        };
        let planned = planned
            .filter(|p| p.round < ROUNDS && p.number < self.connections)
            .ok_or_else(|| format!("nobody's connection: {facts:?}"))?;
        let end =
            (usize::from(planned.round) * self.connections as usize + planned.number as usize) * 2;
        self.times[(end + side as usize) * 2 + signal as usize] += 1;
        let want = Facts::planned(planned, side);
        if facts == want { Ok(()) } else { Err(format!("{facts:?}\n  and not {want:?}")) }
    }

    /// Fails unless each end was reported once by each signal, and all of them truly.
    fn assert_all_true(&self) {
        let mut by_times = BTreeMap::new();
        for times in &self.times {
            *by_times.entry(times).or_insert(0_usize) += 1;
        }
        let some: Vec<_> = self.wrong.iter().take(10).collect();
        assert!(some.is_empty(), "{} wrong, among them {some:#?}", self.wrong.len());
        let once = BTreeMap::from([(&1, self.expected())]);
        assert_eq!(by_times, once, "how many ends were reported how often");
    }
}

/// What a record says of its connection, as far as the plan tells it.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    local: SocketAddr,
    peer: SocketAddr,
    direction: String,
    reason: String,
    by: String,
    start_known: bool,
    sent: i64,
    received: i64,
}

impl Facts {
    fn planned(planned: Planned, side: Side) -> Self {
        let is_client = side == Side::Client;
        let (up, down) = (planned.up().cast_signed() as i64, planned.down().cast_signed() as i64);
        let (local, peer, sent, received) = if is_client {
            (planned.client(), SERVER, up, down)
        } else {
            (SERVER, planned.client(), down, up)
        };
        Self {
            local,
            peer,
            direction: if is_client { "outgoing" } else { "incoming" }.into(),
            reason: "fin".into(),
            by: if planned.client_closes() == is_client { "local" } else { "remote" }.into(),
            start_known: true,
            sent,
            received,
        }
    }

    fn of(attributes: &[KeyValue]) -> Result<Self, String> {
        let value = |key: &str| {
            let found = attributes.iter().find(|kv| kv.key == key);
            found
                .and_then(|kv| kv.value.as_ref()?.value.as_ref())
                .ok_or_else(|| format!("no {key} in {attributes:?}"))
        };
        let text = |key: &str| match value(key)? {
            Value::StringValue(text) => Ok(text.clone()),
            other => Err(format!("{key}: {other:?}")),
        };
        let int = |key: &str| match value(key)? {
            Value::IntValue(n) => Ok(*n),
            other => Err(format!("{key}: {other:?}")),
        };
        let socket = |side: &str| -> Result<SocketAddr, String> {
            let ip = text(&format!("network.{side}.address"))?;
            let port = int(&format!("network.{side}.port"))?;
            format!("{ip}:{port}").parse().map_err(|_| format!("{ip}:{port}"))
        };
        Ok(Self {
            local: socket("local")?,
            peer: socket("peer")?,
            direction: text("flowend.connection.direction")?,
            reason: text("flowend.end.reason")?,
            by: text("flowend.end.by")?,
            start_known: *value("flowend.start_known")? == Value::BoolValue(true),
            sent: int("flowend.bytes.sent")?,
            received: int("flowend.bytes.received")?,
        })
    }
}

/// Where the load runs: a namespace with room for every connection in TIME-WAIT at once.
fn arena() -> Netns {
    let netns = Netns::new();
    for (name, value) in [("ipv4/tcp_max_tw_buckets", 1_000_000), ("core/somaxconn", 1024)] {
        netns.exec(&["sh", "-c", &format!("echo {value} > /proc/sys/net/{name}")]);
    }
    netns
}

/// A process of testing/load.rs.
pub(crate) fn load(cgroup: &Cgroup, netns: &Netns, args: &[&str]) -> Child {
    let program = std::env::current_exe().expect("own path");
    let folder = program.ancestors().nth(2).expect("target folder");
    Command::new(folder.join("examples/load"))
        .args([&cgroup.folder, &netns.file()])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("examples/load: {error}; `cargo build --examples` builds it, for a release with --release"))
}

/// The server's process, listening.
pub(crate) fn serve(cgroup: &Cgroup, netns: &Netns) -> Killed {
    let mut server = Killed(load(cgroup, netns, &["server", THREADS]));
    let mut said = String::new();
    let stdout = server.0.stdout.as_mut().expect("stdout");
    BufReader::new(stdout).read_line(&mut said).expect("the server's words");
    assert_eq!(said, "ok\n");
    server
}

/// The most memory that a process has had, kB.
fn peak_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What a record that waits takes at most, bytes: its log record and its span, encoded, and its places in two queues.
const RECORD_BYTES: u64 = 2_600;

/// The most memory that flowend may take, kB; docs/performance.md says of what it consists.
fn memory_bound_kb(queue_records: u64) -> u64 {
    (64 << 10) + (RING_BYTES >> 10) + MAX_FLOWS / 10 + queue_records * RECORD_BYTES / 1000
}

/// Both rounds, in parts. What has come is taken in meanwhile, so that it does not pile up in the receiver.
async fn make_connections(
    (clients, netns): (&Cgroup, &Netns),
    flowend: &Flowend,
    tally: &mut Tally,
    receiver: &Receiver,
) {
    let port = telemetry::port(flowend);
    let seen = || {
        let now = tokio::task::block_in_place(|| telemetry::scrape(port));
        telemetry::sum(&now, "flowend_ends_seen_total", "")
    };
    let (mut started, mut last) = (0_u64, Instant::now());
    let parts = (0..tally.connections).step_by(PART as usize);
    for (round, from) in (0..ROUNDS).flat_map(|round| parts.clone().map(move |from| (round, from)))
    {
        let to = tally.connections.min(from + PART);
        while seen() + u64::from(2 * PART) < 2 * started {
            assert!(last.elapsed() < QUIET, "flowend sees no ends any more: {}", flowend.stderr());
            tally.take(receiver);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        last = Instant::now();
        started += u64::from(to - from);
        let (number, from, to) = (round.to_string(), from.to_string(), to.to_string());
        let args = ["client", THREADS, &number, &from, &to];
        let mut client = Killed(load(clients, netns, &args));
        let status = loop {
            if let Some(status) = client.0.try_wait().expect("wait") {
                break status;
            }
            tally.take(receiver);
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(status.success(), "round {round}: {status}");
    }
}

/// Until every report has come, or no more come.
async fn take_the_rest(tally: &mut Tally, receiver: &Receiver) {
    let mut last = Instant::now();
    while tally.reports < tally.expected() && last.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if tally.take(receiver) {
            last = Instant::now();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_under_stress_is_reported_once_and_truly() {
    if !can_run("every_end_under_stress_is_reported_once_and_truly", &["ip"]) {
        return;
    }
    let connections = std::env::var("TEST_CONNECTIONS")
        .map_or(CONNECTIONS, |text| text.parse().expect("TEST_CONNECTIONS is a number"));
    let ends = u32::from(ROUNDS) * connections * 2;
    let (clients, servers, netns) = (Cgroup::new(), Cgroup::new(), arena());
    let receiver = Receiver::start().await.expect("a receiver");
    let flowend = Flowend::run(&[
        "--output=otlp",
        "--set",
        &format!("targets=[\"{}\", \"{}\"]", clients.name, servers.name),
        "--set",
        &format!("otlp.endpoint={}", receiver.endpoint()),
        // Room for all: what is asked is whether an end is lost or wrong, and not whether two cores
        // that also make the connections and decode the records can read and encode as fast.
        "--set",
        &format!("ring.bytes={RING_BYTES}"),
        "--set=telemetry.listen=127.0.0.1:0",
        "--set",
        &format!("export.queue_records={ends}"),
        "--set",
        &format!("export.queue_bytes={}", u64::from(ends) * RECORD_BYTES),
    ]);
    let server = serve(&servers, &netns);

    let mut tally = Tally::new(connections);
    let start = Instant::now();
    make_connections((&clients, &netns), &flowend, &mut tally, &receiver).await;
    let rate = f64::from(ends / 2) / start.elapsed().as_secs_f64();
    take_the_rest(&mut tally, &receiver).await;
    let (peak, bound) = (peak_kb(flowend.pid()), memory_bound_kb(ends.into()));
    drop(server);
    let (status, messages) = flowend.stop();
    tally.take(&receiver);
    println!(
        "{} connections, {rate:.0} a second; flowend's memory at most {peak} kB of {bound} kB",
        ends / 2
    );

    assert_eq!(status, Some(0), "{messages}");
    for trouble in ["WARN", "ERROR"] {
        assert!(!messages.contains(trouble), "something was lost: {messages}");
    }
    tally.assert_all_true();
    for output in ["otlp.logs", "otlp.traces"] {
        let line = format!(
            "{output}: seen {ends} = exported {ends} + sampled_out 0 + filtered{{self}} 0 + in_flight 0"
        );
        assert!(messages.contains(&line), "{messages}");
    }
    assert!(peak <= bound, "{peak} kB of memory, more than {bound} kB");
}
