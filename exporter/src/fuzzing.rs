//! What is done with bytes that anybody can send, as functions of any bytes, each of which checks what must
//! hold. The targets of `fuzz/` call them, and the tests with each file of `fuzz/corpus/`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use flowend_probe_types::{Addr, DnsEvent, Event, EventKind, RingItem, parse};
use hickory_proto::op::{Message, MessageType, OpCode};
use hickory_proto::rr::RData;

use crate::dns::stream::{StreamLimits, Streams};
use crate::dns::{Dns, DnsSettings, Scope};
use crate::export::Signal;
use crate::export::spool::fuzz as spool;
use crate::export::transport::fuzz as answer;

const SECOND: u64 = 1_000_000_000;

/// The longest name told (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

/// A DNS message that comes as the answer to a query with its id and question, and as a query.
///
/// The first byte chooses the port of the server: 53, that of multicast DNS, or of LLMNR. The rest is the
/// message.
pub fn dns_message(input: &[u8]) {
    let Some((choice, message)) = input.split_first() else { return };
    let ttl = |seconds| Duration::from_secs(seconds);
    let settings = DnsSettings { cache_bytes: 1 << 20, min_ttl: ttl(5), max_ttl: ttl(60) };
    let mut dns = Dns::new(settings);
    let port = [53, 5353, 5355][usize::from(choice % 3)];
    let facts = |time_ns| DnsEvent {
        time_ns,
        cookie: 1,
        cgroup_id: 1,
        remote: address("192.0.2.53"),
        remote_port: port,
        ..DnsEvent::default()
    };
    let parsed = Message::from_vec(message).ok();
    let mut seen = 0;
    let mut observe = |dns: &mut Dns, kind, time_ns, bytes: &[u8]| {
        seen += 1;
        dns.observe(kind, &facts(time_ns), bytes, Scope(1));
        let stats = dns.stats();
        assert_eq!((stats.seen, stats.accounted()), (seen, seen), "{stats:?}");
    };
    observe(&mut dns, EventKind::DnsQuery, SECOND, &query_for(message, parsed.as_ref()));
    observe(&mut dns, EventKind::DnsAnswer, 2 * SECOND, message);
    observe(&mut dns, EventKind::DnsQuery, 3 * SECOND, message);
    observe(&mut dns, EventKind::DnsAnswer, 4 * SECOND, message);
    let mut addresses = vec![address("192.0.2.1"), address("2001:db8::1")];
    addresses.extend(parsed.iter().flat_map(addresses_in));
    for addr in addresses {
        let names = dns.names(&[Scope(1)], addr, 5 * SECOND);
        names.iter().for_each(|name| check_name(name));
        assert!(dns.names(&[Scope(2)], addr, 5 * SECOND).is_empty(), "another's scope");
        assert!(dns.names(&[Scope(1)], addr, 200 * SECOND).is_empty(), "past dns.max_ttl");
    }
}

/// Segments of DNS connections, each as one byte of choices, sequence number, length and payload.
pub fn dns_stream(input: &[u8]) {
    let limits = StreamLimits { connections: 3, bytes: 20_000, held: 4 };
    let mut streams = Streams::new(limits);
    let mut messages = 0;
    let mut segments = Reader(input);
    while let Some((choices, seq, payload)) = segments.segment() {
        let is = |bit: u8| choices & (1 << bit) != 0;
        let flag = |bit, flag| if is(bit) { flag } else { 0 };
        let kind = if is(0) { EventKind::DnsStreamIn } else { EventKind::DnsStreamOut };
        let facts = DnsEvent {
            cookie: u64::from(choices >> 1 & 3),
            seq,
            cut: u8::from(is(3)),
            flags: flag(4, 2) | flag(5, 1) | flag(6, 4),
            time_ns: SECOND * input.len() as u64,
            ..DnsEvent::default()
        };
        streams.take(kind, &facts, payload, &mut |of, facts, message| {
            messages += 1;
            let same_way = (kind == EventKind::DnsStreamIn) == (of == EventKind::DnsAnswer);
            assert!(same_way && !message.is_empty() && facts.cut == 0);
            assert_eq!(usize::from(facts.len), message.len());
        });
        let stats = streams.stats();
        assert!(stats.holds(), "{stats:?}");
        assert_eq!(stats.messages, messages);
        assert!(stats.bytes <= limits.bytes as u64, "{stats:?}");
        assert!(stats.connections <= limits.connections as u64, "{stats:?}");
    }
}

