//! Compares what was received with what happened.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use super::Received;
use super::traffic::{Ending, Role};
use crate::record::RecordKind;

/// Prints a line for each expected record, and returns what is missing or wrong.
pub(super) fn compare(endings: &[Ending], received: &Received) -> Vec<String> {
    let mut wrong = Vec::new();
    println!(
        "{:52} {:6} {:22} {:22} {:9} {:8} {:>7} {:>7} names",
        "ending",
        "seen",
        "source (ended it)",
        "destination",
        "direction",
        "reason",
        "sent",
        "recvd"
    );
    for ending in endings {
        let roles: &[Role] =
            if ending.accepted { &[Role::Client, Role::Server] } else { &[Role::Client] };
        for role in roles {
            if let Err(words) = compare_one(ending, *role, received) {
                wrong.push(format!("{}, seen by the {}: {words}", ending.what, name(*role)));
            }
        }
    }
    let expected: usize = endings.iter().map(Ending::records).sum();
    for (what, n) in [("log records", received.logs.len()), ("spans", received.spans.len())] {
        if n > expected {
            wrong.push(format!("{n} {what} were received, and {expected} sockets ended"));
        }
    }
    wrong
}

fn compare_one(ending: &Ending, role: Role, received: &Received) -> Result<(), String> {
    let (local, peer) = match role {
        Role::Client => (ending.client, ending.server),
        Role::Server => (ending.server, ending.client),
    };
    let logs: Vec<_> = received
        .logs
        .iter()
        .map(|log| (&log.item, flat(&log.item.attributes)))
        .filter(|(_, a)| is_of(a, local, peer))
        .collect();
    let [(log, attributes)] = logs.as_slice() else {
        return Err(format!("{} log records instead of one", logs.len()));
    };
    let spans: Vec<_> = received
        .spans
        .iter()
        .map(|span| &span.item)
        .filter(|span| is_of(&flat(&span.attributes), local, peer))
        .collect();
    let [span] = spans.as_slice() else {
        return Err(format!("{} spans instead of one", spans.len()));
    };
    let (source, destination) = match ending.by {
        Role::Client => (ending.client, ending.server),
        Role::Server => (ending.server, ending.client),
    };
    let (sent, received_bytes) = match role {
        Role::Client => (ending.up, ending.down),
        Role::Server => (ending.down, ending.up),
    };
    let direction = match role {
        Role::Client => "outgoing",
        Role::Server => "incoming",
    };
    println!(
        "{:52} {:6} {:22} {:22} {:9} {:8} {:>7} {:>7} {}",
        ending.what,
        name(role),
        shown(attributes, "source"),
        shown(attributes, "destination"),
        text(attributes, "flowend.connection.direction"),
        text(attributes, "flowend.end.reason"),
        text(attributes, "flowend.bytes.sent"),
        text(attributes, "flowend.bytes.received"),
        shown_names(attributes),
    );
    let mut expected = vec![
        ("flowend.connection.direction", direction.to_owned()),
        ("flowend.end.reason", ending.reason.clone()),
        ("flowend.end.by", side(ending.by, role).to_owned()),
        (
            "flowend.end.reset_by",
            ending.reset_by.map(|r| side(r, role).to_owned()).unwrap_or_default(),
        ),
        ("flowend.bytes.sent", sent.to_string()),
        ("flowend.bytes.received", received_bytes.to_string()),
        ("flowend.start_known", "true".into()),
    ];
    for (prefix, address) in [
        ("source", source),
        ("destination", destination),
        ("client", ending.client),
        ("server", ending.server),
    ] {
        // The server's name stands in the place of its address (OpenTelemetry's own rule).
        let name = ending.server_names.first().filter(|_| prefix == "server");
        let shown = name.cloned().unwrap_or_else(|| address.ip().to_string());
        expected.push((key(prefix, "address"), shown));
        expected.push((key(prefix, "port"), address.port().to_string()));
    }
    for (key, address) in [(SOURCE_DOMAINS, source), (DESTINATION_DOMAINS, destination)] {
        let names =
            if address == ending.server { ending.server_names.join(" ") } else { String::new() };
        expected.push((key, names));
    }
    for (key, want) in expected {
        let got = text(attributes, key);
        if got != want {
            return Err(format!("{key} is \"{got}\", and \"{want}\" is true"));
        }
    }
    if log.event_name != RecordKind::End.event_name() {
        return Err(format!("the event's name is \"{}\"", log.event_name));
    }
    if (&log.trace_id, &log.span_id) != (&span.trace_id, &span.span_id) {
        return Err("log record and span have different ids".into());
    }
    if flat(&span.attributes) != *attributes {
        return Err("log record and span have different attributes".into());
    }
    check_trace(ending, role, span, received)
}

