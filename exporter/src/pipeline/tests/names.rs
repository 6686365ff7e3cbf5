//! Which names the records of a connection have: those that its addresses had when it was opened.

use std::collections::HashSet;
use std::net::IpAddr;

use flowend_probe_types::{ACK, DnsEvent, RST, SYN, TcpEvent, TcpState};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record as Answer, RecordType};

use super::*;
use crate::config::ResolverCgroup;
use crate::flow::{Census, OpenSocket, REORDER_NS};
use crate::targets::Pattern;

const MS: u64 = 1_000_000;
const COOKIE: u64 = 7;
const LISTENER: u64 = 3;
const CGROUP: u64 = 42;
const OWN: &str = "10.0.0.1";
const PEER: &str = "10.0.0.2";

fn addr(ip: &str) -> Addr {
    ip.parse::<IpAddr>().unwrap().into()
}

fn pipeline_of(settings: FlowSettings, scopes: Scopes) -> Pipeline {
    Pipeline::new(settings, Stages { scopes, ..stages(1.0) })
}

/// A pipeline that tells begins, and progresses each second.
fn pipeline() -> Pipeline {
    let settings =
        FlowSettings { begins: true, progress_ns: Some(1000 * MS), ..FlowSettings::default() };
    pipeline_of(settings, Scopes::new(ScopeKind::Cgroup, Vec::new()))
}

/// A lookup of a cgroup: `name` is `ip`, for a second.
fn lookup(pipeline: &mut Pipeline, cgroup_id: u64, at_ms: u64, name: &str, ip: &str) {
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    let mut query = Message::new(9, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(name.clone(), RecordType::A));
    let mut answer = Message::new(9, MessageType::Response, OpCode::Query);
    answer.add_query(Query::query(name.clone(), RecordType::A));
    answer.add_answer(Answer::from_rdata(name, 1, RData::A(A(ip.parse().unwrap()))));
    for (kind, message) in [(EventKind::DnsQuery, query), (EventKind::DnsAnswer, answer)] {
        let facts = DnsEvent {
            kind: kind as u8,
            remote: addr("10.0.0.53"),
            remote_port: 53,
            cookie: 5,
            cgroup_id,
            time_ns: at_ms * MS,
            ..DnsEvent::default()
        };
        pipeline.item(&RingItem::Dns(kind, facts, &message.to_vec().unwrap()), 0);
    }
}

/// What a socket of the own address says of itself.
fn event(kind: EventKind, at_ms: u64, cookie: u64, state: TcpState, flags: u8) -> TcpEvent {
    TcpEvent {
        kind: kind as u8,
        flags,
        state: state as u8,
        local: addr(OWN),
        local_port: 1000,
        remote: addr(PEER),
        remote_port: 80,
        time_ns: at_ms * MS,
        cookie,
        cgroup_id: CGROUP,
        seq: 100,
        snd_nxt: 101,
        snd_una: 101,
        rcv_nxt: 101,
        ..TcpEvent::default()
    }
}

fn apply(pipeline: &mut Pipeline, kind: EventKind, event: TcpEvent) {
    pipeline.item(&RingItem::Event(Event::Tcp(kind, event)), 0);
}

fn syn_out(pipeline: &mut Pipeline, at_ms: u64, cookie: u64) {
    let syn = event(EventKind::SegmentOut, at_ms, cookie, TcpState::SynSent, SYN);
    apply(pipeline, EventKind::SegmentOut, TcpEvent { seq: at_ms as u32, ..syn });
}

fn connect(pipeline: &mut Pipeline, at_ms: u64) {
    syn_out(pipeline, at_ms, COOKIE);
    let kind = EventKind::ActiveEstablished;
    let established = event(kind, at_ms + 1, COOKIE, TcpState::SynSent, 0);
    apply(pipeline, kind, TcpEvent { cgroup_id: 0, ..established });
}

