//! Request bodies read back: one that is too large for a receiver, or one out of the spool.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use crate::export::Signal;
use crate::record::{KindCounts, RecordKind};

/// Why a body cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not protobuf, or of another type.
    #[error("no OTLP request: {0}")]
    Decode(#[from] prost::DecodeError),
    /// A log record of nobody or somebody else.
    #[error("a log record with the event name {0:?}, which is none of flowend's")]
    EventName(String),
}

/// Splits a request into two, each with half of its records, all in order. `None` where it holds less than
/// two, or is none.
pub fn halve(signal: Signal, body: &Bytes) -> Option<(Bytes, Bytes)> {
    /// Moves all but the first half of the items to the second request.
    macro_rules! halve {
        ($request:ty, $resources:ident, $scopes:ident, $items:ident) => {{
            let mut first = <$request>::decode(body.as_ref()).ok()?;
            let scopes = first.$resources.iter().flat_map(|resource| &resource.$scopes);
            let count: usize = scopes.map(|scope| scope.$items.len()).sum();
            if count < 2 {
                return None;
            }
            let mut second = first.clone();
            let (mut keep, mut skip) = (count / 2, count / 2);
            for scope in first.$resources.iter_mut().flat_map(|r| &mut r.$scopes) {
                let here = keep.min(scope.$items.len());
                scope.$items.truncate(here);
                keep -= here;
            }
            for scope in second.$resources.iter_mut().flat_map(|r| &mut r.$scopes) {
                let here = skip.min(scope.$items.len());
                scope.$items.drain(..here);
                skip -= here;
            }
            for half in [&mut first, &mut second] {
                for resource in &mut half.$resources {
                    resource.$scopes.retain(|scope| !scope.$items.is_empty());
                }
                half.$resources.retain(|resource| !resource.$scopes.is_empty());
            }
            Some((first.encode_to_vec().into(), second.encode_to_vec().into()))
        }};
    }
    match signal {
        Signal::Logs => {
            halve!(ExportLogsServiceRequest, resource_logs, scope_logs, log_records)
        }
        Signal::Traces => {
            halve!(ExportTraceServiceRequest, resource_spans, scope_spans, spans)
        }
    }
}

/// Counts the records of a request by their kind: log records by the name of their event; a span is an end.
///
/// # Errors
/// When it is no request of that signal, or holds a log record that is not flowend's.
pub fn kinds(signal: Signal, body: &Bytes) -> Result<KindCounts, ReadError> {
    let mut counts = KindCounts::default();
    let request = skeleton::Request::decode(body.clone())?;
    for item in request.resources.into_iter().flat_map(|r| r.scopes).flat_map(|s| s.items) {
        let kind = match signal {
            Signal::Logs => kind_of(skeleton::LogRecord::decode(item)?.event_name)?,
            Signal::Traces => skeleton::Span::decode(item).map(|_| RecordKind::End)?,
        };
        counts[kind as usize] += 1;
    }
    Ok(counts)
}

fn kind_of(event_name: String) -> Result<RecordKind, ReadError> {
    let named = RecordKind::ALL.into_iter().find(|kind| kind.event_name() == event_name);
    named.ok_or(ReadError::EventName(event_name))
}

/// What of a request counting needs; prost skips the rest.
mod skeleton {
    use bytes::Bytes;

    #[derive(prost::Message)]
    pub(super) struct Request {
        #[prost(message, repeated, tag = "1")]
        pub(super) resources: Vec<Resource>,
    }

    #[derive(prost::Message)]
    pub(super) struct Resource {
        #[prost(message, repeated, tag = "2")]
        pub(super) scopes: Vec<Scope>,
    }

    #[derive(prost::Message)]
    pub(super) struct Scope {
        /// Log records or spans, which are decoded by themselves.
        #[prost(bytes = "bytes", repeated, tag = "2")]
        pub(super) items: Vec<Bytes>,
    }

    #[derive(prost::Message)]
    pub(super) struct LogRecord {
        #[prost(string, tag = "12")]
        pub(super) event_name: String,
    }

    #[derive(prost::Message)]
    pub(super) struct Span {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) trace_id: Bytes,
    }
}
