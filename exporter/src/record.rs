//! A record: one end of a connection with all that is known beside it, ready to be encoded.

use std::sync::Arc;

use opentelemetry::SpanId;

use crate::enrich::{Process, Workload};
use crate::flow::{ConnectionEnd, Side};
use crate::ids::ConnectionIds;

/// The event's name.
pub const EVENT_NAME: &str = "flowend.tcp.end";

/// The span's name.
pub const SPAN_NAME: &str = "tcp connection";

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// What happened.
    pub end: ConnectionEnd,
    /// Of the trace and the span.
    pub ids: ConnectionIds,
    /// The CLIENT span, for a SERVER span of a peer whose spans somebody sends.
    pub parent_span_id: Option<SpanId>,
    /// Whose connection it was.
    pub workload: Arc<Workload>,
    /// Of the local side.
    pub process: Option<Process>,
    /// Names of the own address, as they stood at the start.
    pub local_names: Vec<Arc<str>>,
    /// Names of the peer's address, as they stood at the start.
    pub remote_names: Vec<Arc<str>>,
    /// Below 1 where sampling kept this record and dropped others.
    pub sampling_probability: f64,
    /// Start, ns since 1970.
    pub start_unix_ns: u64,
    /// End, ns since 1970.
    pub end_unix_ns: u64,
}

impl Record {
    /// The names of one side's address, the one asked for first.
    pub fn names(&self, side: Side) -> &[Arc<str>] {
        match side {
            Side::Local => &self.local_names,
            Side::Remote => &self.remote_names,
        }
    }
}
