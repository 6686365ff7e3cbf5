//! Trace and span ids, derived and not drawn.
//!
//! Both ends of a connection know both initial sequence numbers, and address translation rewrites
//! neither. A keyed hash of the two is therefore the same id at both ends, without any exchange:
//! the probes of client and server put their spans into one trace.

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

impl Ids {
    /// `key` is `ids.key` of the configuration, the same in the whole fleet; `seed` is different in
    /// every process.
    pub fn new(key: &str, seed: u128) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self { key: half, own: seed.to_le_bytes() }
    }

    /// The ids of a connection's record and span.
    pub fn of(&self, end: &ConnectionEnd) -> ConnectionIds {
        let Some(isns) = end.isns else {
            let id = |label: u8| hash(&self.own, label, &[end.cookie, end.start_ns, end.end_ns]);
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
