//! What the kernel says of one TCP socket, as plain data.

use flowend_probe_types::TcpState;

use crate::flow::Endpoint;

/// One TCP socket of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The same as the probe's: a connection keeps its own from the request to TIME_WAIT.
    pub cookie: u64,
    /// Of the cgroup that made it; absent before Linux 5.8, without CONFIG_SOCK_CGROUP_DATA, and where
    /// there is no whole socket ([`SocketKind`]).
    pub cgroup_id: Option<u64>,
    /// How much of a socket the kernel keeps.
    pub kind: SocketKind,
    /// As the kernel reports it. A TIME_WAIT socket whose peer has not sent its FIN yet is `FinWait2`, a
    /// request `SynRecv`: [`Socket::kind`] tells them from whole sockets.
    pub state: TcpState,
    /// The own side.
    pub local: Endpoint,
    /// The peer; unspecified for a listener.
    pub remote: Endpoint,
    /// Of its file; 0 when no process has it open: not accepted yet, or closed already.
    pub inode: u32,
    /// The counters; only of a whole socket that does not listen.
    pub info: Option<TcpInfo>,
}

/// How much of a socket the kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// All of it.
    Whole,
    /// A handshake that an own listener has answered and that is not completed. The accepted socket
    /// inherits its cookie (net/ipv4/inet_connection_sock.c, inet_csk_clone_lock).
    Request,
    /// What is left after CLOSE, to answer late segments: the probe has seen its end.
    TimeWait,
}

/// Counters of `struct tcp_info` (include/uapi/linux/tcp.h). A kernel that lacks a field gives a
/// shorter struct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Smoothed round-trip time, us; 0 before the first sample.
    pub rtt_us: u32,
    /// Segments retransmitted, SYN and SYN-ACK too.
    pub total_retrans: u32,
    /// What the peer acknowledged: payload, the own FIN, and an opener's SYN.
    pub bytes_acked: Option<u64>,
    /// What came in order: payload, and the peer's FIN.
    pub bytes_received: Option<u64>,
    /// Segments sent.
    pub segs_out: Option<u32>,
    /// Segments received.
    pub segs_in: Option<u32>,
    /// Payload written and not sent yet.
    pub notsent_bytes: Option<u32>,
    /// Smallest round-trip time, us; absent before the first sample.
    pub min_rtt_us: Option<u32>,
    /// Segments with payload received.
    pub data_segs_in: Option<u32>,
    /// Segments with payload sent.
    pub data_segs_out: Option<u32>,
    /// Payload sent, retransmissions too.
    pub bytes_sent: Option<u64>,
    /// Payload sent again.
    pub bytes_retrans: Option<u64>,
}

impl TcpInfo {
    /// From the bytes of `INET_DIAG_INFO`. `None` when they end before what every kernel has.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| read(bytes, at).map(u32::from_ne_bytes);
        let u64_at = |at: usize| read(bytes, at).map(u64::from_ne_bytes);
        Some(Self {
            unacked: u32_at(24)?,
            rtt_us: u32_at(68)?,
            total_retrans: u32_at(100)?,
            bytes_acked: u64_at(120),
            bytes_received: u64_at(128),
            segs_out: u32_at(136),
            segs_in: u32_at(140),
            notsent_bytes: u32_at(144),
            // The kernel's word for "no sample" (net/ipv4/tcp_input.c, tcp_init_sock: ~0U).
            min_rtt_us: u32_at(148).filter(|us| *us != u32::MAX),
            data_segs_in: u32_at(152),
            data_segs_out: u32_at(156),
            bytes_sent: u64_at(200),
            bytes_retrans: u64_at(208),
        })
    }
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tcp_info in which each byte pair tells where it stands.
    fn numbered(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn each_field_is_read_where_the_kernel_puts_it() {
        let bytes = numbered(248);
        let info = TcpInfo::parse(&bytes).unwrap();
        let u32_of = |at: u8| u32::from_ne_bytes([at, at + 1, at + 2, at + 3]);
        assert_eq!((info.unacked, info.rtt_us), (u32_of(24), u32_of(68)));
        assert_eq!(info.total_retrans, u32_of(100));
        assert_eq!(info.segs_out, Some(u32_of(136)));
        assert_eq!(info.min_rtt_us, Some(u32_of(148)));
        assert_eq!(info.bytes_sent, read(&bytes, 200).map(u64::from_ne_bytes));
        assert_eq!(info.bytes_retrans, read(&bytes, 208).map(u64::from_ne_bytes));
    }

    #[test]
    fn a_shorter_struct_has_fewer_counters() {
        let of = |length| TcpInfo::parse(&numbered(length));
        assert_eq!(of(0), None);
        assert_eq!(of(103), None, "Linux 2.6 has 104 bytes");
        let oldest = of(104).unwrap();
        assert_eq!((oldest.bytes_acked, oldest.bytes_sent), (None, None));
        let before_4_19 = of(192).unwrap();
        assert!(before_4_19.bytes_acked.is_some() && before_4_19.data_segs_out.is_some());
        assert_eq!((before_4_19.bytes_sent, before_4_19.bytes_retrans), (None, None));
        let cut = of(212).unwrap();
        assert!(cut.bytes_sent.is_some());
        assert_eq!(cut.bytes_retrans, None, "half a field is none");
    }

    #[test]
    fn no_rtt_sample_is_no_rtt() {
        let mut bytes = vec![0; 248];
        bytes[148..152].fill(0xff);
        assert_eq!(TcpInfo::parse(&bytes).unwrap().min_rtt_us, None);
    }
}
