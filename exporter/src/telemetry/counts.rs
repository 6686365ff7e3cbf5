//! What is counted, under the names of its metrics.

use std::borrow::Cow;
use std::sync::Arc;

use flowend_probe_types::{LOST_SLOTS, SKIPPED_SLOTS};

use super::{ConnectionCounts, Metric, names, sdk};
use crate::dns::Dns;
use crate::enrich::{Hosts, Reverse};
use crate::fair::LossesByName;
use crate::ledger::{DropCause, Ledger, OutputLedger};
use crate::probe::ProgramCount;
use crate::record::RecordKind;
use crate::reload::ReloadCounts;

/// Where the counts of one moment stand.
#[derive(Debug)]
pub struct Counts<'a> {
    /// Common to all outputs.
    pub ledger: &'a Ledger,
    /// One for each output and signal.
    pub outputs: &'a [Arc<OutputLedger>],
    /// Records that may wait for each of them.
    pub queue_records: usize,
    /// Events of the probe that found the ring full.
    pub lost: [u64; LOST_SLOTS.len()],
    /// What cgroups lost because they had more than their share.
    pub losses: LossesByName,
    /// Connections that ended, by service.
    pub connections: Option<&'a ConnectionCounts>,
    /// What names are made of.
    pub names: Sources<'a>,
    /// Packets that the probe could not read.
    pub skipped: [u64; SKIPPED_SLOTS.len()],
    /// Cgroups attached to as targets.
    pub attached: usize,
    /// Of each optional program, in how many of them it is at work.
    pub programs: &'a [ProgramCount],
    /// How often somebody else detached the programs.
    pub detachments: u64,
    /// Where the configuration can be reloaded.
    pub reloads: Option<&'a ReloadCounts>,
}

/// What tells names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// DNS messages.
    pub dns: Option<&'a Dns>,
    /// The workloads' hosts files.
    pub hosts: Option<&'a Hosts>,
    /// Reverse lookups.
    pub reverse: Option<&'a Reverse>,
}

/// The metrics of one moment.
pub fn gather(counts: &Counts<'_>) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for family in FAMILIES.iter().filter(|family| family.is_made(counts.outputs)) {
        metrics.extend(records(counts, family));
    }
    let mut lost = Metric::counter(
        "flowend.ring.lost",
        "Events that the ring buffer had no room for, by what they were of",
    );
    for (kind, n) in LOST_SLOTS.into_iter().zip(counts.lost) {
        lost = lost.with([("kind", kind)], n);
    }
    let mut skipped =
        Metric::counter("flowend.packets.unreadable", "Packets that could not be read, by cause");
    for (cause, n) in SKIPPED_SLOTS.into_iter().zip(counts.skipped) {
        skipped = skipped.with([("cause", cause)], n);
    }
    let attached = Metric::gauge("flowend.cgroups.attached", "Cgroups attached to as targets")
        .with([], counts.attached as u64);
    let detachments = Metric::counter(
        "flowend.cgroups.detachments",
        "How often somebody else detached the programs of a cgroup; they were attached again",
    )
    .with([], counts.detachments);
    metrics.extend([lost, skipped, attached, programs(counts.programs), detachments]);
    metrics.extend(losses(&counts.losses));
    metrics.extend(counts.connections.into_iter().flat_map(ConnectionCounts::metrics));
    metrics.push(names::connections(&counts.ledger.names));
    let Sources { dns, hosts, reverse } = counts.names;
    metrics.extend(dns.into_iter().flat_map(names::dns));
    metrics.extend(hosts.into_iter().flat_map(|hosts| names::hosts(&hosts.stats())));
    metrics.extend(reverse.into_iter().flat_map(|reverse| names::reverse(&reverse.stats())));
    metrics.extend(counts.reloads.into_iter().flat_map(reloads));
    metrics.extend(sdk::metrics(counts.outputs, counts.queue_records));
    metrics
}

/// What each optional program does.
fn programs(counts: &[ProgramCount]) -> Metric {
    let mut metric = Metric::gauge(
        "flowend.probe.cgroups",
        "Cgroups attached to as targets, by what an optional program does there",
    );
    for count in counts {
        for (state, n) in count.states() {
            let labels = [("program", count.optional.as_str()), ("state", state)];
            metric = metric.with(labels, n as u64);
        }
    }
    metric
}

/// The labels that say where an output's records go, and more.
fn labels(
    output: &OutputLedger,
    more: impl IntoIterator<Item = (&'static str, &'static str)>,
) -> Vec<(&'static str, Cow<'static, str>)> {
    let destination = Cow::Owned(output.destination().to_string());
    let mut labels = vec![("signal", output.signal().into()), ("destination", destination)];
    labels.extend(more.into_iter().map(|(key, value)| (key, value.into())));
    labels
}

