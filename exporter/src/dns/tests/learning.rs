//! From the question to addresses.

use hickory_proto::rr::rdata::{HTTPS, TXT};

use super::super::chain::MAX_CHAIN;
use super::*;

#[test]
fn the_name_asked_for_comes_first_then_its_aliases() {
    let mut dns = dns();
    let mut made = Made::answer("WWW.example.com.", RecordType::A);
    let chain =
        ["www.example.com", "edge.example.net", "c3.test", "c4.test", "c5.test", "e7.cdn.test"];
    for pair in chain.windows(2) {
        made = made.with(pair[0], 60, cname(pair[1]));
    }
    let made = made
        .with("e7.cdn.test", 60, a("192.0.2.7"))
        .with("E7.cdn.test", 60, a("192.0.2.8"))
        .with("e7.cdn.test", 60, a("2001:db8::7"))
        .with("elsewhere.test", 60, a("192.0.2.9"))
        .authority("e7.cdn.test", 60, a("192.0.2.10"))
        .additional("e7.cdn.test", 60, a("192.0.2.11"));
    ask_and_answer(&mut dns, SECOND, &made);
    for ip in ["192.0.2.7", "192.0.2.8", "2001:db8::7"] {
        assert_eq!(known(&dns, ip, 2 * SECOND), chain, "{ip}");
    }
    for ip in ["192.0.2.9", "192.0.2.10", "192.0.2.11"] {
        assert!(known(&dns, ip, 2 * SECOND).is_empty(), "{ip} answers nothing");
    }
    check_queries(&dns.stats(), &[(QueryFate::Taken, 1)]);
    check_answers(&dns.stats(), &[(AnswerFate::Learnt, 1)]);
}

#[test]
fn a_name_holds_from_its_answer_to_its_deadline() {
    let with_ttl =
        |asked: &str, ttl, ip: &str| Made::answer(asked, RecordType::A).with(asked, ttl, a(ip));
    let mut dns = dns();
    ask_and_answer(&mut dns, 10 * SECOND, &with_ttl("a.test", 60, "192.0.2.1"));
    for (at, want) in [(10, false), (11, true), (69, true), (71, false)] {
        assert_eq!(!known(&dns, "192.0.2.1", at * SECOND).is_empty(), want, "{at}");
    }
    // TTL 0 means: for this lookup. The connection that follows it still has its name. With the top
    // bit set it is 0 (RFC 2181, section 8).
    for (ttl, holds) in [(0, 5), (1, 5), (6, 6), (4000, 3600), (1 << 31, 5), (u32::MAX, 5)] {
        let ip = format!("10.0.{}.{}", ttl >> 8 & 0xff, ttl & 0xff);
        ask_and_answer(&mut dns, 100 * SECOND, &with_ttl("z.test", ttl, &ip));
        assert_eq!(known(&dns, &ip, (99 + holds) * SECOND + 2), ["z.test"], "{ttl}");
        assert!(known(&dns, &ip, (100 + holds) * SECOND + 2).is_empty(), "{ttl}");
    }
    // The least of the chain.
    let made = Made::answer("c.test", RecordType::A).with("c.test", 10, cname("d.test")).with(
        "d.test",
        300,
        a("192.0.2.3"),
    );
    ask_and_answer(&mut dns, 100 * SECOND, &made);
    assert_eq!(known(&dns, "192.0.2.3", 109 * SECOND), ["c.test", "d.test"]);
    assert!(known(&dns, "192.0.2.3", 111 * SECOND).is_empty());
}

#[test]
fn services_name_the_addresses_of_their_targets() {
    let mut dns = dns();
    let made = Made::answer("_http._tcp.shop.test", RecordType::SRV)
        .with("_http._tcp.shop.test", 60, srv("n1.shop.test"))
        .with("_http._tcp.shop.test", 60, srv("n2.shop.test"))
        .with("_http._tcp.shop.test", 60, srv("."))
        .additional("n1.shop.test", 60, a("192.0.2.1"))
        .additional("n2.shop.test", 60, a("2001:db8::2"))
        .additional("n3.shop.test", 60, a("192.0.2.3"));
    ask_and_answer(&mut dns, 0, &made);
    assert_eq!(known(&dns, "192.0.2.1", SECOND), ["_http._tcp.shop.test", "n1.shop.test"]);
    assert_eq!(known(&dns, "2001:db8::2", SECOND), ["_http._tcp.shop.test", "n2.shop.test"]);
    assert!(known(&dns, "192.0.2.3", SECOND).is_empty(), "no target");

    // HTTPS: an alias, and at its end the service itself with hints (RFC 9460, section 2.4).
    let made = Made::answer("web.test", RecordType::HTTPS)
        .with("web.test", 60, cname("www.web.test"))
        .with("www.web.test", 60, RData::HTTPS(HTTPS(svcb(0, "pool.test", &[]))))
        .additional(
            "pool.test",
            60,
            RData::HTTPS(HTTPS(svcb(1, ".", &["192.0.2.4", "2001:db8::4"]))),
        )
        .additional("pool.test", 60, a("192.0.2.5"));
    ask_and_answer(&mut dns, 0, &made);
    for ip in ["192.0.2.4", "2001:db8::4", "192.0.2.5"] {
        assert_eq!(known(&dns, ip, SECOND), ["web.test", "www.web.test", "pool.test"], "{ip}");
    }

    // The usual one: the service is where the question was, and its addresses come along.
    let made = Made::answer("own.test", RecordType::HTTPS)
        .with("own.test", 60, RData::HTTPS(HTTPS(svcb(1, ".", &[]))))
        .additional("own.test", 60, a("192.0.2.66"))
        .additional("other.test", 60, a("192.0.2.67"));
    ask_and_answer(&mut dns, 0, &made);
    assert_eq!(known(&dns, "192.0.2.66", SECOND), ["own.test"]);
    assert!(known(&dns, "192.0.2.67", SECOND).is_empty());
    let made = Made::answer("_dns.r.test", RecordType::SVCB)
        .with("_dns.r.test", 60, RData::SVCB(svcb(1, "one.r.test", &["192.0.2.6"])))
        // No such service, and hints of an alias, which count for nothing.
        .with("_dns.r.test", 60, RData::SVCB(svcb(0, ".", &[])))
        .with("_dns.r.test", 60, RData::SVCB(svcb(0, "two.r.test", &["192.0.2.7"])));
    ask_and_answer(&mut dns, 0, &made);
    assert_eq!(known(&dns, "192.0.2.6", SECOND), ["_dns.r.test", "one.r.test"]);
    assert!(known(&dns, "192.0.2.7", SECOND).is_empty());
    check_answers(&dns.stats(), &[(AnswerFate::Learnt, 4)]);
}

