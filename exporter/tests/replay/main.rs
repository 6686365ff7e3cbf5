//! `flowend replay` as a program, on captures that these tests write. No root, no kernel.

mod names;
mod packets;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};

use packets::*;
use serde_json::{Value, json};

const CLIENT: Socket = ("10.0.0.1", 40_000);
const SERVER: Socket = ("10.0.0.2", 8080);
const CLIENT6: Socket = ("2001:db8::1", 40_000);
const SERVER6: Socket = ("2001:db8::2", 443);

/// What a run of the program left.
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn records(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `key` of each record's attributes.
    fn attributes(&self, key: &str) -> Vec<Value> {
        self.records().iter().map(|record| record["attributes"][key].clone()).collect()
    }

    fn good(self) -> Self {
        assert_eq!(self.status, Some(0), "{}", self.stderr);
        self
    }

    /// Failed, and said all of this.
    fn bad(self, words: &[&str]) -> Self {
        assert_eq!(self.status, Some(1), "{}", self.stderr);
        let message = self.stderr.lines().last().unwrap_or_default();
        for word in words {
            assert!(message.contains(word), "{word:?} in {message:?}");
        }
        self
    }
}

/// A folder with a capture, and the command that replays it as JSON.
fn command(file: &[u8]) -> (tempfile::TempDir, Command) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("capture");
    std::fs::write(&path, file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowend"));
    // What the caller's environment configures is none of this.
    command.env_clear().arg("replay").arg(path).args(["--output", "json"]);
    (folder, command)
}

