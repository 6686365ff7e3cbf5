//! A link that delays, jitters and loses as the kernel's own emulator does, and not as the test says: what a record
//! tells of a connection against what TCP_INFO and the namespaces' counters tell.
//!
//! The link of [`super::link`] loses the packets that a case names, and cuts what the kernel sends to single
//! segments. Here chance decides, IPv6 and IPv4 cross a veth pair, and one packet may be many segments (GSO).
//!
//! Many kernels lack the emulator (`CONFIG_NET_SCH_NETEM`), so it is not run unless asked for, as root:
//!
//! ```sh
//! cargo test --test kernel netem:: -- --ignored --nocapture
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::connections::Role;
use super::support::{Cgroup, Flowend, Netns, Puppet, Socket, can_run, path, wait_until};
use Role::{Client, Server};

const DEVICE: &str = "veth0";
const NETEM: &str = "delay 20ms 2ms loss 3%";
/// No packet crosses both ways faster: 20 ms less 2 ms, twice.
const LEAST_RTT_US: u64 = 36_000;
/// Longer than anything takes that crosses the link: both ways, and a delayed ACK between.
const QUIET: Duration = Duration::from_millis(300);
const CONNECTIONS: u64 = 10;

/// What the kernel tells an application of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    rtt_us: u64,
    min_rtt_us: u64,
    retransmits: u64,
    segments_sent: u64,
    segments_received: u64,
    bytes_acknowledged: u64,
    bytes_received: u64,
    unacknowledged: u64,
}

/// What a connection was at one end.
struct End {
    role: Role,
    local: SocketAddr,
    peer: SocketAddr,
    sent: u64,
    received: u64,
    /// Before the close, with nothing on the way.
    info: Info,
    /// Segments that the namespace sent again in the connection's life: the SYN-ACK and the FIN among them.
    sent_again: u64,
}

#[test]
#[ignore = "needs sch_netem"]
fn records_agree_with_tcp_info_on_a_link_of_chance() {
    const TEST: &str = "records_agree_with_tcp_info_on_a_link_of_chance";
    if !can_run(TEST, &["ip", "tc"]) {
        return;
    }
    let (client, server) = (Netns::new(), Netns::new());
    join(&client, &server);
    for netns in [&client, &server] {
        if let Err(lacks) = emulate(netns) {
            // Not `support::skip`: no kernel has to have it, whatever TEST_REQUIRE says.
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {TEST}: needs netem: {lacks} ***");
            return;
        }
    }
    let cgroup = Cgroup::new();
    let target = format!("targets={}", cgroup.name);
    let flowend = Flowend::run(&["--output=json", "--set", &target]);
    let mut bench = Bench::new(&client, &server, &cgroup);
    let mut table = String::from(HEADING);
    let mut wrong = Vec::new();
    let mut sent_again = 0;
    for n in 1..=CONNECTIONS {
        let [client, server] = bench.one_connection(n, &flowend);
        for (end, other) in [(&client, &server), (&server, &client)] {
            let record = record_of(&flowend, end).expect("the connection waited for it");
            line(&mut table, n, end, &record);
            let what = |w| format!("connection {n}, {:?}: {w}", end.role);
            wrong.extend(compare(end, other, &record).into_iter().map(what));
            sent_again += end.sent_again;
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sent_again > 0, "the link lost nothing");
    assert_eq!(flowend.json().len() as u64, 2 * CONNECTIONS, "{}", flowend.stdout());
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
}

/// A veth pair, with an address of both families at each end.
fn join(client: &Netns, server: &Netns) {
    let peer = ["peer", "name", DEVICE, "netns", &server.name];
    client.ip(&[&["link", "add", DEVICE, "type", "veth"], &peer[..]].concat());
    for (netns, host) in [(client, 1), (server, 2)] {
        netns.ip(&["addr", "add", &format!("10.78.0.{host}/24"), "dev", DEVICE]);
        netns.ip(&["addr", "add", &format!("fd78::{host}/64"), "dev", DEVICE, "nodad"]);
        netns.ip(&["link", "set", DEVICE, "up"]);
    }
}

/// Delays and loses what leaves this end; the error is a kernel without the emulator.
fn emulate(netns: &Netns) -> Result<(), String> {
    let output = Command::new("tc")
        .args(["-n", &netns.name, "qdisc", "add", "dev", DEVICE, "root", "netem"])
        .args(NETEM.split(' '))
        .env("PATH", path())
        .output()
        .expect("tc");
    let says = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if says.contains("qdisc kind is unknown") => Err(says.trim().to_owned()),
        false => panic!("tc qdisc add ... netem {NETEM}: {says}"),
    }
}

