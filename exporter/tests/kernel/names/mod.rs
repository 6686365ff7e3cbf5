//! Names from real DNS servers, asked by real resolvers, at the connections made afterwards.
//!
//! A [`Site`] is a network namespace with a DNS server and somebody who accepts connections at every
//! address of its loopback: all of 127.0.0.0/8 and of fd77:53::/64.

mod attacks;
mod broken;
mod chains;
mod clients;
mod flood;
mod lifetimes;
#[path = "../../../testing/message.rs"]
mod message;
mod multicast;
mod reload;
mod restart;
mod scopes;
mod server;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde_json::Value;

use super::support::{Cgroup, Flowend, Netns, Puppet, Socket, can_run, wait_until};
use server::Server;

/// What all of these tests need.
const TOOLS: &[&str] = &["ip", "nsenter", "knotd", "dig"];

/// A namespace with its servers.
struct Site {
    // Dropped in this order: nothing is left in the namespace when it goes.
    far: Puppet,
    listener: Socket,
    server: Option<Server>,
    netns: Netns,
    folder: tempfile::TempDir,
}

/// A connection that was opened.
struct Visit {
    client: Socket,
    accepted: Socket,
}

impl Visit {
    /// Own socket and peer, as the client has them.
    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.client.local, self.client.peer.expect("a connection"))
    }
}

impl Site {
    /// With knot.
    fn new() -> Self {
        let mut site = Self::without_server();
        site.server = Some(server::knot(&site.netns));
        site
    }

    fn without_server() -> Self {
        let netns = Netns::new();
        netns.ip(&["-6", "route", "add", "local", "fd77:53::/64", "dev", "lo"]);
        let mut far = Puppet::start(&["--netns".as_ref(), &netns.file()]);
        // Takes IPv4 as well.
        let listener = far.listen("[::]:0");
        Self { far, listener, server: None, netns, folder: tempfile::tempdir().unwrap() }
    }

    /// Somebody in a cgroup.
    fn puppet(&self, cgroup: &Cgroup) -> Puppet {
        Puppet::start(&[
            "--cgroup".as_ref(),
            &cgroup.folder,
            "--netns".as_ref(),
            &self.netns.file(),
        ])
    }

    /// Somebody in a cgroup whose C library asks these servers.
    fn puppet_asking(&self, cgroup: &Cgroup, servers: &[&str]) -> Puppet {
        let file = server::resolv_conf(self.folder.path(), servers);
        Puppet::start(&[
            "--cgroup".as_ref(),
            &cgroup.folder,
            "--netns".as_ref(),
            &self.netns.file(),
            "--resolv-conf".as_ref(),
            &file,
        ])
    }

    /// Connects to an address.
    fn open(&mut self, client: &mut Puppet, ip: IpAddr) -> Visit {
        let client = client.connect((ip, self.listener.local.port()).into());
        Visit { client, accepted: self.far.accept(self.listener) }
    }

    /// The other side closes, then the client.
    fn end(&mut self, client: &mut Puppet, visit: &Visit) {
        self.far.close(visit.accepted);
        assert_eq!(client.drain(visit.client), 0);
        client.close(visit.client);
    }

    /// Connects to an address, and ends the connection.
    fn visit(&mut self, client: &mut Puppet, ip: &str) -> Visit {
        let visit = self.open(client, ip.parse().expect("an address"));
        self.end(client, &visit);
        visit
    }
}

/// flowend with these targets and `--set` of these settings, and JSON on stdout.
fn watch(targets: &[&Cgroup], settings: &[&str]) -> Flowend {
    let names: Vec<_> = targets.iter().map(|cgroup| cgroup.name.as_str()).collect();
    let target = format!("--set=targets={}", names.join(","));
    let settings: Vec<_> = settings.iter().map(|setting| format!("--set={setting}")).collect();
    let mut args = vec!["--output=json", target.as_str()];
    args.extend(settings.iter().map(String::as_str));
    Flowend::run(&args)
}

