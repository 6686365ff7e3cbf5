//! docs/attributes.md has each metric that there is, with its labels, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{ConnectionCounts, Counts, Metric, MetricKind, Sources, encode, gather, names};
use crate::dns::{Dns, DnsSettings};
use crate::docs::{page, tables_below};
use crate::enrich::{HostsStats, ReverseStats};
use crate::fair::{Losses, LossesByName};
use crate::ledger::{Ledger, OutputLedger};
use crate::probe::{Optional, ProgramCount};
use crate::record::{EventSet, RecordKind};
use crate::reload::ReloadCounts;

const PAGE: &str = "attributes.md";

/// Its name for Prometheus, its kind, and its labels.
type Said = (String, String, BTreeSet<String>);

/// All metrics, of a flowend in which everything is on.
fn every() -> Vec<Metric> {
    let ledger = Ledger::default();
    let events = EventSet { begin: true, progress: true };
    let outputs =
        ["logs", "traces"].map(|signal| OutputLedger::new("otlp", signal, events, &ledger));
    let mut connections = ConnectionCounts::new(1);
    connections.add("web", &crate::encode::tests::record(RecordKind::End).end);
    let ttl = Duration::from_secs(5);
    let dns = Dns::new(DnsSettings { cache_bytes: 1 << 20, min_ttl: ttl, max_ttl: ttl });
    let optional = Optional::Sockops;
    let mut metrics = gather(&Counts {
        ledger: &ledger,
        outputs: &outputs,
        queue_records: 1,
        lost: Default::default(),
        losses: one_loss(),
        connections: Some(&connections),
        names: Sources { dns: Some(&dns), ..Sources::default() },
        skipped: Default::default(),
        attached: 0,
        programs: &[ProgramCount { optional, attached: 1, refused: 0, off: 0 }],
        detachments: 0,
        reloads: Some(&ReloadCounts::default()),
    });
    metrics.extend(names::hosts(&HostsStats::default()));
    metrics.extend(names::reverse(&ReverseStats::default()));
    metrics
}

fn one_loss() -> LossesByName {
    let (mut losses, mut lost) = (LossesByName::default(), Losses::new(1));
    lost.add(1, 1);
    losses.add("events", &lost, |_| None);
    losses
}

/// The name of a sample as Prometheus gets it.
fn of_prometheus(metric: &Metric) -> String {
    let text = encode(vec![metric.clone()]);
    let sample = text.lines().find(|line| !line.starts_with('#')).expect("a sample");
    sample.split(['{', ' ']).next().expect("a name").to_owned()
}

#[test]
fn attributes_md_has_every_metric() {
    let code: BTreeMap<String, Said> = every()
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge | MetricKind::UpDown => "gauge",
            };
            let labels = metric.samples.iter().flat_map(|sample| &sample.labels);
            let labels = labels.map(|(key, _)| (*key).to_owned()).collect();
            (metric.name.to_owned(), (of_prometheus(metric), kind.to_owned(), labels))
        })
        .collect();
    let mut said = BTreeMap::<String, Said>::new();
    for table in tables_below(&page(PAGE), "flowend's own metrics") {
        for row in &table.rows {
            let [name] = table.cell(row, "metric").codes.as_slice() else {
                panic!("one metric in each row: {row:?}")
            };
            let prometheus = table.cell(row, "for Prometheus").text.clone();
            let kind = table.cell(row, "kind").text.clone();
            let labels = table.cell(row, "labels").codes.iter().cloned().collect();
            assert!(!table.cell(row, "counts").text.is_empty(), "{name}: of what?");
            let before = said.insert(name.clone(), (prometheus, kind, labels));
            assert!(before.is_none(), "{name} is there twice");
        }
    }
    for (name, has) in &code {
        assert_eq!(said.get(name), Some(has), "docs/{PAGE} on {name} (left), the code (right)");
    }
    let unknown: Vec<_> = said.keys().filter(|name| !code.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "docs/{PAGE} has metrics that are not there: {unknown:?}");
}
