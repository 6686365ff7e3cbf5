//! The one mapping from a record to attributes; every output goes through it.

use std::sync::Arc;

use flowend_probe_types::Addr;

use super::keys::Key;
use crate::flow::{Direction, Endpoint, Side};
use crate::record::{Record, RecordKind};

/// An attribute's value, as OTLP and JSON know them. It borrows: each output writes it in its own way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// A string.
    Str(&'a str),
    /// An address: a string, as a user knows it (IPv4 where it is mapped).
    Ip(Addr),
    /// A 64-bit integer.
    Int(i64),
    /// A double.
    Double(f64),
    /// true or false.
    Bool(bool),
    /// A list of strings.
    List(&'a [Arc<str>]),
}

impl Value<'_> {
    fn count(n: impl Into<u64>) -> Self {
        // OTLP integers are signed; no counter of a connection comes near.
        Self::Int(i64::try_from(n.into()).unwrap_or(i64::MAX))
    }

    const fn ip(endpoint: Endpoint) -> Self {
        Self::Ip(endpoint.addr)
    }
}

/// Hands each attribute of the record to `put`, always in the same order.
///
/// `source` and `destination` mean the side that terminated the connection and the other one, so
/// only an end has them; a begin and a progress have the names beside the own socket and its peer.
pub fn attributes<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    put.put(Key::Direction, Value::Str(end.direction.as_str()));
    match record.kind {
        RecordKind::End => termination(record, put),
        RecordKind::Begin | RecordKind::Progress => {
            let sides = [Side::Local, Side::Remote];
            names(record, [Key::LocalDomains, Key::PeerDomains], sides, put);
            ptrs(record, [Key::LocalPtr, Key::PeerPtr], sides, put);
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
        put.put(Key::Duration, Value::count(ns / 1000));
    }
    put.put(Key::StartKnown, Value::Bool(end.start_known));
    counters(record, put);
    if record.sampling.probability < 1.0 {
        put.put(Key::SamplingProbability, Value::Double(record.sampling.probability));
    }
    if let Some(id) = &record.community_id {
        put.put(Key::CommunityId, Value::Str(id));
    }
    if let Some(error) = end.reason.error_type() {
        put.put(Key::ErrorType, Value::Str(error));
    }
    if let Some(process) = &record.process {
        put.put(Key::ProcessPid, Value::count(process.pid));
        if let Some(name) = &process.executable {
            put.put(Key::ProcessExecutable, Value::Str(name));
        }
    }
}

/// Takes in attributes one by one. A trait and no closure, so that an implementation can ask to be inlined:
/// at each call the key and the kind of the value are then known.
pub trait Put<'a> {
    /// Takes in one attribute.
    fn put(&mut self, key: Key, value: Value<'a>);
}

impl<'a, F: FnMut(Key, Value<'a>)> Put<'a> for F {
    fn put(&mut self, key: Key, value: Value<'a>) {
        self(key, value);
    }
}

/// Which side terminated the connection.
fn termination<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    let (source, destination) = (end.source(), end.destination());
    put.put(Key::SourceIp, Value::ip(source));
    put.put(Key::SourcePort, Value::count(source.port));
    put.put(Key::DestinationIp, Value::ip(destination));
    put.put(Key::DestinationPort, Value::count(destination.port));
    let sides = match end.source_side() {
        Side::Remote => [Side::Remote, Side::Local],
        Side::Local => [Side::Local, Side::Remote],
    };
    names(record, [Key::SourceDomains, Key::DestinationDomains], sides, put);
    ptrs(record, [Key::SourcePtr, Key::DestinationPtr], sides, put);
}

/// The names of each side's address, where there are any.
fn names<'a>(record: &'a Record, keys: [Key; 2], sides: [Side; 2], put: &mut impl Put<'a>) {
    for (key, side) in keys.into_iter().zip(sides) {
        if !record.names(side).is_empty() {
            put.put(key, Value::List(record.names(side)));
        }
    }
}

/// What the owner of each side's address calls it, where that is known.
fn ptrs<'a>(record: &'a Record, keys: [Key; 2], sides: [Side; 2], put: &mut impl Put<'a>) {
    for (key, side) in keys.into_iter().zip(sides) {
        if let Some(name) = record.ptr(side) {
            put.put(key, Value::Str(name));
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
    put.put(Key::ClientAddress, name_or_ip(record.names(client_side), client));
    put.put(Key::ClientPort, Value::count(client.port));
    put.put(Key::ServerAddress, name_or_ip(record.names(server_side), server));
    put.put(Key::ServerPort, Value::count(server.port));
}

/// The own socket and its peer.
fn network<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    put.put(Key::LocalIp, Value::ip(end.local));
    put.put(Key::LocalPort, Value::count(end.local.port));
    put.put(Key::PeerIp, Value::ip(end.remote));
    put.put(Key::PeerPort, Value::count(end.remote.port));
    put.put(Key::Transport, Value::Str("tcp"));
    let version = if end.remote.addr.is_v4() { "ipv4" } else { "ipv6" };
    put.put(Key::NetworkType, Value::Str(version));
}

/// How it ended.
fn ending<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let end = &record.end;
    put.put(Key::EndBy, Value::Str(end.by.map_or("none", Side::as_str)));
    put.put(Key::EndReason, Value::Str(end.reason.as_str()));
    if let Some(side) = end.reset_by {
        put.put(Key::ResetBy, Value::Str(side.as_str()));
    }
    put.put(Key::ConnState, Value::Str(end.conn_state));
    put.put(Key::History, Value::Str(end.history.as_str()));
    if let Some(ns) = end.half_close_ns {
        put.put(Key::HalfClose, Value::count(ns / 1000));
    }
}

/// What the socket has counted so far: at the begin nothing but the handshake's time.
fn counters<'a>(record: &'a Record, put: &mut impl Put<'a>) {
    let (counted, rtt) = (&record.end.counters, &record.end.rtt);
    let counters = [
        (Key::BytesSent, counted.bytes_sent),
        (Key::BytesReceived, counted.bytes_received),
        (Key::SegmentsSent, counted.segments_sent.map(u64::from)),
        (Key::SegmentsReceived, counted.segments_received.map(u64::from)),
        (Key::Retransmits, counted.retransmits.map(u64::from)),
        (Key::HandshakeRtt, rtt.handshake_us),
        (Key::SmoothedRtt, rtt.smoothed_us.map(u64::from)),
        (Key::MinRtt, rtt.min_us.map(u64::from)),
    ];
    for (key, count) in counters {
        let tells = record.kind != RecordKind::Begin || key == Key::HandshakeRtt;
        if let Some(count) = count.filter(|_| tells) {
            put.put(key, Value::count(count));
        }
    }
}

/// The name an address was looked up by, if known, else the address: OpenTelemetry's rule for
/// `client.address` and `server.address`.
fn name_or_ip(names: &[Arc<str>], endpoint: Endpoint) -> Value<'_> {
    names.first().map_or_else(|| Value::ip(endpoint), |name| Value::Str(name))
}

/// Whether the record's severity is WARN and not INFO.
pub const fn severity_is_warning(record: &Record) -> bool {
    record.end.reason.error_type().is_some()
}