const SOURCE_DOMAINS: &str = "flowend.source.domains";
const DESTINATION_DOMAINS: &str = "flowend.destination.domains";

/// The names of either side, with the side they are of.
fn shown_names(attributes: &BTreeMap<String, String>) -> String {
    [("source", SOURCE_DOMAINS), ("destination", DESTINATION_DOMAINS)]
        .map(|(side, key)| (side, text(attributes, key)))
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(side, names)| format!("{side}: {names}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Both ends in one trace, the server's span below the client's.
fn check_trace(
    ending: &Ending,
    role: Role,
    span: &Span,
    received: &Received,
) -> Result<(), String> {
    let kind = match role {
        Role::Client => SpanKind::Client,
        Role::Server => SpanKind::Server,
    };
    if span.kind() != kind {
        return Err(format!("the span's kind is {:?}", span.kind()));
    }
    if role == Role::Client {
        return Ok(());
    }
    let client = received
        .spans
        .iter()
        .map(|span| &span.item)
        .find(|span| is_of(&flat(&span.attributes), ending.client, ending.server))
        .ok_or("no span of the client")?;
    if (&span.trace_id, &span.parent_span_id) != (&client.trace_id, &client.span_id) {
        return Err("the server's span is not below the client's".into());
    }
    Ok(())
}

const fn name(role: Role) -> &'static str {
    match role {
        Role::Client => "client",
        Role::Server => "server",
    }
}

fn side(role: Role, seen_by: Role) -> &'static str {
    if role == seen_by { "local" } else { "remote" }
}

fn key(prefix: &str, suffix: &str) -> &'static str {
    match (prefix, suffix) {
        ("source", "address") => "source.address",
        ("source", _) => "source.port",
        ("destination", "address") => "destination.address",
        ("destination", _) => "destination.port",
        ("client", "address") => "client.address",
        ("client", _) => "client.port",
        (_, "address") => "server.address",
        _ => "server.port",
    }
}

fn is_of(attributes: &BTreeMap<String, String>, local: SocketAddr, peer: SocketAddr) -> bool {
    text(attributes, "network.local.address") == local.ip().to_string()
        && text(attributes, "network.local.port") == local.port().to_string()
        && text(attributes, "network.peer.address") == peer.ip().to_string()
        && text(attributes, "network.peer.port") == peer.port().to_string()
}

fn shown(attributes: &BTreeMap<String, String>, prefix: &str) -> String {
    let (ip, port) =
        (text(attributes, key(prefix, "address")), text(attributes, key(prefix, "port")));
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// An attribute's value as text; empty where it is absent.
fn text<'a>(attributes: &'a BTreeMap<String, String>, key: &str) -> &'a str {
    attributes.get(key).map_or("", String::as_str)
}

fn flat(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|kv| (kv.key.clone(), any(kv.value.as_ref()))).collect()
}

fn any(value: Option<&AnyValue>) -> String {
    match value.and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(s)) => s.clone(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::BoolValue(b)) => b.to_string(),
        Some(Value::DoubleValue(d)) => d.to_string(),
        Some(Value::ArrayValue(list)) => {
            list.values.iter().map(|value| any(Some(value))).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    }
}
