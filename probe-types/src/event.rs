//! Events of the ring buffer.
//!
//! All integers are in host byte order, all times are `CLOCK_BOOTTIME` nanoseconds
//! (`bpf_ktime_get_boot_ns`), and all addresses are 16 bytes with IPv4 mapped into IPv6
//! (RFC 4291, section 2.5.5.2).

use core::mem::size_of;

use crate::{ACK, SYN};

/// An IP address as 16 bytes in network order; IPv4 as `::ffff:a.b.c.d`.
///
/// Kept as four words because that is how the kernel's stable structures hand addresses out
/// (`bpf_sock.src_ip6`): each word lies in memory in network order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// The third word of a mapped address, as it lies in memory.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// An IPv4 address, given as it lies in memory (network order).
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// An IPv6 address, given as it lies in memory (network order).
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Whether this is an IPv4 address (mapped).
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// The 16 bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.0[0].to_ne_bytes(),
            self.0[1].to_ne_bytes(),
            self.0[2].to_ne_bytes(),
            self.0[3].to_ne_bytes(),
        ];
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// From 16 bytes in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }
}

impl From<Addr> for core::net::IpAddr {
    /// The address as a user knows it: a mapped address is IPv4.
    fn from(addr: Addr) -> Self {
        core::net::Ipv6Addr::from(addr.octets()).to_canonical()
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::from_octets(v4.to_ipv6_mapped().octets()),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

/// What an event tells; the first byte of every event.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A received segment with SYN, FIN or RST, before TCP has checked it.
    SegmentIn = 1,
    /// A segment with SYN, FIN or RST on its way out, after TCP has built it.
    SegmentOut = 2,
    /// The socket that connected is established (`BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB`).
    ActiveEstablished = 3,
    /// The accepted socket is established (`BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`).
    PassiveEstablished = 4,
    /// The socket goes to CLOSE (`BPF_SOCK_OPS_STATE_CB`).
    Closed = 5,
    /// The kernel gave up retransmitting (`BPF_SOCK_OPS_RTO_CB` with expired = 1); CLOSE follows.
    GaveUp = 6,
    /// The kernel reported an error to a socket (tracepoint `sock:inet_sk_error_report`).
    Error = 7,
    /// A process called connect() (cgroup `connect4`, `connect6`).
    Connect = 16,
    /// A process called bind() (cgroup `post_bind4`, `post_bind6`).
    Bind = 17,
    /// A DNS query on its way out; followed by the message.
    DnsQuery = 32,
    /// A DNS answer received; followed by the message.
    DnsAnswer = 33,
    /// A segment to a DNS server over TCP; followed by its payload.
    DnsStreamOut = 34,
    /// A segment from a DNS server over TCP; followed by its payload.
    DnsStreamIn = 35,
}

impl EventKind {
    /// The slot of this kind in the probe's per-CPU `LOST` array.
    #[inline(always)]
    pub const fn lost_slot(self) -> u32 {
        match self {
            Self::SegmentIn | Self::SegmentOut => 0,
            Self::ActiveEstablished | Self::PassiveEstablished => 1,
            Self::Closed => 2,
            Self::GaveUp => 3,
            Self::Connect | Self::Bind => 4,
            Self::DnsQuery | Self::DnsAnswer | Self::DnsStreamOut | Self::DnsStreamIn => 5,
            Self::Error => 6,
        }
    }
}

/// The kinds that the probe's `LOST` array counts apart, by slot.
pub const LOST_SLOTS: [&str; 7] =
    ["segment", "established", "closed", "gave_up", "process", "dns", "error"];

/// What the probe's map `ACCOUNTS` keeps of a cgroup, by its id, as 64-bit words; and for the events of sockets,
/// whose hook cannot tell the cgroup, of a network namespace ([`Account::NETNS`]). Only who wrote while a part of
/// the ring was in use has an account ([`Account::RESTS`]).
///
/// Bytes are counted in two parts, so that no clock is needed: what was written since `START`, a position of
/// the ring, and what was written in the part before it. Once all before `START` is read, the parts move on; once the
/// event at `LAST` is read, nothing waits.
/// Their sum is about what waits of this cgroup: more where a part of it is read already, less by what it wrote before it
/// had an account, and by what a DNS message leaves empty of its room.
#[derive(Clone, Copy, Debug)]
pub struct Account;

impl Account {
    /// Where in the ring the present part began.
    pub const START: usize = 0;
    /// Bytes of the present part.
    pub const PRESENT: usize = 1;
    /// Bytes of the part before it.
    pub const EARLIER: usize = 2;
    /// Where in the ring the last event began, about.
    pub const LAST: usize = 3;
    /// Events of connections that were lost: the ring was full, or the cgroup held too much of it.
    pub const LOST: usize = 4;
    /// The same of events that only name things: processes and DNS messages.
    pub const LOST_NAMES: usize = 5;
    /// In the key of a network namespace's account, beside its cookie. No cgroup's id has this bit.
    pub const NETNS: u64 = 1 << 63;
    /// Words.
    pub const WORDS: usize = 6;
    /// Nobody's account is looked at while less than this part of the ring is in use: one in so many.
    pub const RESTS: u64 = 8;
}

/// How much of the ring a cgroup, or a network namespace, may hold for events of one sort, against what is free: the
/// more is free, the more.
///
/// A part of the ring ([`Claim::RESERVE`]) does not count as free, and is for those that hold little
/// ([`Claim::FLOOR`]): they find room until it is really full, however many others are at their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The connections of the cgroup's sockets: twice what is free.
    Connection,
    /// What a stranger causes at no cost, and what only names a process: as much as is free.
    Stranger,
    /// DNS messages: half of what is free.
    Name,
}

