//! The IP packet in a frame: what the shared parser reads of it, and what it leaves to a capture.

use flowend_probe_types::{Addr, PacketBytes, Segment, Skip, parse};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A packet from its IP header on. Its length is what the header says, never what was captured: a
/// snapshot length cuts packets, and Ethernet pads short ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpPacket<'a> {
    /// Captured, without anything past the packet's end.
    bytes: &'a [u8],
    length: u32,
    /// Says that it is longer than the frame that brought it.
    overruns: bool,
}

/// A TCP segment as it was on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TcpPacket {
    /// As the shared parser reads it.
    pub(super) segment: Segment,
    /// The advertised window, unscaled.
    pub(super) window: u16,
    /// Captured whole, and its checksum is wrong.
    pub(super) bad_checksum: bool,
}

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UdpPacket<'a> {
    pub(super) src: (Addr, u16),
    pub(super) dst: (Addr, u16),
    /// What was captured of the payload.
    pub(super) payload: &'a [u8],
    /// Whether the payload was longer.
    pub(super) cut: bool,
}

/// A part of a datagram that was too long for its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment<'a> {
    pub(super) src: Addr,
    pub(super) dst: Addr,
    /// The same for all parts (identification).
    pub(super) id: u32,
    /// Where it begins, bytes behind the IP headers.
    pub(super) offset: usize,
    /// Whether it is not the last part.
    pub(super) more: bool,
    pub(super) bytes: &'a [u8],
}

/// What lies behind the IP header and its extensions.
#[derive(Clone, Copy, Debug)]
struct Transport {
    protocol: u8,
    offset: usize,
    /// A first fragment: the rest of its payload is in others.
    more_fragments: bool,
    /// Whether the addresses of the header are those of the checksum: not with a routing header or
    /// IPv4 options, which may hold another destination.
    plain: bool,
}

/// Where a fragment lies in its datagram.
#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    more: bool,
}

impl<'a> UdpPacket<'a> {
    /// From the bytes behind the IP headers.
    pub(super) fn new(src: Addr, dst: Addr, bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<8>()?;
        let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let length = usize::from(field(4)).checked_sub(8)?;
        let payload = &rest[..rest.len().min(length)];
        let cut = payload.len() < length;
        Some(Self { src: (src, field(0)), dst: (dst, field(2)), payload, cut })
    }
}

impl<'a> IpPacket<'a> {
    /// `captured` begins at the IP header; `on_the_wire` is how long the frame was from there on.
    pub(super) fn new(captured: &'a [u8], on_the_wire: u32) -> Self {
        let u16_at = |at: usize| {
            let bytes = captured.get(at..).and_then(<[u8]>::first_chunk::<2>)?;
            Some(u32::from(u16::from_be_bytes(*bytes)))
        };
        let told = match captured.first().map(|first| first >> 4) {
            Some(4) => u16_at(2).filter(|n| *n != 0),
            Some(6) => u16_at(4).filter(|n| *n != 0).map(|n| 40 + n),
            _ => None,
        };
        // No length is told by packets that segmentation offload hands over before it cuts them, and
        // by jumbograms (RFC 2675): then all of the frame is the packet.
        let length = told.unwrap_or(on_the_wire);
        let end = captured.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        Self { bytes: &captured[..end], length, overruns: length > on_the_wire }
    }

    /// Reads it as TCP.
    ///
    /// # Errors
    /// [`Skip`]. A first fragment is a fragment, too: how long its payload is, and so where a FIN in it
    /// stands, is not in it. It need not even hold the whole TCP header, so that is asked first.
    pub(super) fn tcp(&self) -> Result<TcpPacket, Skip> {
        if self.transport().is_some_and(|t| t.protocol == TCP && t.more_fragments) {
            return Err(Skip::Fragment);
        }
        let segment = parse(self)?;
        if self.overruns {
            return Err(Skip::BadHeader);
        }
        let transport = self.transport().ok_or(Skip::Truncated)?;
        let at = transport.offset + 14;
        let window = self.bytes.get(at..).and_then(<[u8]>::first_chunk::<2>);
        Ok(TcpPacket {
            segment,
            window: u16::from_be_bytes(*window.ok_or(Skip::Truncated)?),
            bad_checksum: self.has_bad_checksum(&segment, transport),
        })
    }