fn accept(pipeline: &mut Pipeline, at_ms: u64) {
    let syn = event(EventKind::SegmentIn, at_ms, LISTENER, TcpState::Listen, SYN);
    apply(pipeline, EventKind::SegmentIn, syn);
    accept_unseen(pipeline, at_ms + 1);
}

/// An accepted socket whose SYN was lost: nothing tells its cgroup.
fn accept_unseen(pipeline: &mut Pipeline, at_ms: u64) {
    let kind = EventKind::PassiveEstablished;
    let established = event(kind, at_ms, COOKIE, TcpState::SynRecv, 0);
    apply(pipeline, kind, TcpEvent { cgroup_id: 0, ..established });
}

/// A look at the kernel's sockets that finds the connection open.
fn look(pipeline: &mut Pipeline, at_ms: u64) {
    pipeline.tick(at_ms * MS + REORDER_NS, 0);
    let endpoint = |ip, port| Endpoint { addr: addr(ip), port };
    let socket = OpenSocket {
        cookie: COOKIE,
        netns: None,
        cgroup_id: Some(CGROUP),
        state: TcpState::Established,
        local: endpoint(OWN, 1000),
        remote: endpoint(PEER, 80),
        direction: Direction::Outgoing,
        direction_is_exact: true,
        watched: true,
        running: None,
    };
    let (begun_ns, done_ns, open) = (at_ms * MS, at_ms * MS, HashSet::from([COOKIE]));
    let census = Census { begun_ns, done_ns, open, sockets: vec![socket], ..Census::default() };
    pipeline.look(&Look { census, owners: Vec::new() }, 0);
}

/// The peer resets the connection.
fn reset(pipeline: &mut Pipeline, at_ms: u64, cookie: u64) {
    let rst = event(EventKind::SegmentIn, at_ms, cookie, TcpState::Established, RST | ACK);
    apply(pipeline, EventKind::SegmentIn, TcpEvent { seq: 101, ..rst });
    let closed = event(EventKind::Closed, at_ms, cookie, TcpState::Established, 0);
    apply(pipeline, EventKind::Closed, TcpEvent { cgroup_id: 0, ..closed });
}

fn connect_asked(pipeline: &mut Pipeline, at_ms: u64, ip: &str, port: u16) {
    let asked = ProcessEvent {
        kind: EventKind::Connect as u8,
        remote: addr(ip),
        remote_port: port,
        time_ns: at_ms * MS,
        cookie: COOKIE,
        ..ProcessEvent::default()
    };
    pipeline.item(&RingItem::Event(Event::Process(EventKind::Connect, asked)), 0);
}

/// Kind, names of the own address, names of the peer's; in the order of the records.
async fn told(pipeline: &mut Pipeline) -> Vec<(RecordKind, String, String)> {
    pipeline.finish(0);
    let records = queued(&pipeline.stages, 0).await;
    let text = |names: &[Arc<str>]| names.join(" ");
    records.iter().map(|r| (r.kind, text(&r.local_names), text(&r.remote_names))).collect()
}

/// The names of the peer in each end, in the order of the records.
async fn peers(pipeline: &mut Pipeline) -> Vec<String> {
    let told = told(pipeline).await;
    let ends = told.into_iter().filter(|(kind, ..)| *kind == RecordKind::End);
    ends.map(|(_, _, remote)| remote).collect()
}