/// Packets: one to the parser that the probe uses, too; and as frames, each as one byte for the link
/// type, length and bytes, through what `replay` does with them.
pub fn packet(input: &[u8]) {
    if let Ok(segment) = parse(&input) {
        assert!(usize::try_from(segment.payload).is_ok_and(|n| n + 40 <= input.len()));
    }
    let mut reader = Reader(input);
    let frames = std::iter::from_fn(|| reader.frame());
    crate::replay::fuzz::frames(frames).iter().for_each(|name| check_name(name));
}

/// A record of the ring buffer.
pub fn event(input: &[u8]) {
    match RingItem::decode(input) {
        Ok(RingItem::Dns(kind, facts, message)) => {
            assert_eq!(kind as u8, facts.kind);
            assert_eq!(usize::from(facts.len), message.len());
            let head = facts.as_bytes();
            assert!(input.starts_with(head) && input[head.len()..].starts_with(message));
        }
        Ok(RingItem::Event(Event::Tcp(kind, event))) => {
            assert_eq!((kind as u8, event.as_bytes()), (input[0], input));
        }
        Ok(RingItem::Event(Event::Process(kind, event))) => {
            assert_eq!((kind as u8, input.len()), (event.kind, size_of_val(&event)));
        }
        Ok(RingItem::Event(Event::Error(event))) => {
            assert_eq!((input[0], input.len()), (event.kind, size_of_val(&event)));
        }
        Err(error) => assert!(!format!("{error:?}").is_empty()),
    }
}

/// The files of a segment of the spool. After a 0 in the first byte: the settlements, as two bytes of length
/// and as many bytes, and the segment. After anything else: bodies of frames, of which some are settled, and
/// changes to the segment that they make.
pub fn spool_file(input: &[u8]) {
    let mut reader = Reader(input);
    match reader.take() {
        None => {}
        Some([0]) => {
            let settled = reader.counted().unwrap_or_default();
            spool::read(reader.0, settled);
        }
        Some([choice]) => {
            let bodies: Vec<_> = (0..choice % 8).map_while(|_| reader.counted()).collect();
            let settle = reader.counted().unwrap_or_default();
            let changes = std::iter::from_fn(|| {
                let [high, low, with] = reader.take()?;
                Some((u16::from_be_bytes([high, low]), with))
            });
            spool::damage(&bodies, settle, &changes.collect::<Vec<_>>());
        }
    }
}

/// Settings: how many options and variables, each as a byte of its kind and its text, and then the file. Of the
/// kinds, even numbers are `--set`, and half of them `FLOWEND_` and standard variables of OpenTelemetry each.
pub fn config(input: &[u8]) {
    let mut reader = Reader(input);
    let Some([count]) = reader.take() else { return };
    let (mut set, mut env) = (Vec::new(), BTreeMap::new());
    for _ in 0..count % 8 {
        let Some([kind]) = reader.take() else { return };
        let text = String::from_utf8_lossy(reader.counted().unwrap_or_default()).into_owned();
        match kind % 4 {
            1 => {
                let (name, value) = text.split_once('=').unwrap_or((&text, ""));
                env.insert(format!("FLOWEND_{name}"), value.to_owned());
            }
            3 => {
                env.insert(crate::config::fuzz::variable(kind / 4), text);
            }
            _ => set.push(text),
        }
    }
    crate::config::fuzz::check(&String::from_utf8_lossy(reader.0), set, env);
}

/// The answer of a receiver: a byte of choices, the status, headers and trailers, each as the number of a name, length
/// and value, and the body. Bits of the choices: gRPC, the signal, and two bits each for how many headers and trailers.
pub fn otlp_answer(input: &[u8]) {
    let mut reader = Reader(input);
    let Some([choices, high, low]) = reader.take() else { return };
    let mut fields = |count: u8| -> Vec<_> {
        (0..count).map_while(|_| Some((reader.take::<1>()?[0], reader.counted()?))).collect()
    };
    let headers = fields(choices >> 2 & 3);
    let trailers = fields(choices >> 4 & 3);
    answer::check(&answer::Given {
        is_grpc: choices & 1 != 0,
        signal: if choices & 2 == 0 { Signal::Logs } else { Signal::Traces },
        status: u16::from_be_bytes([high, low]),
        headers,
        trailers,
        body: reader.0,
    });
}