/// The metrics of one kind of record.
struct Family {
    kind: RecordKind,
    seen: [&'static str; 2],
    /// Of each output: what was seen while it was there, and what its spool kept from an earlier run.
    offered: [&'static str; 2],
    became: [&'static str; 2],
    in_flight: [&'static str; 2],
}

const FAMILIES: [Family; 3] = [
    Family {
        kind: RecordKind::End,
        seen: ["flowend.ends.seen", "Ends of connections"],
        offered: ["flowend.ends.offered", "Ends that the output was to get, from its spool, too"],
        became: ["flowend.ends", "What became of each end; with those in flight, what was offered"],
        in_flight: ["flowend.ends.in_flight", "Ends that wait, or whose answer is waited for"],
    },
    Family {
        kind: RecordKind::Begin,
        seen: ["flowend.begins.seen", "Begins of connections"],
        offered: [
            "flowend.begins.offered",
            "Begins that the output was to get, from its spool, too",
        ],
        became: [
            "flowend.begins",
            "What became of each begin; with those in flight, what was offered",
        ],
        in_flight: ["flowend.begins.in_flight", "Begins that wait, or whose answer is waited for"],
    },
    Family {
        kind: RecordKind::Progress,
        seen: ["flowend.progresses.seen", "Reports on open connections"],
        offered: [
            "flowend.progresses.offered",
            "Reports on open connections that the output was to get, from its spool, too",
        ],
        became: [
            "flowend.progresses",
            "What became of each report on an open connection; with those in flight, what was offered",
        ],
        in_flight: [
            "flowend.progresses.in_flight",
            "Reports on open connections that wait, or whose answer is waited for",
        ],
    },
];

impl Family {
    fn is_made(&self, outputs: &[Arc<OutputLedger>]) -> bool {
        outputs.iter().any(|output| output.events().contains(self.kind))
    }
}

/// The ledger of each output for one kind of record: for each signal and destination, `offered` is the sum of
/// `became` and `in_flight`.
fn records(counts: &Counts<'_>, family: &Family) -> [Metric; 4] {
    let metric = |make: fn(&'static str, &'static str) -> Metric,
                  [name, help]: [&'static str; 2]| { make(name, help) };
    let seen = counts.ledger.of(family.kind).seen.get();
    let seen = metric(Metric::counter, family.seen).with([], seen);
    let mut offered = metric(Metric::counter, family.offered);
    let mut became = metric(Metric::counter, family.became);
    let mut in_flight = metric(Metric::gauge, family.in_flight);
    for output in counts.outputs.iter().filter(|output| output.events().contains(family.kind)) {
        let all = output.share_of(counts.ledger)[family.kind as usize];
        let own = output.of(family.kind);
        offered = offered.with_labels(labels(output, []), all.seen + own.recovered);
        for (outcome, cause, n) in [
            ("exported", None, own.exported),
            ("sampled_out", None, all.sampled_out),
            ("filtered", Some("self"), all.filtered_self),
            ("filtered", Some("excluded"), all.filtered_excluded),
            ("filtered", Some("rule"), all.filtered_rule),
        ] {
            let cause = cause.map(|cause| ("cause", cause));
            let what = std::iter::once(("outcome", outcome)).chain(cause);
            became = became.with_labels(labels(output, what), n);
        }
        for cause in DropCause::ALL {
            let labels = labels(output, [("outcome", "dropped"), ("cause", cause.as_str())]);
            became = became.with_labels(labels, own.dropped(cause));
        }
        in_flight = in_flight.with_labels(labels(output, []), own.in_flight());
    }
    [seen, offered, became, in_flight]
}

/// By cgroup; none before the first loss.
fn losses(losses: &LossesByName) -> Option<Metric> {
    let mut metric = Metric::counter(
        "flowend.cgroups.lost",
        "What was lost of a cgroup because there was too much of it, by what it was",
    );
    for (what, cgroup, n) in losses.iter() {
        let labels =
            vec![("what", Cow::Borrowed(what)), ("cgroup", Cow::Owned(cgroup.to_string()))];
        metric = metric.with_labels(labels, n);
    }
    (!losses.is_empty()).then_some(metric)
}

fn reloads(counts: &ReloadCounts) -> [Metric; 2] {
    [
        Metric::counter("flowend.config.reloads", "Reloads of the configuration, by how they went")
            .with([("outcome", "applied")], counts.applied.get())
            .with([("outcome", "unchanged")], counts.unchanged.get())
            .with([("outcome", "refused")], counts.refused.get()),
        Metric::gauge(
            "flowend.config.last_reload_success",
            "1 where the configuration as it is written could be used, else 0",
        )
        .with([], u64::from(counts.last_succeeded())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fair::Losses;
    use crate::probe::Optional;
    use crate::record::EventSet;

    #[test]
    fn the_samples_of_an_output_add_up_to_what_was_seen() {
        let ledger = Ledger::default();
        let end = ledger.of(RecordKind::End);
        end.seen.add(24);
        end.sampled_out.add(1);
        end.filtered_self.add(2);
        end.filtered_excluded.add(3);
        end.filtered_rule.add(6);
        let begins = EventSet { begin: true, progress: false };
        let none = Ledger::default();
        let text = OutputLedger::new(OutputLedger::STDOUT, "text", EventSet::ENDS, &none);
        let logs = OutputLedger::new("otlp", "logs", begins, &none);
        // It came later, and found something in its spool.
        let late = OutputLedger::new("late", "logs", EventSet::ENDS, &ledger);
        late.recover([0, 0, 2], [0; 3]);
        for output in [&text, &logs] {
            for _ in 0..7 {
                output.enqueue(RecordKind::End);
            }
            output.dequeue([0, 0, 3]);
            output.settle([0, 0, 3], Ok(()));
            for _ in 0..5 {
                output.drop_new(RecordKind::End, DropCause::QueueFull);
            }
        }
        logs.enqueue(RecordKind::Begin);
        ledger.of(RecordKind::Begin).seen.add(1);
        let reloads = ReloadCounts::default();
        reloads.refused.add(2);
        let mut losses = LossesByName::default();
        let mut events = Losses::new(1);
        events.add(1, 5);
        events.add(2, 4);
        losses.add("events", &events, |id| (id == 1).then(|| "/a".into()));
        let metrics = gather(&Counts {
            ledger: &ledger,
            outputs: &[text, logs, late],
            queue_records: 9,
            connections: None,
            names: Sources::default(),
            lost: [0, 1, 2, 3, 4, 5, 6],
            losses,
            skipped: [7, 8, 9],
            attached: 3,
            programs: &[ProgramCount {
                optional: Optional::Connect,
                attached: 2,
                refused: 1,
                off: 0,
            }],
            detachments: 2,
            reloads: Some(&reloads),
        });
        let find = |name: &str| metrics.iter().find(|m| m.name == name).unwrap();
        let sum = |name: &str, destination: &str| {
            let is_of = |labels: &[(&str, Cow<'_, str>)]| {
                labels.iter().all(|(key, value)| *key != "destination" || value == destination)
            };
            let samples = find(name).samples.iter().filter(|s| is_of(&s.labels));
            samples.map(|s| s.value).sum::<u64>()
        };
        for destination in ["stdout", "otlp"] {
            assert_eq!(sum("flowend.ends", destination), 20);
            assert_eq!(sum("flowend.ends.in_flight", destination), 4);
            assert_eq!(sum("flowend.ends.offered", destination), 24);
        }
        assert_eq!(sum("flowend.ends.seen", ""), 24);
        assert_eq!((sum("flowend.ends", "late"), sum("flowend.ends.in_flight", "late")), (0, 2));
        assert_eq!(sum("flowend.ends.offered", "late"), 2);
        assert_eq!(
            (sum("flowend.begins", "otlp"), sum("flowend.begins.in_flight", "otlp")),
            (0, 1)
        );
        assert_eq!(sum("flowend.begins.in_flight", "stdout"), 0, "no begins go there");
        assert!(!metrics.iter().any(|m| m.name == "flowend.progresses"), "none are made");
        assert_eq!(sum("flowend.probe.cgroups", ""), 3);
        assert_eq!(sum("flowend.ring.lost", ""), 21);
        let lost: Vec<_> = find("flowend.cgroups.lost").samples.iter().map(|s| s.value).collect();
        assert_eq!(lost, [5, 4], "of /a, and of the others");
        assert_eq!(sum("flowend.packets.unreadable", ""), 24);
        assert_eq!(sum("flowend.config.reloads", ""), 2);
        assert_eq!(sum("flowend.config.last_reload_success", ""), 1);
        let mut names = std::collections::BTreeSet::new();
        for metric in &metrics {
            assert!(!metric.samples.is_empty(), "{}", metric.name);
            assert!(names.insert(metric.name), "{} is there twice", metric.name);
        }
    }
}
