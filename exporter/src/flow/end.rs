//! What is known of a connection when it is opened and when it has ended: plain domain types, no telemetry.

use std::fmt;
use std::net::IpAddr;

use flowend_probe_types::{Addr, TcpEvent};
use serde::{Deserialize, Serialize};

/// Who opened the connection, seen from the own socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// The peer opened it; the own socket was accepted.
    Incoming,
    /// The own socket connected.
    Outgoing,
    /// The handshake was not seen and nothing else tells.
    Unknown,
}

impl Direction {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Incoming, Self::Outgoing, Self::Unknown];

    /// As in `flowend.connection.direction`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Incoming => "incoming",
            Self::Outgoing => "outgoing",
            Self::Unknown => "unknown",
        }
    }
}

/// One side of a connection, seen from the own socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The own socket.
    Local,
    /// The peer.
    Remote,
}

impl Side {
    /// As in `flowend.end.by` and `flowend.end.reset_by`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// How a connection ended; README.md has the table for users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// FIN first, no RST before both directions were closed.
    Fin,
    /// An RST after establishment.
    Reset,
    /// An RST answered the SYN.
    Refused,
    /// The SYN was never answered, until the kernel gave up.
    ConnectTimeout,
    /// The kernel gave up on an established connection.
    Timeout,
    /// The local socket was destroyed in another way: `ss -K`, close() before an answer.
    Aborted,
    /// An ICMP error ended the attempt to connect.
    Unreachable,
    /// The own side answered a SYN, and the handshake was never completed.
    HandshakeFailed,
    /// The socket is gone, and what closed it was not seen.
    Vanished,
    /// It had not ended: the capture is over.
    Open,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Fin,
        Self::Reset,
        Self::Refused,
        Self::ConnectTimeout,
        Self::Timeout,
        Self::Aborted,
        Self::Unreachable,
        Self::HandshakeFailed,
        Self::Vanished,
        Self::Open,
    ];

    /// As in `flowend.end.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Timeout => "timeout",
            Self::Aborted => "aborted",
            Self::Unreachable => "unreachable",
            Self::HandshakeFailed => "handshake_failed",
            Self::Vanished => "vanished",
            Self::Open => "open",
        }
    }

    /// `error.type`, for the endings that are errors to the application.
    pub const fn error_type(self) -> Option<&'static str> {
        match self {
            Self::Reset => Some("connection_reset"),
            Self::Refused => Some("connection_refused"),
            Self::ConnectTimeout | Self::Timeout | Self::HandshakeFailed => Some("timeout"),
            Self::Unreachable => Some("unreachable"),
            Self::Fin | Self::Aborted | Self::Vanished | Self::Open => None,
        }
    }
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The address; IPv4 mapped.
    #[serde(with = "super::kept::AddrWords")]
    pub addr: Addr,
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// The own socket of an event.
    pub(super) const fn local_of(event: &TcpEvent) -> Self {
        Self { addr: event.local, port: event.local_port }
    }

    /// The peer of an event.
    pub(super) const fn remote_of(event: &TcpEvent) -> Self {
        Self { addr: event.remote, port: event.remote_port }
    }

    /// The address as a user knows it: a mapped address is IPv4.
    pub fn ip(&self) -> IpAddr {
        self.addr.into()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.ip(), self.port).fmt(f)
    }
}

/// Both initial sequence numbers, by role (RFC 9293, section 3.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isns {
    /// Of the side that connected.
    pub client: u32,
    /// Of the side that accepted.
    pub server: u32,
}

/// Round-trip times, us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rtt {
    /// SYN to SYN-ACK for the client, SYN-ACK to ACK for the server; absent after a retransmission.
    pub handshake_us: Option<u64>,
    /// The kernel's smoothed RTT at the last FIN, or at CLOSE.
    pub smoothed_us: Option<u32>,
    /// The kernel's minimum RTT.
    pub min_us: Option<u32>,
}

/// What one socket counted. A field that cannot be told exactly is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Payload bytes sent, each counted once.
    pub bytes_sent: Option<u64>,
    /// Payload bytes received in order.
    pub bytes_received: Option<u64>,
    /// Segments sent, retransmissions included.
    pub segments_sent: Option<u32>,
    /// Segments received.
    pub segments_received: Option<u32>,
    /// Segments retransmitted.
    pub retransmits: Option<u32>,
}

