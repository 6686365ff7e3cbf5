//! Whatever comes, each message is accounted for once, and what is learnt can be shown.

use proptest::prelude::*;

use super::super::name;
use super::*;

/// A message from a small world, so that answers meet queries: sane, damaged or no DNS at all.
#[derive(Clone, Debug)]
struct Sent {
    kind: EventKind,
    facts: DnsEvent,
    bytes: Vec<u8>,
}

fn made(answers: bool, asked: &str, id: u16, records: &[(u8, u8)]) -> Vec<u8> {
    const NAMES: [&str; 4] = ["a.local", "b.test", "c.test", "d.local"];
    if !answers {
        return Made::query(asked, RecordType::A).id(id).bytes();
    }
    let mut made = Made::answer(asked, RecordType::A).id(id);
    for (owner, what) in records {
        let (owner, target) = (NAMES[usize::from(owner % 4)], NAMES[usize::from(what / 8 % 4)]);
        let data = match what % 5 {
            0 => cname(target),
            1 => srv(target),
            2 => RData::SVCB(svcb(u16::from(what / 64), target, &["192.0.2.7"])),
            3 => a("2001:db8::1"),
            _ => a("192.0.2.1"),
        };
        made = made.with(owner, u32::from(*what), data);
    }
    made.bytes()
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let asked = prop::sample::select(vec!["a.local", "b.test"]);
    let records = prop::collection::vec(any::<(u8, u8)>(), 0..6);
    let sane = (any::<bool>(), asked, 0..2u16, records)
        .prop_map(|(answers, asked, id, records)| made(answers, asked, id, &records));
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let damaged = (sane.clone(), damage).prop_map(|(mut bytes, damage)| {
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    });
    prop_oneof![4 => sane, 4 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..80)]
}

fn sent() -> impl Strategy<Value = Sent> {
    let remote = prop::sample::select(vec!["10.0.0.53", "224.0.0.251", "224.0.0.252"]);
    let port = prop::sample::select(vec![53, 53, 5353, 5355]);
    let kind = prop::sample::select(vec![EventKind::DnsQuery, EventKind::DnsAnswer]);
    let local_port = prop::sample::select(vec![40_000, 5353]);
    (kind, remote, port, local_port, 0..2u64, 0..60u64, 0..20u8, bytes()).prop_map(
        |(kind, remote, remote_port, local_port, cookie, at, cut, bytes)| {
            let cut = u8::from(cut == 0);
            let at = facts(at * SECOND);
            let remote = addr(remote);
            let facts = DnsEvent { remote, remote_port, local_port, cookie, cut, ..at };
            Sent { kind, facts, bytes }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_message_is_accounted_for_once(all in prop::collection::vec(sent(), 1..40)) {
        let mut dns = dns();
        for (n, Sent { kind, facts, bytes }) in all.iter().enumerate() {
            dns.observe(*kind, facts, bytes, SCOPE);
            let stats = dns.stats();
            prop_assert_eq!(stats.seen, n as u64 + 1);
            prop_assert_eq!(stats.accounted(), stats.seen, "{}", stats);
        }
        let queries = all.iter().filter(|sent| sent.kind == EventKind::DnsQuery).count() as u64;
        let fates = QueryFate::ALL.iter().map(|fate| dns.stats().queries(*fate));
        prop_assert_eq!(fates.sum::<u64>(), queries);
        prop_assert!(dns.stats().queries(QueryFate::Taken) >= dns.waiting() as u64);
        let learnt = dns.stats().answers(AnswerFate::Learnt);
        prop_assert_eq!(learnt > 0, dns.entries().next().is_some());
        for (_, _, known) in dns.entries() {
            for known in known {
                prop_assert!(known.names.iter().all(|name| name::is_escaped(name)));
                prop_assert!(known.from_ns < known.until_ns);
            }
        }
    }
}

#[test]
fn events_that_are_no_messages_are_not_seen() {
    let mut dns = dns();
    dns.observe(EventKind::DnsStreamOut, &facts(0), &query("a.test"), SCOPE);
    assert_eq!((dns.stats().seen, dns.waiting()), (0, 0));
}
