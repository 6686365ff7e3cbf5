//! DNS in the ring: which packets are copied, how much of them, and what gives way when it is full.

use flowend::probe::{Attachment, LoadOptions, Probe, Ring, Role};
use flowend_probe_types::{ACK, EventKind, FIN, LOST_SLOTS, PSH, RST, SYN};

use super::programs::{run, tcp, v4, v6};
use super::support::{Cgroup, Heard, Netns, Puppet, can_run, drain, load_options};

const UDP: u8 = 17;
const INGRESS: [&str; 2] = ["flowend_ingress", "flowend_dns_ingress"];
const EGRESS: [&str; 2] = ["flowend_egress", "flowend_dns_egress"];

/// With a ring in which nothing gives way.
const fn roomy() -> LoadOptions {
    LoadOptions { ring_bytes: 1 << 20, ..load_options(true) }
}

/// A UDP header and its payload.
fn udp(src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = src_port.to_be_bytes().to_vec();
    datagram.extend(dst_port.to_be_bytes());
    datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// Bytes that differ from place to place; QR, the highest bit of the third, as told.
fn message(len: usize, is_answer: bool) -> Vec<u8> {
    let mut message: Vec<u8> = (0..len).map(|i| (i % 127) as u8).collect();
    if let Some(flags) = message.get_mut(2) {
        *flags |= u8::from(is_answer) << 7;
    }
    message
}

fn shape(heard: &[Heard]) -> Vec<(EventKind, u16, u16, Vec<u8>)> {
    heard
        .iter()
        .map(|h| (h.kind, h.facts.local_port, h.facts.remote_port, h.bytes.clone()))
        .collect()
}

#[test]
fn messages_are_found_behind_ip_options_and_extension_headers() {
    if !can_run("messages_are_found_behind_ip_options_and_extension_headers", &[]) {
        return;
    }
    let mut probe = Probe::load(roomy()).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    // Hop-by-hop options of 8 bytes, then destination options of 8.
    let extended =
        |rest: &[u8]| [&[60, 0, 0, 0, 0, 0, 0, 0, UDP, 0, 0, 0, 0, 0, 0, 0], rest].concat();
    for len in [0, 1, 11, 12, 511, 512, 2047, 2048, 3000] {
        for (names, kind, ports) in [
            (EGRESS, EventKind::DnsQuery, (40_000, 53)),
            (INGRESS, EventKind::DnsAnswer, (53, 40_000)),
        ] {
            let message = message(len, kind == EventKind::DnsAnswer);
            let datagram = udp(ports.0, ports.1, &message);
            for (is_v4, frame) in [
                (true, v4(UDP, 0, &datagram)),
                (true, v4(UDP, 4, &datagram)),
                (true, v4(UDP, 40, &datagram)),
                (false, v6(UDP, &datagram)),
                (false, v6(0, &extended(&datagram))),
            ] {
                for name in names {
                    let at = format!("{name} {len} {} {is_v4}", frame.len());
                    assert_eq!(run(&mut probe, name, &frame), Some(1), "{at}");
                    let (heard, events) = drain(&mut ring);
                    assert!(events.is_empty(), "{at}: {events:?}");
                    let want: &[_] =
                        if len < 12 { &[] } else { &[(kind, 40_000, 53, message.clone())] };
                    assert_eq!(shape(&heard), want, "{at}");
                    let translated = heard.iter().any(|h| h.facts.translated + h.facts.cut != 0);
                    assert!(!translated, "{at}: {heard:?}");
                    assert!(heard.iter().all(|h| h.facts.remote.is_v4() == is_v4), "{at}");
                }
            }
        }
    }
}

#[test]
fn multicast_dns_and_llmnr_are_copied_where_asked_for_and_by_direction() {
    if !can_run("multicast_dns_and_llmnr_are_copied_where_asked_for_and_by_direction", &[]) {
        return;
    }
    for (mdns, llmnr) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = LoadOptions { mdns, llmnr, ..load_options(true) };
        let mut probe = Probe::load(options).unwrap();
        let mut ring = probe.take_ring().unwrap().unwrap();
        for (port, is_on) in [(5353, mdns), (5355, llmnr), (53, true), (54, false)] {
            for is_answer in [false, true] {
                // Both ports are the same in multicast DNS.
                let datagram = udp(port, port, &message(40, is_answer));
                for (names, wants_answer, kind) in
                    [(EGRESS, false, EventKind::DnsQuery), (INGRESS, true, EventKind::DnsAnswer)]
                {
                    for (name, frame) in
                        [(names[0], v4(UDP, 0, &datagram)), (names[1], v6(UDP, &datagram))]
                    {
                        assert_eq!(run(&mut probe, name, &frame), Some(1));
                        // Of port 53 the direction tells alone.
                        let is_seen = is_on && (port == 53 || is_answer == wants_answer);
                        let kinds: Vec<_> = drain(&mut ring)
                            .0
                            .iter()
                            .map(|h| (h.kind, h.facts.remote_port))
                            .collect();
                        let want: &[_] = if is_seen { &[(kind, port)] } else { &[] };
                        assert_eq!(kinds, want, "{name} {port} {is_answer} {mdns} {llmnr}");
                    }
                }
            }
        }
    }
}

