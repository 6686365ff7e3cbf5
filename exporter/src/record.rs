//! A record: what happened to a connection with all that is known beside it, ready to be encoded.

use std::sync::Arc;

use opentelemetry::SpanId;

use crate::enrich::{Process, Workload};
use crate::flow::{ConnectionEnd, Side};
use crate::ids::ConnectionIds;
use crate::sample::Kept;

/// The span's name.
pub const SPAN_NAME: &str = "tcp connection";

/// What a record reports of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// It was established.
    Begin,
    /// It is still open.
    Progress,
    /// It is over.
    End,
}

impl RecordKind {
    /// Every kind, in the order of a connection's life.
    pub const ALL: [Self; 3] = [Self::Begin, Self::Progress, Self::End];

    /// The name of the event, as in OTLP's EventName.
    pub const fn event_name(self) -> &'static str {
        match self {
            Self::Begin => "flowend.tcp.begin",
            Self::Progress => "flowend.tcp.progress",
            Self::End => "flowend.tcp.end",
        }
    }

    /// As in the setting `events`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Progress => "progress",
            Self::End => "end",
        }
    }
}

/// How many records of each kind something holds, by `RecordKind as usize`.
pub type KindCounts = [u32; RecordKind::ALL.len()];

/// The kinds of records that are made. Ends always are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSet {
    /// A record when a connection is established.
    pub begin: bool,
    /// A record at each interval of a connection's life.
    pub progress: bool,
}

impl EventSet {
    /// Nothing but ends.
    pub const ENDS: Self = Self { begin: false, progress: false };

    /// Whether records of this kind are made.
    pub const fn contains(self, kind: RecordKind) -> bool {
        match kind {
            RecordKind::Begin => self.begin,
            RecordKind::Progress => self.progress,
            RecordKind::End => true,
        }
    }
}

/// What happened to a connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it reports.
    pub kind: RecordKind,
    /// The connection as it ended. Of a begin or progress as it stood at that moment: `reason` is
    /// [`Reason::Open`](crate::flow::Reason::Open), `by` is `None`, and `end_ns` is that moment.
    pub end: ConnectionEnd,
    /// Of the trace and the span: the same for each record of a connection.
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
    /// The PTR record of the own address, as far as it is known. Whoever owns the address wrote it, so it
    /// never stands among the names.
    pub local_ptr: Option<Arc<str>>,
    /// The PTR record of the peer's address.
    pub remote_ptr: Option<Arc<str>>,
    /// The id by which other tools know the connection, where it is asked for.
    pub community_id: Option<String>,
    /// How it came to be kept, where others were left out.
    pub sampling: Kept,
    /// Start, ns since 1970.
    pub start_unix_ns: u64,
    /// When it happened, ns since 1970: the end, of an end.
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

    /// The PTR record of one side's address.
    pub fn ptr(&self, side: Side) -> Option<&str> {
        match side {
            Side::Local => self.local_ptr.as_deref(),
            Side::Remote => self.remote_ptr.as_deref(),
        }
    }
}