/// A connection that has just been heard of. Times are `CLOCK_BOOTTIME` ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Cookie of the own socket. Until the end of this connection, no other one has it.
    pub cookie: u64,
    /// cgroup v2 id of the own socket, where it is known already.
    pub cgroup_id: Option<u64>,
    /// The own socket.
    pub local: Endpoint,
    /// The peer.
    pub remote: Endpoint,
    /// The SYN, or the first sight of the connection. A SYN that is only heard of later changes the start of
    /// the records, and not this.
    pub start_ns: u64,
    /// False for a connection whose SYN was not seen.
    pub start_known: bool,
}

/// One connection of one socket that has ended, or as it stands ([`Reason::Open`]). Times are `CLOCK_BOOTTIME` ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionEnd {
    /// Cookie of the own socket.
    pub cookie: u64,
    /// Cookie of the listener, for an accepted connection whose SYN was seen.
    pub listener: Option<u64>,
    /// cgroup v2 id of the own socket, where a segment told it.
    pub cgroup_id: Option<u64>,
    /// Who opened it.
    pub direction: Direction,
    /// The own socket.
    pub local: Endpoint,
    /// The peer.
    pub remote: Endpoint,
    /// The SYN, or the first sight of the connection.
    pub start_ns: u64,
    /// False for a connection whose SYN was not seen.
    pub start_known: bool,
    /// CLOSE of the own socket, or its last closing segment where CLOSE cannot be seen; for a connection
    /// that is still open, the moment of which this tells.
    pub end_ns: u64,
    /// False where neither was seen: `end_ns` is then when the socket was found to be gone.
    pub end_known: bool,
    /// Sender of the first FIN or RST.
    pub by: Option<Side>,
    /// How it finally ended.
    pub reason: Reason,
    /// Sender of the RST.
    pub reset_by: Option<Side>,
    /// Zeek's conn_state.
    pub conn_state: &'static str,
    /// Zeek's history, client in upper case.
    pub history: String,
    /// Second FIN minus first FIN, ns.
    pub half_close_ns: Option<u64>,
    /// Counters of the own socket.
    pub counters: Counters,
    /// Round-trip times.
    pub rtt: Rtt,
    /// Both initial sequence numbers, if seen.
    pub isns: Option<Isns>,
}

impl ConnectionEnd {
    /// Whether it is a handshake that failed at a listener: the cookie is the listener's, since no socket
    /// was ever accepted.
    pub fn is_of_listener(&self) -> bool {
        self.listener == Some(self.cookie)
    }

    /// The side that terminated the connection. Where nobody sent a FIN or RST it is the own socket;
    /// of a connection that a capture left open, the client.
    pub fn source_side(&self) -> Side {
        let is_server = self.direction == Direction::Incoming;
        let nobody =
            if self.reason == Reason::Open && is_server { Side::Remote } else { Side::Local };
        self.by.unwrap_or(nobody)
    }

    /// The side that terminated the connection.
    pub fn source(&self) -> Endpoint {
        match self.source_side() {
            Side::Local => self.local,
            Side::Remote => self.remote,
        }
    }

    /// The side that received the termination.
    pub fn destination(&self) -> Endpoint {
        match self.source_side() {
            Side::Local => self.remote,
            Side::Remote => self.local,
        }
    }

    /// The side that connected, when the direction is known.
    pub const fn client(&self) -> Option<Endpoint> {
        match self.direction {
            Direction::Outgoing => Some(self.local),
            Direction::Incoming => Some(self.remote),
            Direction::Unknown => None,
        }
    }

    /// The side that accepted, when the direction is known.
    pub const fn server(&self) -> Option<Endpoint> {
        match self.direction {
            Direction::Outgoing => Some(self.remote),
            Direction::Incoming => Some(self.local),
            Direction::Unknown => None,
        }
    }

    /// End minus SYN, ns; absent when either was not seen.
    pub fn duration_ns(&self) -> Option<u64> {
        (self.start_known && self.end_known).then(|| self.end_ns.saturating_sub(self.start_ns))
    }
}
