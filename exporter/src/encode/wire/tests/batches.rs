//! Requests of several records and workloads.

use std::sync::Arc;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::logs::tonic::group_logs_by_resource_and_scope;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::logs::LogBatch;
use proptest::prelude::*;
use prost::Message as _;

use super::{plain, records};
use crate::config::Profile;
use crate::encode::wire::{
    Encoded, RecordEncoder, halve, item_bound, kinds, request, request_size,
};
use crate::encode::{LogEncoder, Mapping, scope, span};
use crate::enrich::Workload;
use crate::export::Signal;
use crate::record::{KindCounts, Record, RecordKind};

const SIGNALS: [Signal; 2] = [Signal::Logs, Signal::Traces];

fn mapping() -> Arc<Mapping> {
    Arc::new(Mapping::new(Profile::Semconv))
}

fn encoded(records: &[Record]) -> Vec<Arc<Encoded>> {
    let mut encoder = RecordEncoder::new(mapping());
    records.iter().map(|record| Arc::new(encoder.encode(record))).collect()
}

/// The records of each workload, the workloads as they first appear.
fn grouped<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<(&'a Workload, Vec<&'a Record>)> {
    let mut groups: Vec<(&Workload, Vec<&Record>)> = Vec::new();
    for record in records {
        match groups.iter_mut().find(|(w, _)| std::ptr::eq(*w, &*record.workload)) {
            Some((_, group)) => group.push(record),
            None => groups.push((&record.workload, vec![record])),
        }
    }
    groups
}

fn sdk_logs(records: &[Record]) -> ExportLogsServiceRequest {
    let encoder = LogEncoder::new(mapping());
    let mut resource_logs = Vec::new();
    for (workload, group) in grouped(records.iter()) {
        let logs: Vec<_> = group.iter().map(|record| encoder.encode(record)).collect();
        let with_scope: Vec<_> = logs.iter().map(|log| (log, &encoder.scope)).collect();
        let resource = (&workload.resource).into();
        resource_logs
            .extend(group_logs_by_resource_and_scope(&LogBatch::new(&with_scope), &resource));
    }
    ExportLogsServiceRequest { resource_logs }
}

fn sdk_spans(records: &[Record]) -> ExportTraceServiceRequest {
    let (mapping, scope) = (mapping(), scope());
    let mut resource_spans = Vec::new();
    for (workload, group) in grouped(records.iter().filter(|r| r.kind == RecordKind::End)) {
        let spans = group.iter().map(|record| span(record, &mapping, &scope)).collect();
        resource_spans
            .extend(group_spans_by_resource_and_scope(spans, &(&workload.resource).into()));
    }
    ExportTraceServiceRequest { resource_spans }
}

fn logs_in(body: &Bytes) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest::decode(body.as_ref()).unwrap()
}

fn spans_in(body: &Bytes) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest::decode(body.as_ref()).unwrap()
}

fn workloads() -> Vec<Arc<Workload>> {
    vec![
        records::workload(&[("service.name", "a"), ("host.name", "h")]),
        // Equal, and yet another workload.
        records::workload(&[("service.name", "a"), ("host.name", "h")]),
        records::workload(&[]),
        records::workload(&[("long", &"ü".repeat(300))]),
    ]
}

proptest! {
    #[test]
    fn any_batch_is_as_by_the_sdk(
        records in proptest::collection::vec(records::record(workloads()), 0..12),
    ) {
        let items = encoded(&records);
        prop_assert_eq!(logs_in(&request(Signal::Logs, &items)), sdk_logs(&records));
        prop_assert_eq!(spans_in(&request(Signal::Traces, &items)), sdk_spans(&records));
        let mut want = KindCounts::default();
        for record in &records {
            want[record.kind as usize] += 1;
        }
        for signal in SIGNALS {
            let body = request(signal, &items);
            prop_assert_eq!(request_size(signal, &items), body.len());
            let bound: usize = items.iter().map(|item| item_bound(signal, item)).sum();
            prop_assert!(body.len() <= bound, "{} > {bound}", body.len());
            if signal == Signal::Traces {
                want = [0, 0, want[2]];
            }
            prop_assert_eq!(kinds(signal, &body).unwrap(), want);
        }
    }

    #[test]
    fn halves_hold_all_records_in_order(
        records in proptest::collection::vec(records::record(workloads()), 0..9),
    ) {
        // In the order of the request: by workload.
        let records: Vec<Record> =
            grouped(records.iter()).into_iter().flat_map(|(_, group)| group).cloned().collect();
        let ends: Vec<_> = records.iter().filter(|r| r.kind == RecordKind::End).cloned().collect();
        let items = encoded(&records);
        match halve(Signal::Logs, &request(Signal::Logs, &items)) {
            None => prop_assert!(records.len() < 2),
            Some((first, second)) => {
                let (a, b) = records.split_at(records.len() / 2);
                prop_assert_eq!(logs_in(&first), sdk_logs(a));
                prop_assert_eq!(logs_in(&second), sdk_logs(b));
            }
        }
        match halve(Signal::Traces, &request(Signal::Traces, &items)) {
            None => prop_assert!(ends.len() < 2),
            Some((first, second)) => {
                let (a, b) = ends.split_at(ends.len() / 2);
                prop_assert_eq!(spans_in(&first), sdk_spans(a));
                prop_assert_eq!(spans_in(&second), sdk_spans(b));
            }
        }
    }
}

#[test]
fn each_workload_comes_once_however_the_records_alternate() {
    let of = |workload: &Arc<Workload>, port| {
        let mut record =
            Record { kind: RecordKind::End, workload: Arc::clone(workload), ..plain() };
        record.end.local.port = port;
        record
    };
    let all = workloads();
    let records: Vec<_> = (0..400_u16).map(|n| of(&all[usize::from(n) * 7 % 4], n)).collect();
    let logs = logs_in(&request(Signal::Logs, &encoded(&records)));
    assert_eq!(logs.resource_logs.len(), 4);
    assert_eq!(logs, sdk_logs(&records));
}

#[test]
fn the_scope_is_flowend_with_its_version() {
    let logs = logs_in(&request(Signal::Logs, &encoded(&[plain()])));
    let scope = logs.resource_logs[0].scope_logs[0].scope.clone().unwrap();
    assert_eq!(
        (scope.name.as_str(), scope.version.as_str()),
        ("flowend", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn what_has_nothing_for_a_signal_makes_no_request() {
    let begin = Record { kind: RecordKind::Begin, ..plain() };
    let items = encoded(&[begin]);
    assert_eq!(item_bound(Signal::Traces, &items[0]), 0);
    assert_eq!(request_size(Signal::Traces, &items), 0);
    assert!(request(Signal::Traces, &items).is_empty());
}

#[test]
fn what_is_no_request_of_flowend_is_refused() {
    let garbage = Bytes::from_static(b"\x0a\xff\xff");
    for signal in SIGNALS {
        assert!(halve(signal, &garbage).is_none());
        let error = kinds(signal, &garbage).unwrap_err().to_string();
        assert!(error.starts_with("no OTLP request: "), "{error}");
    }
    let mut logs = sdk_logs(&[plain()]);
    logs.resource_logs[0].scope_logs[0].log_records[0].event_name = "other".into();
    let error = kinds(Signal::Logs, &logs.encode_to_vec().into()).unwrap_err().to_string();
    assert_eq!(error, "a log record with the event name \"other\", which is none of flowend's");
}