impl Claim {
    /// The part of the ring that only those find room in who hold little: one in so many.
    pub const RESERVE: u64 = 8;
    /// The part of the ring that is little: one in so many.
    pub const FLOOR: u64 = 32;

    /// Whether a cgroup that holds `held` bytes may have more of a ring of `size`, in which `waiting` are in use.
    ///
    /// One comparison decides, since the verifier walks what follows once for each way to get there.
    #[inline(always)]
    pub const fn allows(self, held: u64, waiting: u64, size: u64) -> bool {
        let free = (size - size / Self::RESERVE).saturating_sub(waiting);
        let share = match self {
            Self::Connection => free * 2,
            Self::Stranger => free,
            Self::Name => free / 2,
        };
        held <= size / Self::FLOOR + share
    }
}

/// Socket states, numbered as the kernel does (`include/net/tcp_states.h`, also `BPF_TCP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // RFC 9293 names
pub enum TcpState {
    Unknown = 0,
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Close = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
    NewSynRecv = 12,
}

impl TcpState {
    /// From the kernel's number; anything else is `Unknown`.
    pub const fn from_kernel(n: u8) -> Self {
        match n {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            12 => Self::NewSynRecv,
            _ => Self::Unknown,
        }
    }
}

/// A fact about one TCP socket: a segment at a cgroup hook, or a sockops callback.
///
/// For a segment of a listener (SYN, SYN-ACK, and what answers an embryonic connection) `cookie`
/// and `state` are the listener's, the addresses are the packet's, and the counters are 0.
/// Otherwise addresses and counters are the socket's own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpEvent {
    /// [`EventKind`].
    pub kind: u8,
    /// TCP flags of the segment ([`SYN`](crate::SYN), ...); 0 for a socket event.
    pub flags: u8,
    /// [`TcpState`] of the socket at the hook; for `Closed`, the state it leaves.
    pub state: u8,
    /// Always 0.
    pub reserved: u8,
    /// Port of the own socket.
    pub local_port: u16,
    /// Port of the peer.
    pub remote_port: u16,
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// Socket cookie, unique per socket while the machine runs.
    pub cookie: u64,
    /// cgroup v2 id (inode number of its folder) of the socket; 0 where the hook cannot tell.
    pub cgroup_id: u64,
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`); 0 where the hook cannot tell.
    pub netns: u64,
    /// Payload and SYN/FIN sequence numbers acknowledged by the peer.
    pub bytes_acked: u64,
    /// Payload and FIN sequence numbers received in order.
    pub bytes_received: u64,
    /// Address of the own socket.
    pub local: Addr,
    /// Address of the peer.
    pub remote: Addr,
    /// Sequence number of the segment.
    pub seq: u32,
    /// Acknowledgement number of the segment.
    pub ack: u32,
    /// Payload bytes of the segment.
    pub payload: u32,
    /// Next sequence number to send.
    pub snd_nxt: u32,
    /// Oldest unacknowledged sequence number.
    pub snd_una: u32,
    /// Next sequence number expected.
    pub rcv_nxt: u32,
    /// Smoothed RTT in 1/8 us (`tcp_sock.srtt_us`).
    pub srtt_8us: u32,
    /// Minimum RTT in us; `u32::MAX` or 0 when the kernel has none.
    pub rtt_min_us: u32,
    /// Segments sent.
    pub segs_out: u32,
    /// Segments received.
    pub segs_in: u32,
    /// Segments with payload sent.
    pub data_segs_out: u32,
    /// Segments with payload received.
    pub data_segs_in: u32,
    /// Segments retransmitted.
    pub total_retrans: u32,
    /// For `Closed`: how long the peer must be silent until keepalive gives up, ms
    /// (tcp_keepidle + tcp_keepintvl * tcp_keepcnt); 0 where it is off or the kernel does not tell.
    pub keepalive_ms: u32,
}

/// Error reports of one CPU in about one second that the probe lets through. The tracepoint is the whole machine's: a
/// port scanner in a container that nobody watches must not fill the ring.
pub const ERRORS_PER_SECOND: u64 = 10_000;

/// An error that the kernel reported to a TCP socket. It names no cookie: addresses, ports and the time
/// tell the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorEvent {
    /// [`EventKind::Error`].
    pub kind: u8,
    /// Always 0.
    pub reserved: u8,
    /// errno.
    pub error: u16,
    /// Port of the own socket.
    pub local_port: u16,
    /// Port of the peer.
    pub remote_port: u16,
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// Address of the own socket.
    pub local: Addr,
    /// Address of the peer.
    pub remote: Addr,
}

/// Where the fields of the tracepoint `sock:inet_sk_error_report` lie, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct ErrorFields {
    /// `error`, 4 bytes: errno.
    pub error: usize,
    /// `sport`, 2 bytes, host order.
    pub local_port: usize,
    /// `dport`, 2 bytes, host order.
    pub remote_port: usize,
    /// `protocol`, 2 bytes.
    pub protocol: usize,
    /// `saddr_v6`, 16 bytes; IPv4 mapped.
    pub local: usize,
    /// `daddr_v6`, 16 bytes; IPv4 mapped.
    pub remote: usize,
}

/// As in `include/trace/events/sock.h` since Linux 5.15.
pub const ERROR_FIELDS: ErrorFields =
    ErrorFields { error: 8, local_port: 12, remote_port: 14, protocol: 18, local: 28, remote: 44 };

/// The same as the tracepoint's `format` file says it: field, offset, size. The loader compares.
pub const ERROR_FORMAT: [(&str, usize, usize); 6] = [
    ("error", ERROR_FIELDS.error, 4),
    ("sport", ERROR_FIELDS.local_port, 2),
    ("dport", ERROR_FIELDS.remote_port, 2),
    ("protocol", ERROR_FIELDS.protocol, 2),
    ("saddr_v6", ERROR_FIELDS.local, 16),
    ("daddr_v6", ERROR_FIELDS.remote, 16),
];

/// Which process called connect() or bind() on a TCP socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessEvent {
    /// [`EventKind::Connect`] or [`EventKind::Bind`].
    pub kind: u8,
    /// Always 0.
    pub reserved: u8,
    /// For `Connect`: the port that was asked for; else 0.
    pub remote_port: u16,
    /// Process id (thread group id) as the initial pid namespace numbers it.
    pub pid: u32,
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// cgroup v2 id of the process, which is that of the sockets that it makes.
    pub cgroup_id: u64,
    /// For `Connect`: the address that was asked for, before programs of the same hook that run after
    /// this one rewrite it; else 0.
    pub remote: Addr,
}

/// The facts of a DNS message, or of a segment of a DNS connection; its bytes follow in the ring.
///
/// The server is the one that the socket's owner asked: of a connected socket its peer, else what
/// sendto() was given. The packet tells only where neither is known: at egress a translated packet
/// shows another server. A long segment is several events, each with its own `seq`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsEvent {
    /// [`EventKind::DnsQuery`] or [`EventKind::DnsAnswer`].
    pub kind: u8,
    /// 1 where the message is longer than what follows.
    pub cut: u8,
    /// Bytes of the message that follow.
    pub len: u16,
    /// Port of the own socket.
    pub local_port: u16,
    /// Port of the server.
    pub remote_port: u16,
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// cgroup v2 id of the socket.
    pub cgroup_id: u64,
    /// Address of the own socket.
    pub local: Addr,
    /// Address of the server.
    pub remote: Addr,
    /// Of a segment: the sequence number of the first byte that follows; of a SYN, its own.
    pub seq: u32,
    /// Of a segment: its TCP flags.
    pub flags: u8,
    /// Of a query: 1 where the packet shows another server than was asked.
    pub translated: u8,
    /// Always 0.
    pub reserved: u16,
}

/// Messages are copied into room for 512, 2,048 or 4,096 bytes, and so up to 4,095 bytes: all that
/// EDNS asks for in practice (RFC 6891, section 6.2.5).
pub const DNS_ROOM: [usize; 3] = [512, 2048, 4096];

/// What a record of the ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingItem<'a> {
    /// An event of fixed size.
    Event(Event),
    /// A DNS message, or a segment of a DNS connection, and its facts.
    Dns(EventKind, DnsEvent, &'a [u8]),
}

impl<'a> RingItem<'a> {
    /// Reads one record of the ring buffer.
    ///
    /// # Errors
    /// [`DecodeError`] when it is neither an event nor a DNS message.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let kind = match bytes.first() {
            Some(32) => EventKind::DnsQuery,
            Some(33) => EventKind::DnsAnswer,
            Some(34) => EventKind::DnsStreamOut,
            Some(35) => EventKind::DnsStreamIn,
            _ => return Event::decode(bytes).map(Self::Event),
        };
        let too_short = DecodeError::Length { got: bytes.len(), want: size_of::<DnsEvent>() };
        let (head, rest) = bytes.split_at_checked(size_of::<DnsEvent>()).ok_or(too_short)?;
        let head = read::<DnsEvent>(head)?;
        let message = rest
            .get(..usize::from(head.len))
            .ok_or(DecodeError::Length { got: rest.len(), want: usize::from(head.len) })?;
        Ok(Self::Dns(kind, head, message))
    }
}

/// A decoded event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A fact about a TCP socket.
    Tcp(EventKind, TcpEvent),
    /// An error reported to a TCP socket.
    Error(ErrorEvent),
    /// A process and its socket.
    Process(EventKind, ProcessEvent),
}

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// No event has this first byte (or there is no byte).
    Kind(Option<u8>),
    /// The length is not that of the kind.
    Length {
        /// Length of the bytes given.
        got: usize,
        /// Length of this kind of event.
        want: usize,
    },
}

impl Event {
    /// Reads one event from the bytes of a ring-buffer record.
    ///
    /// # Errors
    /// [`DecodeError`] when the first byte is no [`EventKind`] or the length does not fit it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let first = bytes.first().copied();
        let kind = match first {
            Some(1) => EventKind::SegmentIn,
            Some(2) => EventKind::SegmentOut,
            Some(3) => EventKind::ActiveEstablished,
            Some(4) => EventKind::PassiveEstablished,
            Some(5) => EventKind::Closed,
            Some(6) => EventKind::GaveUp,
            Some(7) => return read::<ErrorEvent>(bytes).map(Self::Error),
            Some(16) => EventKind::Connect,
            Some(17) => EventKind::Bind,
            other => return Err(DecodeError::Kind(other)),
        };
        match kind {
            EventKind::Connect | EventKind::Bind => {
                read::<ProcessEvent>(bytes).map(|e| Self::Process(kind, e))
            }
            _ => read::<TcpEvent>(bytes).map(|e| Self::Tcp(kind, e)),
        }
    }
}

/// Plain data: any bit pattern is a value, and there is no padding.
///
/// # Safety
/// The type must be `repr(C)`, of integers only, without padding.
unsafe trait PlainData: Copy {}
// SAFETY: integers only; the assertions below exclude padding.
unsafe impl PlainData for TcpEvent {}
// SAFETY: integers only; the assertions below exclude padding.
unsafe impl PlainData for ErrorEvent {}
// SAFETY: integers only; the assertions below exclude padding.
unsafe impl PlainData for ProcessEvent {}
// SAFETY: integers only; the assertions below exclude padding.
unsafe impl PlainData for DnsEvent {}

const _: () = assert!(size_of::<TcpEvent>() == 8 + 6 * 8 + 2 * 16 + 14 * 4);
const _: () = assert!(size_of::<ErrorEvent>() == 8 + 8 + 2 * 16);
const _: () = assert!(size_of::<ProcessEvent>() == 8 + 3 * 8 + 16);
const _: () = assert!(size_of::<DnsEvent>() == 8 + 3 * 8 + 2 * 16 + 8);

fn read<T: PlainData>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() != size_of::<T>() {
        return Err(DecodeError::Length { got: bytes.len(), want: size_of::<T>() });
    }
    // SAFETY: the length was checked, and `PlainData` takes any bit pattern.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

impl DnsEvent {
    /// The facts as bytes, as the probe puts them into the ring.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `PlainData` has no padding, so every byte is initialised.
        unsafe {
            core::slice::from_raw_parts(core::ptr::from_ref(self).cast::<u8>(), size_of::<Self>())
        }
    }
}

impl TcpEvent {
    /// Whether this is a SYN on its way out that opens a connection: no SYN-ACK.
    pub const fn is_syn_sent(&self) -> bool {
        self.kind == EventKind::SegmentOut as u8 && self.flags & (SYN | ACK) == SYN
    }

    /// The event as bytes, as the probe puts it into the ring; for tests and captures.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: `PlainData` has no padding, so every byte is initialised.
        unsafe {
            core::slice::from_raw_parts(core::ptr::from_ref(self).cast::<u8>(), size_of::<Self>())
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::net::IpAddr;
    use std::vec;
    use std::vec::Vec;

    /// What each of these holds of a ring that nobody reads, once none of them gets any more.
    fn fill(ring: u64, holders: usize, claim: Claim) -> Vec<u64> {
        const EVENT: u64 = 152;
        let mut held = vec![0; holders];
        loop {
            let before = held.clone();
            for n in 0..holders {
                let waiting = held.iter().sum::<u64>();
                if claim.allows(held[n], waiting, ring) && waiting + EVENT <= ring {
                    held[n] += EVENT;
                }
            }
            if held == before {
                return held;
            }
        }
    }

    #[test]
    fn a_flood_of_many_leaves_room_for_one_that_holds_little() {
        let ring = 1 << 20;
        for holders in [1, 2, 8, 24] {
            let waiting = fill(ring, holders, Claim::Connection).iter().sum::<u64>();
            // Names give way first; little is left to them, too.
            let mut quiet = 0;
            while Claim::Name.allows(quiet, waiting + quiet, ring) {
                quiet += 152;
            }
            assert!(quiet >= ring / Claim::FLOOR, "{holders}: {quiet}");
            assert!(waiting + quiet <= ring, "{holders}: {waiting} + {quiet}: really full");
        }
    }

    #[test]
    fn one_cgroup_alone_gets_a_part_of_the_ring_by_what_it_wants_it_for() {
        let ring = 1 << 20;
        let percent = |claim| fill(ring, 1, claim)[0] * 100 / ring;
        let parts = [Claim::Connection, Claim::Stranger, Claim::Name].map(percent);
        assert_eq!(parts, [59, 45, 31]);
        // The smallest ring has room for one event of each, and of many.
        assert!(fill(4096, 5, Claim::Name).iter().all(|held| *held > 0));
    }

    #[test]
    fn an_address_survives_the_round_trip_and_ipv4_is_canonical() {
        for text in ["127.0.0.1", "255.255.255.255", "::1", "2001:db8::7", "fe80::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip, "{text}");
            assert_eq!(Addr::from(ip).is_v4(), ip.is_ipv4(), "{text}");
        }
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(IpAddr::from(Addr::from(mapped)), "10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(Addr::v4(u32::from_ne_bytes([10, 1, 2, 3])), Addr::from(mapped));
    }

    #[test]
    fn an_event_survives_the_round_trip() {
        let event = TcpEvent {
            kind: EventKind::Closed as u8,
            state: TcpState::LastAck as u8,
            local_port: 80,
            cookie: u64::MAX,
            ..TcpEvent::default()
        };
        assert_eq!(Event::decode(event.as_bytes()), Ok(Event::Tcp(EventKind::Closed, event)));
    }

    #[test]
    fn a_dns_message_is_read_as_long_as_it_is() {
        let facts = DnsEvent { kind: 33, len: 3, ..DnsEvent::default() };
        let mut bytes = facts.as_bytes().to_vec();
        let head = bytes.len();
        bytes.extend([1, 2, 3, 0, 0]);
        let want = Ok(RingItem::Dns(EventKind::DnsAnswer, facts, &[1, 2, 3][..]));
        assert_eq!(RingItem::decode(&bytes), want);
        assert!(RingItem::decode(&bytes[..head + 2]).is_err());
        assert!(RingItem::decode(&bytes[..head - 1]).is_err());
    }

    #[test]
    fn bytes_that_are_no_event_are_refused_with_the_reason() {
        let want = size_of::<TcpEvent>();
        let cases: [(Vec<u8>, DecodeError); 5] = [
            (Vec::new(), DecodeError::Kind(None)),
            (std::vec![0; want], DecodeError::Kind(Some(0))),
            (std::vec![99; want], DecodeError::Kind(Some(99))),
            (std::vec![1; want - 1], DecodeError::Length { got: want - 1, want }),
            (
                std::vec![16; want],
                DecodeError::Length { got: want, want: size_of::<ProcessEvent>() },
            ),
        ];
        for (bytes, error) in cases {
            assert_eq!(Event::decode(&bytes), Err(error));
        }
    }
}
