//! Names from answers that are more than one packet: segments of TCP, fragments of IP.

use serde_json::json;

use crate::packets::*;
use crate::{CLIENT, SERVER, replay};

const RESOLVER: Socket = ("10.0.0.53", 53);
const ASKER: Socket = (CLIENT.0, 5353);
const NAME: &[u8] = b"\x03www\x07example\x04test\0\0\x01\0\x01";

/// The query for [`NAME`].
fn query() -> Vec<u8> {
    [&b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0"[..], NAME].concat()
}

/// With as many addresses, of which the last is the server's.
fn answer(addresses: u8) -> Vec<u8> {
    let record = |last: u8| [b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0", &[last][..]].concat();
    let records: Vec<u8> = (2..2 + addresses).rev().flat_map(record).collect();
    let header = [&b"\x12\x34\x81\x80\0\x01\0"[..], &[addresses, 0, 0, 0, 0]].concat();
    [&header, NAME, &records[..]].concat()
}

/// These packets, 1 us from one to the next, then a connection to the server.
fn then_connection(lookup: &[Vec<u8>]) -> Vec<u8> {
    let mut packets: Vec<Captured> =
        (0..).zip(lookup).map(|(n, ip)| at(n, frame(SLL, ip))).collect();
    let mut later = framed(&connection(CLIENT, SERVER), |ip| frame(SLL, ip));
    later.iter_mut().for_each(|p| p.time_us += 1000);
    packets.extend(later);
    pcap(Order::Little, false, SLL, &packets)
}

#[test]
fn an_answer_that_udp_cut_short_is_read_from_tcp() {
    let mut truncated = answer(0);
    truncated[2] |= 0x02;
    let asker = (CLIENT.0, 41_000);
    let framed = |message: &[u8]| {
        [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    };
    let (asked, told) = (framed(&query()), framed(&answer(40)));
    let asked_to = 101 + u32::try_from(asked.len()).unwrap();
    let out = |flags, seq, ack, payload: &[u8]| segment(asker, RESOLVER, flags, seq, ack, payload);
    // The server's sequence numbers wrap within the answer.
    let first = u32::MAX - 299;
    let back = |flags, at: u32, payload: &[u8]| {
        segment(RESOLVER, asker, flags, first.wrapping_add(at), asked_to, payload)
    };
    let end = u32::try_from(told.len()).unwrap();
    let after = first.wrapping_add(end);
    let lookup = [
        udp(ASKER, RESOLVER, &query()),
        udp(RESOLVER, ASKER, &truncated),
        out(SYN, 100, 0, b""),
        segment(RESOLVER, asker, SYN | ACK, first.wrapping_sub(1), 101, b""),
        out(ACK, 101, first, b""),
        out(PSH | ACK, 101, first, &asked),
        back(ACK, 0, &told[..250]),
        // The third before the second, and the first once more.
        back(PSH | ACK, 500, &told[500..]),
        back(ACK, 0, &told[..250]),
        back(ACK, 250, &told[250..500]),
        out(FIN | ACK, asked_to, after, b""),
        back(FIN | ACK, end, b""),
        out(ACK, asked_to + 1, after.wrapping_add(1), b""),
    ];
    let run = replay(&then_connection(&lookup)).good();
    let ports = run.attributes("destination.port");
    let names = run.attributes("flowend.destination.domains");
    let of_server = ports.iter().position(|port| *port == json!(SERVER.1)).unwrap();
    assert_eq!(names[of_server], json!(["www.example.test"]), "{}", run.stdout);
    assert!(
        run.stderr.contains("9 = control 4 + taken 4 + duplicate 1 + waiting 0; messages 2"),
        "{}",
        run.stderr
    );
    // Without the second segment there is no answer.
    let without: Vec<_> = lookup.iter().filter(|ip| **ip != lookup[9]).cloned().collect();
    let run = replay(&then_connection(&without)).good();
    assert!(!run.stdout.contains("www.example.test"), "{}", run.stdout);
    assert!(run.stderr.contains("messages 1"), "{}", run.stderr);
}

#[test]
fn an_answer_in_ip_fragments_is_put_together() {
    let whole = udp(RESOLVER, ASKER, &answer(200));
    let (header, datagram) = whole.split_at(20);
    // As RFC 791, section 3.1 has it: the offset in 8 bytes, and a flag where more follow.
    let part = |from: usize, to: usize| {
        let mut packet = header.to_vec();
        let more = if to < datagram.len() { 0x2000 } else { 0 };
        packet[2..4].copy_from_slice(&u16::try_from(20 + to - from).unwrap().to_be_bytes());
        packet[4..6].copy_from_slice(&[0xbe, 0xef]);
        packet[6..8].copy_from_slice(&(u16::try_from(from / 8).unwrap() | more).to_be_bytes());
        [&packet, &datagram[from..to]].concat()
    };
    let parts = [part(0, 1480), part(1480, 2960), part(2960, datagram.len())];
    let lookup = |order: &[usize]| {
        let parts = order.iter().map(|n| parts[*n].clone());
        let packets: Vec<_> =
            std::iter::once(udp(ASKER, RESOLVER, &query())).chain(parts).collect();
        replay(&then_connection(&packets)).good()
    };
    for order in [[0, 1, 2], [2, 0, 1]] {
        let run = lookup(&order);
        let names = run.attributes("flowend.destination.domains");
        assert_eq!(names, [json!(["www.example.test"])], "{order:?}");
        assert!(run.stderr.contains("udp fragments 3 = joined 3"), "{}", run.stderr);
    }
    let run = lookup(&[0, 2]);
    assert_eq!(run.attributes("server.address"), ["10.0.0.2"]);
    assert!(run.stderr.contains("waiting 2"), "{}", run.stderr);
}
