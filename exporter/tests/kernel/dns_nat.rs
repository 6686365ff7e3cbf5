//! Queries that netfilter translates below the socket: the server is the one that was asked.

use std::collections::BTreeSet;

use flowend::probe::{LoadOptions, Optional, Probe, Role, Without};
use flowend_probe_types::{EventKind, SYN};

use super::support::{Cgroup, Netns, Puppet, can_run, drain, load_options};

const TOOLS: &[&str] = &["ip", "nft"];

/// How a query goes, which server it asks, and which one answers.
struct Case {
    name: &'static str,
    verb: &'static str,
    asked: &'static str,
    server: &'static str,
}

/// In the order of the tests' names: address alone, port alone as Docker does, both.
const DATAGRAMS: &[Case] = &[
    Case {
        name: "address",
        verb: "udp-ask-connected",
        asked: "10.98.0.1:53",
        server: "10.97.0.1:53",
    },
    Case {
        name: "port, as Docker's resolver",
        verb: "udp-ask-connected",
        asked: "127.0.0.11:53",
        server: "127.0.0.11:5301",
    },
    Case {
        name: "sendto, address",
        verb: "udp-ask",
        asked: "10.98.0.1:53",
        server: "10.97.0.1:53",
    },
    Case {
        name: "sendto, port",
        verb: "udp-ask",
        asked: "127.0.0.11:53",
        server: "127.0.0.11:5301",
    },
    Case { name: "sendto, both", verb: "udp-ask", asked: "10.98.0.2:53", server: "10.97.0.1:5302" },
    Case {
        name: "IPv6, both",
        verb: "udp-ask-connected",
        asked: "[fd00:98::1]:53",
        server: "[fd00:97::1]:5301",
    },
    Case {
        name: "IPv6, sendto, both",
        verb: "udp-ask",
        asked: "[fd00:98::1]:53",
        server: "[fd00:97::1]:5301",
    },
];

/// A namespace in whose output chain `protocol` to port 53 is translated as the cases say.
fn translating(protocol: &str, cases: &[Case]) -> Netns {
    let netns = Netns::new();
    netns.ip(&["addr", "add", "10.97.0.1/32", "dev", "lo"]);
    netns.ip(&["route", "add", "10.98.0.0/24", "dev", "lo"]);
    netns.ip(&["-6", "addr", "add", "fd00:97::1/128", "dev", "lo", "nodad"]);
    netns.ip(&["-6", "route", "add", "fd00:98::/64", "dev", "lo"]);
    for family in ["ip", "ip6"] {
        netns.exec(&["nft", "add", "table", family, "t"]);
        let hook = "{ type nat hook output priority -100; }";
        netns.exec(&["nft", "add", "chain", family, "t", "out", hook]);
    }
    for case in cases {
        let asked: std::net::SocketAddr = case.asked.parse().unwrap();
        let family = if asked.is_ipv4() { "ip" } else { "ip6" };
        let address = asked.ip().to_string();
        netns.exec(&[
            "nft",
            "add",
            "rule",
            family,
            "t",
            "out",
            family,
            "daddr",
            &address,
            protocol,
            "dport",
            "53",
            "dnat",
            "to",
            case.server,
        ]);
    }
    netns
}

/// A client in a watched cgroup of the namespace, and what the probe hears of it.
fn client(netns: &Netns, cgroup: &Cgroup) -> Puppet {
    Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()])
}

fn options() -> LoadOptions {
    LoadOptions { ring_bytes: 1 << 20, ..load_options(true) }
}

#[test]
fn a_translated_query_and_its_answer_name_the_server_that_was_asked() {
    if !can_run("a_translated_query_and_its_answer_name_the_server_that_was_asked", TOOLS) {
        return;
    }
    let netns = translating("udp", DATAGRAMS);
    let (targets, mut server) =
        (Cgroup::new(), Puppet::start(&["--netns".as_ref(), &netns.file()]));
    let mut addresses: Vec<_> = DATAGRAMS.iter().map(|case| case.server).collect();
    addresses.sort_unstable();
    addresses.dedup();
    for address in addresses {
        server.tell(&format!("udp-serve {address}"));
    }
    for role in [Role::Target, Role::Resolver] {
        let mut probe = Probe::load(options()).unwrap();
        let mut ring = probe.take_ring().unwrap().unwrap();
        let _attached = probe.attach(&targets.folder, &targets.name, role).unwrap();
        let mut client = client(&netns, &targets);
        for case in DATAGRAMS {
            let Case { name, verb, asked, .. } = case;
            client.tell(&format!("{verb} {asked} 40"));
            let (heard, _) = drain(&mut ring);
            let kinds: Vec<_> = heard.iter().map(|h| h.kind).collect();
            assert_eq!(
                kinds,
                [EventKind::DnsQuery, EventKind::DnsAnswer],
                "{name} {role:?}: {heard:?}"
            );
            let (query, answer) = (&heard[0], &heard[1]);
            assert_eq!(query.remote(), asked.parse().unwrap(), "{name} {role:?}");
            assert_eq!(answer.remote(), query.remote(), "{name} {role:?}");
            assert_eq!(query.facts.translated, 1, "{name} {role:?}");
            assert_eq!(answer.facts.translated, 0, "{name} {role:?}");
            assert_eq!(answer.facts.cookie, query.facts.cookie, "{name} {role:?}");
            assert_eq!(answer.facts.local_port, query.facts.local_port, "{name} {role:?}");
            assert_eq!((query.bytes.len(), answer.bytes.len()), (40, 40), "{name} {role:?}");
        }
    }
}