#[tokio::test]
async fn a_connection_keeps_the_names_it_was_opened_by() {
    use RecordKind::{Begin, End, Progress};
    type Open = fn(&mut Pipeline, u64);
    let cases: [(&str, Open, &[RecordKind]); 4] = [
        ("connected", connect, &[Begin, Progress, End]),
        ("accepted", accept, &[Begin, Progress, End]),
        ("accepted, its SYN lost", accept_unseen, &[Begin, Progress, End]),
        ("older than the probe", look, &[Progress, End]),
    ];
    for (what, open, kinds) in cases {
        let mut pipeline = pipeline();
        lookup(&mut pipeline, CGROUP, 1000, "own.test", OWN);
        lookup(&mut pipeline, CGROUP, 1000, "first.test", PEER);
        open(&mut pipeline, 1500);
        if what.ends_with("lost") {
            // What tells the cgroup before the names lapse.
            look(&mut pipeline, 1600);
        }
        pipeline.tick(1700 * MS, 0);
        // Lapsed at 2000, and answered under another name.
        lookup(&mut pipeline, CGROUP, 3000, "second.test", PEER);
        lookup(&mut pipeline, CGROUP, 3000, "other.test", OWN);
        look(&mut pipeline, 3500);
        reset(&mut pipeline, 4000, COOKIE);
        let mut want: Vec<_> = kinds
            .iter()
            .map(|kind| (*kind, "own.test".to_owned(), "first.test".to_owned()))
            .collect();
        if what.ends_with("lost") {
            // Told before anything said whose it is.
            (want[0].1, want[0].2) = (String::new(), String::new());
        }
        assert_eq!(told(&mut pipeline).await, want, "{what}");
        assert!(pipeline.stages.opened.is_empty(), "{what}: the end frees them");
    }
}

#[tokio::test]
async fn a_name_learnt_after_the_opening_is_none_of_it() {
    let mut pipeline = pipeline();
    connect(&mut pipeline, 1500);
    pipeline.tick(1600 * MS, 0);
    lookup(&mut pipeline, CGROUP, 1700, "late.test", PEER);
    reset(&mut pipeline, 1800, COOKIE);
    assert_eq!(peers(&mut pipeline).await, [""]);
}

#[tokio::test]
async fn a_second_connection_of_one_socket_has_names_of_its_own() {
    let mut pipeline = pipeline();
    for (at_ms, name) in [(1000, "first.test"), (3000, "second.test")] {
        lookup(&mut pipeline, CGROUP, at_ms, name, PEER);
        connect(&mut pipeline, at_ms + 500);
        reset(&mut pipeline, at_ms + 600, COOKIE);
    }
    // And a third one, without a name.
    connect(&mut pipeline, 5500);
    reset(&mut pipeline, 5600, COOKIE);
    assert_eq!(peers(&mut pipeline).await, ["first.test", "second.test", ""]);
    let names = &pipeline.stages.ledger.names;
    assert_eq!((names.with.get(), names.without.get()), (2, 1));
}

#[tokio::test]
async fn a_connection_that_the_table_forgot_keeps_its_names() {
    let settings = FlowSettings { max: 1, ..FlowSettings::default() };
    let mut pipeline = pipeline_of(settings, Scopes::new(ScopeKind::Cgroup, Vec::new()));
    lookup(&mut pipeline, CGROUP, 1000, "first.test", PEER);
    syn_out(&mut pipeline, 1500, COOKIE);
    syn_out(&mut pipeline, 2500, COOKIE + 1);
    pipeline.tick(2600 * MS, 0);
    lookup(&mut pipeline, CGROUP, 3000, "second.test", PEER);
    reset(&mut pipeline, 3500, COOKIE);
    assert_eq!(pipeline.flows().stats().evicted, 1);
    assert_eq!(peers(&mut pipeline).await, ["first.test"]);
}

