//! The whole data path by itself, for benches: nothing of the kernel in front of it, a queue behind it.

use std::sync::Arc;
use std::time::Duration;

use flowend::cgroup::Paths;
use flowend::config::{Profile, ScopeKind};
use flowend::dns::{Dns, DnsSettings, Scopes};
use flowend::encode::Mapping;
use flowend::enrich::{Processes, WorkloadSettings, Workloads};
use flowend::exclude::Excluded;
use flowend::export::{Limits, OwnSockets, Queue, Sink, Sinks};
use flowend::flow::FlowSettings;
use flowend::ids::Ids;
use flowend::ledger::{Ledger, OutputLedger};
use flowend::pipeline::{OpenedNames, Pipeline, Stages};
use flowend::record::{EventSet, Record};
use flowend::sample::{Sampler, SamplingSettings};
use flowend::telemetry::ConnectionCounts;

/// With its default limits, and a queue that takes so many records.
pub(crate) fn data_path(records: usize) -> (Pipeline, Arc<Queue<Arc<Record>>>) {
    let ledger = Arc::new(Ledger::default());
    let output = OutputLedger::new("otlp", "logs", EventSet::ENDS, &ledger);
    let queue = Queue::new(Limits { records, bytes: usize::MAX }, output);
    let flows = FlowSettings::default();
    let stages = Stages {
        processes: Processes::new(flows.max),
        workloads: Workloads::new(
            "/nonexistent".into(),
            Paths::new(16),
            WorkloadSettings::default(),
        ),
        dns: Dns::new(DnsSettings {
            cache_bytes: 32 << 20,
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_hours(24),
        }),
        scopes: Scopes::new(ScopeKind::Cgroup, Vec::new()),
        hosts: None,
        reverse: None,
        opened: OpenedNames::new(flows.max),
        own: OwnSockets::default(),
        excluded: Excluded::new(Vec::new()),
        ids: Ids::new("bench", 1),
        community_id: None,
        peer_cidrs: vec!["10.0.0.0/8".parse().expect("a range")],
        connections: ConnectionCounts::new(200),
        sampler: Sampler::new(SamplingSettings::default()),
        ledger,
        sinks: Sinks::new(
            Arc::new(Mapping::new(Profile::Semconv)),
            vec![Sink::Lines(Arc::clone(&queue))],
        ),
    };
    (Pipeline::new(flows, stages), queue)
}