#[test]
fn all_types_at_once() {
    let mut dns = dns();
    let made = Made::answer("any.test", RecordType::ANY)
        .with("any.test", 60, RData::TXT(TXT::new(vec!["text".into()])))
        .with("any.test", 60, a("192.0.2.1"))
        .with("any.test", 60, a("2001:db8::1"));
    ask_and_answer(&mut dns, 0, &made);
    assert_eq!(known(&dns, "192.0.2.1", SECOND), ["any.test"]);
    assert_eq!(known(&dns, "2001:db8::1", SECOND), ["any.test"]);
}

#[test]
fn two_hundred_addresses() {
    let mut dns = dns();
    let mut made = Made::answer("many.test", RecordType::A);
    for n in 0..200 {
        made = made.with("many.test", 60, a(&format!("10.1.0.{n}")));
    }
    ask_and_answer(&mut dns, 0, &made);
    for n in 0..200 {
        assert_eq!(known(&dns, &format!("10.1.0.{n}"), SECOND), ["many.test"]);
    }
}

#[test]
fn answers_without_an_address_are_told_apart() {
    let text = RData::TXT(TXT::new(vec!["text".into()]));
    let of = |kind| Made::answer("a.test", kind);
    let cases = [
        ("no such name", of(RecordType::A).rcode(ResponseCode::NXDomain), AnswerFate::Negative),
        ("none of this type", of(RecordType::AAAA), AnswerFate::Negative),
        (
            "an alias, and none of this type",
            of(RecordType::AAAA).with("a.test", 60, cname("b.test")),
            AnswerFate::Negative,
        ),
        ("an error", of(RecordType::A).rcode(ResponseCode::ServFail), AnswerFate::Failed),
        ("refused", of(RecordType::A).rcode(ResponseCode::Refused), AnswerFate::Failed),
        // Its address is left out: the whole follows over TCP.
        (
            "cut",
            of(RecordType::A).truncated().with("a.test", 60, a("192.0.2.1")),
            AnswerFate::Truncated,
        ),
        ("text", of(RecordType::TXT).with("a.test", 60, text), AnswerFate::NoAddress),
        (
            "of another name",
            of(RecordType::A).with("b.test", 60, a("192.0.2.1")),
            AnswerFate::NoAddress,
        ),
        // An error behind an address teaches nothing, either.
        (
            "an error with an address",
            of(RecordType::A).rcode(ResponseCode::ServFail).with("a.test", 60, a("192.0.2.1")),
            AnswerFate::Failed,
        ),
    ];
    for (what, made, fate) in cases {
        let mut dns = dns();
        ask_and_answer(&mut dns, 0, &made);
        assert_eq!(dns.stats().answers(fate), 1, "{what}: {}", dns.stats());
        assert!(known(&dns, "192.0.2.1", SECOND).is_empty(), "{what}");
        assert_eq!(dns.waiting(), 0, "{what}: it is answered");
    }
}

#[test]
fn the_upper_bits_of_an_error_lie_in_edns() {
    // BADVERS is 16: 0 in the header, 1 in the OPT record (RFC 6891, section 6.1.3).
    let mut bytes = answer("a.test", "192.0.2.1");
    bytes.extend([0, 0, 41, 16, 0, 1, 0, 0, 0, 0, 0]);
    bytes[11] = 1;
    let mut dns = dns();
    dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test"), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(1), &bytes, SCOPE);
    check_answers(&dns.stats(), &[(AnswerFate::Failed, 1)]);
}

#[test]
fn a_chain_too_long_names_nothing() {
    for (names, fate) in
        [(MAX_CHAIN, AnswerFate::Learnt), (MAX_CHAIN + 1, AnswerFate::ChainTooLong)]
    {
        let mut dns = dns();
        let names: Vec<String> = (0..names).map(|n| format!("n{n}.test")).collect();
        let mut made = Made::answer(&names[0], RecordType::A);
        // The end first: the order of records means nothing.
        made = made.with(names.last().unwrap(), 60, a("192.0.2.1"));
        for pair in names.windows(2).rev() {
            made = made.with(&pair[0], 60, cname(&pair[1]));
        }
        ask_and_answer(&mut dns, 0, &made);
        check_answers(&dns.stats(), &[(fate, 1)]);
        let told = known(&dns, "192.0.2.1", SECOND);
        assert_eq!(told.len(), if fate == AnswerFate::Learnt { MAX_CHAIN } else { 0 });
    }
}
