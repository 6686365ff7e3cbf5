//! The one mapping from a record to attributes; every output goes through it.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::text::{bytes, duration};
use crate::config::Profile;
use crate::flow::{ConnectionEnd, Direction, Endpoint, Side};
use crate::record::{Record, RecordKind};

/// An attribute's value, as OTLP and JSON know them.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A string.
    Str(Cow<'a, str>),
    /// A 64-bit integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// true or false.
    Bool(bool),
    /// A list of strings.
    List(&'a [std::sync::Arc<str>]),
}

impl Value<'_> {
    fn count(n: impl Into<u64>) -> Self {
        // OTLP integers are signed; no counter of a connection comes near.
        Self::Int(i64::try_from(n.into()).unwrap_or(i64::MAX))
    }

    fn ip(endpoint: Endpoint) -> Self {
        Self::Str(endpoint.ip().to_string().into())
    }
}

/// The keys that differ between profiles.
struct Keys {
    direction: &'static str,
    src_ip: &'static str,
    src_port: &'static str,
    dst_ip: &'static str,
    dst_port: &'static str,
    src_domains: &'static str,
    dst_domains: &'static str,
}

const SEMCONV: Keys = Keys {
    direction: "flowend.connection.direction",
    src_ip: "source.address",
    src_port: "source.port",
    dst_ip: "destination.address",
    dst_port: "destination.port",
    src_domains: "flowend.source.domains",
    dst_domains: "flowend.destination.domains",
};

const TRACEE: Keys = Keys {
    direction: "connectionDirection",
    src_ip: "srcIP",
    src_port: "srcPort",
    dst_ip: "dstIP",
    dst_port: "dstPort",
    src_domains: "srcDomains",
    dst_domains: "dstDomains",
};

const LOCAL_DOMAINS: &str = "flowend.local.domains";
const PEER_DOMAINS: &str = "flowend.peer.domains";

/// Names by PTR have no place in tracee's event: their keys are the same in each profile.
const SOURCE_PTR: &str = "flowend.source.ptr";
const DESTINATION_PTR: &str = "flowend.destination.ptr";
const LOCAL_PTR: &str = "flowend.local.ptr";
const PEER_PTR: &str = "flowend.peer.ptr";

const HANDSHAKE_RTT: &str = "flowend.rtt.handshake_us";

/// Hands each attribute of the record to `put`, always in the same order.
///
/// `source` and `destination` mean the side that terminated the connection and the other one, so
/// only an end has them; a begin and a progress have the names beside the own socket and its peer.
pub fn attributes<'a>(
    record: &'a Record,
    profile: Profile,
    mut put: impl FnMut(&'static str, Value<'a>),
) {
    let put = &mut put;
    let keys = match profile {
        Profile::Semconv => &SEMCONV,
        Profile::Tracee => &TRACEE,
    };
    let end = &record.end;
    put(keys.direction, Value::Str(end.direction.as_str().into()));
    match record.kind {
        RecordKind::End => termination(record, keys, put),
        RecordKind::Begin | RecordKind::Progress => {
            let sides = [Side::Local, Side::Remote];
            names(record, [LOCAL_DOMAINS, PEER_DOMAINS], sides, put);
            ptrs(record, [LOCAL_PTR, PEER_PTR], sides, put);
        }
    }
    roles(record, put);
    network(record, put);
    if record.kind == RecordKind::End {
        ending(record, put);
    }
    if record.kind != RecordKind::Begin
        && let Some(ns) = end.duration_ns()
    {
        put("flowend.duration_us", Value::count(ns / 1000));
    }
    put("flowend.start_known", Value::Bool(end.start_known));
    counters(record, put);
    if record.sampling.probability < 1.0 {
        put("flowend.sampling.probability", Value::Double(record.sampling.probability));
    }
    if let Some(id) = &record.community_id {
        put("flowend.community_id", Value::Str(Cow::Borrowed(id)));
    }
    if let Some(error) = end.reason.error_type() {
        put("error.type", Value::Str(error.into()));
    }
    if let Some(process) = &record.process {
        put("process.pid", Value::count(process.pid));
        if let Some(name) = &process.executable {
            put("process.executable.name", Value::Str(Cow::Borrowed(name)));
        }
    }
}

/// Takes in one attribute.
trait Put<'a>: FnMut(&'static str, Value<'a>) {}

impl<'a, F: FnMut(&'static str, Value<'a>)> Put<'a> for F {}

/// Which side terminated the connection.
fn termination<'a>(record: &'a Record, keys: &Keys, put: &mut impl Put<'a>) {
    let end = &record.end;
    let (source, destination) = (end.source(), end.destination());
    put(keys.src_ip, Value::ip(source));
    put(keys.src_port, Value::count(source.port));
    put(keys.dst_ip, Value::ip(destination));
    put(keys.dst_port, Value::count(destination.port));
    let sides = match end.source_side() {
        Side::Remote => [Side::Remote, Side::Local],
        Side::Local => [Side::Local, Side::Remote],
    };
    names(record, [keys.src_domains, keys.dst_domains], sides, put);
    ptrs(record, [SOURCE_PTR, DESTINATION_PTR], sides, put);
}