    /// The datagram in it, if it is an unfragmented one whose headers were captured.
    pub(super) fn udp(&self) -> Option<UdpPacket<'a>> {
        let transport = self.transport().filter(|t| t.protocol == UDP && !t.more_fragments)?;
        let (src, dst) = self.addresses()?;
        UdpPacket::new(src, dst, self.bytes.get(transport.offset..)?)
    }

    /// The part of a datagram in it, if it is one, captured whole.
    pub(super) fn udp_fragment(&self) -> Option<Fragment<'a>> {
        let is_whole = !self.overruns && PacketBytes::len(&self.bytes) == self.length;
        let (at, protocol, id, place) = match self.read::<1>(0)?[0] >> 4 {
            4 => self.fragment_of_v4(),
            6 => self.fragment_of_v6(),
            _ => None,
        }
        .filter(|_| is_whole)?;
        let (src, dst) = self.addresses()?;
        let Place { offset, more } = place;
        let is_part = protocol == UDP && (more || offset > 0);
        let bytes = self.bytes.get(at..).filter(|_| is_part)?;
        Some(Fragment { src, dst, id, offset, more, bytes })
    }

    /// What was captured of the payload of a TCP segment.
    pub(super) fn tcp_payload(&self) -> Option<&'a [u8]> {
        let tcp = self.bytes.get(self.transport().filter(|t| t.protocol == TCP)?.offset..)?;
        tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)
    }

    /// Offset of the payload, its protocol, identification and place (RFC 791, section 3.1).
    fn fragment_of_v4(&self) -> Option<(usize, u8, u32, Place)> {
        let [first] = self.read::<1>(0)?;
        let [protocol] = self.read::<1>(9)?;
        let field = u16::from_be_bytes(self.read(6)?);
        let place = Place { offset: usize::from(field & 0x1fff) * 8, more: field & 0x2000 != 0 };
        let id = u16::from_be_bytes(self.read(4)?).into();
        Some((usize::from(first & 0x0f) * 4, protocol, id, place))
    }

    /// The same of IPv6, from its fragment header (RFC 8200, section 4.5).
    fn fragment_of_v6(&self) -> Option<(usize, u8, u32, Place)> {
        let [mut next] = self.read::<1>(6)?;
        let mut at = 40_u32;
        // Ends with the packet at the latest: each header has at least eight bytes.
        while matches!(next, 0 | 43 | 60 | 135) {
            let header = self.read::<2>(at)?;
            at = at.checked_add((u32::from(header[1]) + 1) * 8)?;
            next = header[0];
        }
        let header = self.read::<8>(at).filter(|_| next == 44)?;
        let field = u16::from_be_bytes([header[2], header[3]]);
        let place = Place { offset: usize::from(field & 0xfff8), more: field & 1 != 0 };
        let [_, _, _, _, id @ ..] = header;
        Some((usize::try_from(at + 8).ok()?, header[0], u32::from_be_bytes(id), place))
    }

    fn addresses(&self) -> Option<(Addr, Addr)> {
        if self.bytes.first()? >> 4 == 4 {
            let word = |at| Some(Addr::v4(u32::from_ne_bytes(self.read::<4>(at)?)));
            return Some((word(12)?, word(16)?));
        }
        Some((Addr::from_octets(self.read(8)?), Addr::from_octets(self.read(24)?)))
    }

    /// Follows the headers; `None` for a later fragment, another version, or past what was captured.
    fn transport(&self) -> Option<Transport> {
        let [first] = self.read::<1>(0)?;
        match first >> 4 {
            4 => self.transport_of_v4(first),
            6 => self.transport_of_v6(),
            _ => None,
        }
    }

    fn transport_of_v4(&self, first: u8) -> Option<Transport> {
        let [protocol] = self.read::<1>(9)?;
        let fragment = u16::from_be_bytes(self.read(6)?);
        let offset = usize::from(first & 0x0f) * 4;
        let is_later = fragment & 0x1fff != 0;
        (!is_later && offset >= 20).then_some(Transport {
            protocol,
            offset,
            more_fragments: fragment & 0x2000 != 0,
            plain: offset == 20,
        })
    }

    fn transport_of_v6(&self) -> Option<Transport> {
        let [mut next] = self.read::<1>(6)?;
        let mut at = 40_u32;
        let mut more_fragments = false;
        let mut plain = true;
        // Ends with the packet at the latest: each header has at least eight bytes.
        while matches!(next, 0 | 43 | 44 | 51 | 60 | 135) {
            let header = self.read::<4>(at)?;
            plain &= next != 43;
            at = at.checked_add(match next {
                44 => {
                    let fragment = u16::from_be_bytes([header[2], header[3]]);
                    if fragment & 0xfff8 != 0 {
                        return None;
                    }
                    more_fragments |= fragment & 1 != 0;
                    8
                }
                51 => (u32::from(header[1]) + 2) * 4,
                _ => (u32::from(header[1]) + 1) * 8,
            })?;
            next = header[0];
        }
        Some(Transport { protocol: next, offset: usize::try_from(at).ok()?, more_fragments, plain })
    }

    /// Whether the checksum is wrong, where that can be told (RFC 9293, section 3.1).
    ///
    /// A sender that leaves the checksum to its network card puts the sum of the pseudo header there:
    /// what is captured before the card is not wrong but unfinished.
    fn has_bad_checksum(&self, segment: &Segment, transport: Transport) -> bool {
        let is_whole = u32::try_from(self.bytes.len()).is_ok_and(|n| n == self.length);
        let Some(tcp) = self.bytes.get(transport.offset..).filter(|_| is_whole && transport.plain)
        else {
            return false;
        };
        let length = u32::try_from(tcp.len()).unwrap_or(u32::MAX);
        // An IPv4 address is mapped here: the 0xffff in front of it is 0 to this sum.
        let addresses = sum(&segment.src.octets()) + sum(&segment.dst.octets());
        let pseudo = addresses + sum(&length.to_be_bytes()) + u64::from(TCP);
        if fold(pseudo + sum(tcp)) == 0xffff {
            return false;
        }
        let field = tcp.get(16..).and_then(<[u8]>::first_chunk::<2>);
        field.is_some_and(|f| u16::from_be_bytes(*f) != fold(pseudo))
    }
}

