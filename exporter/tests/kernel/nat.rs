//! One flowend at each end, in two network namespaces, with address translation between them.

use std::net::SocketAddr;

use serde_json::Value;

use super::support::{Cgroup, Flowend, Netns, Puppet, Socket, can_run, step, wait_until};

const TOOLS: &[&str] = &["ip", "nft", "nsenter"];

/// A program in a namespace. Not `ip netns exec`: that hides the cgroup file system.
fn flowend_in(netns: &Netns, cgroup: &Cgroup) -> Flowend {
    let inner = Flowend::command(&[]);
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", netns.file().display())).arg(inner.get_program()).args([
        "run",
        "--output",
        "json",
        "--set",
        &format!("targets={}", cgroup.name),
    ]);
    for (name, value) in inner.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    Flowend::spawn(command)
}

fn puppet_in(netns: &Netns, cgroup: &Cgroup) -> Puppet {
    Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()])
}

fn one_record(flowend: &Flowend) -> Value {
    wait_until(|| !flowend.json().is_empty(), || format!("no record; {}", flowend.stderr()));
    // Longer than a verdict takes: a second record would be here by then.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let records = flowend.json();
    assert_eq!(records.len(), 1, "{records:?}");
    records[0].clone()
}

fn assert_addresses(record: &Value, local: SocketAddr, peer: SocketAddr) {
    let a = &record["attributes"];
    assert_eq!(a["network.local.address"], local.ip().to_string());
    assert_eq!(a["network.local.port"], local.port());
    assert_eq!(a["network.peer.address"], peer.ip().to_string());
    assert_eq!(a["network.peer.port"], peer.port());
}

fn assert_one_trace(client: &Value, server: &Value) {
    assert_eq!(client["trace_id"], server["trace_id"]);
    assert_eq!(server["span"]["parent_span_id"], client["span_id"]);
    assert_eq!(client["span"]["parent_span_id"], Value::Null);
    assert_eq!(
        (client["span"]["kind"].as_str(), server["span"]["kind"].as_str()),
        (Some("CLIENT"), Some("SERVER"))
    );
}

/// Connects to the translated address: the listener, and both ends.
fn open(client: &mut Puppet, server: &mut Puppet, real: &str) -> (Socket, Socket, Socket) {
    let listener = server.listen(real);
    let connected = client.connect("10.98.0.1:80".parse().unwrap());
    (listener, connected, server.accept(listener))
}

/// client 10.99.1.2 -- 10.99.1.1 router 10.99.2.1 -- 10.99.2.2 server; the router translates
/// 10.98.0.1:80 to the server's port and the client's address to its own.
#[test]
fn both_ends_agree_across_a_router_that_translates_both_addresses() {
    if !can_run("both_ends_agree_across_a_router_that_translates_both_addresses", TOOLS) {
        return;
    }
    let (client_ns, router_ns, server_ns) = (Netns::new(), Netns::new(), Netns::new());
    for (netns, address, other) in [(&client_ns, "10.99.1", "c"), (&server_ns, "10.99.2", "s")] {
        let link = format!("{other}0");
        router_ns.link(&link, netns, &format!("{address}.2/24"));
        router_ns.ip(&["addr", "add", &format!("{address}.1/24"), "dev", &link]);
        netns.ip(&["route", "add", "default", "via", &format!("{address}.1")]);
    }
    router_ns.exec(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    router_ns.exec(&["nft", "add", "table", "ip", "t"]);
    router_ns.exec(&[
        "nft",
        "add",
        "chain",
        "ip",
        "t",
        "pre",
        "{ type nat hook prerouting priority -100; }",
    ]);
    router_ns.exec(&[
        "nft",
        "add",
        "chain",
        "ip",
        "t",
        "post",
        "{ type nat hook postrouting priority 100; }",
    ]);
    router_ns.exec(&[
        "nft",
        "add",
        "rule",
        "ip",
        "t",
        "pre",
        "ip",
        "daddr",
        "10.98.0.1",
        "tcp",
        "dport",
        "80",
        "dnat",
        "to",
        "10.99.2.2:9090",
    ]);
    router_ns.exec(&["nft", "add", "rule", "ip", "t", "post", "oif", "s0", "masquerade"]);

    let (client_group, server_group) = (Cgroup::new(), Cgroup::new());
    let (at_client, at_server) =
        (flowend_in(&client_ns, &client_group), flowend_in(&server_ns, &server_group));
    let (mut client, mut server) =
        (puppet_in(&client_ns, &client_group), puppet_in(&server_ns, &server_group));
    let (listener, c, s) = open(&mut client, &mut server, "10.99.2.2:9090");
    client.send(c, 10);
    server.recv(s, 10);
    step();
    client.close(c);
    step();
    server.close(s);

    let (client_record, server_record) = (one_record(&at_client), one_record(&at_server));
    assert_one_trace(&client_record, &server_record);
    assert_addresses(&client_record, c.local, "10.98.0.1:80".parse().unwrap());
    let seen_by_server = s.peer.unwrap();
    assert_eq!(seen_by_server.ip().to_string(), "10.99.2.1", "the router is masqueraded");
    assert_addresses(&server_record, listener.local, seen_by_server);
    assert_eq!(client_record["attributes"]["flowend.end.by"], "local");
    assert_eq!(server_record["attributes"]["flowend.end.by"], "remote");
}

/// The translation happens below the client's own socket: its packets show another address at egress
/// than its socket has.
#[test]
fn a_client_translated_on_its_own_host_keeps_its_sockets_addresses() {
    if !can_run("a_client_translated_on_its_own_host_keeps_its_sockets_addresses", TOOLS) {
        return;
    }
    let netns = Netns::new();
    netns.ip(&["addr", "add", "10.97.0.1/32", "dev", "lo"]);
    netns.ip(&["route", "add", "10.98.0.0/24", "dev", "lo"]);
    netns.exec(&["nft", "add", "table", "ip", "t"]);
    netns.exec(&[
        "nft",
        "add",
        "chain",
        "ip",
        "t",
        "out",
        "{ type nat hook output priority -100; }",
    ]);
    netns.exec(&[
        "nft",
        "add",
        "rule",
        "ip",
        "t",
        "out",
        "ip",
        "daddr",
        "10.98.0.1",
        "tcp",
        "dport",
        "80",
        "dnat",
        "to",
        "10.97.0.1:9090",
    ]);
    let (client_group, server_group) = (Cgroup::new(), Cgroup::new());
    let (at_client, at_server) =
        (flowend_in(&netns, &client_group), flowend_in(&netns, &server_group));
    let (mut client, mut server) =
        (puppet_in(&netns, &client_group), puppet_in(&netns, &server_group));
    let (listener, c, s) = open(&mut client, &mut server, "10.97.0.1:9090");
    step();
    server.reset(s);
    step();
    client.close(c);

    let (client_record, server_record) = (one_record(&at_client), one_record(&at_server));
    assert_one_trace(&client_record, &server_record);
    assert_addresses(&client_record, c.local, "10.98.0.1:80".parse().unwrap());
    assert_addresses(&server_record, listener.local, s.peer.unwrap());
    assert_eq!(client_record["attributes"]["flowend.end.reset_by"], "remote");
    assert_eq!(server_record["attributes"]["flowend.end.reset_by"], "local");
}
