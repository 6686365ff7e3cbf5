//! TCP segments as bytes, both ways, and ICMP errors: what the link reads and what it forges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// Enough of a packet for an ICMP error: the IP header, and the ports and sequence number after it.
const QUOTED: usize = 8;

/// The header of one TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Bytes of payload.
    pub(crate) payload: u32,
}

impl Segment {
    /// Reads a packet; nothing for what is not TCP.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let (src, dst, tcp): (IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
            4 if packet.get(9) == Some(&TCP) => {
                let header = usize::from(packet[0] & 0x0f) * 4;
                let whole = usize::from(u16::from_be_bytes(bytes(packet, 2)?));
                let address = |at| Some(Ipv4Addr::from(bytes::<4>(packet, at)?));
                (address(12)?.into(), address(16)?.into(), packet.get(header..whole)?)
            }
            // No extension headers: nothing here sends them.
            6 if packet.get(6) == Some(&TCP) => {
                let address = |at| Some(Ipv6Addr::from(bytes::<16>(packet, at)?));
                (address(8)?.into(), address(24)?.into(), packet.get(V6_HEADER..)?)
            }
            _ => return None,
        };
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            src: (src, u16::from_be_bytes(bytes(tcp, 0)?)).into(),
            dst: (dst, u16::from_be_bytes(bytes(tcp, 2)?)).into(),
            flags: *tcp.get(13)?,
            seq: u32::from_be_bytes(bytes(tcp, 4)?),
            ack: u32::from_be_bytes(bytes(tcp, 8)?),
            payload: u32::try_from(tcp.len().checked_sub(header)?).ok()?,
        })
    }

    /// Whether all of these flags are set.
    pub(crate) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Whether it is an ACK and nothing more.
    pub(crate) const fn is_pure_ack(&self) -> bool {
        self.flags & (SYN | FIN | RST) == 0 && self.payload == 0
    }

    /// The sequence number after it.
    pub(crate) const fn next_seq(&self) -> u32 {
        let controls = self.has(SYN) as u32 + self.has(FIN) as u32;
        self.seq.wrapping_add(self.payload).wrapping_add(controls)
    }

    /// The packet, without options and with zeros as payload; its checksums are right.
    pub(crate) fn to_packet(self) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(TCP_HEADER + self.payload as usize);
        tcp.extend(self.src.port().to_be_bytes());
        tcp.extend(self.dst.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([5 << 4, self.flags]);
        tcp.extend(u16::MAX.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.resize(TCP_HEADER + self.payload as usize, 0);
        let sum = checksum(&[&pseudo_header(self.src.ip(), self.dst.ip(), TCP, tcp.len()), &tcp]);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        to_ip(self.src.ip(), self.dst.ip(), TCP, &tcp)
    }
}

/// "Host unreachable" (RFC 792) or "address unreachable" (RFC 4443, section 3.1) about a packet, from
/// a router with this address.
pub(crate) fn unreachable(router: IpAddr, about: &[u8]) -> Vec<u8> {
    let (protocol, kind, code, quoted, destination) = match router {
        IpAddr::V4(_) => {
            let source = Ipv4Addr::from(bytes::<4>(about, 12).expect("an IPv4 packet"));
            (ICMP, 3, 1, V4_HEADER + QUOTED, IpAddr::from(source))
        }
        IpAddr::V6(_) => {
            let source = Ipv6Addr::from(bytes::<16>(about, 8).expect("an IPv6 packet"));
            (ICMP_V6, 1, 3, about.len(), IpAddr::from(source))
        }
    };
    let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(&about[..quoted.min(about.len())]);
    let sum = if router.is_ipv4() {
        checksum(&[&icmp])
    } else {
        checksum(&[&pseudo_header(router, destination, protocol, icmp.len()), &icmp])
    };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    to_ip(router, destination, protocol, &icmp)
}

fn to_ip(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    const HOPS: u8 = 64;
    let length = |n: usize| u16::try_from(n).expect("fits a packet").to_be_bytes();
    let mut packet = Vec::with_capacity(V6_HEADER + payload.len());
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            packet.extend([0x45, 0]);
            packet.extend(length(V4_HEADER + payload.len()));
            packet.extend([0, 0, 0, 0, HOPS, protocol, 0, 0]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length(payload.len()));
            packet.extend([protocol, HOPS]);
            packet.extend(src.octets());
            packet.extend(dst.octets());
        }
        _ => panic!("{src} and {dst} are of two families"),
    }
    packet.extend(payload);
    packet
}

/// What TCP and ICMPv6 checksums cover beside their own bytes (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::with_capacity(40);
    for address in [src, dst] {
        match address {
            IpAddr::V4(v4) => header.extend(v4.octets()),
            IpAddr::V6(v6) => header.extend(v6.octets()),
        }
    }
    // In IPv6's wider form; the sum is the same.
    header.extend(u32::try_from(length).expect("fits a packet").to_be_bytes());
    header.extend([0, 0, 0, protocol]);
    header
}

/// RFC 1071. All parts but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

fn bytes<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..at + N)?.try_into().ok()
}

#[test]
fn a_segment_is_read_as_it_was_written() {
    for (src, dst) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
        let segment = Segment {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            flags: ACK | FIN,
            seq: u32::MAX,
            ack: 7,
            payload: 3,
        };
        let packet = segment.to_packet();
        assert_eq!(Segment::parse(&packet), Some(segment));
        assert_eq!(segment.next_seq(), 3);
        assert_eq!(Segment::parse(&unreachable(segment.dst.ip(), &packet)), None, "no TCP");
    }
}

/// The example of RFC 1071, section 3.
#[test]
fn the_checksum_is_that_of_the_rfc() {
    assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
}
