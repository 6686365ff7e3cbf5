//! From what the flow table yields to the queue of each output.

mod names;

use std::time::Duration;

use flowend_probe_types::{Addr, EventKind, ProcessEvent};

use super::*;
use crate::cgroup::Paths;
use crate::config::{Profile, ScopeKind};
use crate::dns::DnsSettings;
use crate::encode::Mapping;
use crate::enrich::WorkloadSettings;
use crate::export::{Limits, Queue, Sink};
use crate::flow::{Counters, Direction, Endpoint, Isns, Reason, Rtt, Side};
use crate::ledger::{Line, OutputLedger};
use crate::record::EventSet;
use crate::sample::{Action, Condition, Globs, Rule, SamplingSettings};
use crate::targets::Pattern;

const ALL: EventSet = EventSet { begin: true, progress: true };

const ROOM: Limits = Limits { records: 1000, bytes: 1 << 20 };

/// Stages with an output of each kind of interest: one that gets all records, one that gets ends.
fn stages(ratio: f64) -> Stages {
    let ledger = Arc::new(Ledger::default());
    let sink = |signal, events| {
        Sink::Lines(Queue::new(ROOM, OutputLedger::new("otlp", signal, events, &ledger)))
    };
    let sinks = vec![sink("logs", ALL), sink("traces", EventSet::ENDS)];
    Stages {
        processes: Processes::new(10),
        workloads: Workloads::new(
            "/nonexistent".into(),
            Paths::new(16),
            WorkloadSettings::default(),
        ),
        dns: Dns::new(DnsSettings {
            cache_bytes: 1 << 20,
            min_ttl: Duration::ZERO,
            max_ttl: Duration::from_secs(1),
        }),
        scopes: Scopes::new(ScopeKind::Cgroup, Vec::new()),
        hosts: None,
        reverse: None,
        opened: OpenedNames::new(10),
        own: OwnSockets::default(),
        excluded: Excluded::new(Vec::new()),
        ids: Ids::new("k", 1),
        community_id: Some(CommunityId { seed: 0 }),
        peer_cidrs: Vec::new(),
        connections: ConnectionCounts::new(10),
        sampler: Sampler::new(SamplingSettings { ratio, ..SamplingSettings::default() }),
        sinks: Sinks::new(Arc::new(Mapping::new(Profile::Semconv)), sinks),
        ledger,
    }
}

/// A connection as it stands at one of its three moments.
fn connection(kind: RecordKind, cookie: u64, isns: Option<Isns>) -> ConnectionEnd {
    let endpoint = |port| Endpoint { addr: Addr::v4(1), port };
    let (by, reason, end_ns) = match kind {
        RecordKind::Begin => (None, Reason::Open, 20),
        RecordKind::Progress => (None, Reason::Open, 30),
        RecordKind::End => (Some(Side::Local), Reason::Fin, 40),
    };
    ConnectionEnd {
        cookie,
        listener: None,
        cgroup_id: Some(3),
        direction: Direction::Outgoing,
        local: endpoint(1),
        remote: endpoint(2),
        start_ns: 10,
        start_known: true,
        end_ns,
        end_known: true,
        by,
        reason,
        reset_by: None,
        conn_state: "SF",
        history: String::new(),
        half_close_ns: None,
        counters: Counters::default(),
        rtt: Rtt::default(),
        isns,
    }
}

/// What the flow table says when it first hears of a connection.
const fn opened(end: &ConnectionEnd) -> Opened {
    Opened {
        cookie: end.cookie,
        cgroup_id: end.cgroup_id,
        local: end.local,
        remote: end.remote,
        start_ns: end.start_ns,
        start_known: end.start_known,
    }
}

/// The whole life of a connection.
fn live(stages: &mut Stages, cookie: u64, isns: Option<Isns>) {
    for kind in RecordKind::ALL {
        stages.record(kind, connection(kind, cookie, isns), 1000);
    }
}

/// What waits at an output.
async fn queued(stages: &Stages, output: usize) -> Vec<Arc<Record>> {
    let Sink::Lines(queue) = &stages.sinks.all()[output] else { panic!("encoded") };
    queue.close();
    let Some(taken) = queue.take(ROOM, Duration::ZERO).await else { return Vec::new() };
    taken.held.settle(Ok(()));
    taken.items
}

