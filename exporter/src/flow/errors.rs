//! Errors that the kernel reported to sockets, for the moment in which they close.

use flowend_probe_types::ErrorEvent;
use hashlink::LruCache;
use serde::{Deserialize, Serialize};

use super::end::Endpoint;

/// ETIMEDOUT: retransmission, zero-window probes or keepalive gave up.
pub(super) const TIMED_OUT: u16 = 110;
/// ECONNABORTED: somebody destroyed the socket (SOCK_DESTROY).
pub(super) const ABORTED: u16 = 103;

/// Errors with which TCP gives a socket up: those above, and what ICMP errors become
/// (net/ipv4/icmp.c, icmp_err_convert; net/ipv6/icmp.c, icmpv6_err_convert). Others are for the
/// application to read on a connection that lives on.
const ENDING: [u16; 12] = [
    TIMED_OUT, ABORTED, 13,  // EACCES
    64,  // ENONET
    71,  // EPROTO
    90,  // EMSGSIZE
    92,  // ENOPROTOOPT
    95,  // EOPNOTSUPP
    101, // ENETUNREACH
    111, // ECONNREFUSED
    112, // EHOSTDOWN
    113, // EHOSTUNREACH
];

/// Errors remembered at most. They matter for a moment only.
const LIMIT: usize = 8192;

/// An error belongs to the CLOSE of the same addresses and ports so long before it, ns, and so long after
/// it. Both happen in one go, in either order (net/ipv4/tcp_timer.c, tcp_write_err; net/ipv4/tcp.c,
/// tcp_done_with_error); but a virtual CPU may stand still in between.
const BEFORE_NS: u64 = 100_000_000;
const AFTER_NS: u64 = 500_000_000;

/// An error.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Reported {
    pub(super) time_ns: u64,
    pub(super) errno: u16,
}

/// The latest error of each pair of endpoints: own and peer.
#[derive(Debug)]
pub(super) struct Errors(LruCache<(Endpoint, Endpoint), Reported>);

impl Errors {
    pub(super) fn new() -> Self {
        Self(LruCache::new(LIMIT))
    }

    /// Hands over all of them, the oldest first.
    pub(super) fn hand_over(&mut self) -> Vec<(Endpoint, Endpoint, Reported)> {
        self.0.drain().map(|((local, remote), error)| (local, remote, error)).collect()
    }

    /// Takes them in again.
    pub(super) fn take_in(&mut self, kept: Vec<(Endpoint, Endpoint, Reported)>) {
        for (local, remote, error) in kept {
            self.0.insert((local, remote), error);
        }
    }

    pub(super) fn observe(&mut self, event: &ErrorEvent) {
        if !ENDING.contains(&event.error) {
            return;
        }
        let local = Endpoint { addr: event.local, port: event.local_port };
        let remote = Endpoint { addr: event.remote, port: event.remote_port };
        let reported = Reported { time_ns: event.time_ns, errno: event.error };
        self.0.insert((local, remote), reported);
    }

    /// The error with which the connection of these endpoints closed at `closed_ns`.
    pub(super) fn of(&self, ends: (Endpoint, Endpoint), closed_ns: u64) -> Option<Reported> {
        let near = closed_ns.saturating_sub(BEFORE_NS)..=closed_ns.saturating_add(AFTER_NS);
        self.0.peek(&ends).filter(|e| near.contains(&e.time_ns)).copied()
    }

    /// The latest error of these endpoints since `alive_ns`, when their socket was last seen.
    pub(super) fn since(&self, ends: (Endpoint, Endpoint), alive_ns: u64) -> Option<Reported> {
        self.0.peek(&ends).filter(|e| e.time_ns >= alive_ns).copied()
    }
}
