//! Errors that the kernel reported to sockets, for the moment in which they close.

use flowend_probe_types::ErrorEvent;
use hashlink::LruCache;
use serde::{Deserialize, Serialize};

use super::UNEXPLAINED_NS;
use super::end::Endpoint;
use super::kept::KeptErrors;

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

/// Errors remembered at most. They matter for a moment only, but the reports are the whole machine's: while one
/// connection's verdict waits, somebody's port scan may bring as many as the probe lets through in that time
/// (10,000 of each CPU in a second).
pub(super) const LIMIT: usize = 32_768;

/// An error belongs to the CLOSE of the same addresses and ports so long before it, ns, and so long after
/// it. Both happen in one go, in either order (net/ipv4/tcp_timer.c, tcp_write_err; net/ipv4/tcp.c,
/// tcp_done_with_error); but a virtual CPU may stand still in between.
const BEFORE_NS: u64 = 500_000_000;
const AFTER_NS: u64 = UNEXPLAINED_NS;

/// An error.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Reported {
    pub(super) time_ns: u64,
    pub(super) errno: u16,
}

/// The latest error of each pair of endpoints: own and peer.
#[derive(Debug)]
pub(super) struct Errors {
    latest: LruCache<(Endpoint, Endpoint), Reported>,
    /// The time of the newest error that is not here: it had to go, or never came.
    forgotten_ns: u64,
}

impl Errors {
    pub(super) fn new() -> Self {
        Self { latest: LruCache::new_unbounded(), forgotten_ns: 0 }
    }

    /// Hands over all of them.
    pub(super) fn hand_over(&mut self) -> KeptErrors {
        let latest = self.latest.drain().map(|((local, remote), error)| (local, remote, error));
        KeptErrors { latest: latest.collect(), forgotten_ns: self.forgotten_ns }
    }

    /// Takes them in again.
    pub(super) fn take_in(&mut self, kept: KeptErrors) {
        for (local, remote, error) in kept.latest {
            self.remember((local, remote), error);
        }
        self.note_loss(kept.forgotten_ns);
    }

    /// Reports were lost, at the latest at `at_ns`.
    pub(super) fn note_loss(&mut self, at_ns: u64) {
        self.forgotten_ns = self.forgotten_ns.max(at_ns);
    }

    pub(super) fn observe(&mut self, event: &ErrorEvent) {
        if !ENDING.contains(&event.error) {
            return;
        }
        let local = Endpoint { addr: event.local, port: event.local_port };
        let remote = Endpoint { addr: event.remote, port: event.remote_port };
        let reported = Reported { time_ns: event.time_ns, errno: event.error };
        self.remember((local, remote), reported);
    }

    fn remember(&mut self, ends: (Endpoint, Endpoint), error: Reported) {
        self.latest.insert(ends, error);
        if self.latest.len() > LIMIT
            && let Some((_, forgotten)) = self.latest.remove_lru()
        {
            self.note_loss(forgotten.time_ns);
        }
    }

    /// Whether the error of a connection that closed at `closed_ns` may be among those that are not here.
    pub(super) const fn may_have_forgotten(&self, closed_ns: u64) -> bool {
        self.forgotten_ns > 0 && self.forgotten_ns >= closed_ns.saturating_sub(BEFORE_NS)
    }

    /// The error with which the connection of these endpoints closed at `closed_ns`; one from before `begun_ns` was of
    /// the connection before.
    pub(super) fn of(
        &self,
        ends: (Endpoint, Endpoint),
        begun_ns: u64,
        closed_ns: u64,
    ) -> Option<Reported> {
        let from_ns = closed_ns.saturating_sub(BEFORE_NS).max(begun_ns);
        let near = from_ns..=closed_ns.saturating_add(AFTER_NS);
        self.latest.peek(&ends).filter(|e| near.contains(&e.time_ns)).copied()
    }

    /// The latest error of these endpoints since `alive_ns`, when their socket was last seen.
    pub(super) fn since(&self, ends: (Endpoint, Endpoint), alive_ns: u64) -> Option<Reported> {
        self.latest.peek(&ends).filter(|e| e.time_ns >= alive_ns).copied()
    }
}