/// A segment that a DNS server sends.
fn from_server(flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
    let mut segment = tcp(flags, 0);
    segment[0..2].copy_from_slice(&53_u16.to_be_bytes());
    segment[2..4].copy_from_slice(&40_000_u16.to_be_bytes());
    segment[4..8].copy_from_slice(&seq.to_be_bytes());
    segment.extend(payload);
    segment
}

#[test]
fn segments_of_a_dns_connection_are_copied_and_its_ends_reported() {
    if !can_run("segments_of_a_dns_connection_are_copied_and_its_ends_reported", &[]) {
        return;
    }
    let mut probe = Probe::load(roomy()).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    for (flags, payload) in [
        (SYN | ACK, 0),
        (ACK, 0),
        (ACK, 1),
        (ACK | PSH, 1400),
        (ACK, 3000),
        (FIN | ACK, 0),
        (FIN | ACK, 30),
        (RST, 0),
    ] {
        let payload = message(payload, false);
        let segment = from_server(flags, 7, &payload);
        for (name, reports_ends) in INGRESS.iter().zip([true, false]) {
            for frame in [v4(6, 0, &segment), v4(6, 8, &segment), v6(6, &segment)] {
                assert_eq!(run(&mut probe, name, &frame), Some(1));
                let (heard, events) = drain(&mut ring);
                let is_end = flags & (SYN | FIN | RST) != 0;
                let want: &[_] = if is_end || !payload.is_empty() {
                    &[(EventKind::DnsStreamIn, 40_000, 53, payload.clone())]
                } else {
                    &[]
                };
                assert_eq!(shape(&heard), want, "{name} {flags}");
                assert!(
                    heard.iter().all(|h| (h.facts.flags, h.facts.seq) == (flags, 7)),
                    "{heard:?}"
                );
                assert_eq!(events.len(), usize::from(is_end && reports_ends), "{name} {flags}");
            }
        }
    }
}

#[test]
fn names_give_way_to_the_ends_of_connections() {
    if !can_run("names_give_way_to_the_ends_of_connections", &[]) {
        return;
    }
    let mut probe = Probe::load(load_options(true)).unwrap();
    let mut ring = probe.take_ring().unwrap().unwrap();
    let lost = probe.take_lost().unwrap();
    let dns = LOST_SLOTS.iter().position(|slot| *slot == "dns").unwrap();
    let query = v4(UDP, 0, &udp(40_000, 53, &message(30, false)));
    let segment = v4(6, 0, &from_server(ACK, 1, &message(30, true)));
    let reset = v4(6, 0, &tcp(RST, 0));
    // More than the ring of a page holds.
    for _ in 0..20 {
        assert_eq!(run(&mut probe, "flowend_egress", &query), Some(1));
        assert_eq!(run(&mut probe, "flowend_ingress", &segment), Some(1));
    }
    let by_names = lost.read();
    assert!(by_names[dns] > 0, "{by_names:?}");
    assert_eq!(by_names.iter().sum::<u64>(), by_names[dns], "nothing else: {by_names:?}");
    let mut ends = 0;
    while lost.read() == by_names {
        assert_eq!(run(&mut probe, "flowend_ingress", &reset), Some(1));
        ends += 1;
    }
    let (heard, events) = drain(&mut ring);
    assert_eq!(u64::try_from(heard.len()).unwrap() + by_names[dns], 40, "each is heard or counted");
    assert_eq!(events.len(), ends - 1, "each but the last, which found the ring full");
    assert!(ends > 5, "{ends} ends had half of the ring");
}

/// A watched client and a server beside it, in one namespace.
struct Place {
    client: Puppet,
    server: Puppet,
    ring: Ring,
    _probe: Probe,
    _attached: Attachment,
    _cgroup: Cgroup,
    _netns: Netns,
}

fn place(role: Role) -> Place {
    let (netns, cgroup) = (Netns::new(), Cgroup::new());
    let mut probe = Probe::load(roomy()).unwrap();
    let ring = probe.take_ring().unwrap().unwrap();
    let attached = probe.attach(&cgroup.folder, &cgroup.name, role).unwrap();
    let file = netns.file();
    let inside: [&std::path::Path; 2] = ["--netns".as_ref(), &file];
    let server = Puppet::start(&inside);
    let client = Puppet::start(&[&inside[..], &["--cgroup".as_ref(), &cgroup.folder]].concat());
    Place {
        client,
        server,
        ring,
        _probe: probe,
        _attached: attached,
        _cgroup: cgroup,
        _netns: netns,
    }
}

