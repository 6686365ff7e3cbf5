//! Packets and capture files, written byte by byte.

use std::net::IpAddr;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// us since 1970 of the first packet: 2024-05-06T07:08:09.000123Z.
pub(crate) const START_US: u64 = 1_714_979_289_000_123;

/// What link type 1 and its like are called here.
pub(crate) const ETHERNET: u32 = 1;
pub(crate) const SLL: u32 = 113;
pub(crate) const SLL2: u32 = 276;
pub(crate) const RAW: u32 = 101;
pub(crate) const NULL: u32 = 0;
pub(crate) const LOOP: u32 = 108;

/// A captured packet.
#[derive(Clone)]
pub(crate) struct Captured {
    pub(crate) time_us: u64,
    pub(crate) bytes: Vec<u8>,
    /// On the wire.
    pub(crate) length: usize,
}

pub(crate) fn at(time_us: u64, bytes: Vec<u8>) -> Captured {
    Captured { time_us: START_US + time_us, length: bytes.len(), bytes }
}

/// A side of a connection.
pub(crate) type Socket = (&'static str, u16);

/// A TCP segment with a right checksum, in an IP packet.
pub(crate) fn segment(
    from: Socket,
    to: Socket,
    flags: u8,
    seq: u32,
    ack: u32,
    payload: &[u8],
) -> Vec<u8> {
    ip(from.0, to.0, 6, &tcp(from, to, flags, seq, ack, payload))
}

pub(crate) fn tcp(
    from: Socket,
    to: Socket,
    flags: u8,
    seq: u32,
    ack: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.1.to_be_bytes());
    tcp.extend(to.1.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 2, 0, 0, 0, 0, 0]);
    tcp.extend_from_slice(payload);
    let mut pseudo = [octets(from.0), octets(to.0), vec![0, 6]].concat();
    pseudo.extend(u16::try_from(tcp.len()).unwrap().to_be_bytes());
    let sum = [pseudo, tcp.clone()]
        .iter()
        .flat_map(|part| {
            part.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        })
        .fold(0, |sum, word| (sum + word) % 0xffff);
    tcp[16..18].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());
    tcp
}

pub(crate) fn udp(from: Socket, to: Socket, payload: &[u8]) -> Vec<u8> {
    let mut udp = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    udp.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    udp.extend([0, 0]);
    udp.extend_from_slice(payload);
    ip(from.0, to.0, 17, &udp)
}

pub(crate) fn ip(from: &str, to: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut packet = if from.contains(':') {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header
    } else {
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        header
    };
    packet.extend([octets(from), octets(to), payload.to_vec()].concat());
    packet
}

fn octets(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A whole connection: 5 bytes there, 7 back, closed by the client; 1 ms from packet to packet.
pub(crate) fn connection(client: Socket, server: Socket) -> Vec<Captured> {
    let out = |flags, seq, ack, payload: &[u8]| segment(client, server, flags, seq, ack, payload);
    let back = |flags, seq, ack, payload: &[u8]| segment(server, client, flags, seq, ack, payload);
    let packets = [
        out(SYN, 1000, 0, b""),
        back(SYN | ACK, 5000, 1001, b""),
        out(ACK, 1001, 5001, b""),
        out(PSH | ACK, 1001, 5001, b"hello"),
        back(ACK, 5001, 1006, b""),
        back(PSH | ACK, 5001, 1006, b"welcome"),
        out(ACK, 1006, 5008, b""),
        out(FIN | ACK, 1006, 5008, b""),
        back(FIN | ACK, 5008, 1007, b""),
        out(ACK, 1007, 5009, b""),
    ];
    (0..).zip(packets).map(|(n, bytes)| at(n * 1000, bytes)).collect()
}

/// An IP packet as a frame of a link type.
pub(crate) fn frame(link: u32, ip: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if ip[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    let family = if ip[0] >> 4 == 4 { 2 } else { 30 };
    let header = match link {
        ETHERNET => [&[0x02; 12][..], &ethertype].concat(),
        SLL => [&[0; 14][..], &ethertype].concat(),
        SLL2 => [&ethertype, &[0; 18][..]].concat(),
        NULL => vec![family, 0, 0, 0],
        LOOP => vec![0, 0, 0, family],
        _ => Vec::new(),
    };
    [&header, ip].concat()
}

/// An Ethernet frame with these tags before the IP packet's EtherType.
pub(crate) fn tagged(tags: &[u16], ip: &[u8]) -> Vec<u8> {
    let plain = frame(ETHERNET, ip);
    let tags = tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0, 7]]).flatten();
    plain[..12].iter().copied().chain(tags).chain(plain[12..].iter().copied()).collect()
}

