//! Synthetic records, what a delivery says of them, and whether the receiver agrees.

use std::ops::Range;

use flowend::record::{RecordKind, SPAN_NAME};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

use super::injector::Injector;
use super::store::{Key, Received, Signal};
use super::synthetic;

/// The event name of synthetic log records.
const EVENT: &str = RecordKind::End.event_name();

/// What is tested: something that takes records for one destination.
pub(crate) trait Delivery {
    /// Offers the synthetic records with these numbers, of each signal that it delivers, and does not wait
    /// for the destination.
    async fn offer(&mut self, numbers: Range<u64>);

    /// What became of all that was offered.
    fn totals(&self, signal: Signal) -> Totals;

    /// Waits until nothing is in flight.
    async fn settle(&mut self);
}

/// What a ledger says of one signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) seen: u64,
    /// Left in the spool by an earlier life.
    pub(crate) recovered: u64,
    pub(crate) exported: u64,
    /// For any cause.
    pub(crate) dropped: u64,
    /// Measured, not the remainder.
    pub(crate) in_flight: u64,
}

impl Totals {
    /// The identity.
    pub(crate) fn add_up(self) -> Result<(), String> {
        let Self { seen, recovered, exported, dropped, in_flight } = self;
        if seen + recovered != exported + dropped + in_flight {
            return Err(format!("the identity does not hold: {self:?}"));
        }
        Ok(())
    }
}

/// Offers records and waits; then the ledger and the receiver must agree, for each signal.
pub(crate) async fn deliver(delivery: &mut impl Delivery, to: &Injector, numbers: Range<u64>) {
    delivery.offer(numbers).await;
    delivery.settle().await;
    for signal in Signal::ALL {
        let totals = delivery.totals(signal);
        if let Err(problem) = agree(signal, totals, &to.received()) {
            panic!("{signal:?}: {problem}");
        }
    }
}

/// Whether `seen + recovered = exported + dropped + in_flight`, and exported is what the receiver acknowledged.
///
/// A record may have come again only where an answer was not given: then once more for each time.
pub(crate) fn agree(signal: Signal, totals: Totals, received: &Received) -> Result<(), String> {
    totals.add_up()?;
    let exported = totals.exported;
    let acknowledged = received.acknowledged(signal);
    if acknowledged != exported {
        return Err(format!("{exported} exported, and {acknowledged} acknowledged"));
    }
    let twice = received.count(signal, |times| times.acknowledged > 1);
    if twice > 0 {
        return Err(format!("{twice} acknowledged more than once"));
    }
    Ok(())
}

/// Of the record with this number.
pub(crate) fn key(signal: Signal, number: u64) -> Key {
    let (trace_id, span_id) = ids(number);
    let event = match signal {
        Signal::Logs => EVENT,
        Signal::Traces => SPAN_NAME,
    };
    Key { signal, trace_id, span_id, event: event.into() }
}

fn ids(number: u64) -> (Vec<u8>, Vec<u8>) {
    let (trace_id, span_id) = synthetic::ids(number);
    (trace_id.to_bytes().into(), span_id.to_bytes().into())
}

pub(crate) fn logs(numbers: Range<u64>) -> ExportLogsServiceRequest {
    let log_records = numbers.map(|number| {
        let (trace_id, span_id) = ids(number);
        LogRecord { trace_id, span_id, event_name: EVENT.into(), ..LogRecord::default() }
    });
    let scope = ScopeLogs { log_records: log_records.collect(), ..ScopeLogs::default() };
    let resource = ResourceLogs { scope_logs: vec![scope], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![resource] }
}

pub(crate) fn spans(numbers: Range<u64>) -> ExportTraceServiceRequest {
    let spans = numbers.map(|number| {
        let (trace_id, span_id) = ids(number);
        Span { trace_id, span_id, name: SPAN_NAME.into(), ..Span::default() }
    });
    let scope = ScopeSpans { spans: spans.collect(), ..ScopeSpans::default() };
    let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource] }
}
