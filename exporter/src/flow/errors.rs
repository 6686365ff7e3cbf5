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

/// The latest error of each pair of endpoints.
#[derive(Debug)]
pub(super) struct Errors(LruCache<(Endpoint, Endpoint), (u64, u16)>);

impl Errors {
    pub(super) fn new() -> Self {
        Self(LruCache::new(LIMIT))
    }

    pub(super) fn observe(&mut self, event: &ErrorEvent) {
        let local = Endpoint { addr: event.local, port: event.local_port };
        let remote = Endpoint { addr: event.remote, port: event.remote_port };
        self.0.insert((local, remote), (event.time_ns, event.error));
    }

    /// The error with which the connection of these endpoints closed at `closed_ns`.
    pub(super) fn of(&self, local: Endpoint, remote: Endpoint, closed_ns: u64) -> Option<u16> {
        let (time_ns, error) = *self.0.peek(&(local, remote))?;
        (time_ns.abs_diff(closed_ns) <= NEAR_NS).then_some(error)
    }
}
