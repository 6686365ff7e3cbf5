//! What the cache keeps, for whom and for how long.

use std::sync::Arc;

use super::super::cache::MAX_ANSWERS;
use super::super::{KnownName, NameSource};
use super::*;

fn learn(dns: &mut Dns, at: u64, asked: &str, ttl: u32, ip: &str) {
    let made = Made::answer(asked, RecordType::A).with(asked, ttl, a(ip));
    ask_and_answer(dns, at - 1, &made);
}

fn known_name(names: &[&str], from_ns: u64, until_ns: u64) -> KnownName {
    let names = names.iter().map(|name| Arc::from(*name)).collect();
    KnownName { names, source: NameSource::Dns, from_ns, until_ns }
}

fn entries(dns: &Dns, ip: &str) -> Vec<KnownName> {
    let found = dns.entries().find(|(_, at, _)| *at == addr(ip));
    found.map(|(_, _, known)| known).unwrap_or_default()
}

#[test]
fn answered_again_a_name_keeps_its_beginning() {
    let mut dns = dns();
    learn(&mut dns, 10 * SECOND, "a.test", 60, "192.0.2.1");
    learn(&mut dns, 50 * SECOND, "a.test", 60, "192.0.2.1");
    let once = known_name(&["a.test"], 10 * SECOND, 110 * SECOND);
    assert_eq!(entries(&dns, "192.0.2.1"), std::slice::from_ref(&once));
    // A shorter life takes nothing back of what was promised.
    learn(&mut dns, 60 * SECOND, "a.test", 10, "192.0.2.1");
    assert_eq!(entries(&dns, "192.0.2.1"), std::slice::from_ref(&once));
    // Not answered in time, it is another one, and was unknown between.
    learn(&mut dns, 115 * SECOND, "a.test", 60, "192.0.2.1");
    let again = known_name(&["a.test"], 115 * SECOND, 175 * SECOND);
    assert_eq!(entries(&dns, "192.0.2.1"), [again, once]);
    for (at, holds) in [(9, false), (10, true), (109, true), (112, false), (115, true)] {
        assert_eq!(!known(&dns, "192.0.2.1", at * SECOND).is_empty(), holds, "{at}");
    }
}

#[test]
fn several_names_of_one_address_the_newest_first() {
    let mut dns = dns();
    learn(&mut dns, 10 * SECOND, "a.test", 60, "192.0.2.1");
    learn(&mut dns, 20 * SECOND, "b.test", 300, "192.0.2.1");
    assert_eq!(known(&dns, "192.0.2.1", 15 * SECOND), ["a.test"]);
    assert_eq!(known(&dns, "192.0.2.1", 30 * SECOND), ["b.test", "a.test"]);
    learn(&mut dns, 40 * SECOND, "a.test", 60, "192.0.2.1");
    assert_eq!(known(&dns, "192.0.2.1", 45 * SECOND), ["a.test", "b.test"]);
    assert_eq!(known(&dns, "192.0.2.1", 150 * SECOND), ["b.test"], "the other lapsed");
    // What lapsed long ago is dropped when something new comes.
    learn(&mut dns, 200 * SECOND, "c.test", 60, "192.0.2.1");
    assert_eq!(entries(&dns, "192.0.2.1").len(), 2);
    assert_eq!(dns.cache_stats().displaced, 0);
}

#[test]
fn answers_for_one_address_are_bounded() {
    let mut dns = dns();
    for n in 0..MAX_ANSWERS + 2 {
        learn(&mut dns, SECOND, &format!("n{n}.test"), 60, "192.0.2.1");
    }
    let told = known(&dns, "192.0.2.1", 2 * SECOND);
    let want: Vec<_> = (2..MAX_ANSWERS + 2).rev().map(|n| format!("n{n}.test")).collect();
    assert_eq!(told, want);
    assert_eq!(dns.cache_stats().displaced, 2);
}

#[test]
fn a_scope_knows_what_was_learnt_for_it() {
    let mut dns = dns();
    learn(&mut dns, SECOND, "mine.test", 60, "192.0.2.1");
    let other = Scope(2);
    let told = |dns: &Dns, scopes: &[Scope]| dns.names(scopes, addr("192.0.2.1"), 2 * SECOND).len();
    assert_eq!((told(&dns, &[other]), told(&dns, &[SCOPE])), (0, 1));
    dns.observe(EventKind::DnsQuery, &facts(0), &query("theirs.test"), other);
    dns.observe(EventKind::DnsAnswer, &facts(1), &answer("theirs.test", "192.0.2.1"), other);
    let both = dns.names(&[other, SCOPE], addr("192.0.2.1"), 2 * SECOND);
    assert_eq!(both.iter().map(|name| &**name).collect::<Vec<_>>(), ["theirs.test", "mine.test"]);
    let stats = dns.cache_stats();
    assert_eq!((stats.hits, stats.misses), (2, 1));
}

