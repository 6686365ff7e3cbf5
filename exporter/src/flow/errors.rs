//! Errors that the kernel reported to sockets, for the moment in which they close.

use flowend_probe_types::ErrorEvent;
use hashlink::LruCache;

use super::end::Endpoint;

/// ETIMEDOUT: retransmission, zero-window probes or keepalive gave up.
pub(super) const TIMED_OUT: u16 = 110;
/// ECONNABORTED: somebody destroyed the socket (SOCK_DESTROY).
pub(super) const ABORTED: u16 = 103;

/// Errors remembered at most. They matter for a moment only.
const LIMIT: usize = 8192;

/// An error belongs to the CLOSE of the same addresses and ports within this time, ns. Both happen in
/// one go, in either order (net/ipv4/tcp_timer.c, tcp_write_err; net/ipv4/tcp.c, tcp_done_with_error).
const NEAR_NS: u64 = 10_000_000;

/// An error.
#[derive(Clone, Copy, Debug)]
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

    pub(super) fn observe(&mut self, event: &ErrorEvent) {
        let local = Endpoint { addr: event.local, port: event.local_port };
        let remote = Endpoint { addr: event.remote, port: event.remote_port };
        let reported = Reported { time_ns: event.time_ns, errno: event.error };
        self.0.insert((local, remote), reported);
    }

    /// The error with which the connection of these endpoints closed at `closed_ns`.
    pub(super) fn of(&self, ends: (Endpoint, Endpoint), closed_ns: u64) -> Option<Reported> {
        self.0.peek(&ends).filter(|e| e.time_ns.abs_diff(closed_ns) <= NEAR_NS).copied()
    }

    /// The latest error of the connection of these endpoints since `first_seen_ns`.
    pub(super) fn since(&self, ends: (Endpoint, Endpoint), first_seen_ns: u64) -> Option<Reported> {
        self.0.peek(&ends).filter(|e| e.time_ns >= first_seen_ns).copied()
    }
}
