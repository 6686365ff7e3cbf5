//! Answers that come from another address than was asked: mDNS and LLMNR.

use super::super::QUERY_NS;
use super::super::message::{Header, Message as Parsed};
use super::super::multicast::{Asked, MAX_ASKED, MAX_SOCKETS};
use super::*;

/// A message of a socket that speaks the whole of mDNS, to the group or from a neighbour.
fn mdns(remote: &str, time_ns: u64) -> DnsEvent {
    let remote = addr(remote);
    DnsEvent { remote, remote_port: 5353, local_port: 5353, ..facts(time_ns) }
}

fn llmnr(remote: &str, time_ns: u64) -> DnsEvent {
    DnsEvent { remote: addr(remote), remote_port: 5355, ..facts(time_ns) }
}

fn mdns_query(names: &[&str]) -> Vec<u8> {
    let mut made = Made::query(names[0], RecordType::A).id(0);
    for asked in &names[1..] {
        made.0.add_query(Query::query(name(asked), RecordType::AAAA));
    }
    made.bytes()
}

/// Without a question, as mDNS answers are (RFC 6762, section 6).
fn mdns_answer() -> Made {
    let mut made = Made::answer("x.local", RecordType::A).id(0);
    made.0.queries.clear();
    made
}

#[test]
fn mdns_answers_count_for_the_names_that_their_socket_asked_for() {
    let mut dns = dns();
    let query = mdns_query(&["Printer.local", "_ipp._tcp.local", "example.test"]);
    dns.observe(EventKind::DnsQuery, &mdns("224.0.0.251", 0), &query, SCOPE);
    let made = mdns_answer()
        .with("printer.local", 120, a("192.168.1.9"))
        .with("other.local", 120, a("192.168.1.10"))
        .with("example.test", 120, a("192.168.1.11"))
        .with("_ipp._tcp.local", 120, srv("scanner.local"))
        .additional("scanner.local", 120, a("192.168.1.12"));
    dns.observe(EventKind::DnsAnswer, &mdns("192.168.1.9", SECOND), &made.bytes(), SCOPE);
    assert_eq!(known(&dns, "192.168.1.9", 2 * SECOND), ["printer.local"]);
    assert_eq!(known(&dns, "192.168.1.12", 2 * SECOND), ["_ipp._tcp.local", "scanner.local"]);
    for ip in ["192.168.1.10", "192.168.1.11"] {
        assert!(known(&dns, ip, 2 * SECOND).is_empty(), "{ip}");
    }
    let (_, _, kept) = dns.entries().next().unwrap();
    assert_eq!(kept[0].source, super::super::NameSource::Mdns);
    check_queries(&dns.stats(), &[(QueryFate::Taken, 1)]);
    check_answers(&dns.stats(), &[(AnswerFate::Learnt, 1)]);
}

#[test]
fn the_cache_flush_bit_is_no_part_of_the_class() {
    let mut dns = dns();
    let query = mdns_query(&["p.local"]);
    dns.observe(EventKind::DnsQuery, &mdns("ff02::fb", 0), &query, SCOPE);
    let mut bytes = mdns_answer().with("p.local", 120, a("192.168.1.9")).bytes();
    let class = 12 + b"\x01p\x05local\0".len() + 2;
    assert_eq!(bytes[class..class + 2], [0, 1]);
    bytes[class] = 0x80;
    dns.observe(EventKind::DnsAnswer, &mdns("fe80::9", 1), &bytes, SCOPE);
    assert_eq!(known(&dns, "192.168.1.9", SECOND), ["p.local"]);
}

#[test]
fn mdns_answers_that_count_for_nothing() {
    let good = mdns_answer().with("p.local", 120, a("192.168.1.9"));
    let other = mdns_answer().with("q.local", 120, a("192.168.1.9"));
    // A neighbour must not name itself after a host of the internet, nor of the link's top.
    let outside = mdns_answer().with("p.local", 120, cname("bank.test")).with(
        "bank.test",
        120,
        a("192.168.1.9"),
    );
    let goodbye = mdns_answer().with("p.local", 0, a("192.168.1.9"));
    let failed = mdns_answer().rcode(ResponseCode::ServFail).with("p.local", 9, a("192.168.1.9"));
    let at = mdns("192.168.1.9", 1);
    use AnswerFate::{Failed, NoAddress, NotAsked};
    let cases = [
        ("another name", at, &other, NotAsked),
        ("another socket", DnsEvent { cookie: 6, ..at }, &good, NotAsked),
        ("another cgroup", DnsEvent { cgroup_id: 2, ..at }, &good, NotAsked),
        ("late", mdns("192.168.1.9", QUERY_NS), &good, NotAsked),
        ("of another id", DnsEvent { local_port: 40_000, ..at }, &good, NotAsked),
        ("an alias out of the link", at, &outside, NoAddress),
        ("taken back", at, &goodbye, NoAddress),
        ("an error", at, &failed, Failed),
    ];
    for (what, facts, made, fate) in cases {
        let mut dns = dns();
        let mut query = mdns_query(&["p.local"]);
        query[1] = 3;
        dns.observe(EventKind::DnsQuery, &mdns("224.0.0.251", 0), &query, SCOPE);
        dns.observe(EventKind::DnsAnswer, &facts, &made.bytes(), SCOPE);
        assert!(dns.entries().next().is_none(), "{what}");
        assert_eq!(dns.stats().answers(fate), 1, "{what}: {}", dns.stats());
        assert_eq!(dns.stats().seen, dns.stats().accounted(), "{what}");
    }
}