/// seen, filtered, sampled out, in flight or exported at the first output; of begins, progresses and ends.
fn counts(stages: &Stages) -> [[u64; 4]; 3] {
    RecordKind::ALL.map(|kind| {
        let all = stages.ledger.of(kind);
        let output = stages.sinks.all()[0].ledger().of(kind);
        let kept = output.in_flight() + output.exported;
        [all.seen.get(), all.filtered_self.get(), all.sampled_out.get(), kept]
    })
}

#[tokio::test]
async fn the_records_of_a_connection_agree_and_only_its_end_is_a_span() {
    for isns in [None, Some(Isns { client: 1, server: 2 })] {
        let mut stages = stages(1.0);
        live(&mut stages, 7, isns);
        let logs = queued(&stages, 0).await;
        let kinds: Vec<_> = logs.iter().map(|r| (r.kind, r.end_unix_ns)).collect();
        let want =
            [(RecordKind::Begin, 1020), (RecordKind::Progress, 1030), (RecordKind::End, 1040)];
        assert_eq!(kinds, want);
        for log in &logs {
            assert_eq!(log.ids, logs[0].ids);
            let ends = (log.end.local, log.end.remote);
            assert_eq!(log.community_id, Some(CommunityId { seed: 0 }.of(ends.1, ends.0)));
            assert_eq!(log.start_unix_ns, 1010);
            assert!(Arc::ptr_eq(&log.workload, &logs[0].workload));
        }
        let spans = queued(&stages, 1).await;
        assert_eq!(spans.iter().map(|r| r.kind).collect::<Vec<_>>(), [RecordKind::End]);
    }
}

#[tokio::test]
async fn a_begin_takes_nothing_away_that_the_end_needs() {
    let mut stages = stages(1.0);
    let remote: Vec<Arc<str>> = vec!["db.test".into()];
    let opened = opened(&connection(RecordKind::Begin, 7, None));
    stages.opened.keep(&opened, Names { local: Vec::new(), remote: remote.clone() });
    let process = ProcessEvent { cookie: 7, pid: u32::MAX, ..ProcessEvent::default() };
    stages.processes.observe(EventKind::Connect, &process);
    live(&mut stages, 7, None);
    let logs = queued(&stages, 0).await;
    assert_eq!(logs.len(), 3);
    for log in logs {
        assert_eq!(log.remote_names, remote, "{:?}", log.kind);
        assert_eq!(log.process.as_ref().map(|p| p.pid), Some(u32::MAX), "{:?}", log.kind);
    }
    assert!(stages.opened.is_empty(), "the end frees them");
}

#[test]
fn an_own_connection_is_filtered_from_begin_to_end() {
    let mut stages = stages(1.0);
    stages.own.add(7);
    live(&mut stages, 7, None);
    assert_eq!(counts(&stages), [[1, 1, 0, 0]; 3]);
    assert!(!stages.own.contains(7), "forgotten at its end");
    live(&mut stages, 8, None);
    assert_eq!(counts(&stages), [[2, 1, 0, 1]; 3]);
}

#[tokio::test]
async fn sampling_keeps_or_drops_a_whole_connection() {
    let mut stages = stages(0.5);
    for cookie in 0..200 {
        live(&mut stages, cookie, None);
    }
    let logs = queued(&stages, 0).await;
    assert!((150..450).contains(&logs.len()), "{}", logs.len());
    for connection in logs.chunks(3) {
        let got: Vec<_> = connection.iter().map(|r| (r.end.cookie, r.kind)).collect();
        let want = RecordKind::ALL.map(|kind| (connection[0].end.cookie, kind));
        assert_eq!(got, want);
        assert!(connection.iter().all(|r| (r.sampling.probability - 0.5).abs() < f64::EPSILON));
    }
    let [begins, progresses, ends] = counts(&stages);
    assert_eq!((begins, progresses), (progresses, ends));
    let [seen, _, sampled_out, kept] = ends;
    assert_eq!((seen, sampled_out + kept), (200, 200));
}

#[tokio::test]
async fn an_end_with_an_error_is_kept_whatever_became_of_its_begin() {
    let mut stages = stages(0.0);
    stages.record(RecordKind::Begin, connection(RecordKind::Begin, 7, None), 0);
    let reset = ConnectionEnd { reason: Reason::Reset, ..connection(RecordKind::End, 7, None) };
    stages.record(RecordKind::End, reset, 0);
    assert_eq!(counts(&stages), [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]);
}