fn replay_with(file: &[u8], options: &[&str]) -> Run {
    let (_folder, mut command) = command(file);
    let output = command.args(options).output().unwrap();
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn replay(file: &[u8]) -> Run {
    replay_with(file, &[])
}

fn plain() -> Vec<u8> {
    pcap(Order::Little, false, RAW, &connection(CLIENT, SERVER))
}

#[test]
fn a_record_is_whole() {
    let run = replay(&plain()).good();
    let want = json!({
        "timestamp": "2024-05-06T07:08:09.008123000Z",
        "event_name": "flowend.tcp.end",
        "severity": "INFO",
        "body": "tcp connection to 10.0.0.2:8080 ended: fin, by local, after 8.0ms",
        "trace_id": run.records()[0]["trace_id"],
        "span_id": run.records()[0]["span_id"],
        "resource": {"service.name": "replay"},
        "attributes": {
            "flowend.connection.direction": "outgoing",
            "source.address": "10.0.0.1",
            "source.port": 40_000,
            "destination.address": "10.0.0.2",
            "destination.port": 8080,
            "client.address": "10.0.0.1",
            "client.port": 40_000,
            "server.address": "10.0.0.2",
            "server.port": 8080,
            "network.local.address": "10.0.0.1",
            "network.local.port": 40_000,
            "network.peer.address": "10.0.0.2",
            "network.peer.port": 8080,
            "network.transport": "tcp",
            "network.type": "ipv4",
            "flowend.end.by": "local",
            "flowend.end.reason": "fin",
            "flowend.conn_state": "SF",
            "flowend.history": "ShADadFf",
            "flowend.duration_us": 8000,
            "flowend.half_close_us": 1000,
            "flowend.start_known": true,
            "flowend.bytes.sent": 5,
            "flowend.bytes.received": 7,
            "flowend.segments.sent": 6,
            "flowend.segments.received": 4,
            "flowend.retransmits": 0,
            "flowend.rtt.handshake_us": 1000,
        },
        "span": {
            "name": "tcp connection",
            "kind": "CLIENT",
            "parent_span_id": null,
            "start": "2024-05-06T07:08:09.000123000Z",
            "end": "2024-05-06T07:08:09.008123000Z",
            "status": "UNSET",
        },
    });
    assert_eq!(run.records(), [want]);
    assert!(run.stderr.contains("capture: packets 10 = tcp 10; connections 1"), "{}", run.stderr);
    assert!(run.stderr.contains("json: seen 1 = exported 1"), "{}", run.stderr);
}

#[test]
fn every_file_format_and_link_type_tells_the_same() {
    let want = replay(&plain()).good().stdout;
    let ip = connection(CLIENT, SERVER);
    let linked = |link| framed(&ip, |bytes| frame(link, bytes));
    let (le, be) = (Order::Little, Order::Big);
    let mut files = vec![
        ("big endian".to_owned(), pcap(be, false, RAW, &ip)),
        ("ns".into(), pcap(le, true, RAW, &ip)),
        ("ns, big endian".into(), pcap(be, true, RAW, &ip)),
        ("pcapng".into(), pcapng(le, RAW, &ip)),
        ("pcapng, big endian".into(), pcapng(be, RAW, &ip)),
        (
            "with the length of a checksum in the link type".into(),
            pcap(le, false, 0x5400_0065, &ip),
        ),
    ];
    for link in [ETHERNET, SLL, SLL2, RAW, NULL, LOOP, 12, 14, 228] {
        files.push((format!("link type {link}"), pcap(le, false, link, &linked(link))));
        files.push((format!("pcapng, link type {link}"), pcapng(be, link, &linked(link))));
    }
    for tags in [&[0x8100][..], &[0x88a8, 0x8100], &[0x9100, 0x8100]] {
        let packets = framed(&ip, |bytes| tagged(tags, bytes));
        files.push((format!("tags {tags:x?}"), pcap(le, false, ETHERNET, &packets)));
    }
    let padded = framed(&ip, |bytes| {
        let mut frame = frame(ETHERNET, bytes);
        frame.resize(frame.len().max(60) + 4, 0xee);
        frame
    });
    files.push(("padding and checksum of Ethernet".into(), pcap(le, false, ETHERNET, &padded)));
    let cut = |n: usize| {
        ip.iter().map(move |p| Captured { bytes: p.bytes[..n.min(p.bytes.len())].to_vec(), ..*p })
    };
    files.push(("a snapshot length".into(), pcap(le, false, RAW, &cut(40).collect::<Vec<_>>())));
    for (name, file) in files {
        let run = replay(&file).good();
        assert_eq!(run.stdout, want, "{name}: {}", run.stderr);
    }
}

#[test]
fn ipv6_goes_through_its_extension_headers() {
    let plain = connection(CLIENT6, SERVER6);
    let want = replay(&pcap(Order::Little, false, RAW, &plain)).good();
    assert_eq!(want.attributes("network.type"), ["ipv6"]);
    assert_eq!(want.attributes("flowend.history"), ["ShADadFf"]);
    // Hop-by-hop, destination options of 16 bytes, an atomic fragment, then TCP.
    let extended = framed(&plain, |bytes| {
        let headers = [
            &[60, 0, 0, 0, 0, 0, 0, 0][..],
            &[44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 0, 0, 0, 0, 0, 9],
        ]
        .concat();
        let length = u16::try_from(bytes.len() - 40 + headers.len()).unwrap();
        let mut packet = [&bytes[..40], &headers, &bytes[40..]].concat();
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        packet[6] = 0;
        packet
    });
    for link in [RAW, 229, ETHERNET, SLL, SLL2, NULL, LOOP] {
        let packets = framed(&extended, |bytes| frame(link, bytes));
        let run = replay(&pcap(Order::Big, false, link, &packets)).good();
        assert_eq!(run.stdout, want.stdout, "link type {link}: {}", run.stderr);
    }
}

#[test]
fn pcapng_of_two_interfaces_and_three_kinds_of_packets() {
    let order = Order::Little;
    let [one, two, three] =
        [40_001, 40_002, 40_003].map(|port| connection((CLIENT.0, port), SERVER));
    let file = [
        section(order),
        interface(order, ETHERNET, 6),
        interface(order, RAW, 9),
        // What is not known is passed over.
        block(order, 0x0bad, b"whatever"),
        framed(&one, |ip| frame(ETHERNET, ip))
            .iter()
            .flat_map(|p| enhanced(order, 0, 6, p))
            .collect(),
        two.iter().flat_map(|p| enhanced(order, 1, 9, p)).collect(),
        framed(&three, |ip| frame(ETHERNET, ip)).iter().flat_map(|p| simple(order, p)).collect(),
        // Another section has other interfaces, and may have another byte order.
        section(Order::Big),
        interface(Order::Big, RAW, 6),
        connection((CLIENT.0, 40_004), SERVER).iter().flat_map(|p| old(Order::Big, 0, p)).collect(),
    ]
    .concat();
    let run = replay(&file).good();
    let ports: Vec<u64> = (40_001..=40_004).collect();
    assert_eq!(run.attributes("client.port"), ports);
    assert_eq!(run.attributes("flowend.bytes.received"), [7, 7, 7, 7]);
    // Simple packets have no time: they follow the packet before.
    assert_eq!(run.attributes("flowend.duration_us"), [8000, 8000, 0, 8000]);
}

#[test]
fn what_is_no_tcp_packet_is_counted_by_cause() {
    let mut packets = connection(CLIENT, SERVER);
    let tcp = &tcp(CLIENT, SERVER, ACK, 1, 1, b"x")[..];
    let mut later_fragment = ip(CLIENT.0, SERVER.0, 6, tcp);
    later_fragment[7] = 1;
    let mut first_fragment = ip(CLIENT.0, SERVER.0, 6, tcp);
    first_fragment[6] = 0x20;
    let mut bad_offset = ip(CLIENT.0, SERVER.0, 6, tcp);
    bad_offset[32] = 0xf0;
    let mut arp = frame(ETHERNET, &[0; 28]);
    arp[12..14].copy_from_slice(&[8, 6]);
    packets = framed(&packets, |ip| frame(ETHERNET, ip));
    for bytes in [
        frame(ETHERNET, &later_fragment),
        frame(ETHERNET, &first_fragment),
        frame(ETHERNET, &bad_offset),
        frame(ETHERNET, &ip(CLIENT.0, SERVER.0, 6, &tcp[..19])),
        frame(ETHERNET, &udp(CLIENT, SERVER, b"x")),
        arp,
        vec![0; 13],
    ] {
        packets.push(at(20_000, bytes));
    }
    let run = replay(&pcap(Order::Little, false, ETHERNET, &packets)).good();
    assert_eq!(run.attributes("flowend.segments.sent"), [6]);
    let line = "packets 17 = tcp 10 + skipped{not_ip} 1 + skipped{not_tcp} 1 + skipped{fragment} 2 \
                + skipped{truncated} 2 + skipped{bad_header} 1; connections 1";
    assert!(run.stderr.contains(line), "{}", run.stderr);
}

#[test]
fn a_damaged_file_gives_what_can_be_read() {
    let packets = [connection(CLIENT, SERVER), vec![at(9_000, vec![0x45; 40])]].concat();
    let good = pcap(Order::Little, false, RAW, &packets);
    let whole = replay(&plain()).good().stdout;
    let last = good.len() - 56;
    let cut = replay(&good[..good.len() - 1]).bad(&[
        "capture: packet 11",
        &format!("at byte {last}: the file ends inside of it"),
        "what came before it is reported",
        "editcap",
    ]);
    assert_eq!(cut.stdout, whole);
    assert!(cut.stderr.contains("packets 10 = tcp 10; connections 1"), "{}", cut.stderr);
    let mut long = good.clone();
    long[last + 8..last + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let long = replay(&long).bad(&["packet 11", "a length of 4294967311 bytes, which cannot be"]);
    assert_eq!(long.stdout, whole);

    let ng = pcapng(Order::Little, RAW, &packets);
    let half = replay(&ng[..ng.len() / 2]).bad(&["the file ends inside of it"]);
    assert_eq!(half.attributes("flowend.end.reason"), ["open"]);
    let mut unequal = ng.clone();
    let length = unequal.len() - 4;
    unequal[length] ^= 4;
    replay(&unequal).bad(&["packet 11", "two lengths differ"]);
    let stray = [section(Order::Big), enhanced(Order::Big, 3, 6, &packets[0])].concat();
    replay(&stray).bad(&["packet 1", "interface not described"]);
}

#[test]
fn what_is_no_capture_is_an_error_that_says_what_to_do() {
    replay(b"").bad(&["not a capture: it is empty"]);
    replay(b"\xd4\xc3").bad(&["not a capture: it is too short"]);
    replay(b"#!/bin/sh\necho").bad(&["neither as pcap nor as pcapng", "tcpdump -w"]);
    replay(b"\x1f\x8b\x08\0\0\0\0\0").bad(&["it is compressed", "decompress it first"]);
    replay(&plain()[..23]).bad(&["it ends inside of its header"]);
    replay(&pcap(Order::Little, false, 105, &connection(CLIENT, SERVER)))
        .bad(&["link types that are not understood: 105", "tcpdump.org/linktypes"]);
    let (folder, mut missing) = command(b"");
    std::fs::remove_file(folder.path().join("capture")).unwrap();
    let output = missing.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("No such file") && stderr.contains("name a pcap"), "{stderr}");
    let usage = replay_with(&plain(), &["--local", "10.0.0.0/99"]);
    assert_eq!(usage.status, Some(2), "{}", usage.stderr);
    assert!(usage.stderr.contains("write one like 10.0.0.0/8"), "{}", usage.stderr);
}

#[test]
fn one_unknown_link_type_among_others_is_counted() {
    let order = Order::Big;
    let packets = connection(CLIENT, SERVER);
    let file = [
        section(order),
        interface(order, 105, 6),
        interface(order, RAW, 6),
        enhanced(order, 0, 6, &packets[0]),
        packets.iter().flat_map(|p| enhanced(order, 1, 6, p)).collect(),
    ]
    .concat();
    let run = replay(&file).good();
    assert_eq!(run.attributes("flowend.end.reason"), ["fin"]);
    let line = "packets 11 = tcp 10 + skipped{link_type} 1; connections 1; \
                link types not understood: 105";
    assert!(run.stderr.contains(line), "{}", run.stderr);
}

#[test]
fn the_same_file_twice_gives_the_same_bytes() {
    // Without ISNs, ids come from the place in the file.
    let packets = connection(CLIENT, SERVER)[3..].to_vec();
    let file = pcap(Order::Little, false, RAW, &packets);
    let (once, twice) = (replay(&file).good(), replay(&file).good());
    assert_eq!(once.stdout, twice.stdout);
    assert_eq!(once.attributes("flowend.start_known"), [false]);
    assert_eq!(once.attributes("flowend.conn_state"), ["OTH"]);
    let moved = [vec![at(0, vec![0x45; 40])], packets].concat();
    let moved = replay(&pcap(Order::Little, false, RAW, &moved)).good();
    assert_ne!(moved.records()[0]["trace_id"], once.records()[0]["trace_id"]);
}

#[test]
fn local_addresses_and_settings_are_heeded() {
    let server = replay_with(&plain(), &["--local", "10.0.0.2"]).good();
    let client = replay_with(&plain(), &["--local", "10.0.0.0/24", "--local", "fd00::/8"]).good();
    assert_eq!(client.stdout, replay(&plain()).good().stdout);
    assert_eq!(server.attributes("flowend.connection.direction"), ["incoming"]);
    assert_eq!(server.attributes("network.local.port"), [8080]);
    assert_eq!(server.attributes("flowend.end.by"), ["remote"]);
    let (server, client) = (&server.records()[0], &client.records()[0]);
    assert_eq!(server["span"]["parent_span_id"], client["span_id"], "one trace, as from two hosts");
    assert_eq!(server["trace_id"], client["trace_id"]);

    let set = [
        "--set=attributes.profile=tracee",
        "--set=resource.service_name=mine",
        "--set=resource.attributes.site=lab",
    ];
    let run = replay_with(&plain(), &set).good();
    assert_eq!(run.attributes("srcIP"), ["10.0.0.1"]);
    assert_eq!(run.records()[0]["resource"], json!({"service.name": "mine", "site": "lab"}));
    assert_eq!(replay_with(&plain(), &["--set=sampling.ratio=0"]).good().stdout, "");
    let text = replay_with(&plain(), &["--output", "text"]).good();
    assert!(text.stdout.contains("10.0.0.1:40000"), "{}", text.stdout);
}

#[test]
fn past_flows_max_it_says_so() {
    let packets: Vec<_> = (0..3_u16)
        .flat_map(|n| connection((CLIENT.0, 40_000 + n), SERVER).into_iter().take(3))
        .collect();
    let run = replay_with(&pcap(Order::Little, false, RAW, &packets), &["--set=flows.max=2"])
        .bad(&["packet 7", "2 connections are open at the same time", "raise flows.max"]);
    assert_eq!(run.attributes("flowend.end.reason"), ["open", "open"]);
}

#[test]
fn names_come_from_the_captures_dns_answers() {
    let resolver = ("10.0.0.53", 53);
    let asker = (CLIENT.0, 5353);
    let name = b"\x03www\x07example\x04test\0\0\x01\0\x01";
    let query = [&b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0"[..], name].concat();
    let answer = [
        &b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0"[..],
        name,
        b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x02",
    ]
    .concat();
    let lookup = [
        at(0, frame(SLL, &udp(asker, resolver, &query))),
        at(1, frame(SLL, &udp(resolver, asker, &answer))),
    ];
    let mut later = framed(&connection(CLIENT, SERVER), |ip| frame(SLL, ip));
    later.iter_mut().for_each(|p| p.time_us += 1000);
    let file = pcap(Order::Little, false, SLL, &[&lookup[..], &later].concat());
    let run = replay(&file).good();
    assert_eq!(run.attributes("flowend.destination.domains"), [json!(["www.example.test"])]);
    assert_eq!(run.attributes("server.address"), ["www.example.test"]);
    let line = "dns messages: seen 2 = queries{taken} 1 + answers{learnt} 1\n";
    assert!(run.stderr.contains(line), "{}", run.stderr);
    let without = replay_with(&file, &["--set=dns.enabled=false"]).good();
    assert_eq!(without.attributes("server.address"), ["10.0.0.2"]);
    // An answer after the connection began is of no help to it.
    let file = pcap(Order::Little, false, SLL, &[&later[..], &lookup].concat());
    assert_eq!(replay(&file).good().attributes("server.address"), ["10.0.0.2"]);
}

/// Connections that are refused, one after the other.
fn refused(count: u16) -> Vec<u8> {
    let packets: Vec<_> = (0..count)
        .flat_map(|n| {
            let client = (CLIENT.0, 1024 + n);
            [
                at(u64::from(n), segment(client, SERVER, SYN, 7, 0, b"")),
                at(u64::from(n), segment(SERVER, client, RST | ACK, 0, 8, b"")),
            ]
        })
        .collect();
    pcap(Order::Little, false, RAW, &packets)
}

#[test]
fn the_reader_waits_for_a_slow_output() {
    let (_folder, mut command) = command(&refused(1000));
    command.args(["--set=export.queue_records=1", "--set=flows.max=10"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A pipe holds 64 kB: the rest waits until it is read.
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout.lines().count(), 1000);
}

#[test]
fn sigint_stops_reading_and_sends_what_there_is() {
    let (_folder, mut command) = command(&refused(1000));
    command.args([
        "--set=export.queue_records=1",
        "--set=flows.max=10",
        "--set=shutdown.timeout=0s",
    ]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    // The pipe is full before 1000 records are in it, and nobody reads: it cannot be at the end.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(
        last.contains("stopped after packet") && last.contains("the rest was not read"),
        "{last}"
    );
    assert!(stderr.contains("; connections ") && stderr.contains("json: seen "), "{stderr}");
}

#[test]
fn the_summary_does_not_depend_on_the_log_level() {
    let run = replay_with(&plain(), &["--set=log.level=error"]).good();
    assert!(run.stderr.contains("capture: packets 10 = tcp 10; connections 1"), "{}", run.stderr);
    assert!(run.stderr.contains("json: seen 1 = exported 1"), "{}", run.stderr);
}

/// A replay that reads from a pipe. The first half of a capture is in it, and nothing more comes; the
/// record that a reused pair of ports yields shows that it was read.
fn waiting() -> (std::process::Child, std::process::ChildStdin) {
    let mut packets = connection(CLIENT, SERVER);
    packets.push(at(20_000, segment(CLIENT, SERVER, SYN, 90_000, 0, b"")));
    let mut child = Command::new(env!("CARGO_BIN_EXE_flowend"))
        .env_clear()
        .args(["replay", "/dev/stdin", "--output", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&pcap(Order::Little, false, RAW, &packets)).unwrap();
    (child, stdin)
}

fn interrupt(child: &std::process::Child) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
}

#[test]
fn sigint_is_heeded_while_a_pipe_keeps_it_waiting() {
    let (mut child, stdin) = waiting();
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    assert!(first.contains("\"flowend.end.reason\":\"fin\""), "{first}");
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("packets 11 = tcp 11; connections 2"), "{stderr}");
    assert!(stderr.lines().last().unwrap().contains("stopped after packet 11"), "{stderr}");
    assert!(rest.contains("\"flowend.end.reason\":\"open\""), "what there is is sent: {rest}");
}

#[test]
fn a_second_sigint_ends_it_at_once() {
    let (_folder, mut command) = command(&refused(1000));
    // Nobody reads the pipe that it writes to, so it would wait for an hour.
    command.args(["--set=export.queue_records=1", "--set=flows.max=10"]);
    command.arg("--set=shutdown.timeout=1h");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::with_capacity(1, child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    // Signals of one kind that come together are one: repeated until it has understood.
    while child.try_wait().unwrap().is_none() {
        interrupt(&child);
        std::thread::yield_now();
    }
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("stopped at once by a second signal"), "{stderr}");
}
