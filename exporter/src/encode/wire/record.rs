//! A record as a log record and a span.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::address::Address;
use super::attribute::{Attributes, Prefix};
use super::buffer::{Buffer, field_len};
use crate::encode::body::write_body;
use crate::encode::trace_state::write_trace_state;
use crate::encode::{Key, Mapping, Put, TRACE_FLAGS, Value, attributes, severity_is_warning};
use crate::enrich::Workload;
use crate::export::Signal;
use crate::flow::Direction;
use crate::record::{Record, RecordKind, SPAN_NAME};

/// Encoded records lie in chunks of this size, bytes: some 30 ends each.
const CHUNK: usize = 64 << 10;

/// The field of ScopeLogs that holds a log record, and of ScopeSpans that holds a span: both are 2.
const ITEM: u8 = 0x12;

// SpanFlags: whether the parent is remote, and that this is known.
const CONTEXT_HAS_IS_REMOTE: u32 = 0x100;
const CONTEXT_IS_REMOTE: u32 = 0x200;

/// The fields of a log record that each has in the same place, with their tags and lengths.
const LOG_FIXED: [u8; 51] = {
    let mut fixed = [0; 51];
    fixed[0] = 0x09; // time_unix_nano
    fixed[9] = 0x59; // observed_time_unix_nano
    fixed[18] = 0x45; // flags
    fixed[19] = TRACE_FLAGS;
    (fixed[23], fixed[24]) = (0x4a, 16); // trace_id
    (fixed[41], fixed[42]) = (0x52, 8); // span_id
    fixed
};

/// The fields of a span that each has in the same place, with their tags and lengths.
const SPAN_FIXED: [u8; 54] = {
    let mut fixed = [0; 54];
    (fixed[0], fixed[1]) = (0x0a, 16); // trace_id
    (fixed[18], fixed[19]) = (0x12, 8); // span_id
    fixed[28] = 0x39; // start_time_unix_nano
    fixed[37] = 0x41; // end_time_unix_nano
    (fixed[46], fixed[47]) = (0x85, 0x01); // flags: field 16, two bytes of tag
    fixed[52] = 0x30; // kind
    fixed
};

/// What of a record is sent over OTLP: encoded once for both signals.
#[derive(Debug)]
pub struct Encoded {
    /// What it reports.
    pub kind: RecordKind,
    /// cgroup v2 id of the own socket; 0 where it is not known.
    pub cgroup_id: u64,
    /// Whose it is: the resource.
    pub workload: Arc<Workload>,
    /// A part of a chunk that it shares with its neighbours.
    bytes: Bytes,
    /// Where the span begins.
    split: u32,
}

impl Encoded {
    /// The log record, as field 2 of ScopeLogs with tag and length.
    pub fn log(&self) -> &[u8] {
        &self.bytes[..self.split as usize]
    }

    /// The span, as field 2 of ScopeSpans with tag and length. Empty unless it is an end.
    pub fn span(&self) -> &[u8] {
        &self.bytes[self.split as usize..]
    }

    /// What belongs to a signal.
    pub fn of(&self, signal: Signal) -> &[u8] {
        match signal {
            Signal::Logs => self.log(),
            Signal::Traces => self.span(),
        }
    }

    /// Bytes of memory that it takes, but for the workload, which many share.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

/// Encodes records, one after the other, with the same buffers.
#[derive(Debug)]
pub struct RecordEncoder {
    /// By `Key as usize`; `None`: left out.
    prefixes: Box<[Option<Prefix>; Key::ALL.len()]>,
    /// The static attributes, encoded once.
    added: Attributes,
    attributes: Attributes,
    /// The fields of a log record that are no attributes.
    log: Buffer,
    /// The fields of a span that are no attributes.
    span: Buffer,
    body: Buffer,
    /// Room for the next records: one allocation for many of them.
    chunk: BytesMut,
    /// Those of the last record: many have an address in common.
    local: Address,
    remote: Address,
}

impl RecordEncoder {
    /// For these names of attributes.
    pub fn new(mapping: Arc<Mapping>) -> Self {
        let nowhere = || Address::of(std::net::IpAddr::from([0; 4]).into());
        let (local, remote) = (nowhere(), nowhere());
        let mut added = Attributes::default();
        for (name, value) in mapping.added() {
            added.put(&Prefix::of(name.as_str()), Value::Str(value), [&local, &remote]);
        }
        let prefix = |key: &Key| mapping.name(*key).map(|name| Prefix::of(name.as_str()));
        Self {
            prefixes: Box::new(std::array::from_fn(|at| prefix(&Key::ALL[at]))),
            added,
            attributes: Attributes::default(),
            log: Buffer::default(),
            span: Buffer::default(),
            body: Buffer::default(),
            chunk: BytesMut::new(),
            local,
            remote,
        }
    }