/// The two namespaces and a puppet in each.
struct Bench<'a> {
    netns: [&'a Netns; 2],
    puppets: [Puppet; 2],
}

const fn at(role: Role) -> usize {
    match role {
        Client => 0,
        Server => 1,
    }
}

impl<'a> Bench<'a> {
    fn new(client: &'a Netns, server: &'a Netns, cgroup: &Cgroup) -> Self {
        let netns = [client, server];
        let puppets = netns.map(|netns| {
            Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()])
        });
        Self { netns, puppets }
    }

    fn puppet(&mut self, role: Role) -> &mut Puppet {
        &mut self.puppets[at(role)]
    }

    /// The nth connection, from its SYN to its records: data both ways at the same time, and a close by either.
    fn one_connection(&mut self, n: u64, flowend: &Flowend) -> [End; 2] {
        let (up, down) = (20_000 * n + 1, 30_000 * n);
        let address = if n.is_multiple_of(2) { "[fd78::2]:0" } else { "10.78.0.2:0" };
        let before = self.netns.map(sent_again);
        let listener = self.puppet(Server).listen(address);
        let connected = self.puppet(Client).connect(listener.local);
        let accepted = self.puppet(Server).accept(listener);
        self.puppet(Client).post(&format!("exchange {} {up} {down}", connected.id));
        self.puppet(Server).tell(&format!("exchange {} {down} {up}", accepted.id));
        self.puppet(Client).reply().expect("the exchange");
        let sockets = [connected, accepted];
        let infos = self.settle(sockets);
        self.close(if n.is_multiple_of(3) { Server } else { Client }, sockets);
        self.puppet(Server).close(listener);

        let mut ends = [Client, Server].map(|role| {
            let socket = sockets[at(role)];
            let (sent, received) = if role == Client { (up, down) } else { (down, up) };
            let (local, peer) = (socket.local, socket.peer.expect("a peer"));
            End { role, local, peer, sent, received, info: infos[at(role)], sent_again: 0 }
        });
        // With its record a socket has gone to CLOSE, and sends nothing again.
        wait_until(
            || ends.iter().all(|end| record_of(flowend, end).is_some()),
            || format!("no records of both ends: {} {}", flowend.stdout(), flowend.stderr()),
        );
        for end in &mut ends {
            let role = end.role;
            end.sent_again = sent_again(self.netns[at(role)]) - before[at(role)];
        }
        ends
    }

    /// Until all is acknowledged at both ends, and nothing more is on the way.
    fn settle(&mut self, sockets: [Socket; 2]) -> [Info; 2] {
        let mut last = None;
        let mut since = Instant::now();
        wait_until(
            || {
                let infos = [Client, Server].map(|role| self.info(role, sockets[at(role)]));
                if last != Some(infos) {
                    last = Some(infos);
                    since = Instant::now();
                }
                infos.iter().all(|info| info.unacknowledged == 0) && since.elapsed() >= QUIET
            },
            || "the link does not come to rest".into(),
        );
        last.expect("looked at")
    }

    fn info(&mut self, role: Role, Socket { id, .. }: Socket) -> Info {
        let puppet = self.puppet(role);
        let words = [puppet.tell(&format!("info {id}")), puppet.tell(&format!("counts {id}"))];
        let numbers: Vec<u64> =
            words.join(" ").split(' ').map(|word| word.parse().expect("a number")).collect();
        let [
            rtt_us,
            min_rtt_us,
            retransmits,
            segments_sent,
            segments_received,
            bytes_acknowledged,
            bytes_received,
            unacknowledged,
        ] = numbers[..]
        else {
            panic!("{words:?}: eight numbers");
        };
        Info {
            rtt_us,
            min_rtt_us,
            retransmits,
            segments_sent,
            segments_received,
            bytes_acknowledged,
            bytes_received,
            unacknowledged,
        }
    }

    /// One end closes, and the other when it has read the FIN.
    fn close(&mut self, first: Role, sockets: [Socket; 2]) {
        let second = first.other();
        self.puppet(first).close(sockets[at(first)]);
        assert_eq!(self.puppet(second).drain(sockets[at(second)]), 0);
        self.puppet(second).close(sockets[at(second)]);
    }
}

