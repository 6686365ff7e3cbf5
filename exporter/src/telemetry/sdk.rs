//! The ledger of what goes out over OTLP, under the names that OpenTelemetry has for an SDK's own metrics
//! (semantic conventions 1.43, "otel.sdk.*", in development): whoever watches SDKs finds flowend in the same
//! dashboards. flowend's own names tell more, and are the ones that add up.

use std::borrow::Cow;
use std::sync::Arc;

use super::Metric;
use crate::ledger::{DropCause, OutputLedger};
use crate::record::RecordKind;

/// The names of one signal.
struct Signal {
    name: &'static str,
    unit: &'static str,
    exported: &'static str,
    inflight: &'static str,
    queue_size: &'static str,
    queue_capacity: &'static str,
    /// `otel.component.type`: none of the conventions' own are flowend's.
    exporter: &'static str,
    queue: &'static str,
}

const SIGNALS: [Signal; 2] = [
    Signal {
        name: "logs",
        unit: "{log_record}",
        exported: "otel.sdk.exporter.log.exported",
        inflight: "otel.sdk.exporter.log.inflight",
        queue_size: "otel.sdk.processor.log.queue.size",
        queue_capacity: "otel.sdk.processor.log.queue.capacity",
        exporter: "flowend_log_exporter",
        queue: "flowend_log_queue",
    },
    Signal {
        name: "traces",
        unit: "{span}",
        exported: "otel.sdk.exporter.span.exported",
        inflight: "otel.sdk.exporter.span.inflight",
        queue_size: "otel.sdk.processor.span.queue.size",
        queue_capacity: "otel.sdk.processor.span.queue.capacity",
        exporter: "flowend_span_exporter",
        queue: "flowend_span_queue",
    },
];

/// Of all outputs that are OTLP; none where none is.
pub(super) fn metrics(outputs: &[Arc<OutputLedger>], queue_records: usize) -> Vec<Metric> {
    SIGNALS.iter().flat_map(|signal| of_signal(signal, outputs, queue_records)).collect()
}

fn of_signal(signal: &Signal, outputs: &[Arc<OutputLedger>], queue_records: usize) -> Vec<Metric> {
    let mut exported = Metric::counter(
        signal.exported,
        "Items whose export is over, by error.type where it failed",
    );
    let mut inflight = Metric::up_down(signal.inflight, "Items whose export is not over");
    let mut size = Metric::up_down(signal.queue_size, "Items in the queue");
    let mut capacity = Metric::up_down(signal.queue_capacity, "Items that the queue can hold");
    for output in outputs.iter().filter(|output| output.signal() == signal.name) {
        let exporter = component(signal.exporter, output.destination());
        let queue = component(signal.queue, output.destination());
        let all = || RecordKind::ALL.into_iter().map(|kind| output.of(kind));
        exported = exported.with_labels(exporter.clone(), all().map(|k| k.exported).sum());
        for cause in DropCause::ALL.into_iter().filter(|cause| is_of_exporter(*cause)) {
            let mut labels = exporter.to_vec();
            labels.push(("error.type", cause.as_str().into()));
            exported = exported.with_labels(labels, output.dropped(cause));
        }
        inflight = inflight.with_labels(exporter, all().map(|k| k.unanswered).sum());
        size = size.with_labels(queue.clone(), all().map(|k| k.queued).sum());
        capacity = capacity.with_labels(queue, queue_records as u64);
    }
    [exported, inflight, size, capacity]
        .into_iter()
        .filter(|metric| !metric.samples.is_empty())
        .map(|metric| metric.in_unit(signal.unit))
        .collect()
}

/// `otel.component.type`, and `otel.component.name` as the conventions recommend it: the type and the instance.
fn component(kind: &'static str, instance: &str) -> [(&'static str, Cow<'static, str>); 2] {
    [
        ("otel.component.name", format!("{kind}/{instance}").into()),
        ("otel.component.type", kind.into()),
    ]
}

/// Whether what was dropped had been given to the exporter: what still was in the queue is not its failure.
const fn is_of_exporter(cause: DropCause) -> bool {
    match cause {
        DropCause::RetryExhausted
        | DropCause::Refused
        | DropCause::Rejected
        | DropCause::TooLarge
        | DropCause::OutputClosed => true,
        DropCause::QueueFull
        | DropCause::SpoolFull
        | DropCause::SpoolFailed
        | DropCause::SpoolDamaged
        | DropCause::Shutdown
        | DropCause::Removed => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::record::EventSet;

    #[test]
    fn exporters_and_queues_have_the_names_of_the_conventions() {
        let begins = EventSet { begin: true, progress: false };
        let outputs = [(OutputLedger::STDOUT, "json"), ("otlp", "logs"), ("otlp", "traces")].map(
            |(destination, signal)| {
                OutputLedger::new(destination, signal, begins, &Ledger::default())
            },
        );
        for output in &outputs {
            for kind in [RecordKind::Begin; 10].into_iter().chain([RecordKind::End; 12]) {
                output.enqueue(kind);
            }
            for _ in 0..3 {
                output.drop_new(RecordKind::End, DropCause::QueueFull);
            }
            output.dequeue([10, 0, 7]);
            output.settle([10, 0, 1], Ok(()));
            output.settle([0, 0, 2], Err(DropCause::Refused));
        }
        let text = super::super::encode(metrics(&outputs, 99));
        for line in [
            r#"otel_sdk_exporter_log_exported_total{otel_component_name="flowend_log_exporter/otlp",otel_component_type="flowend_log_exporter"} 11"#,
            r#"otel_sdk_exporter_log_exported_total{otel_component_name="flowend_log_exporter/otlp",otel_component_type="flowend_log_exporter",error_type="refused"} 2"#,
            r#"otel_sdk_exporter_span_inflight{otel_component_name="flowend_span_exporter/otlp",otel_component_type="flowend_span_exporter"} 4"#,
            r#"otel_sdk_processor_log_queue_size{otel_component_name="flowend_log_queue/otlp",otel_component_type="flowend_log_queue"} 5"#,
            r#"otel_sdk_processor_span_queue_capacity{otel_component_name="flowend_span_queue/otlp",otel_component_type="flowend_span_queue"} 99"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{text}\nlacks: {line}");
        }
        assert!(!text.contains("queue_full") && !text.contains("stdout"), "{text}");
        assert!(metrics(&outputs[..1], 99).is_empty(), "nothing goes out over OTLP");
    }
}