    /// Encodes a record.
    pub fn encode(&mut self, record: &Record) -> Encoded {
        self.local.become_of(record.end.local.addr);
        self.remote.become_of(record.end.remote.addr);
        self.write_attributes(record);
        self.write_log(record);
        // A span is over when it is sent.
        let is_end = record.kind == RecordKind::End;
        let attributes = self.attributes.len() + self.added.len();
        let log = self.log.len() + attributes;
        let mut size = field_len(log);
        if is_end {
            self.write_span(record);
            size += field_len(self.span.len() + attributes);
        }
        // Queues are emptied in their order, so a chunk is free again soon after its first record.
        let mut bytes = std::mem::take(&mut self.chunk);
        if bytes.capacity() < size {
            bytes = BytesMut::with_capacity(CHUNK.max(size));
        }
        self.append(&mut bytes, Signal::Logs);
        let split = bytes.len() as u32;
        if is_end {
            self.append(&mut bytes, Signal::Traces);
        }
        debug_assert_eq!(bytes.len(), size);
        self.chunk = bytes.split_off(size);
        Encoded {
            kind: record.kind,
            cgroup_id: record.end.cgroup_id.unwrap_or(0),
            workload: Arc::clone(&record.workload),
            bytes: bytes.freeze(),
            split,
        }
    }

    /// Puts the parts of a signal's message together.
    fn append(&self, bytes: &mut BytesMut, signal: Signal) {
        let own = match signal {
            Signal::Logs => self.log.written(),
            Signal::Traces => self.span.written(),
        };
        let mut rest = own.len() + self.attributes.len() + self.added.len();
        bytes.put_u8(ITEM);
        while rest >= 0x80 {
            bytes.put_u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.put_u8(rest as u8);
        bytes.extend_from_slice(own);
        self.attributes.append_to(bytes, signal);
        self.added.append_to(bytes, signal);
    }

    fn write_attributes(&mut self, record: &Record) {
        self.attributes.clear();
        attributes(record, self);
    }

    fn write_log(&mut self, record: &Record) {
        self.body.clear();
        // Writing into a buffer cannot fail.
        let _ = write_body(record, &mut self.body, |out| {
            write_endpoint(&self.remote, record.end.remote.port, out)
        });
        let mut fixed = LOG_FIXED;
        let now = record.end_unix_ns.to_le_bytes();
        fixed[1..9].copy_from_slice(&now);
        fixed[10..18].copy_from_slice(&now);
        fixed[25..41].copy_from_slice(&record.ids.trace_id.to_bytes());
        fixed[43..51].copy_from_slice(&record.ids.span_id.to_bytes());
        let log = &mut self.log;
        log.clear();
        log.put(&fixed);
        log.put(match severity_is_warning(record) {
            true => b"\x10\x0d\x1a\x04WARN", // severity_number, severity_text
            false => b"\x10\x09\x1a\x04INFO",
        });
        log.byte(0x2a); // body: an AnyValue
        log.varint(field_len(self.body.len()) as u64);
        log.field(0x0a, self.body.written());
        log.field(0x62, record.kind.event_name().as_bytes());
    }

    fn write_span(&mut self, record: &Record) {
        let mut flags = u32::from(TRACE_FLAGS) | CONTEXT_HAS_IS_REMOTE;
        if record.parent_span_id.is_some() {
            flags |= CONTEXT_IS_REMOTE;
        }
        let mut fixed = SPAN_FIXED;
        fixed[2..18].copy_from_slice(&record.ids.trace_id.to_bytes());
        fixed[20..28].copy_from_slice(&record.ids.span_id.to_bytes());
        fixed[29..37].copy_from_slice(&record.start_unix_ns.to_le_bytes());
        fixed[38..46].copy_from_slice(&record.end_unix_ns.to_le_bytes());
        fixed[48..52].copy_from_slice(&flags.to_le_bytes());
        fixed[53] = match record.end.direction {
            Direction::Unknown => 1,  // INTERNAL
            Direction::Incoming => 2, // SERVER
            Direction::Outgoing => 3, // CLIENT
        };
        let span = &mut self.span;
        span.clear();
        span.put(&fixed);
        span.field(0x2a, SPAN_NAME.as_bytes());
        if let Some(parent) = record.parent_span_id {
            span.field(0x22, &parent.to_bytes());
        }
        if let Some(threshold) = record.sampling.threshold {
            span.put(&[0x1a, 0]); // trace_state, of less than 128 bytes
            let start = span.len();
            let _ = write_trace_state(threshold, span);
            span.set(start - 1, (span.len() - start) as u8);
        }
        match record.end.reason.error_type() {
            // status: message, and the code ERROR
            Some(error) => {
                span.put(&[0x7a, (field_len(error.len()) + 2) as u8]);
                span.field(0x12, error.as_bytes());
                span.put(&[0x18, 2]);
            }
            // status, UNSET
            None => span.put(&[0x7a, 0]),
        }
    }
}

impl<'a> Put<'a> for RecordEncoder {
    #[inline(always)]
    fn put(&mut self, key: Key, value: Value<'a>) {
        if let Some(prefix) = &self.prefixes[key as usize] {
            self.attributes.put(prefix, value, [&self.local, &self.remote]);
        }
    }
}

/// As `Endpoint` is displayed: `192.0.2.1:80`, `[::1]:80`.
fn write_endpoint(address: &Address, port: u16, out: &mut Buffer) -> fmt::Result {
    let is_v4 = address.addr().is_v4();
    if !is_v4 {
        out.byte(b'[');
    }
    out.put(address.text());
    out.put(if is_v4 { b":" } else { b"]:" });
    out.put(itoa::Buffer::new().format(port).as_bytes());
    Ok(())
}
