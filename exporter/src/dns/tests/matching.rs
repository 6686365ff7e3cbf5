//! An answer counts only if it answers a query that was seen.

use super::super::QUERY_NS;
use super::super::query::MAX_QUERIES;
use super::*;

#[test]
fn what_answers_no_query_names_nothing() {
    let good = answer("a.test", "192.0.2.1");
    let other_id = Made::answer("a.test", RecordType::A).id(8).with("a.test", 60, a("192.0.2.1"));
    let other_type = Made::answer("a.test", RecordType::AAAA).with("a.test", 60, a("192.0.2.1"));
    let mut no_question = Made::answer("a.test", RecordType::A).with("a.test", 60, a("192.0.2.1"));
    no_question.0.queries.clear();
    let mut two = Made::answer("a.test", RecordType::A).with("a.test", 60, a("192.0.2.1"));
    two.0.add_query(Query::query(name("b.test"), RecordType::A));
    let mut chaos = good.clone();
    let class = 12 + b"\x01a\x04test\0".len() + 2;
    assert_eq!(chaos[class..class + 2], [0, 1]);
    chaos[class + 1] = 3;
    let at = facts(SECOND);
    use AnswerFate::{Unmatched, WrongQuestion};
    let cases = [
        ("cgroup", DnsEvent { cgroup_id: 2, ..at }, good.clone(), Unmatched),
        ("socket", DnsEvent { cookie: 6, ..at }, good.clone(), Unmatched),
        ("server", DnsEvent { remote: addr("10.0.0.66"), ..at }, good.clone(), Unmatched),
        ("port", DnsEvent { remote_port: 5300, ..at }, good.clone(), Unmatched),
        ("id", at, other_id.bytes(), Unmatched),
        ("question", at, answer("b.test", "192.0.2.1"), WrongQuestion),
        ("type", at, other_type.bytes(), WrongQuestion),
        ("class", at, chaos, WrongQuestion),
        ("no question", at, no_question.bytes(), WrongQuestion),
        ("two questions", at, two.bytes(), WrongQuestion),
        ("late", facts(QUERY_NS), good.clone(), AnswerFate::Late),
    ];
    for (what, facts_of_answer, bytes, fate) in cases {
        let mut dns = dns();
        dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test"), SCOPE);
        dns.observe(EventKind::DnsAnswer, &facts_of_answer, &bytes, SCOPE);
        check_answers(&dns.stats(), &[(fate, 1)]);
        assert!(known(&dns, "192.0.2.1", 2 * SECOND).is_empty(), "{what}");
        if fate != AnswerFate::Late {
            // The forged one took nothing away from the real one.
            dns.observe(EventKind::DnsAnswer, &facts(SECOND), &good, SCOPE);
            assert_eq!(known(&dns, "192.0.2.1", 2 * SECOND), ["a.test"], "{what}");
        }
    }
}

#[test]
fn one_query_has_one_answer() {
    let mut dns = dns();
    let good = answer("a.test", "192.0.2.1");
    dns.observe(EventKind::DnsAnswer, &facts(0), &good, SCOPE);
    dns.observe(EventKind::DnsQuery, &facts(1), &query("a.test"), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(2), &good, SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(3), &answer("a.test", "192.0.2.2"), SCOPE);
    check_answers(&dns.stats(), &[(AnswerFate::Learnt, 1), (AnswerFate::Unmatched, 2)]);
    assert!(known(&dns, "192.0.2.2", SECOND).is_empty());
}

#[test]
fn a_query_sent_again_waits_from_then_on() {
    let mut dns = dns();
    for at in [0, QUERY_NS - 1] {
        dns.observe(EventKind::DnsQuery, &facts(at), &query("a.test"), SCOPE);
    }
    assert_eq!(dns.waiting(), 1);
    let bytes = answer("a.test", "192.0.2.1");
    dns.observe(EventKind::DnsAnswer, &facts(QUERY_NS + 5), &bytes, SCOPE);
    check_answers(&dns.stats(), &[(AnswerFate::Learnt, 1)]);
}

