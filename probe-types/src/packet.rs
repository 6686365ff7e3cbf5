//! The parser of IP, TCP and UDP headers that the BPF programs and the host share.
//!
//! Input starts at the IP header, as in a cgroup skb program. IPv4 per RFC 791, IPv6 with the
//! extension headers of RFC 8200, TCP per RFC 9293, UDP per RFC 768.

use crate::Addr;

/// FIN flag of the TCP header.
pub const FIN: u8 = 0x01;
/// SYN flag of the TCP header.
pub const SYN: u8 = 0x02;
/// RST flag of the TCP header.
pub const RST: u8 = 0x04;
/// PSH flag of the TCP header.
pub const PSH: u8 = 0x08;
/// ACK flag of the TCP header.
pub const ACK: u8 = 0x10;
/// The flags that open or end a connection: the only segments the probe reports.
pub const TERMINATING: u8 = SYN | FIN | RST;

/// Protocol number of TCP in an IP header.
pub const IPPROTO_TCP: u8 = 6;
/// Protocol number of UDP in an IP header.
pub const IPPROTO_UDP: u8 = 17;
/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;
/// Extension headers followed at most; more is no packet a stack sends (RFC 8200, section 4.1).
const MAX_EXTENSION_HEADERS: u32 = 8;

/// A packet's bytes from the IP header on.
pub trait PacketBytes {
    /// `N` bytes at `offset`, or `None` past the end.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// `N` words of four bytes at `offset`, in the packet's order, or `None` past the end.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (at, word) in (offset..).step_by(4).zip(&mut words) {
            *word = u32::from_ne_bytes(self.read(at)?);
        }
        Some(words)
    }
    /// Length of the packet from the IP header on.
    fn len(&self) -> u32;
    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl PacketBytes for &[u8] {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.get(start..start.checked_add(N)?)?.try_into().ok()
    }

    fn len(&self) -> u32 {
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }
}

/// What the IP headers of a packet say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Sender's address.
    pub src: Addr,
    /// Receiver's address.
    pub dst: Addr,
    /// [`IPPROTO_TCP`] or [`IPPROTO_UDP`].
    pub protocol: u8,
    /// Offset of the TCP or UDP header.
    pub transport_at: u32,
}

/// The header facts of a UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Payload bytes.
    pub payload: u32,
}

/// The header facts of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender's address.
    pub src: Addr,
    /// Receiver's address.
    pub dst: Addr,
    /// Sender's port.
    pub src_port: u16,
    /// Receiver's port.
    pub dst_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags ([`SYN`], [`FIN`], ...).
    pub flags: u8,
    /// Payload bytes.
    pub payload: u32,
}

/// Why a packet yields no segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// Neither IPv4 nor IPv6, or another transport than TCP.
    NotTcp,
    /// A fragment that does not hold the TCP header (offset not 0).
    Fragment,
    /// Ends before its headers do.
    Truncated,
    /// IPv4 header length below 20, TCP data offset below 20 or past the end.
    BadHeader,
}

/// What the probe's `SKIPPED` array counts, by slot.
pub const SKIPPED_SLOTS: [&str; 3] = ["fragment", "truncated", "bad_header"];

impl Skip {
    /// The slot of this cause in the probe's per-CPU `SKIPPED` array; another transport is no defect.
    #[inline(always)]
    pub const fn slot(self) -> Option<u32> {
        match self {
            Self::NotTcp => None,
            Self::Fragment => Some(0),
            Self::Truncated => Some(1),
            Self::BadHeader => Some(2),
        }
    }
}

/// Parses the headers of a packet that carries TCP.
///
/// # Errors
/// [`Skip`], the reason for which there is no segment.
#[inline(always)]
pub fn parse(packet: &impl PacketBytes) -> Result<Segment, Skip> {
    let network = parse_network(packet)?;
    if network.protocol != IPPROTO_TCP {
        return Err(Skip::NotTcp);
    }
    parse_tcp(packet, &network)
}