/// The hosts file of a workload.
pub fn hosts_file(input: &[u8]) {
    crate::enrich::check_hosts_file(input).iter().for_each(|name| check_name(name));
}

/// The kernel's answer to a question for its sockets.
pub fn sock_diag(input: &[u8]) {
    crate::diag::check_answer(input);
}

/// The file of names that outlives a restart: as it is after a 0 in the first byte; else it is all but the last line,
/// which has the checksum.
pub fn names_file(input: &[u8]) {
    let Some((choice, file)) = input.split_first() else { return };
    crate::dns::snapshot::fuzz::check(file, *choice != 0);
}

/// The file of a capture, pcap or pcapng.
pub fn capture(input: &[u8]) {
    crate::replay::fuzz::file(input).iter().for_each(|name| check_name(name));
}

/// A query that this answers: with its question where it has one that can be read.
fn query_for(answer: &[u8], parsed: Option<&Message>) -> Vec<u8> {
    let id = answer.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id));
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    for question in parsed.iter().flat_map(|message| &message.queries) {
        query.add_query(question.clone());
    }
    query.to_vec().unwrap_or_default()
}

fn addresses_in(message: &Message) -> impl Iterator<Item = Addr> {
    let records = message.answers.iter().chain(&message.additionals);
    records.filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::from(a.0).into()),
        RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.0).into()),
        _ => None,
    })
}

fn check_name(name: &str) {
    assert!(!name.is_empty() && name.len() <= MAX_NAME, "{name:?}");
    let hurts = |c: char| c.is_control() || c == '"';
    assert!(!name.contains(hurts), "{name:?}");
}

fn address(text: &str) -> Addr {
    text.parse::<IpAddr>().map_or_else(|_| Addr::default(), Addr::from)
}

/// Takes an input apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    /// Two bytes of length, then as much as there is of that.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(u16::from_be_bytes(self.take()?));
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some(taken)
    }

    fn segment(&mut self) -> Option<(u8, u32, &'a [u8])> {
        let [choices] = self.take()?;
        Some((choices, u32::from_be_bytes(self.take()?), self.counted()?))
    }

    fn frame(&mut self) -> Option<(u32, &'a [u8])> {
        let [choice] = self.take()?;
        let link = [101, 1, 113, 276, 0, 105][usize::from(choice % 6)];
        Some((link, self.counted()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Runs each file of a target's corpus, of which there are at least so many.
    fn run_corpus(target: &str, at_least: usize, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        let mut count = 0;
        for file in files {
            // A failure says which.
            println!("{}", file.display());
            run(&std::fs::read(&file).unwrap());
            count += 1;
        }
        assert!(count >= at_least, "{}: {count} files", folder.display());
    }

    #[test]
    fn every_message_of_the_corpus_is_handled() {
        run_corpus("dns_message", 20, dns_message);
    }

    #[test]
    fn every_stream_of_the_corpus_is_handled() {
        run_corpus("dns_stream", 8, dns_stream);
    }

    #[test]
    fn every_packet_of_the_corpus_is_handled() {
        run_corpus("packet", 8, packet);
    }

    #[test]
    fn every_event_of_the_corpus_is_handled() {
        run_corpus("event", 8, event);
    }

    #[test]
    fn every_spool_file_of_the_corpus_is_handled() {
        run_corpus("spool_file", 12, spool_file);
    }

    #[test]
    fn every_configuration_of_the_corpus_is_handled() {
        run_corpus("config", 12, config);
    }

    #[test]
    fn every_answer_of_the_corpus_is_handled() {
        run_corpus("otlp_answer", 16, otlp_answer);
    }

    #[test]
    fn every_hosts_file_of_the_corpus_is_handled() {
        run_corpus("hosts_file", 8, hosts_file);
    }

    #[test]
    fn every_answer_of_sock_diag_in_the_corpus_is_handled() {
        run_corpus("sock_diag", 8, sock_diag);
    }

    #[test]
    fn every_file_of_names_of_the_corpus_is_handled() {
        run_corpus("names_file", 8, names_file);
    }

    #[test]
    fn every_capture_of_the_corpus_is_handled() {
        run_corpus("capture", 10, capture);
    }
}
