//! JSON lines.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Map, Value as Json, json};

use super::attributes::{Value, severity_is_warning};
use super::body::body;
use super::mapping::Mapping;
use super::trace_state::trace_state;
use crate::flow::Direction;
use crate::record::{Record, RecordKind, SPAN_NAME};

/// The record as one JSON object, without the newline.
pub fn json_line(record: &Record, mapping: &Mapping) -> String {
    let mut flat = Map::new();
    mapping.attributes(record, |name, value| {
        flat.insert(name.as_str().into(), to_json(value));
    });
    let resource: Map<String, Json> = record
        .workload
        .resource
        .iter()
        .map(|(key, value)| (key.to_string(), Json::from(value.to_string())))
        .collect();
    let mut line = json!({
        "timestamp": rfc3339(record.end_unix_ns),
        "event_name": record.kind.event_name(),
        "severity": if severity_is_warning(record) { "WARN" } else { "INFO" },
        "body": body(record),
        "trace_id": record.ids.trace_id.to_string(),
        "span_id": record.ids.span_id.to_string(),
        "resource": resource,
        "attributes": flat,
    });
    // A span is over when it is sent.
    if record.kind == RecordKind::End {
        line["span"] = span(record);
    }
    line.to_string()
}

fn span(record: &Record) -> Json {
    let kind = match record.end.direction {
        Direction::Outgoing => "CLIENT",
        Direction::Incoming => "SERVER",
        Direction::Unknown => "INTERNAL",
    };
    let mut span = json!({
        "name": SPAN_NAME,
        "kind": kind,
        "parent_span_id": record.parent_span_id.map(|id| id.to_string()),
        "start": rfc3339(record.start_unix_ns),
        "end": rfc3339(record.end_unix_ns),
        "status": if severity_is_warning(record) { "ERROR" } else { "UNSET" },
    });
    if let Some(state) = trace_state(record.sampling) {
        span["trace_state"] = Json::from(state);
    }
    span
}

/// UTC with all nine digits of the nanoseconds.
fn rfc3339(unix_ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(unix_ns))
        .map_or_else(|_| String::from("9999-12-31T23:59:59.999999999Z"), |t| format!("{t:.9}"))
}

fn to_json(value: Value<'_>) -> Json {
    match value {
        Value::Str(text) => Json::from(text),
        Value::Ip(addr) => Json::from(IpAddr::from(addr).to_string()),
        Value::Int(n) => Json::from(n),
        Value::Double(n) => Json::from(n),
        Value::Bool(b) => Json::from(b),
        Value::List(items) => items.iter().map(|item| Json::from(&**item)).collect(),
    }
}
