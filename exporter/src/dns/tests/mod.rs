//! The whole way of a message, from bytes to names, and what tests of it share.

mod attacks;
mod kept;
mod learning;
mod ledger;
mod matching;
mod multicast;

use std::net::IpAddr;
use std::time::Duration;

use flowend_probe_types::{Addr, DnsEvent, EventKind};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SRV, SVCB};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::{AnswerFate, Dns, DnsSettings, DnsStats, QueryFate, Scope};

const SCOPE: Scope = Scope(1);
const SECOND: u64 = 1_000_000_000;
/// The id of all messages, where a test says nothing else.
const ID: u16 = 7;

fn settings() -> DnsSettings {
    let (min_ttl, max_ttl) = (Duration::from_secs(5), Duration::from_secs(3600));
    DnsSettings { cache_bytes: 1 << 20, min_ttl, max_ttl }
}

fn dns() -> Dns {
    Dns::new(settings())
}

fn facts(time_ns: u64) -> DnsEvent {
    DnsEvent {
        local: addr("10.0.0.1"),
        local_port: 40_000,
        remote: addr("10.0.0.53"),
        remote_port: 53,
        cookie: 5,
        cgroup_id: 1,
        time_ns,
        ..DnsEvent::default()
    }
}

fn addr(ip: &str) -> Addr {
    ip.parse::<IpAddr>().unwrap().into()
}

fn name(text: &str) -> Name {
    let labels = text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    let mut name = Name::from_labels(labels).unwrap();
    name.set_fqdn(true);
    name
}

fn a(ip: &str) -> RData {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

fn cname(target: &str) -> RData {
    RData::CNAME(CNAME(name(target)))
}

fn srv(target: &str) -> RData {
    RData::SRV(SRV::new(1, 2, 8080, name(target)))
}

fn svcb(priority: u16, target: &str, hints: &[&str]) -> SVCB {
    let mut params = Vec::new();
    let (v4, v6): (Vec<_>, Vec<_>) =
        hints.iter().map(|ip| ip.parse().unwrap()).partition(IpAddr::is_ipv4);
    let v4: Vec<A> = v4
        .iter()
        .filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(A(*ip)) } else { None })
        .collect();
    let v6: Vec<AAAA> = v6
        .iter()
        .filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(AAAA(*ip)) } else { None })
        .collect();
    if !v4.is_empty() {
        params.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(v4))));
    }
    if !v6.is_empty() {
        params.push((SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(v6))));
    }
    SVCB::new(priority, name(target), params)
}

/// A message in the making.
struct Made(Message);

impl Made {
    fn query(asked: &str, kind: RecordType) -> Self {
        let mut message = Message::new(ID, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name(asked), kind));
        Self(message)
    }

    fn answer(asked: &str, kind: RecordType) -> Self {
        let mut message = Message::new(ID, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(asked), kind));
        Self(message)
    }

    fn id(mut self, id: u16) -> Self {
        self.0.metadata.id = id;
        self
    }

    fn rcode(mut self, rcode: ResponseCode) -> Self {
        self.0.metadata.response_code = rcode;
        self
    }

    fn truncated(mut self) -> Self {
        self.0.metadata.truncation = true;
        self
    }

    fn with(mut self, owner: &str, ttl: u32, data: RData) -> Self {
        self.0.add_answer(Record::from_rdata(name(owner), ttl, data));
        self
    }

    fn authority(mut self, owner: &str, ttl: u32, data: RData) -> Self {
        self.0.add_authority(Record::from_rdata(name(owner), ttl, data));
        self
    }

    fn additional(mut self, owner: &str, ttl: u32, data: RData) -> Self {
        self.0.add_additional(Record::from_rdata(name(owner), ttl, data));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.to_vec().unwrap()
    }
}

fn query(asked: &str) -> Vec<u8> {
    Made::query(asked, RecordType::A).bytes()
}

/// An answer with one address that holds for a minute.
fn answer(asked: &str, ip: &str) -> Vec<u8> {
    Made::answer(asked, RecordType::A).with(asked, 60, a(ip)).bytes()
}

/// Its question is asked, then it comes.
fn ask_and_answer(dns: &mut Dns, at: u64, answer: &Made) {
    let question = &answer.0.queries[0];
    let mut query = Message::new(answer.0.metadata.id, MessageType::Query, OpCode::Query);
    query.add_query(question.clone());
    dns.observe(EventKind::DnsQuery, &facts(at), &query.to_vec().unwrap(), SCOPE);
    dns.observe(EventKind::DnsAnswer, &facts(at + 1), &answer.bytes(), SCOPE);
}

fn known(dns: &Dns, ip: &str, at: u64) -> Vec<String> {
    dns.names(&[SCOPE], addr(ip), at).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check_answers(stats: &DnsStats, want: &[(AnswerFate, u64)]) {
    for fate in AnswerFate::ALL {
        let want = want.iter().find(|(f, _)| *f == fate).map_or(0, |(_, n)| *n);
        assert_eq!(stats.answers(fate), want, "{fate:?}: {stats}");
    }
    assert_eq!(stats.seen, stats.accounted(), "{stats}");
}

#[track_caller]
fn check_queries(stats: &DnsStats, want: &[(QueryFate, u64)]) {
    for fate in QueryFate::ALL {
        let want = want.iter().find(|(f, _)| *f == fate).map_or(0, |(_, n)| *n);
        assert_eq!(stats.queries(fate), want, "{fate:?}: {stats}");
    }
}