#[test]
fn one_query_may_go_to_two_servers() {
    let mut dns = dns();
    let other = DnsEvent { remote: addr("10.0.0.54"), ..facts(0) };
    dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test"), SCOPE);
    dns.observe(EventKind::DnsQuery, &other, &query("a.test"), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(1), &answer("a.test", "192.0.2.1"), SCOPE);
    let other = DnsEvent { time_ns: 2, ..other };
    dns.observe(EventKind::DnsAnswer, &other, &answer("a.test", "192.0.2.2"), SCOPE);
    assert_eq!(known(&dns, "192.0.2.1", SECOND), ["a.test"]);
    assert_eq!(known(&dns, "192.0.2.2", SECOND), ["a.test"]);
}

#[test]
fn case_of_the_question_means_nothing() {
    // Some resolvers mix it to be harder to forge for, and some servers do not keep it.
    let mut dns = dns();
    dns.observe(EventKind::DnsQuery, &facts(0), &query("wWw.TeSt"), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(1), &answer("www.test", "192.0.2.1"), SCOPE);
    assert_eq!(known(&dns, "192.0.2.1", SECOND), ["www.test"]);
}

#[test]
fn queries_of_a_server_or_of_no_use_are_told_apart() {
    let good = query("a.test");
    let mut update = good.clone();
    update[2] |= 5 << 3;
    let mut none = good.clone();
    none[5] = 0;
    let mut two = Made::query("a.test", RecordType::A);
    two.0.add_query(Query::query(name("b.test"), RecordType::A));
    let mut answered = good.clone();
    answered[7] = 1;
    answered.extend([0; 11]);
    let cases = [
        ("good", facts(0), good.clone(), QueryFate::Taken),
        ("an answer that goes out", facts(0), answer("a.test", "192.0.2.1"), QueryFate::WrongWay),
        ("an update", facts(0), update.clone(), QueryFate::OtherOpcode),
        ("cut", DnsEvent { cut: 1, ..facts(0) }, good.clone(), QueryFate::Cut),
        ("no question", facts(0), none, QueryFate::Malformed),
        ("two questions", facts(0), two.bytes(), QueryFate::Malformed),
        ("with an answer", facts(0), answered, QueryFate::Malformed),
        ("short", facts(0), good[..11].to_vec(), QueryFate::Malformed),
    ];
    for (what, facts, bytes, fate) in cases {
        let mut dns = dns();
        dns.observe(EventKind::DnsQuery, &facts, &bytes, SCOPE);
        check_queries(&dns.stats(), &[(fate, 1)]);
        assert_eq!(dns.waiting(), usize::from(fate == QueryFate::Taken), "{what}");
    }
    let mut dns = dns();
    dns.observe(EventKind::DnsAnswer, &facts(0), &good, SCOPE);
    update[2] |= 0x80;
    dns.observe(EventKind::DnsAnswer, &facts(0), &update, SCOPE);
    check_answers(&dns.stats(), &[(AnswerFate::WrongWay, 1), (AnswerFate::OtherOpcode, 1)]);
}

#[test]
fn queries_on_their_way_are_bounded() {
    let mut dns = dns();
    let from = |n: usize, time_ns| DnsEvent { cookie: n as u64, ..facts(time_ns) };
    let bytes = query("q.test");
    for n in 0..MAX_QUERIES + 3 {
        dns.observe(EventKind::DnsQuery, &from(n, 0), &bytes, SCOPE);
    }
    assert_eq!((dns.waiting(), dns.stats().displaced), (MAX_QUERIES, 3));
    // Those whose time is over give way without being missed.
    dns.observe(EventKind::DnsQuery, &from(1 << 20, QUERY_NS), &bytes, SCOPE);
    assert_eq!((dns.waiting(), dns.stats().displaced), (MAX_QUERIES, 3));
    let good = answer("q.test", "192.0.2.1");
    dns.observe(EventKind::DnsAnswer, &from(2, 1), &good, SCOPE);
    assert!(known(&dns, "192.0.2.1", SECOND).is_empty(), "displaced");
    dns.observe(EventKind::DnsAnswer, &from(9, 1), &good, SCOPE);
    assert_eq!(known(&dns, "192.0.2.1", SECOND), ["q.test"]);
}