/// Each packet as a frame.
pub(crate) fn framed(packets: &[Captured], to_frame: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Captured> {
    packets
        .iter()
        .map(|p| {
            let bytes = to_frame(&p.bytes);
            Captured { length: bytes.len(), bytes, ..*p }
        })
        .collect()
}

/// Byte order of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Little,
    Big,
}

impl Order {
    fn u32(self, n: u32) -> [u8; 4] {
        if self == Self::Little { n.to_le_bytes() } else { n.to_be_bytes() }
    }

    fn u16(self, n: u16) -> [u8; 2] {
        if self == Self::Little { n.to_le_bytes() } else { n.to_be_bytes() }
    }

    fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| self.u32(*word)).collect()
    }
}

/// A pcap file, of us or ns.
pub(crate) fn pcap(order: Order, nanoseconds: bool, link: u32, packets: &[Captured]) -> Vec<u8> {
    let magic = if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    let mut file = order.u32(magic).to_vec();
    file.extend([order.u16(2), order.u16(4)].concat());
    file.extend(order.words(&[0, 0, 262_144, link]));
    for p in packets {
        let fraction = u32::try_from(p.time_us % 1_000_000).unwrap();
        file.extend(order.words(&[
            u32::try_from(p.time_us / 1_000_000).unwrap(),
            fraction * if nanoseconds { 1000 } else { 1 },
            u32::try_from(p.bytes.len()).unwrap(),
            u32::try_from(p.length).unwrap(),
        ]));
        file.extend_from_slice(&p.bytes);
    }
    file
}

/// A pcapng block, padded, with its length at both ends.
pub(crate) fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
    let length = order.u32(u32::try_from(12 + body.len() + padding.len()).unwrap());
    [&order.u32(kind), &length, body, &padding, &length[..]].concat()
}

pub(crate) fn section(order: Order) -> Vec<u8> {
    let version = [order.u16(1), order.u16(0)].concat();
    block(order, 0x0a0d_0d0a, &[&order.u32(0x1a2b_3c4d), &version[..], &[0xff; 8]].concat())
}

/// An interface whose clock has `10^-resolution` s.
pub(crate) fn interface(order: Order, link: u32, resolution: u8) -> Vec<u8> {
    let link = order.u16(u16::try_from(link).unwrap());
    let head = [&link[..], &[0, 0], &order.u32(262_144)].concat();
    let option = [&order.u16(9)[..], &order.u16(1), &[resolution, 0, 0, 0]].concat();
    block(order, 1, &[head, option, vec![0; 4]].concat())
}

/// An enhanced packet of an interface whose clock has `10^-resolution` s.
pub(crate) fn enhanced(order: Order, interface: u32, resolution: u8, p: &Captured) -> Vec<u8> {
    let ticks = p.time_us * 10_u64.pow(u32::from(resolution) - 6);
    let head = order.words(&[
        interface,
        u32::try_from(ticks >> 32).unwrap(),
        u32::try_from(ticks & 0xffff_ffff).unwrap(),
        u32::try_from(p.bytes.len()).unwrap(),
        u32::try_from(p.length).unwrap(),
    ]);
    block(order, 6, &[head, p.bytes.clone()].concat())
}

/// A simple packet: without a time, of the first interface.
pub(crate) fn simple(order: Order, p: &Captured) -> Vec<u8> {
    let length = order.u32(u32::try_from(p.length).unwrap());
    block(order, 3, &[&length[..], &p.bytes].concat())
}

/// A packet of the block type that is obsolete.
pub(crate) fn old(order: Order, interface: u16, p: &Captured) -> Vec<u8> {
    let head = [order.u16(interface), order.u16(0)].concat();
    let rest = order.words(&[
        u32::try_from(p.time_us >> 32).unwrap(),
        u32::try_from(p.time_us & 0xffff_ffff).unwrap(),
        u32::try_from(p.bytes.len()).unwrap(),
        u32::try_from(p.length).unwrap(),
    ]);
    block(order, 2, &[head, rest, p.bytes.clone()].concat())
}

/// A pcapng file of one interface.
pub(crate) fn pcapng(order: Order, link: u32, packets: &[Captured]) -> Vec<u8> {
    let mut file = [section(order), interface(order, link, 6)].concat();
    packets.iter().for_each(|p| file.extend(enhanced(order, 0, 6, p)));
    file
}