impl PacketBytes for IpPacket<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.bytes.read(offset)
    }

    fn len(&self) -> u32 {
        self.length
    }
}

/// 16-bit words, the last one padded with a zero byte (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|c| u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)]));
    words.map(u64::from).sum()
}

/// The ones' complement sum, not complemented.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SYN from 10.0.0.1:4660 to 10.0.0.2:80, window 512, with `payload`; the checksum is left 0.
    fn v4(payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(40 + payload.len()).unwrap();
        let mut p = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        p[2..4].copy_from_slice(&length.to_be_bytes());
        p.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 2, 2, 0, 0, 0, 0, 0]);
        p.extend_from_slice(payload);
        p
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        p[4..6].copy_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
        p.extend([0xfd; 16]);
        p.extend([0xfe; 16]);
        p.extend_from_slice(rest);
        p
    }

    fn tcp(bytes: &[u8], on_the_wire: usize) -> Result<TcpPacket, Skip> {
        IpPacket::new(bytes, u32::try_from(on_the_wire).unwrap()).tcp()
    }

    fn payload_of(bytes: &[u8], on_the_wire: usize) -> Result<u32, Skip> {
        tcp(bytes, on_the_wire).map(|t| t.segment.payload)
    }

    #[test]
    fn the_header_and_not_the_capture_says_how_long_the_payload_is() {
        let whole = v4(b"seven!!");
        let mut padded = v4(b"");
        padded.extend([0; 6]);
        let mut offloaded = v4(&[b'x'; 3000]);
        offloaded[2..4].fill(0);
        let mut big_tcp = v6(6, &v4(&[b'x'; 90])[20..]);
        big_tcp[4..6].fill(0);
        for (name, bytes, on_the_wire, want) in [
            ("whole", &whole[..], 47, Ok(7)),
            ("cut in the payload", &whole[..42], 47, Ok(7)),
            ("cut behind the TCP header", &whole[..40], 47, Ok(7)),
            ("cut in the TCP header", &whole[..39], 47, Err(Skip::Truncated)),
            ("longer than its frame", &whole[..], 46, Err(Skip::BadHeader)),
            ("longer than its frame, which was cut", &whole[..42], 46, Err(Skip::BadHeader)),
            ("padded by Ethernet", &padded[..], 46, Ok(0)),
            ("total length 0, cut", &offloaded[..100], 3040, Ok(3000)),
            ("payload length 0 of IPv6", &big_tcp[..], big_tcp.len(), Ok(90)),
            ("empty", &[][..], 0, Err(Skip::Truncated)),
        ] {
            assert_eq!(payload_of(bytes, on_the_wire), want, "{name}");
        }
    }

    #[test]
    fn every_fragment_is_one() {
        let mut first = v4(b"xx");
        first[6] = 0x20;
        let mut later = v4(b"xx");
        later[7] = 1;
        let segment = &v4(b"xx")[20..];
        let mut tiny = first[..28].to_vec();
        tiny[3] = 28;
        let tiny_v6 = v6(44, &[&[6, 0, 0, 1, 0, 0, 0, 9], &segment[..8]].concat());
        let v6_fragment = |low: u8| {
            let header = [6, 0, 0, low, 0, 0, 0, 9];
            v6(44, &[&header[..], segment].concat())
        };
        for (name, bytes, want) in [
            ("first of IPv4, which ends in the TCP header", tiny, Err(Skip::Fragment)),
            ("first of IPv6, which ends in the TCP header", tiny_v6, Err(Skip::Fragment)),
            ("first of IPv4", first, Err(Skip::Fragment)),
            ("later of IPv4", later, Err(Skip::Fragment)),
            ("first of IPv6", v6_fragment(1), Err(Skip::Fragment)),
            ("later of IPv6", v6_fragment(8), Err(Skip::Fragment)),
            ("atomic of IPv6 (RFC 6946)", v6_fragment(0), Ok(2)),
        ] {
            assert_eq!(payload_of(&bytes, bytes.len()), want, "{name}");
        }
    }

    #[test]
    fn the_window_is_found_behind_extension_headers() {
        let destination_options = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let bytes = v6(60, &[&destination_options[..], &v4(b"abc")[20..]].concat());
        let got = tcp(&bytes, bytes.len()).unwrap();
        assert_eq!((got.window, got.segment.payload, got.segment.src_port), (512, 3, 0x1234));
    }

    #[test]
    fn a_checksum_is_right_wrong_or_left_to_the_card() {
        // Pseudo header (10.0.0.1, 10.0.0.2, protocol 6, length 21), then header and "a", by hand.
        let unfinished: u16 = 0x0a00 + 1 + 0x0a00 + 2 + 6 + 21;
        let words = [0x1234_u32, 80, 0, 1, 0, 2, 0x5002, 0x0200, 0, 0, 0x6100];
        let right = !u16::try_from(words.iter().sum::<u32>() + u32::from(unfinished)).unwrap();
        let with = |sum: u16, captured: usize| {
            let mut p = v4(b"a");
            p[36..38].copy_from_slice(&sum.to_be_bytes());
            tcp(&p[..captured], 41).unwrap().bad_checksum
        };
        assert!(!with(right, 41), "right");
        assert!(with(right ^ 1, 41), "wrong");
        assert!(!with(right ^ 1, 40), "cannot be told of a packet that was cut");
        assert!(!with(unfinished, 41), "left to the card");
    }

    #[test]
    fn a_fragment_says_where_it_belongs() {
        let v4 = |field: u16, protocol: u8| {
            let mut bytes = v4(b"")[..28].to_vec();
            bytes[3] = 28;
            bytes[4..8].copy_from_slice(&[[0xab, 0xcd], field.to_be_bytes()].concat());
            bytes[9] = protocol;
            bytes
        };
        let v6_with = |low: u8| v6(44, &[17, 0, 0x05, low, 0, 0, 0, 9, b'x', b'y']);
        let cases = [
            ("first of IPv4", v4(0x2000, UDP), Some((0xabcd, 0, true, 8))),
            ("last of IPv4", v4(185, UDP), Some((0xabcd, 1480, false, 8))),
            ("whole", v4(0x4000, UDP), None),
            ("TCP", v4(0x2000, TCP), None),
            ("middle of IPv6", v6_with(0xc9), Some((9, 1480, true, 2))),
            ("last of IPv6", v6_with(0xc8), Some((9, 1480, false, 2))),
            ("IPv6 without the header", v6(17, &[0; 8]), None),
            (
                "IPv6 behind options",
                v6(60, &[[44, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 1, 0, 0, 0, 7]].concat()),
                Some((7, 0, true, 0)),
            ),
        ];
        for (name, bytes, want) in cases {
            let length = u32::try_from(bytes.len()).unwrap();
            let got = IpPacket::new(&bytes, length).udp_fragment();
            assert_eq!(got.map(|f| (f.id, f.offset, f.more, f.bytes.len())), want, "{name}");
            let cut = IpPacket::new(&bytes[..bytes.len() - 1], length).udp_fragment();
            assert_eq!(cut, None, "{name}, cut");
        }
    }

    #[test]
    fn the_payload_of_a_segment_is_what_was_captured_of_it() {
        let bytes = v4(b"seven!!");
        for (captured, want) in [(47, &b"seven!!"[..]), (42, b"se"), (40, b"")] {
            let packet = IpPacket::new(&bytes[..captured], 47);
            assert_eq!(packet.tcp_payload(), Some(want), "{captured}");
        }
        assert_eq!(IpPacket::new(&bytes[..39], 47).tcp_payload(), None);
    }

    #[test]
    fn a_datagram_is_read_without_what_lies_behind_it() {
        let udp = |length: u8, rest: &[u8]| {
            v6(17, &[&[0, 53, 0x12, 0x34, 0, length, 0, 0][..], rest].concat())
        };
        let bytes = udp(11, b"abcpadding");
        let got = IpPacket::new(&bytes, 60).udp().unwrap();
        assert_eq!((got.src.1, got.dst.1, got.payload, got.cut), (53, 0x1234, &b"abc"[..], false));
        assert_eq!(got.src.0, Addr::from_octets([0xfd; 16]));
        let longer = udp(200, b"abc");
        assert!(IpPacket::new(&longer, 60).udp().unwrap().cut);
        let lying = udp(7, b"abc");
        assert_eq!(IpPacket::new(&lying, 60).udp(), None);
    }
}
