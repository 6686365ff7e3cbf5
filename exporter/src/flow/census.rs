//! What a look at the kernel's sockets tells the state machine: connections that it has not heard of,
//! and ones whose socket is gone.

use std::collections::HashSet;

use flowend_probe_types::TcpState;

use super::end::{Counters, Direction, Endpoint};

/// One look at the sockets of one or more network namespaces.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// `CLOCK_BOOTTIME` before the first socket was asked for, ns.
    pub begun_ns: u64,
    /// `CLOCK_BOOTTIME` after the last one, ns.
    pub done_ns: u64,
    /// Cookies of the network namespaces that were looked at from beginning to end.
    pub namespaces: HashSet<u64>,
    /// Whether these are all namespaces in which a watched socket may be.
    pub complete: bool,
    /// Cookies of network namespaces in which there was a process, and is none any more. A socket that a
    /// process made there and took elsewhere may still be open.
    pub deserted: HashSet<u64>,
    /// Cookies of all TCP sockets with a peer that are open.
    pub open: HashSet<u64>,
    /// Those of watched cgroups; and of connections older than the probe what is in TIME-WAIT.
    pub sockets: Vec<OpenSocket>,
}

/// A TCP socket with a peer, or what the kernel keeps of it in TIME-WAIT.
#[derive(Clone, Debug)]
pub struct OpenSocket {
    /// Cookie; a minisocket in TIME-WAIT has that of its connection.
    pub cookie: u64,
    /// Cookie of its network namespace.
    pub netns: Option<u64>,
    /// cgroup v2 id.
    pub cgroup_id: Option<u64>,
    /// Its state; `TimeWait` for every minisocket, whether it waits for the peer's FIN or not.
    pub state: TcpState,
    /// Own end.
    pub local: Endpoint,
    /// Peer.
    pub remote: Endpoint,
    /// Who opened it, where counters or a listener tell.
    pub direction: Direction,
    /// Told by the counters, which cannot err.
    pub direction_is_exact: bool,
    /// Whether it belongs to a watched cgroup.
    pub watched: bool,
    /// The socket's counters at that moment.
    pub running: Option<Running>,
}

/// Counters of a socket that is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Bytes and segments so far.
    pub counters: Counters,
    /// Smoothed RTT, us.
    pub srtt_us: Option<u32>,
    /// Minimum RTT, us.
    pub min_rtt_us: Option<u32>,
}

impl OpenSocket {
    /// Whether it is a connection that may be taken in at first sight.
    ///
    /// Not one that is being accepted: its establishment is still to come.
    pub(super) const fn is_connection(&self) -> bool {
        matches!(
            self.state,
            TcpState::SynSent
                | TcpState::Established
                | TcpState::FinWait1
                | TcpState::FinWait2
                | TcpState::CloseWait
                | TcpState::LastAck
                | TcpState::Closing
        )
    }
}