/// Parses the IP headers of a packet that carries TCP or UDP.
///
/// # Errors
/// [`Skip`]; [`Skip::NotTcp`] where it carries neither.
#[inline(always)]
pub fn parse_network(packet: &impl PacketBytes) -> Result<Network, Skip> {
    let [first] = packet.read::<1>(0).ok_or(Skip::Truncated)?;
    match first >> 4 {
        4 => ipv4(packet),
        6 => ipv6(packet),
        _ => Err(Skip::NotTcp),
    }
}

/// Parses the TCP header behind these IP headers.
///
/// # Errors
/// [`Skip`], the reason for which there is no segment.
#[inline(always)]
pub fn parse_tcp(packet: &impl PacketBytes, network: &Network) -> Result<Segment, Skip> {
    let [ports, seq, ack, rest, _] = packet.words(network.transport_at).ok_or(Skip::Truncated)?;
    // Data offset, flags, window.
    let rest = u32::from_be(rest);
    let header = (rest >> 28) * 4;
    let payload_at = network.transport_at + header;
    if header < 20 || payload_at > packet.len() {
        return Err(Skip::BadHeader);
    }
    Ok(Segment {
        src: network.src,
        dst: network.dst,
        src_port: (u32::from_be(ports) >> 16) as u16,
        dst_port: u32::from_be(ports) as u16,
        seq: u32::from_be(seq),
        ack: u32::from_be(ack),
        flags: (rest >> 16) as u8,
        payload: packet.len() - payload_at,
    })
}

/// Parses the UDP header behind these IP headers. The payload is what the packet holds: the kernel cuts
/// a longer packet to what the UDP header says before a cgroup program sees it.
///
/// # Errors
/// [`Skip::Truncated`].
#[inline(always)]
pub fn parse_udp(packet: &impl PacketBytes, network: &Network) -> Result<Datagram, Skip> {
    let [ports] = packet.words(network.transport_at).ok_or(Skip::Truncated)?;
    let payload_at = network.transport_at + UDP_HEADER;
    if payload_at > packet.len() {
        return Err(Skip::Truncated);
    }
    Ok(Datagram {
        src_port: (u32::from_be(ports) >> 16) as u16,
        dst_port: u32::from_be(ports) as u16,
        payload: packet.len() - payload_at,
    })
}

#[inline(always)]
const fn is_read(protocol: u8) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_UDP
}

#[inline(always)]
fn ipv4(packet: &impl PacketBytes) -> Result<Network, Skip> {
    let [first, second, third, src, dst] = packet.words(0).ok_or(Skip::Truncated)?;
    let header = (u32::from_be(first) >> 24 & 0x0f) * 4;
    if header < 20 {
        return Err(Skip::BadHeader);
    }
    let protocol = (u32::from_be(third) >> 16) as u8;
    if !is_read(protocol) {
        return Err(Skip::NotTcp);
    }
    if u32::from_be(second) & 0x1fff != 0 {
        // Of UDP nothing is missed: the hooks see datagrams whole.
        return Err(if protocol == IPPROTO_TCP { Skip::Fragment } else { Skip::NotTcp });
    }
    Ok(Network { src: Addr::v4(src), dst: Addr::v4(dst), protocol, transport_at: header })
}