/// `Tcp: RetransSegs` of a namespace (RFC 4022, tcpRetransSegs).
fn sent_again(netns: &Netns) -> u64 {
    let text = netns.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let text = text.expect("/proc/thread-self/net/snmp");
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let (_, value) = names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "RetransSegs")
        .expect("RetransSegs");
    value.parse().expect("a number")
}

/// The attributes of an end's record, once it is there.
fn record_of(flowend: &Flowend, end: &End) -> Option<Value> {
    let is = |a: &Value, side: &str, address: SocketAddr| {
        a[format!("network.{side}.address")] == address.ip().to_string()
            && a[format!("network.{side}.port")] == address.port()
    };
    let attributes = |record: Value| record["attributes"].clone();
    let is_of = |a: &Value| is(a, "local", end.local) && is(a, "peer", end.peer);
    flowend.json().into_iter().map(attributes).find(is_of)
}

/// All that is wrong with a record.
fn compare(end: &End, other: &End, record: &Value) -> Vec<String> {
    let End { info, .. } = *end;
    let number = |key: &str| record[format!("flowend.{key}")].as_u64();
    let mut wrong = Vec::new();
    let mut within = |key: &str, from: u64, to: u64| {
        if !number(key).is_some_and(|n| (from..=to).contains(&n)) {
            wrong.push(format!("{key} is {:?}, not {from} to {to}; {info:?}", number(key)));
        }
    };
    within("bytes.sent", end.sent, end.sent);
    within("bytes.received", end.received, end.received);
    // The acknowledgment of a SYN counts as a byte.
    let acknowledged = info.bytes_acknowledged - u64::from(end.role == Client);
    within("bytes.sent", acknowledged, acknowledged);
    within("bytes.received", info.bytes_received, info.bytes_received);
    within("rtt.smoothed_us", info.rtt_us, info.rtt_us);
    // The ACK of the FIN may have been the fastest.
    within("rtt.min_us", LEAST_RTT_US, info.min_rtt_us);
    within("retransmits", end.sent_again, end.sent_again);
    // What the application was told, the own FIN and the ACK of the peer's, and what was lost of these four.
    let again = [end, other].map(|end| end.sent_again.saturating_sub(end.info.retransmits));
    let more = 2 + again[0] + again[1];
    within("segments.sent", info.segments_sent + 1, info.segments_sent + more);
    within("segments.received", info.segments_received + 1, info.segments_received + more);
    if number("rtt.handshake_us").is_some() {
        within("rtt.handshake_us", LEAST_RTT_US, u64::MAX);
    }
    wrong
}

const HEADING: &str = "
record | TCP_INFO before the close (retransmits: and the namespace's counter after it)
 n end    family smoothed_us   min_us        handshake_us retransmits sent      received  bytes sent       received
";

/// A line of the table.
fn line(table: &mut String, n: u64, end: &End, record: &Value) {
    let End { info, .. } = end;
    let number = |key: &str| match &record[format!("flowend.{key}")] {
        Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let pair = |key: &str, other: u64| format!("{}|{other}", number(key));
    let family = if end.local.is_ipv4() { "ipv4" } else { "ipv6" };
    let retransmits = format!("{}|{}", pair("retransmits", info.retransmits), end.sent_again);
    let _ = writeln!(
        table,
        "{n:2} {:6} {family:6} {:13} {:13} {:12} {retransmits:11} {:9} {:9} {:16} {}",
        format!("{:?}", end.role),
        pair("rtt.smoothed_us", info.rtt_us),
        pair("rtt.min_us", info.min_rtt_us),
        number("rtt.handshake_us"),
        pair("segments.sent", info.segments_sent),
        pair("segments.received", info.segments_received),
        pair("bytes.sent", info.bytes_acknowledged),
        pair("bytes.received", info.bytes_received),
    );
}
