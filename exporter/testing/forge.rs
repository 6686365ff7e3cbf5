//! TCP segments with any source, over a raw socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// IPPROTO_RAW: the whole packet is the sender's, with its IP header (raw(7)).
const WHOLE_PACKET: i32 = 255;
const TCP: u8 = 6;
/// Destination options, which may stand in a chain (RFC 8200, section 4.6).
const DESTINATION_OPTIONS: u8 = 60;

/// A segment. Options are all "no operation"; those of IPv6 are headers of 8 bytes.
pub(crate) struct Forgery {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    /// Bytes, a multiple of 4, of 8 with IPv6.
    pub(crate) ip_options: usize,
    /// Bytes, a multiple of 4, up to 40.
    pub(crate) tcp_options: usize,
}

impl Default for Forgery {
    fn default() -> Self {
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self { src: nobody, dst: nobody, flags: 0, seq: 0, ack: 0, ip_options: 0, tcp_options: 0 }
    }
}

/// Sends forged segments.
pub(crate) struct Forger {
    v4: Socket,
    v6: Socket,
}

impl Forger {
    pub(crate) fn new() -> std::io::Result<Self> {
        let open = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(WHOLE_PACKET)));
        Ok(Self { v4: open(Domain::IPV4)?, v6: open(Domain::IPV6)? })
    }

    /// A packet that does not fit into a buffer at this moment is lost, as on any wire.
    pub(crate) fn send(&self, forgery: &Forgery) -> std::io::Result<()> {
        // A raw socket of IPv6 takes no port.
        let to = SocketAddr::new(forgery.dst.ip(), 0);
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        match socket.send_to(&forgery.packet(), &to.into()) {
            Err(error)
                if error.kind() != std::io::ErrorKind::WouldBlock
                    && error.raw_os_error() != Some(ENOBUFS) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

const ENOBUFS: i32 = 105;

impl Forgery {
    fn packet(&self) -> Vec<u8> {
        let tcp = self.segment();
        let length = |n: usize| u16::try_from(n).expect("a short packet").to_be_bytes();
        let mut packet = Vec::new();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = 20 + self.ip_options;
                packet.extend([0x40 | u8::try_from(header / 4).expect("up to 60"), 0]);
                packet.extend(length(header + tcp.len()));
                // The kernel fills in the checksum.
                packet.extend([0, 0, 0, 0, 64, TCP, 0, 0]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                packet.resize(header, 1);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let headers = self.ip_options / 8;
                packet.extend([0x60, 0, 0, 0]);
                packet.extend(length(self.ip_options + tcp.len()));
                packet.extend([if headers > 0 { DESTINATION_OPTIONS } else { TCP }, 64]);
                packet.extend(src.octets());
                packet.extend(dst.octets());
                for left in (0..headers).rev() {
                    let next = if left > 0 { DESTINATION_OPTIONS } else { TCP };
                    // PadN of 4 bytes (RFC 8200, section 4.2).
                    packet.extend([next, 0, 1, 4, 0, 0, 0, 0]);
                }
            }
            _ => panic!("{} and {} are of two families", self.src, self.dst),
        }
        packet.extend(tcp);
        packet
    }

    fn segment(&self) -> Vec<u8> {
        let header = 20 + self.tcp_options;
        let mut tcp = Vec::with_capacity(header);
        tcp.extend(self.src.port().to_be_bytes());
        tcp.extend(self.dst.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([u8::try_from(header / 4).expect("up to 60") << 4, self.flags, 0xff, 0xff]);
        tcp.extend([0; 4]);
        tcp.resize(header, 1);
        let sum = self.checksum(&tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }

    /// RFC 9293, section 3.1: over the addresses, the protocol and the length, too.
    fn checksum(&self, tcp: &[u8]) -> u16 {
        let mut sum = u32::from(TCP) + u32::try_from(tcp.len()).expect("short");
        let mut add = |bytes: &[u8]| {
            for pair in bytes.chunks(2) {
                sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            }
        };
        for address in [self.src.ip(), self.dst.ip()] {
            match address {
                IpAddr::V4(v4) => add(&v4.octets()),
                IpAddr::V6(v6) => add(&v6.octets()),
            }
        }
        add(tcp);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }
}
