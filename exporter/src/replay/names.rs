//! Names of addresses, from the DNS messages of the capture.
//!
//! The cache is that of `run`. A capture has no cgroups, so all of it counts as one: who asked is told by
//! address and port.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use flowend_probe_types::{Addr, DnsEvent, EventKind};

use super::ip::UdpPacket;
use crate::dns::{Dns, DnsSettings, DnsStats, Scope};

const DNS_PORT: u16 = 53;

/// The one cgroup of a capture.
const CGROUP: u64 = 0;

/// And what its names are for.
const SCOPE: Scope = Scope(CGROUP);

/// What the capture's DNS answers say.
#[derive(Debug)]
pub(super) struct Names(Dns);

impl Names {
    /// Nothing is known yet.
    pub(super) fn new(settings: DnsSettings) -> Self {
        Self(Dns::of_the_past(settings))
    }

    /// Takes in a datagram, if it is a query or an answer.
    pub(super) fn observe(&mut self, packet: &UdpPacket<'_>, time_ns: u64) {
        let (kind, asker, server) = match (packet.src.1, packet.dst.1) {
            (_, DNS_PORT) => (EventKind::DnsQuery, packet.src, packet.dst),
            (DNS_PORT, _) => (EventKind::DnsAnswer, packet.dst, packet.src),
            _ => return,
        };
        let facts = DnsEvent {
            kind: kind as u8,
            cut: u8::from(packet.cut),
            len: u16::try_from(packet.payload.len()).unwrap_or(u16::MAX),
            local_port: asker.1,
            remote_port: server.1,
            time_ns,
            cookie: cookie(asker),
            cgroup_id: CGROUP,
            local: asker.0,
            remote: server.0,
            ..DnsEvent::default()
        };
        self.0.observe(kind, &facts, packet.payload, SCOPE);
    }

    /// The names of an address at a time.
    pub(super) fn of(&self, addr: Addr, time_ns: u64) -> Vec<Arc<str>> {
        self.0.names(&[SCOPE], addr, time_ns)
    }

    /// What became of the messages.
    pub(super) const fn stats(&self) -> DnsStats {
        self.0.stats()
    }
}

/// Stands for the socket that asked.
fn cookie((addr, port): (Addr, u16)) -> u64 {
    let mut hasher = DefaultHasher::new();
    (addr.octets(), port).hash(&mut hasher);
    hasher.finish()
}