#[test]
fn messages_of_real_sockets_are_copied_whole_up_to_the_room() {
    if !can_run("messages_of_real_sockets_are_copied_whole_up_to_the_room", &["ip"]) {
        return;
    }
    for role in [Role::Target, Role::Resolver] {
        let mut p = place(role);
        for address in ["127.0.0.1:53", "[::1]:53"] {
            p.server.tell(&format!("udp-serve {address}"));
            for len in [0, 11, 12, 511, 512, 2047, 2048, 4095, 4096, 9000] {
                for verb in ["udp-ask", "udp-ask-connected"] {
                    let at = format!("{verb} {address} {len}");
                    p.client.tell(&at);
                    let (heard, _) = drain(&mut p.ring);
                    if len < 12 {
                        assert!(heard.is_empty(), "{at}: {heard:?}");
                        continue;
                    }
                    let kinds: Vec<_> = heard.iter().map(|h| h.kind).collect();
                    assert_eq!(kinds, [EventKind::DnsQuery, EventKind::DnsAnswer], "{at}");
                    for h in &heard {
                        assert_eq!(h.remote(), address.parse().unwrap(), "{at}");
                        assert_eq!(h.facts.cookie, heard[0].facts.cookie, "{at}");
                        assert_eq!(h.local(), heard[0].local(), "{at}");
                        assert_eq!(h.facts.translated, 0, "{at}");
                        let kept = len.min(4095);
                        assert_eq!(
                            (h.bytes.len(), h.facts.cut),
                            (kept, u8::from(kept < len)),
                            "{at}"
                        );
                        let is_answer = h.kind == EventKind::DnsAnswer;
                        let same = h.bytes.iter().enumerate().all(|(i, byte)| {
                            *byte == i as u8 | (u8::from(is_answer && i == 2) << 7)
                        });
                        assert!(same, "{at}: the bytes");
                    }
                }
            }
        }
    }
}

#[test]
fn a_datagram_after_a_query_that_never_left_is_no_query() {
    if !can_run("a_datagram_after_a_query_that_never_left_is_no_query", &["ip"]) {
        return;
    }
    let mut p = place(Role::Target);
    p.server.tell("udp-serve 127.0.0.1:54");
    // No route: the hook of sendto() runs, and no packet leaves.
    assert!(p.client.ask("udp-ask 192.0.2.1:53 30").is_err());
    for _ in 0..20 {
        p.client.tell("udp-ask 127.0.0.1:54 30");
    }
    let (heard, _) = drain(&mut p.ring);
    assert!(heard.is_empty(), "{heard:?}");
}

/// How many bytes of one direction there are without a gap, and whether its FIN is. TCP may send something
/// again, which is copied again: where each instruction is emulated, an ACK may take longer than its timer.
fn stream(heard: &[Heard], kind: EventKind) -> (usize, bool) {
    let (mut next, mut sum, mut has_fin) = (None, 0, false);
    for h in heard.iter().filter(|h| h.kind == kind) {
        let numbers = h.bytes.len() + usize::from(h.facts.flags & SYN != 0);
        let again = next.map_or(0, |next: u32| next.wrapping_sub(h.facts.seq).cast_signed());
        let new = numbers.saturating_sub(usize::try_from(again).expect("no gap"));
        assert!(!has_fin || new == 0, "nothing new after the FIN: {:?}", h.facts);
        has_fin |= h.facts.flags & FIN != 0;
        next = Some(next.unwrap_or(h.facts.seq).wrapping_add(u32::try_from(new).expect("few")));
        // A SYN has a number, and no byte.
        sum += new.min(h.bytes.len());
    }
    (sum, has_fin)
}

#[test]
fn a_dns_connection_is_copied_in_pieces_without_a_gap() {
    if !can_run("a_dns_connection_is_copied_in_pieces_without_a_gap", &["ip"]) {
        return;
    }
    for (role, address) in [
        (Role::Target, "127.0.0.1:53"),
        (Role::Target, "[::1]:53"),
        (Role::Resolver, "127.0.0.1:53"),
    ] {
        let mut p = place(role);
        let listener = p.server.listen(address);
        let client = p.client.connect(listener.local);
        let accepted = p.server.accept(listener);
        // More than a segment of GSO holds.
        p.client.send(client, 100_000);
        p.server.recv(accepted, 100_000);
        p.server.send(accepted, 70_000);
        p.client.recv(client, 70_000);
        p.client.shutdown(client);
        assert_eq!(p.server.drain(accepted), 0);
        p.server.close(accepted);
        assert_eq!(p.client.drain(client), 0);
        let (heard, events) = drain(&mut p.ring);
        assert_eq!(stream(&heard, EventKind::DnsStreamOut), (100_000, true), "{address}");
        assert_eq!(stream(&heard, EventKind::DnsStreamIn), (70_000, true), "{address}");
        assert!(heard.iter().any(|h| h.bytes.len() == 4095), "some are pieces");
        assert!(heard.iter().all(|h| h.remote() == listener.local && h.local() == client.local));
        let first = &heard[0].facts;
        assert_eq!((first.flags, heard[0].bytes.len()), (SYN, 0), "{first:?}");
        // A resolver's connections are none to report.
        assert_eq!(events.is_empty(), role == Role::Resolver, "{events:?}");
    }
}