/// A peer named so is left out, at the end and before.
fn dropping(name: &str) -> Stages {
    let domains = Globs::of_domains(&[name.to_owned()]).unwrap();
    let rule = Rule { conditions: vec![Condition::Domains(domains)], action: Action::Drop };
    let rules = vec![rule];
    Stages {
        sampler: Sampler::new(SamplingSettings { rules, ..SamplingSettings::default() }),
        ..stages(1.0)
    }
}

#[test]
fn a_rule_drops_by_the_name_of_the_peer_and_is_counted() {
    let mut stages = dropping("*.db.test");
    for (cookie, name) in [(7, "one.db.test"), (8, "www.test")] {
        let opened = Opened { cookie, ..opened(&connection(RecordKind::Begin, cookie, None)) };
        stages.opened.keep(&opened, Names { local: Vec::new(), remote: vec![name.into()] });
        live(&mut stages, cookie, None);
    }
    assert_eq!(counts(&stages), [[2, 0, 0, 1]; 3]);
    for kind in RecordKind::ALL {
        assert_eq!(stages.ledger.of(kind).filtered_rule.get(), 1, "{kind:?}");
    }
    for line in Line::all(&stages.ledger, stages.sinks.all()[0].ledger()) {
        let line = line.to_string();
        let want = "seen 2 = exported 0 + sampled_out 0 + filtered{self} 0 + filtered{rule} 1 + in_flight 1";
        assert!(line.ends_with(want), "{line}");
    }
}

#[test]
fn connections_of_an_excluded_cgroup_are_counted_and_nothing_else() {
    let paths = Paths::new(16);
    paths.learn(3, || "/a/collector.service/sub".into());
    paths.learn(4, || "/a/web.service".into());
    let pattern = Pattern::parse("collector.service").unwrap();
    let mut stages = Stages {
        workloads: Workloads::new("/nonexistent".into(), paths, WorkloadSettings::default()),
        excluded: Excluded::new(vec![pattern]),
        ..stages(1.0)
    };
    for kind in RecordKind::ALL {
        for (cookie, cgroup_id) in [(7, Some(3)), (8, Some(4)), (9, None)] {
            let end = ConnectionEnd { cgroup_id, ..connection(kind, cookie, None) };
            stages.record(kind, end, 1000);
        }
    }
    assert_eq!(counts(&stages), [[3, 0, 0, 2]; 3]);
    for kind in RecordKind::ALL {
        assert_eq!(stages.ledger.of(kind).filtered_excluded.get(), 1, "{kind:?}");
    }
    for line in Line::all(&stages.ledger, stages.sinks.all()[0].ledger()) {
        assert_eq!(line.missing(), 0, "{line}");
        let words = "filtered{self} 0 + filtered{excluded} 1 + in_flight 2";
        assert!(line.to_string().ends_with(words), "{line}");
    }
    let metrics = stages.connections.metrics();
    assert_eq!(metrics[0].samples.iter().map(|sample| sample.value).sum::<u64>(), 2);
}

#[test]
fn connections_are_counted_once_whatever_is_left_out_but_the_own() {
    let ended = |mut stages: Stages| {
        stages.own.add(7);
        for cookie in 7..10 {
            stages.opened.keep(
                &opened(&connection(RecordKind::Begin, cookie, None)),
                Names { local: Vec::new(), remote: vec!["a.test".into()] },
            );
            live(&mut stages, cookie, None);
        }
        let metrics = stages.connections.metrics();
        metrics[0].samples.iter().map(|sample| sample.value).sum::<u64>()
    };
    for stages in [stages(1.0), stages(0.0), dropping("a.test")] {
        assert_eq!(ended(stages), 2);
    }
}

#[test]
fn the_lines_of_the_ledger_add_up_for_each_output_and_kind() {
    let mut stages = stages(1.0);
    stages.own.add(1);
    for cookie in 1..4 {
        live(&mut stages, cookie, None);
    }
    stages.record(RecordKind::Progress, connection(RecordKind::Progress, 2, None), 0);
    let lines: Vec<_> = stages
        .sinks
        .all()
        .iter()
        .flat_map(|sink| Line::all(&stages.ledger, sink.ledger()).map(|line| line.to_string()))
        .collect();
    let rest = |seen, left| {
        format!("seen {seen} = exported 0 + sampled_out 0 + filtered{{self}} 1 + in_flight {left}")
    };
    assert_eq!(
        lines,
        [
            format!("otlp.logs: {}", rest(3, 2)),
            format!("otlp.logs begin: {}", rest(3, 2)),
            format!("otlp.logs progress: {}", rest(4, 3)),
            format!("otlp.traces: {}", rest(3, 2)),
        ]
    );
}
