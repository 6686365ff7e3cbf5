//! OTLP by way of the SDK: its log record and span. The direct encoding ([`wire`](super::wire)) must say the
//! same; the tests compare the two, and the bench their cost.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceState};
use opentelemetry::{Array, InstrumentationScope, KeyValue, SpanId, StringValue, TraceFlags};
use opentelemetry_sdk::logs::{SdkLogRecord, SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::attributes::{Value, severity_is_warning};
use super::body::body;
use super::mapping::Mapping;
use super::trace_state::trace_state;
use super::{SCOPE_NAME, SCOPE_VERSION, TRACE_FLAGS};
use crate::flow::Direction;
use crate::record::{Record, SPAN_NAME};

/// The instrumentation scope: flowend itself.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(SCOPE_NAME).with_version(SCOPE_VERSION).build()
}

/// Makes log records. The SDK creates them only through a logger, so it keeps one that has no
/// processor behind it.
#[derive(Debug)]
pub struct LogEncoder {
    logger: SdkLogger,
    mapping: Arc<Mapping>,
    /// flowend's instrumentation scope.
    pub scope: InstrumentationScope,
}

impl LogEncoder {
    /// For these names of attributes.
    pub fn new(mapping: Arc<Mapping>) -> Self {
        let scope = scope();
        let logger = SdkLoggerProvider::builder().build().logger_with_scope(scope.clone());
        Self { logger, mapping, scope }
    }

    /// The log record of a record.
    pub fn encode(&self, record: &Record) -> SdkLogRecord {
        let mut log = self.logger.create_log_record();
        log.set_event_name(record.kind.event_name());
        log.set_timestamp(time(record.end_unix_ns));
        log.set_observed_timestamp(time(record.end_unix_ns));
        if severity_is_warning(record) {
            log.set_severity_number(Severity::Warn);
            log.set_severity_text("WARN");
        } else {
            log.set_severity_number(Severity::Info);
            log.set_severity_text("INFO");
        }
        log.set_body(AnyValue::from(body(record)));
        log.set_trace_context(record.ids.trace_id, record.ids.span_id, Some(flags()));
        self.mapping
            .attributes(record, |name, value| log.add_attribute(name.clone(), to_any(value)));
        log
    }
}

/// The span of a connection, from the record of its end.
pub fn span(record: &Record, mapping: &Mapping, scope: &InstrumentationScope) -> SpanData {
    let mut values = Vec::with_capacity(32);
    mapping.attributes(record, |name, value| {
        values.push(KeyValue::new(name.clone(), to_value(value)));
    });
    let parent = record.parent_span_id;
    SpanData {
        span_context: SpanContext::new(
            record.ids.trace_id,
            record.ids.span_id,
            flags(),
            false,
            state(record),
        ),
        parent_span_id: parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: parent.is_some(),
        span_kind: match record.end.direction {
            Direction::Outgoing => SpanKind::Client,
            Direction::Incoming => SpanKind::Server,
            Direction::Unknown => SpanKind::Internal,
        },
        name: SPAN_NAME.into(),
        start_time: time(record.start_unix_ns),
        end_time: time(record.end_unix_ns),
        attributes: values,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match record.end.reason.error_type() {
            Some(error) => Status::error(error),
            None => Status::Unset,
        },
        instrumentation_scope: scope.clone(),
    }
}

const fn flags() -> TraceFlags {
    TraceFlags::new(TRACE_FLAGS)
}

fn state(record: &Record) -> TraceState {
    trace_state(record.sampling).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn time(unix_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_ns)
}

fn to_any(value: Value<'_>) -> AnyValue {
    match value {
        Value::Str(text) => AnyValue::from(text.to_owned()),
        Value::Ip(addr) => AnyValue::from(IpAddr::from(addr).to_string()),
        Value::Int(n) => AnyValue::Int(n),
        Value::Double(n) => AnyValue::Double(n),
        Value::Bool(b) => AnyValue::Boolean(b),
        Value::List(items) => AnyValue::ListAny(Box::new(
            items.iter().map(|item| AnyValue::from(item.to_string())).collect(),
        )),
    }
}

fn to_value(value: Value<'_>) -> opentelemetry::Value {
    match value {
        Value::Str(text) => opentelemetry::Value::from(text.to_owned()),
        Value::Ip(addr) => opentelemetry::Value::from(IpAddr::from(addr).to_string()),
        Value::Int(n) => opentelemetry::Value::I64(n),
        Value::Double(n) => opentelemetry::Value::F64(n),
        Value::Bool(b) => opentelemetry::Value::Bool(b),
        Value::List(items) => {
            let strings = items.iter().map(|item| StringValue::from(item.to_string())).collect();
            opentelemetry::Value::Array(Array::String(strings))
        }
    }
}
