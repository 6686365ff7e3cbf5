//! Trace and span ids, derived and not drawn.
//!
//! Both ends of a connection know both initial sequence numbers, and address translation rewrites
//! neither. A keyed hash of the two is therefore the same id at both ends, without any exchange:
//! the probes of client and server put their spans into one trace.

use ipnet::IpNet;
use opentelemetry::{SpanId, TraceId};
use sha2::{Digest, Sha256};
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

use crate::flow::{ConnectionEnd, Direction};

/// Derives ids with the key of the fleet.
#[derive(Clone, Debug)]
pub struct Ids {
    key: [u8; 16],
    /// For connections whose ISNs were not seen: ids that nobody else derives.
    own: [u8; 16],
}

/// The ids of one connection's record and span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionIds {
    /// Of the trace that the spans of both ends share.
    pub trace_id: TraceId,
    /// Of this end's span.
    pub span_id: SpanId,
    /// Of the CLIENT span, for a SERVER span whose ISNs were seen.
    pub client_span_id: Option<SpanId>,
}

impl ConnectionIds {
    /// The parent of this end's span: the CLIENT span, where the peer is in a range whose spans somebody sends.
    pub fn parent(&self, end: &ConnectionEnd, peers: &[IpNet]) -> Option<SpanId> {
        let is_sent = |_: &SpanId| peers.iter().any(|range| range.contains(&end.remote.ip()));
        self.client_span_id.filter(is_sent)
    }
}

impl Ids {
    /// `key` is `ids.key` of the configuration, the same in the whole fleet; `seed` is different in
    /// every process.
    pub fn new(key: &str, seed: u128) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { key: half, own: seed.to_le_bytes() }
    }

    /// The ids of a connection's records and span: the same at its begin, on its way and at its end.
    pub fn of(&self, end: &ConnectionEnd) -> ConnectionIds {
        let Some(isns) = end.isns else {
            let id = |label: u8| hash(&self.own, label, &[end.cookie, end.start_ns]);
            return ConnectionIds {
                trace_id: trace_id(id(b'T')),
                span_id: span_id(id(b'S')),
                client_span_id: None,
            };
        };
        let pair = [u64::from(isns.client), u64::from(isns.server)];
        let client = span_id(hash(&self.key, b'C', &pair));
        let server = span_id(hash(&self.key, b'S', &pair));
        let is_server = end.direction == Direction::Incoming;
        ConnectionIds {
            trace_id: trace_id(hash(&self.key, b'T', &pair)),
            span_id: if is_server { server } else { client },
            client_span_id: is_server.then_some(client),
        }
    }
}

fn hash(key: &[u8; 16], label: u8, words: &[u64]) -> u128 {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write_u8(label);
    for word in words {
        hasher.write(&word.to_be_bytes());
    }
    hasher.finish128().as_u128()
}

/// Never the invalid id 0.
fn trace_id(hash: u128) -> TraceId {
    TraceId::from(hash.max(1))
}

/// Never the invalid id 0.
fn span_id(hash: u128) -> SpanId {
    #[allow(clippy::cast_possible_truncation)] // the lower half is as good as any
    SpanId::from((hash as u64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Counters, Endpoint, Isns, Reason, Rtt};
    use flowend_probe_types::Addr;

    fn end(direction: Direction, isns: Option<Isns>, cookie: u64) -> ConnectionEnd {
        let endpoint = Endpoint { addr: Addr::v4(0), port: 0 };
        ConnectionEnd {
            cookie,
            listener: None,
            cgroup_id: None,
            direction,
            local: endpoint,
            remote: endpoint,
            start_ns: cookie,
            start_known: true,
            end_ns: 2,
            end_known: true,
            by: None,
            reason: Reason::Fin,
            reset_by: None,
            conn_state: "SF",
            history: String::new(),
            half_close_ns: None,
            counters: Counters::default(),
            rtt: Rtt::default(),
            isns,
        }
    }

    const ISNS: Isns = Isns { client: 1, server: u32::MAX };

    #[test]
    fn both_ends_agree_without_talking() {
        // Other sockets, other addresses, another process: only the ISNs and the key are the same.
        let client = Ids::new("k", 1).of(&end(Direction::Outgoing, Some(ISNS), 10));
        let server = Ids::new("k", 2).of(&end(Direction::Incoming, Some(ISNS), 20));
        assert_eq!(client.trace_id, server.trace_id);
        assert_eq!(server.client_span_id, Some(client.span_id));
        assert_ne!(client.span_id, server.span_id);
        assert_eq!(client.client_span_id, None);
    }

    #[test]
    fn another_key_or_another_isn_is_another_trace() {
        let trace =
            |key, isns| Ids::new(key, 1).of(&end(Direction::Outgoing, Some(isns), 1)).trace_id;
        let swapped = Isns { client: ISNS.server, server: ISNS.client };
        assert_ne!(trace("a", ISNS), trace("b", ISNS));
        assert_ne!(trace("a", ISNS), trace("a", swapped));
    }

    #[test]
    fn without_isns_ids_are_nobody_elses() {
        let of = |seed, cookie| Ids::new("k", seed).of(&end(Direction::Incoming, None, cookie));
        assert_ne!(of(1, 1).trace_id, of(2, 1).trace_id);
        assert_ne!(of(1, 1).trace_id, of(1, 2).trace_id);
        assert_eq!(of(1, 1).client_span_id, None);
    }

    #[test]
    fn begin_progress_and_end_agree() {
        for isns in [None, Some(ISNS)] {
            let of = |end_ns| {
                let then = ConnectionEnd { end_ns, ..end(Direction::Incoming, isns, 7) };
                Ids::new("k", 1).of(&then)
            };
            assert_eq!(of(8), of(9), "{isns:?}");
        }
    }

    #[test]
    fn one_socket_connecting_again_is_another_trace() {
        let of = |start_ns| {
            let again = ConnectionEnd { start_ns, ..end(Direction::Outgoing, None, 7) };
            Ids::new("k", 1).of(&again).trace_id
        };
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn ids_stay_the_same_from_version_to_version() {
        // Two releases must agree across a fleet: a change here is a breaking change.
        let ids = Ids::new("flowend", 0).of(&end(Direction::Outgoing, Some(ISNS), 1));
        let got = (ids.trace_id.to_string(), ids.span_id.to_string());
        assert_eq!(got, ("86c07f5c752e9e3826caf48f2d882f2c".into(), "1d92b904776c11d7".into()));
    }
}