/// The names of each side's address, where there are any.
fn names<'a>(
    record: &'a Record,
    keys: [&'static str; 2],
    sides: [Side; 2],
    put: &mut impl Put<'a>,
) {
    for (key, side) in keys.into_iter().zip(sides) {
        if !record.names(side).is_empty() {
            put(key, Value::List(record.names(side)));
        }
    }
}

/// What the owner of each side's address calls it, where that is known.
fn ptrs<'a>(record: &'a Record, keys: [&'static str; 2], sides: [Side; 2], put: &mut impl Put<'a>) {
    for (key, side) in keys.into_iter().zip(sides) {
        if let Some(name) = record.ptr(side) {
            put(key, Value::Str(Cow::Borrowed(name)));
        }
    }
}

/// Who connected and who accepted, when the direction is known.
fn roles<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    let (Some(client), Some(server)) = (end.client(), end.server()) else { return };
    let (client_side, server_side) = match end.direction {
        Direction::Incoming => (Side::Remote, Side::Local),
        Direction::Outgoing | Direction::Unknown => (Side::Local, Side::Remote),
    };
    put("client.address", name_or_ip(record.names(client_side), client));
    put("client.port", Value::count(client.port));
    put("server.address", name_or_ip(record.names(server_side), server));
    put("server.port", Value::count(server.port));
}

/// The own socket and its peer.
fn network<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    put("network.local.address", Value::ip(end.local));
    put("network.local.port", Value::count(end.local.port));
    put("network.peer.address", Value::ip(end.remote));
    put("network.peer.port", Value::count(end.remote.port));
    put("network.transport", Value::Str("tcp".into()));
    let version = if end.remote.ip().is_ipv4() { "ipv4" } else { "ipv6" };
    put("network.type", Value::Str(version.into()));
}

/// How it ended.
fn ending<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    put("flowend.end.by", Value::Str(end.by.map_or("none", Side::as_str).into()));
    put("flowend.end.reason", Value::Str(end.reason.as_str().into()));
    if let Some(side) = end.reset_by {
        put("flowend.end.reset_by", Value::Str(side.as_str().into()));
    }
    put("flowend.conn_state", Value::Str(end.conn_state.into()));
    put("flowend.history", Value::Str(end.history.as_str().into()));
    if let Some(ns) = end.half_close_ns {
        put("flowend.half_close_us", Value::count(ns / 1000));
    }
}

/// What the socket has counted so far: at the begin nothing but the handshake's time.
fn counters<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let (counted, rtt) = (&record.end.counters, &record.end.rtt);
    let counters = [
        ("flowend.bytes.sent", counted.bytes_sent),
        ("flowend.bytes.received", counted.bytes_received),
        ("flowend.segments.sent", counted.segments_sent.map(u64::from)),
        ("flowend.segments.received", counted.segments_received.map(u64::from)),
        ("flowend.retransmits", counted.retransmits.map(u64::from)),
        (HANDSHAKE_RTT, rtt.handshake_us),
        ("flowend.rtt.smoothed_us", rtt.smoothed_us.map(u64::from)),
        ("flowend.rtt.min_us", rtt.min_us.map(u64::from)),
    ];
    for (key, count) in counters {
        let tells = record.kind != RecordKind::Begin || key == HANDSHAKE_RTT;
        if let Some(count) = count.filter(|_| tells) {
            put(key, Value::count(count));
        }
    }
}

/// The name an address was looked up by, if known, else the address: OpenTelemetry's rule for
/// `client.address` and `server.address`.
fn name_or_ip(names: &[std::sync::Arc<str>], endpoint: Endpoint) -> Value<'_> {
    names.first().map_or_else(|| Value::ip(endpoint), |name| Value::Str(Cow::Borrowed(name)))
}

/// Whether the record's severity is WARN and not INFO.
pub const fn severity_is_warning(record: &Record) -> bool {
    record.end.reason.error_type().is_some()
}

/// One short readable line: the body of the log record.
pub fn body(record: &Record) -> String {
    let end = &record.end;
    let mut text = String::with_capacity(96);
    let preposition = match end.direction {
        Direction::Outgoing => "to",
        Direction::Incoming => "from",
        Direction::Unknown => "with",
    };
    let _ = write!(text, "tcp connection {preposition} {} ", end.remote);
    match record.kind {
        RecordKind::Begin => text.push_str("began"),
        RecordKind::Progress => still_open(end, &mut text),
        RecordKind::End => ended(end, &mut text),
    }
    text
}

fn still_open(end: &ConnectionEnd, text: &mut String) {
    text.push_str("is open");
    if let Some(ns) = end.duration_ns() {
        let _ = write!(text, ", since {}", duration(ns));
    }
    for (count, verb) in
        [(end.counters.bytes_sent, "sent"), (end.counters.bytes_received, "received")]
    {
        if let Some(count) = count {
            let _ = write!(text, ", {verb} {}", bytes(count));
        }
    }
}

fn ended(end: &ConnectionEnd, text: &mut String) {
    let _ = write!(text, "ended: {}", end.reason.as_str());
    if let Some(side) = end.by {
        let _ = write!(text, ", by {}", side.as_str());
    }
    if let Some(ns) = end.duration_ns() {
        let _ = write!(text, ", after {}", duration(ns));
    }
}