/// What sendmsg4 and sendmsg6 are for: without them only a connected socket tells whom it asks.
#[test]
fn without_sendmsg_the_server_that_an_unconnected_socket_asks_is_not_known() {
    if !can_run("without_sendmsg_the_server_that_an_unconnected_socket_asks_is_not_known", TOOLS) {
        return;
    }
    let netns = translating("udp", DATAGRAMS);
    let (cgroup, mut server) = (Cgroup::new(), Puppet::start(&["--netns".as_ref(), &netns.file()]));
    let addresses: BTreeSet<_> = DATAGRAMS.iter().map(|case| case.server).collect();
    for address in addresses {
        server.tell(&format!("udp-serve {address}"));
    }
    let without = Without::NOTHING.and(Optional::Sendmsg);
    let mut probe = Probe::load(LoadOptions { without, ..options() }).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    let _attached = probe.attach(&cgroup.folder, &cgroup.name, Role::Target).unwrap();
    let mut client = client(&netns, &cgroup);
    let mut known = 0;
    for Case { name, verb, asked, .. } in DATAGRAMS {
        client.tell(&format!("{verb} {asked} 40"));
        let (heard, _) = drain(&mut ring);
        let asked = asked.parse().unwrap();
        let knows = heard.iter().any(|h| h.kind == EventKind::DnsQuery && h.remote() == asked);
        assert_eq!(knows, *verb == "udp-ask-connected", "{name}: {heard:?}");
        known += usize::from(knows);
    }
    assert!(known > 0 && known < DATAGRAMS.len(), "{known} servers known");
}

const CONNECTIONS: &[Case] = &[
    Case { name: "port", verb: "", asked: "127.0.0.11:53", server: "127.0.0.11:5301" },
    Case { name: "both", verb: "", asked: "10.98.0.1:53", server: "10.97.0.1:5302" },
    Case { name: "IPv6", verb: "", asked: "[fd00:98::1]:53", server: "[fd00:97::1]:5301" },
];

#[test]
fn a_translated_connection_names_the_server_that_was_asked() {
    if !can_run("a_translated_connection_names_the_server_that_was_asked", TOOLS) {
        return;
    }
    let netns = translating("tcp", CONNECTIONS);
    let (cgroup, mut server) = (Cgroup::new(), Puppet::start(&["--netns".as_ref(), &netns.file()]));
    let mut probe = Probe::load(options()).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    let _attached = probe.attach(&cgroup.folder, &cgroup.name, Role::Target).unwrap();
    let mut client = client(&netns, &cgroup);
    for Case { name, asked, server: real, .. } in CONNECTIONS {
        let listener = server.listen(real);
        let connected = client.connect(asked.parse().unwrap());
        let accepted = server.accept(listener);
        client.send(connected, 40);
        server.recv(accepted, 40);
        server.send(accepted, 60);
        client.recv(connected, 60);
        let (heard, _) = drain(&mut ring);
        assert!(heard.iter().all(|h| h.remote() == connected.peer.unwrap()), "{name}: {heard:?}");
        assert!(heard.iter().all(|h| h.facts.cookie == heard[0].facts.cookie), "{name}: {heard:?}");
        for (kind, bytes) in [(EventKind::DnsStreamOut, 40), (EventKind::DnsStreamIn, 60)] {
            let of_kind = || heard.iter().filter(move |h| h.kind == kind);
            assert_eq!(of_kind().map(|h| h.bytes.len()).sum::<usize>(), bytes, "{name} {kind:?}");
            assert!(of_kind().next().unwrap().facts.flags & SYN != 0, "{name} {kind:?}");
            let translated = u8::from(kind == EventKind::DnsStreamOut);
            assert!(of_kind().all(|h| h.facts.translated == translated), "{name} {kind:?}");
        }
        client.close(connected);
        server.close(accepted);
        server.close(listener);
        // Until the last FIN is sent, so that none is told of the next case.
        super::support::step();
        drain(&mut ring);
    }
}