#[test]
fn no_more_than_sixteen_names_are_told() {
    let mut dns = dns();
    for scope in 0..3 {
        for n in 0..MAX_ANSWERS {
            let known = known_name(&[&format!("s{scope}n{n}.test")], 0, SECOND);
            assert!(dns.restore(Scope(scope), addr("192.0.2.1"), known));
        }
    }
    let scopes = [Scope(0), Scope(1), Scope(2)];
    assert_eq!(dns.names(&scopes, addr("192.0.2.1"), 0).len(), 16);
}

#[test]
fn what_is_kept_can_be_told_and_restored() {
    let mut old = dns();
    learn(&mut old, 10 * SECOND, "a.test", 60, "192.0.2.1");
    learn(&mut old, 20 * SECOND, "b.test", 60, "192.0.2.1");
    learn(&mut old, 20 * SECOND, "b.test", 60, "2001:db8::1");
    let mut new = dns();
    for (scope, addr, known) in old.entries() {
        for known in known {
            assert!(new.restore(scope, addr, known.clone()));
            assert!(new.restore(scope, addr, known), "twice is once");
        }
    }
    for ip in ["192.0.2.1", "2001:db8::1"] {
        assert_eq!(entries(&new, ip), entries(&old, ip), "{ip}");
        for at in [15, 25, 75, 85] {
            assert_eq!(known(&new, ip, at * SECOND), known(&old, ip, at * SECOND), "{ip} {at}");
        }
    }
    // Behind what is known already.
    learn(&mut new, 30 * SECOND, "c.test", 60, "192.0.2.1");
    let older = known_name(&["old.test"], 5 * SECOND, 90 * SECOND);
    assert!(new.restore(SCOPE, addr("192.0.2.1"), older));
    let told = known(&new, "192.0.2.1", 31 * SECOND);
    assert_eq!(told, ["c.test", "b.test", "a.test", "old.test"]);
}

#[test]
fn nothing_is_restored_that_could_not_have_been_learnt() {
    let long = "a".repeat(256);
    let cases: [(&[&str], u64, u64); 7] = [
        (&[], 0, 1),
        (&["a.test"], 1, 1),
        (&["a.test"], 2, 1),
        (&["A.test"], 0, 1),
        (&["a\x1b"], 0, 1),
        (&["a.test", &long], 0, 1),
        (&["n"; 17], 0, 1),
    ];
    let mut dns = dns();
    for (names, from, until) in cases {
        let known = known_name(names, from, until);
        assert!(!dns.restore(SCOPE, addr("192.0.2.1"), known), "{names:?}");
    }
    assert!(dns.entries().next().is_none());
}

#[test]
fn a_flood_of_distinct_names_stays_within_its_bytes() {
    const FLOOD: u32 = 10_000;
    for mut dns in [dns(), Dns::of_the_past(settings())] {
        for n in 0..FLOOD {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string();
            let at = u64::from(n) + 1;
            learn(&mut dns, at, &format!("n{n}.flood.test"), 3600, &ip);
            if n % 1024 == 0 {
                let bytes = dns.cache_stats().bytes;
                assert!(bytes <= settings().cache_bytes + (1 << 20), "{bytes} at {n}");
            }
        }
        dns.free();
        let stats = dns.cache_stats();
        assert!(stats.bytes <= settings().cache_bytes, "{stats}");
        assert_eq!(stats.entries + stats.evictions, u64::from(FLOOD), "{stats}");
        assert!(stats.entries > 1000, "{stats}");
        assert_eq!(dns.entries().count() as u64, stats.entries);
        // The newest are kept.
        let last = std::net::Ipv4Addr::from(0x0a00_0000 + FLOOD - 1).to_string();
        assert_eq!(known(&dns, &last, u64::from(FLOOD)).len(), 1);
        check_answers(&dns.stats(), &[(AnswerFate::Learnt, u64::from(FLOOD))]);
    }
}