#[tokio::test]
async fn the_address_before_a_rewrite_is_named_first() {
    const ASKED: &str = "10.98.0.1";
    /// When, and the address and port that were asked for.
    type Call = (u64, &'static str, u16);
    let cases: [(&str, &[Call], &str); 6] = [
        ("rewritten", &[(1500, ASKED, 80)], "service.test pod.test"),
        ("not rewritten", &[(1500, PEER, 80)], "pod.test"),
        ("rewritten port", &[(1500, PEER, 443)], "pod.test"),
        ("not told", &[(1500, ASKED, 0)], "pod.test"),
        ("called again after the SYN", &[(1500, PEER, 80), (1502, ASKED, 80)], "pod.test"),
        ("a call before", &[(1400, PEER, 80), (1500, ASKED, 80)], "service.test pod.test"),
    ];
    for (what, calls, want) in cases {
        let mut pipeline = pipeline();
        lookup(&mut pipeline, CGROUP, 1000, "service.test", ASKED);
        lookup(&mut pipeline, CGROUP, 1000, "pod.test", PEER);
        for (at_ms, ip, port) in calls {
            connect_asked(&mut pipeline, *at_ms, ip, *port);
        }
        connect(&mut pipeline, 1501);
        reset(&mut pipeline, 1700, COOKIE);
        assert_eq!(peers(&mut pipeline).await, [want], "{what}");
    }
}

#[tokio::test]
async fn one_name_of_both_addresses_is_told_once() {
    let mut pipeline = pipeline();
    for ip in ["10.98.0.1", PEER] {
        lookup(&mut pipeline, CGROUP, 1000, "same.test", ip);
    }
    connect_asked(&mut pipeline, 1500, "10.98.0.1", 80);
    connect(&mut pipeline, 1501);
    reset(&mut pipeline, 1700, COOKIE);
    assert_eq!(peers(&mut pipeline).await, ["same.test"]);
    assert!(pipeline.stages.opened.is_empty());
}

#[test]
fn calls_that_open_no_connection_are_bounded() {
    let mut opened = OpenedNames::new(10);
    let call = |cookie, time_ns| ProcessEvent {
        remote: addr(PEER),
        remote_port: 80,
        time_ns,
        cookie,
        ..ProcessEvent::default()
    };
    for n in 0..100_000 {
        opened.asked(EventKind::Connect, &call(n, n));
        opened.asked(EventKind::Connect, &call(100_000, n));
    }
    assert_eq!(opened.waiting(), (16_384, 4));
}

#[tokio::test]
async fn a_failed_handshake_has_the_names_of_its_syn() {
    let mut pipeline = pipeline();
    lookup(&mut pipeline, CGROUP, 1000, "client.test", PEER);
    let syn = event(EventKind::SegmentIn, 1500, LISTENER, TcpState::Listen, SYN);
    apply(&mut pipeline, EventKind::SegmentIn, syn);
    let syn_ack = event(EventKind::SegmentOut, 1501, LISTENER, TcpState::Listen, SYN | ACK);
    apply(&mut pipeline, EventKind::SegmentOut, TcpEvent { ack: 101, ..syn_ack });
    pipeline.tick(200_000 * MS, 0);
    assert_eq!(peers(&mut pipeline).await, ["client.test"]);
}

#[tokio::test]
async fn an_own_connection_keeps_no_names() {
    let mut pipeline = pipeline();
    pipeline.stages.own.add(COOKIE);
    lookup(&mut pipeline, CGROUP, 1000, "collector.test", PEER);
    connect(&mut pipeline, 1500);
    pipeline.tick(1600 * MS, 0);
    assert!(pipeline.stages.opened.is_empty());
    reset(&mut pipeline, 1700, COOKIE);
    pipeline.finish(0);
    let names = &pipeline.stages.ledger.names;
    assert_eq!((names.with.get(), names.without.get()), (0, 0), "not reported, not counted");
}

#[tokio::test]
async fn what_a_resolver_looked_up_names_the_connections_that_it_serves() {
    let parse = |text| Pattern::parse(text).unwrap();
    let resolver =
        ResolverCgroup { resolver: parse("resolved.service"), serves: vec![parse("apps")] };
    for (served, want) in [("/apps/web", "asked.test"), ("/else", "")] {
        let scopes = Scopes::new(ScopeKind::Cgroup, vec![resolver.clone()]);
        let paths = Paths::new(16);
        paths.learn(1, || "/system.slice/resolved.service".into());
        paths.learn(CGROUP, || served.into());
        let mut pipeline = pipeline_of(FlowSettings::default(), scopes);
        pipeline.stages.workloads =
            Workloads::new("/nonexistent".into(), paths, WorkloadSettings::default());
        lookup(&mut pipeline, 1, 1000, "asked.test", PEER);
        connect(&mut pipeline, 1500);
        reset(&mut pipeline, 1700, COOKIE);
        assert_eq!(peers(&mut pipeline).await, [want], "{served}");
    }
}
