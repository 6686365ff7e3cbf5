//! What the table knows, in a form that outlives the process: over a restart while the ring goes on.

use flowend_probe_types::{Addr, ErrorEvent, Event, TcpEvent, TcpState};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

use super::connection::Connection;
use super::due::Due;
use super::embryo::Embryo;
use super::end::{Endpoint, Opened};
use super::errors::Reported;

/// Everything that a table knows but for its settings and counts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct KeptFlows {
    /// Events that wait for older ones, and the time of the newest that came.
    pub(super) waiting: Vec<Waiting>,
    pub(super) newest_ns: u64,
    /// The one idle for longest first.
    pub(super) connections: Vec<Connection>,
    pub(super) embryos: KeptEmbryos,
    pub(super) errors: KeptErrors,
    /// By the span that they wait, ns.
    pub(super) closing: Vec<(u64, Vec<Due>)>,
    pub(super) concluded: KeptConcluded,
    pub(super) lost: KeptLost,
    pub(super) look_at_ns: Option<u64>,
    pub(super) generation: u64,
}

/// Handshakes at listeners, by the client's ISN, and those that a client reset: due time and ISN.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct KeptEmbryos {
    pub(super) by_isn: Vec<(u32, Vec<Embryo>)>,
    pub(super) due: Vec<(u64, u32)>,
}

/// Errors of pairs of endpoints, the oldest first, and the time of the newest that is not among them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct KeptErrors {
    pub(super) latest: Vec<(Endpoint, Endpoint, Reported)>,
    pub(super) forgotten_ns: u64,
}

/// Until when events were lost: of anybody's connections, and of those of a cgroup or network namespace.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct KeptLost {
    pub(super) of_anybody_ns: u64,
    pub(super) of: Vec<(u64, u64)>,
}

/// Connections that were reported, the younger generation first: each with when its newest was.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct KeptConcluded {
    pub(super) generations: [(Vec<u64>, u64); 2],
    pub(super) forgotten_ns: u64,
}

/// An event that waits.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Waiting {
    Tcp(#[serde(with = "TcpEventFields")] TcpEvent),
    Error(#[serde(with = "ErrorEventFields")] ErrorEvent),
}

impl KeptFlows {
    /// The connections in it, as they were opened.
    pub fn opened(&self) -> impl ExactSizeIterator<Item = Opened> {
        self.connections.iter().map(Connection::opened)
    }
}

impl Waiting {
    /// `None` for an event that never waits.
    pub(super) const fn of(event: &Event) -> Option<Self> {
        match event {
            Event::Tcp(_, tcp) => Some(Self::Tcp(*tcp)),
            Event::Error(error) => Some(Self::Error(*error)),
            Event::Process(..) => None,
        }
    }

    /// With its time; `None` for what no program writes.
    pub(super) fn event(&self) -> Option<(u64, Event)> {
        match self {
            Self::Tcp(tcp) => Some((tcp.time_ns, Event::decode(tcp.as_bytes()).ok()?)),
            Self::Error(error) => Some((error.time_ns, Event::Error(*error))),
        }
    }
}

/// As the crate of the events has no serde; a field that is new there is missed here.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Addr")]
pub(super) struct AddrWords([u32; 4]);

#[derive(Serialize, Deserialize)]
#[serde(remote = "TcpEvent")]
pub(super) struct TcpEventFields {
    kind: u8,
    flags: u8,
    state: u8,
    reserved: u8,
    local_port: u16,
    remote_port: u16,
    time_ns: u64,
    cookie: u64,
    cgroup_id: u64,
    netns: u64,
    bytes_acked: u64,
    bytes_received: u64,
    #[serde(with = "AddrWords")]
    local: Addr,
    #[serde(with = "AddrWords")]
    remote: Addr,
    seq: u32,
    ack: u32,
    payload: u32,
    snd_nxt: u32,
    snd_una: u32,
    rcv_nxt: u32,
    srtt_8us: u32,
    rtt_min_us: u32,
    segs_out: u32,
    segs_in: u32,
    data_segs_out: u32,
    data_segs_in: u32,
    total_retrans: u32,
    keepalive_ms: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "ErrorEvent")]
pub(super) struct ErrorEventFields {
    kind: u8,
    reserved: u8,
    error: u16,
    local_port: u16,
    remote_port: u16,
    time_ns: u64,
    #[serde(with = "AddrWords")]
    local: Addr,
    #[serde(with = "AddrWords")]
    remote: Addr,
}

/// A state by the kernel's number.
pub(super) mod state {
    use super::{Deserialize as _, Deserializer, Serializer, TcpState};

    pub(in crate::flow) fn serialize<S: Serializer>(
        state: &TcpState,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*state as u8)
    }

    pub(in crate::flow) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<TcpState, D::Error> {
        u8::deserialize(deserializer).map(TcpState::from_kernel)
    }
}

/// A short list.
pub(super) mod list {
    use super::{Deserialize, Deserializer, Serialize, Serializer, SmallVec};

    pub(in crate::flow) fn serialize<T: Serialize, S: Serializer>(
        list: &SmallVec<[T; 1]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        list.as_slice().serialize(serializer)
    }

    pub(in crate::flow) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SmallVec<[T; 1]>, D::Error> {
        Vec::deserialize(deserializer).map(SmallVec::from)
    }
}