#[test]
fn mdns_asks_for_names_of_the_link_only() {
    for asked in ["example.test", "local", "9.1.168.192.in-addr.arpa", "notlocal", "a.xlocal"] {
        let mut dns = dns();
        let query = mdns_query(&[asked]);
        dns.observe(EventKind::DnsQuery, &mdns("224.0.0.251", 0), &query, SCOPE);
        check_queries(&dns.stats(), &[(QueryFate::NotLocal, 1)]);
        let made = mdns_answer().with(asked, 120, a("192.168.1.9"));
        dns.observe(EventKind::DnsAnswer, &mdns("192.168.1.9", 1), &made.bytes(), SCOPE);
        check_answers(&dns.stats(), &[(AnswerFate::NotAsked, 1)]);
        assert!(known(&dns, "192.168.1.9", SECOND).is_empty(), "{asked}");
    }
}

#[test]
fn mdns_of_a_plain_resolver_goes_by_id() {
    // RFC 6762, section 6.7: from a port of its own, answered like DNS.
    let from = |facts: DnsEvent| DnsEvent { local_port: 40_000, ..facts };
    let mut dns = dns();
    dns.observe(EventKind::DnsQuery, &from(mdns("224.0.0.251", 0)), &query("p.local"), SCOPE);
    let at = from(mdns("192.168.1.9", 1));
    let made = Made::answer("p.local", RecordType::A).with("p.local", 9, a("192.168.1.9"));
    dns.observe(EventKind::DnsAnswer, &at, &made.id(8).bytes(), SCOPE);
    check_answers(&dns.stats(), &[(AnswerFate::NotAsked, 1)]);
    dns.observe(EventKind::DnsAnswer, &at, &answer("p.local", "192.168.1.9"), SCOPE);
    assert_eq!(known(&dns, "192.168.1.9", SECOND), ["p.local"]);
}

#[test]
fn llmnr_answers_come_from_a_neighbour() {
    let good = answer("host", "192.168.1.9");
    let mut tentative = good.clone();
    tentative[2] |= 1;
    let at = llmnr("192.168.1.9", 1);
    let cases = [
        ("good", at, good.clone(), AnswerFate::Learnt),
        ("tentative", at, tentative, AnswerFate::Failed),
        ("id", at, Made::answer("host", RecordType::A).id(9).bytes(), AnswerFate::Unmatched),
        ("question", at, answer("other", "192.168.1.9"), AnswerFate::WrongQuestion),
        ("socket", DnsEvent { cookie: 6, ..at }, good.clone(), AnswerFate::Unmatched),
        ("port", DnsEvent { remote_port: 53, ..at }, good.clone(), AnswerFate::Unmatched),
        ("late", llmnr("192.168.1.9", QUERY_NS), good, AnswerFate::Late),
    ];
    for (what, facts, bytes, fate) in cases {
        let mut dns = dns();
        dns.observe(EventKind::DnsQuery, &llmnr("224.0.0.252", 0), &query("host"), SCOPE);
        dns.observe(EventKind::DnsAnswer, &facts, &bytes, SCOPE);
        check_answers(&dns.stats(), &[(fate, 1)]);
        let learnt: Vec<_> = dns.entries().map(|(_, _, known)| known[0].source).collect();
        let want = [super::super::NameSource::Llmnr];
        assert_eq!(learnt, want[..usize::from(fate == AnswerFate::Learnt)], "{what}");
    }
}

#[test]
fn what_was_asked_is_bounded() {
    let mut asked = Asked::new();
    let mut ask = |cookie: usize, name: &str| {
        let bytes = mdns_query(&[name]);
        let message = Parsed::query(&bytes, &Header::read(&bytes).unwrap()).unwrap();
        let facts = DnsEvent { cookie: cookie as u64, ..mdns("224.0.0.251", 0) };
        assert!(asked.ask(&facts, 0, &message));
    };
    for n in 0..=MAX_ASKED {
        ask(0, &format!("n{n}.local"));
    }
    let mut made = mdns_answer();
    for n in 0..=MAX_ASKED {
        made = made.with(&format!("n{n}.local"), 9, a("192.168.1.9"));
    }
    let bytes = made.bytes();
    let message = Parsed::answer(&bytes, &Header::read(&bytes).unwrap()).unwrap();
    let facts = DnsEvent { cookie: 0, ..mdns("192.168.1.9", 1) };
    let names = asked.answered(&facts, 0, &message);
    assert_eq!(names.len(), MAX_ASKED);
    assert_eq!(message.labels(names[0]), b"\x02n1\x05local", "the oldest gave way");
    let mut ask = |cookie: u64| {
        let bytes = mdns_query(&["a.local"]);
        let message = Parsed::query(&bytes, &Header::read(&bytes).unwrap()).unwrap();
        asked.ask(&DnsEvent { cookie, ..mdns("224.0.0.251", 0) }, 0, &message)
    };
    for cookie in 1..=MAX_SOCKETS as u64 {
        assert!(ask(cookie));
    }
    assert_eq!(asked.sockets(), MAX_SOCKETS);
    assert!(!asked.expects(&facts), "the socket that asked first gave way");
}