#[inline(always)]
fn ipv6(packet: &impl PacketBytes) -> Result<Network, Skip> {
    let [mut next] = packet.read::<1>(6).ok_or(Skip::Truncated)?;
    let mut offset = 40_u32;
    let mut headers = 0;
    while !is_read(next) {
        if headers == MAX_EXTENSION_HEADERS {
            return Err(Skip::BadHeader);
        }
        headers += 1;
        let h = match next {
            // hop-by-hop, routing, fragment, authentication, destination options, mobility
            0 | 43 | 44 | 51 | 60 | 135 => packet.read::<4>(offset).ok_or(Skip::Truncated)?,
            _ => return Err(Skip::NotTcp),
        };
        offset += match next {
            44 => {
                if u16::from_be_bytes([h[2], h[3]]) & 0xfff8 != 0 {
                    return Err(Skip::Fragment);
                }
                8
            }
            51 => (u32::from(h[1]) + 2) * 4,
            _ => (u32::from(h[1]) + 1) * 8,
        };
        next = h[0];
    }
    // Not before: the verifier would carry them through each way through the headers.
    let [a, b, c, d, e, f, g, h] = packet.words(8).ok_or(Skip::Truncated)?;
    Ok(Network {
        src: Addr::v6([a, b, c, d]),
        dst: Addr::v6([e, f, g, h]),
        protocol: next,
        transport_at: offset,
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::net::IpAddr;
    use std::vec;
    use std::vec::Vec;

    fn tcp(flags: u8, payload: usize) -> Vec<u8> {
        let mut h =
            vec![0x1f, 0x90, 0xc0, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 5 << 4, flags, 0, 0, 0, 0, 0, 0];
        h.extend(core::iter::repeat_n(b'x', payload));
        h
    }

    fn v4(options: usize, fragment: u16, transport: &[u8]) -> Vec<u8> {
        let mut p = vec![0; 20 + options];
        p[0] = 0x40 | u8::try_from((20 + options) / 4).unwrap();
        p[6..8].copy_from_slice(&fragment.to_be_bytes());
        p[9] = 6;
        p[12..16].copy_from_slice(&[10, 0, 0, 1]);
        p[16..20].copy_from_slice(&[10, 0, 0, 2]);
        p.extend_from_slice(transport);
        p
    }

    fn v6(extensions: &[(u8, Vec<u8>)], transport: &[u8]) -> Vec<u8> {
        let mut p = vec![0; 40];
        p[0] = 0x60;
        p[6] = extensions.first().map_or(6, |e| e.0);
        p[8..24].copy_from_slice(&"2001:db8::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
        p[24..40].copy_from_slice(&"2001:db8::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
        for (i, (_, body)) in extensions.iter().enumerate() {
            let mut body = body.clone();
            body[0] = extensions.get(i + 1).map_or(6, |e| e.0);
            p.extend_from_slice(&body);
        }
        p.extend_from_slice(transport);
        p
    }

    #[test]
    fn segments_are_read_whole() {
        let ip = |s: &str| Addr::from(s.parse::<IpAddr>().unwrap());
        let want = |src, dst, flags, payload| Segment {
            src: ip(src),
            dst: ip(dst),
            src_port: 8080,
            dst_port: 49153,
            seq: 0x0102_0304,
            ack: 0x0506_0708,
            flags,
            payload,
        };
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        let (c, d) = ("2001:db8::1", "2001:db8::2");
        let hop = (0, vec![0; 8]);
        let mut routing = (43, vec![0; 24]);
        routing.1[1] = 2;
        let mut auth = (51, vec![0; 24]);
        auth.1[1] = 4;
        let fragment = (44, vec![0; 8]);
        for (name, packet, segment) in [
            ("plain", v4(0, 0, &tcp(SYN, 0)), want(a, b, SYN, 0)),
            ("payload in the FIN", v4(0, 0, &tcp(FIN | ACK, 7)), want(a, b, FIN | ACK, 7)),
            ("options", v4(40, 0, &tcp(RST, 0)), want(a, b, RST, 0)),
            ("do not fragment", v4(0, 0x4000, &tcp(RST, 0)), want(a, b, RST, 0)),
            ("first fragment", v4(0, 0x2000, &tcp(SYN, 0)), want(a, b, SYN, 0)),
            ("v6", v6(&[], &tcp(FIN, 1)), want(c, d, FIN, 1)),
            (
                "v6 with extension headers",
                v6(&[hop, routing, auth, fragment], &tcp(RST | ACK, 3)),
                want(c, d, RST | ACK, 3),
            ),
        ] {
            assert_eq!(parse(&packet.as_slice()), Ok(segment), "{name}");
        }
    }

    /// Sets the protocol of the last IP header.
    fn udp(mut packet: Vec<u8>, protocol_at: usize, payload: usize) -> Vec<u8> {
        packet[protocol_at] = IPPROTO_UDP;
        packet.extend([0xd4, 0x31, 0, 53]);
        packet.extend(u16::try_from(8 + payload).unwrap().to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(core::iter::repeat_n(b'x', payload));
        packet
    }

    #[test]
    fn datagrams_are_read_behind_options_and_extension_headers() {
        let hop = (0, vec![0; 8]);
        let options = (60, vec![0; 8]);
        for (name, packet, transport_at, payload) in [
            ("plain", udp(v4(0, 0, &[]), 9, 12), 20, 12),
            ("empty", udp(v4(0, 0, &[]), 9, 0), 20, 0),
            ("options", udp(v4(40, 0, &[]), 9, 512), 60, 512),
            ("v6", udp(v6(&[], &[]), 6, 1), 40, 1),
            ("v6 with extension headers", udp(v6(&[hop, options], &[]), 48, 7), 56, 7),
        ] {
            let network = parse_network(&packet.as_slice()).unwrap();
            assert_eq!((network.protocol, network.transport_at), (17, transport_at), "{name}");
            let want = Datagram { src_port: 54321, dst_port: 53, payload };
            assert_eq!(parse_udp(&packet.as_slice(), &network), Ok(want), "{name}");
            assert_eq!(parse(&packet.as_slice()), Err(Skip::NotTcp), "{name}");
            let cut = &packet[..usize::try_from(transport_at).unwrap() + 7];
            assert_eq!(parse_udp(&cut, &network), Err(Skip::Truncated), "{name}");
        }
        let fragment = udp(v4(0, 1, &[]), 9, 12);
        assert_eq!(parse_network(&fragment.as_slice()), Err(Skip::NotTcp));
    }

    #[test]
    fn what_is_no_segment_says_why() {
        let mut udp = v4(0, 0, &tcp(SYN, 0));
        udp[9] = 17;
        let mut short_ihl = v4(0, 0, &tcp(SYN, 0));
        short_ihl[0] = 0x44;
        let mut short_offset = v4(0, 0, &tcp(SYN, 0));
        short_offset[32] = 4 << 4;
        let mut long_offset = v4(0, 0, &tcp(SYN, 0));
        long_offset[32] = 15 << 4;
        let chain: Vec<_> = core::iter::repeat_n((60, vec![0; 8]), 9).collect();
        for (name, packet, skip) in [
            ("empty", vec![], Skip::Truncated),
            ("version 5", vec![0x50; 60], Skip::NotTcp),
            ("UDP", udp, Skip::NotTcp),
            ("later fragment", v4(0, 0x0001, &tcp(SYN, 0)), Skip::Fragment),
            ("IPv4 header cut", v4(0, 0, &[])[..19].to_vec(), Skip::Truncated),
            ("TCP header cut", v4(0, 0, &tcp(SYN, 0)[..19]), Skip::Truncated),
            ("IHL below 5", short_ihl, Skip::BadHeader),
            ("data offset below 5", short_offset, Skip::BadHeader),
            ("data offset past the end", long_offset, Skip::BadHeader),
            ("v6 header cut", v6(&[], &[])[..39].to_vec(), Skip::Truncated),
            ("v6 extension cut", v6(&[(0, vec![0; 8])], &[])[..42].to_vec(), Skip::Truncated),
            ("v6 ICMP", v6(&[(58, vec![0; 8])], &[]), Skip::NotTcp),
            (
                "v6 later fragment",
                v6(&[(44, vec![0, 0, 0, 8, 0, 0, 0, 0])], &tcp(SYN, 0)),
                Skip::Fragment,
            ),
            ("v6 chain of nine", v6(&chain, &tcp(SYN, 0)), Skip::BadHeader),
        ] {
            assert_eq!(parse(&packet.as_slice()), Err(skip), "{name}");
        }
    }
}
