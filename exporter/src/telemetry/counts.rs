//! What is counted, under the names of its metrics.

use std::sync::Arc;

use flowend_probe_types::{LOST_SLOTS, SKIPPED_SLOTS};

use super::{Metric, names};
use crate::dns::Dns;
use crate::enrich::{Hosts, Reverse};
use crate::ledger::{DropCause, Ledger, OutputLedger};
use crate::record::RecordKind;

/// Where the counts of one moment stand.
#[derive(Debug)]
pub struct Counts<'a> {
    /// Common to all outputs.
    pub ledger: &'a Ledger,
    /// One for each output and signal.
    pub outputs: &'a [Arc<OutputLedger>],
    /// Events of the probe that found the ring full.
    pub lost: [u64; LOST_SLOTS.len()],
    /// What names are made of.
    pub names: Sources<'a>,
    /// Packets that the probe could not read.
    pub skipped: [u64; SKIPPED_SLOTS.len()],
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
    let mut metrics = records(counts);
    let mut lost = Metric::counter(
        "flowend_ring_lost",
        "Events that found the ring buffer full, by what they were of",
    );
    for (kind, n) in LOST_SLOTS.into_iter().zip(counts.lost) {
        lost = lost.with([("kind", kind)], n);
    }
    let mut skipped =
        Metric::counter("flowend_packets_unreadable", "Packets that could not be read, by cause");
    for (cause, n) in SKIPPED_SLOTS.into_iter().zip(counts.skipped) {
        skipped = skipped.with([("cause", cause)], n);
    }
    metrics.extend([lost, skipped, names::connections(&counts.ledger.names)]);
    let Sources { dns, hosts, reverse } = counts.names;
    metrics.extend(dns.into_iter().flat_map(names::dns));
    metrics.extend(hosts.into_iter().flat_map(|hosts| names::hosts(&hosts.stats())));
    metrics.extend(reverse.into_iter().flat_map(|reverse| names::reverse(&reverse.stats())));
    metrics
}

/// The ledger of each output: for ends, and for begins and progresses where there are any.
fn records(counts: &Counts<'_>) -> Vec<Metric> {
    let mut seen = Metric::counter("flowend_records_seen", "Records made of connections, by kind");
    for kind in RecordKind::ALL {
        seen = seen.with([("kind", kind.as_str())], counts.ledger.of(kind).seen.get());
    }
    let mut became = Metric::counter(
        "flowend_records",
        "What became of the records that each output was to get; cause is that of a drop",
    );
    let mut in_flight = Metric::gauge(
        "flowend_records_in_flight",
        "Records that wait for an output or for its answer",
    );
    for output in counts.outputs {
        for kind in RecordKind::ALL.into_iter().filter(|kind| output.events().contains(*kind)) {
            let (all, own) = (counts.ledger.of(kind), output.of(kind));
            let labels = |outcome, cause| {
                let output = ("output", output.signal());
                [output, ("kind", kind.as_str()), ("outcome", outcome), ("cause", cause)]
            };
            became = became
                .with(labels("exported", ""), own.exported)
                .with(labels("sampled_out", ""), all.sampled_out.get())
                .with(labels("filtered", "self"), all.filtered_self.get())
                .with(labels("filtered", "rule"), all.filtered_rule.get());
            for cause in DropCause::ALL {
                became = became.with(labels("dropped", cause.as_str()), own.dropped(cause));
            }
            let labels = [("output", output.signal()), ("kind", kind.as_str())];
            in_flight = in_flight.with(labels, own.in_flight());
        }
    }
    vec![seen, became, in_flight]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::EventSet;

    #[test]
    fn the_samples_of_an_output_add_up_to_what_was_seen() {
        let ledger = Ledger::default();
        let end = ledger.of(RecordKind::End);
        end.seen.add(21);
        end.sampled_out.add(1);
        end.filtered_self.add(2);
        end.filtered_rule.add(6);
        let output = OutputLedger::new("otlp", "logs", EventSet::ENDS, &Ledger::default());
        for _ in 0..7 {
            output.enqueue(RecordKind::End);
        }
        output.dequeue([0, 0, 3]);
        output.settle([0, 0, 3], Ok(()));
        for _ in 0..5 {
            output.drop_new(RecordKind::End, DropCause::QueueFull);
        }
        let metrics = gather(&Counts {
            ledger: &ledger,
            outputs: &[output],
            names: Sources::default(),
            lost: [0, 1, 2, 3, 4, 5, 6],
            skipped: [7, 8, 9],
        });
        let find = |name: &str| metrics.iter().find(|m| m.name == name).unwrap();
        let sum = |name: &str| find(name).samples.iter().map(|s| s.value).sum::<u64>();
        assert_eq!(sum("flowend_records") + sum("flowend_records_in_flight"), 21);
        assert_eq!(sum("flowend_ring_lost"), 21);
        assert_eq!(sum("flowend_packets_unreadable"), 24);
        for metric in &metrics {
            assert!(!metric.samples.is_empty(), "{}", metric.name);
        }
    }
}