/// The record of a client's end, once it is there. Other lines than JSON are passed over.
fn record(flowend: &Flowend, visit: &Visit) -> Value {
    let (local, peer) = visit.addresses();
    let find = || {
        let text = flowend.stdout();
        let is_it = |record: &Value| {
            let a = &record["attributes"];
            a["network.local.port"] == local.port()
                && a["network.peer.port"] == peer.port()
                && a["network.peer.address"] == peer.ip().to_string()
        };
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).find(is_it)
    };
    let mut found = None;
    wait_until(
        || {
            found = find();
            found.is_some()
        },
        || format!("no record of {local} to {peer}: {}{}", flowend.stdout(), flowend.stderr()),
    );
    found.expect("found")
}

/// The names that a client's record has of its peer, which ended the connection and is its source.
fn names(flowend: &Flowend, visit: &Visit) -> Vec<String> {
    let record = record(flowend, visit);
    let a = &record["attributes"];
    let peer = visit.addresses().1.ip().to_string();
    assert_eq!(a["source.address"], peer, "always the address: {record}");
    let names = domains(&record, "source");
    // The name it was looked up by, or else the address (OpenTelemetry's rule).
    assert_eq!(a["server.address"], *names.first().unwrap_or(&peer), "{record}");
    names
}

/// `flowend.source.domains` or `flowend.destination.domains`.
fn domains(record: &Value, side: &str) -> Vec<String> {
    match &record["attributes"][format!("flowend.{side}.domains")] {
        Value::Null => Vec::new(),
        names => serde_json::from_value(names.clone()).expect("names"),
    }
}

/// The counts of a line of the ledger whose label has this word, added up: such as "malformed" in
/// `answers{malformed} 3`. Causes that did not occur are not in it.
fn counted(messages: &str, line: &str, word: &str) -> u64 {
    let start = format!("{line}: seen ");
    let identity = messages
        .lines()
        .find_map(|l| l.split_once(&start))
        .unwrap_or_else(|| panic!("no line \"{line}: seen\" in {messages}"))
        .1;
    // What stands behind it is a remark.
    let identity = identity.split(';').next().unwrap_or_default();
    let (seen, terms) = identity.split_once(" = ").expect("an identity");
    let count = |n: &str| n.parse::<u64>().unwrap_or_else(|e| panic!("{n}: {e} in {identity}"));
    if word == "seen" {
        return count(seen);
    }
    let terms = terms.split(" + ").filter_map(|term| term.rsplit_once(' '));
    terms.filter(|(label, _)| label.contains(word)).map(|(_, n)| count(n)).sum()
}

#[test]
fn a_name_serves_only_the_cgroup_that_looked_it_up() {
    if !can_run("a_name_serves_only_the_cgroup_that_looked_it_up", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let (asking, silent) = (Cgroup::new(), Cgroup::new());
    let flowend = watch(&[&asking, &silent], &[]);
    let (mut asker, mut other) = (site.puppet(&asking), site.puppet(&silent));
    asker.tell("run dig +short @127.0.0.1 web.names.test A");
    asker.tell("run dig +short @::1 web.names.test AAAA");
    for ip in ["127.0.2.1", "fd77:53::2:1"] {
        let (known, unknown) = (site.visit(&mut asker, ip), site.visit(&mut other, ip));
        assert_eq!(names(&flowend, &known), ["web.names.test"]);
        assert_eq!(names(&flowend, &unknown), [""; 0], "another workload's");
    }
    let (_, messages) = flowend.stop();
    assert_eq!(counted(&messages, "dns messages", "seen"), 4, "{messages}");
    assert_eq!(counted(&messages, "dns messages", "learnt"), 2, "{messages}");
    let connections = "names: 4 connections, 2 with a name of the peer, 2 without";
    assert!(messages.contains(connections), "{messages}");
}

#[test]
fn switched_off_no_message_is_copied() {
    if !can_run("switched_off_no_message_is_copied", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &["dns.enabled=false"]);
    let mut puppet = site.puppet(&cgroup);
    assert_eq!(puppet.tell("run dig +short @127.0.0.1 web.names.test A"), "127.0.2.1");
    puppet.tell("run dig +short +tcp @127.0.0.1 web.names.test A");
    let visit = site.visit(&mut puppet, "127.0.2.1");
    assert_eq!(names(&flowend, &visit), [""; 0]);
    let (_, messages) = flowend.stop();
    assert_eq!(counted(&messages, "dns messages", "seen"), 0, "{messages}");
}

/// A file of a test's own that is there.
fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
