//! Where in a frame the IP packet begins, for the link types of captures.
//!
//! Numbers and layouts: the registry of link-layer header types at tcpdump.org.

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad (QinQ), and the tags used before the latter was standardised.
const ETHERTYPES_VLAN: [u16; 4] = [0x8100, 0x88a8, 0x9100, 0x9200];
/// Tags followed at most; two are in use (802.1ad).
const MAX_TAGS: usize = 4;

/// How a frame of one link type is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// 1.
    Ethernet,
    /// 113, "any" interface of Linux.
    LinuxCooked,
    /// 276, the same with the interface's index.
    LinuxCooked2,
    /// 101, 228, 229, and the numbers that systems used for it themselves, 12 and 14.
    RawIp,
    /// 0 and 108, loopback of BSD: the address family in front, in either byte order.
    Loopback,
}

/// Why a frame yields no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoIp {
    /// It carries another protocol.
    Other,
    /// It was not captured up to there.
    Truncated,
}

impl Link {
    /// From the number in the file; `None` for those that are not understood.
    pub(super) const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Ethernet),
            113 => Some(Self::LinuxCooked),
            276 => Some(Self::LinuxCooked2),
            12 | 14 | 101 | 228 | 229 => Some(Self::RawIp),
            0 | 108 => Some(Self::Loopback),
            _ => None,
        }
    }

    /// The offset of the IP header.
    pub(super) fn ip_at(self, frame: &[u8]) -> Result<usize, NoIp> {
        match self {
            Self::Ethernet => behind_tags(frame, 12, 14),
            Self::LinuxCooked => behind_tags(frame, 14, 16),
            Self::LinuxCooked2 => behind_tags(frame, 0, 20),
            Self::RawIp => Ok(0),
            Self::Loopback => behind_family(frame),
        }
    }
}

/// `protocol_at` is the offset of the EtherType, `payload` that of what it announces.
fn behind_tags(frame: &[u8], protocol_at: usize, payload: usize) -> Result<usize, NoIp> {
    let mut protocol = u16_at(frame, protocol_at)?;
    let mut offset = payload;
    for _ in 0..MAX_TAGS {
        if !ETHERTYPES_VLAN.contains(&protocol) {
            break;
        }
        // A tag: its own two bytes, then the EtherType of what follows.
        protocol = u16_at(frame, offset + 2)?;
        offset += 4;
    }
    if matches!(protocol, ETHERTYPE_IPV4 | ETHERTYPE_IPV6) { Ok(offset) } else { Err(NoIp::Other) }
}

/// AF_INET is 2 everywhere; AF_INET6 is 10 on Linux, 24, 28 or 30 on the BSDs and macOS.
fn behind_family(frame: &[u8]) -> Result<usize, NoIp> {
    let bytes = frame.first_chunk::<4>().ok_or(NoIp::Truncated)?;
    let is_ip = |family| matches!(family, 2 | 10 | 24 | 28 | 30);
    if is_ip(u32::from_be_bytes(*bytes)) || is_ip(u32::from_le_bytes(*bytes)) {
        Ok(4)
    } else {
        Err(NoIp::Other)
    }
}

fn u16_at(frame: &[u8], offset: usize) -> Result<u16, NoIp> {
    let bytes = frame.get(offset..).and_then(<[u8]>::first_chunk::<2>).ok_or(NoIp::Truncated)?;
    Ok(u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, number of the link type, frame, offset of the IP header.
    type Case<'a> = (&'a str, u32, &'a [u8], Result<usize, NoIp>);

    /// A frame: zeroes of the given length, then these bytes.
    fn frame(zeroes: usize, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; zeroes];
        frame.extend_from_slice(rest);
        frame
    }

    #[test]
    fn the_ip_packet_is_found_in_every_link_type() {
        let arp = frame(12, &[0x08, 0x06, 0, 0]);
        let v6_in_sll2 = frame(0, &[0x86, 0xdd]);
        let five_tags = frame(12, &[0x81, 0, 0, 1].repeat(5));
        let cases: &[Case<'_>] = &[
            ("Ethernet", 1, &frame(12, &[8, 0]), Ok(14)),
            ("Ethernet, IPv6", 1, &frame(12, &[0x86, 0xdd]), Ok(14)),
            ("802.1Q", 1, &frame(12, &[0x81, 0, 0, 7, 8, 0]), Ok(18)),
            ("QinQ", 1, &frame(12, &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x86, 0xdd]), Ok(22)),
            ("ARP", 1, &arp, Err(NoIp::Other)),
            ("802.3 with a length", 1, &frame(12, &[0, 60]), Err(NoIp::Other)),
            ("five tags", 1, &five_tags, Err(NoIp::Other)),
            ("cut in the EtherType", 1, &arp[..13], Err(NoIp::Truncated)),
            ("cut in the tag", 1, &frame(12, &[0x81, 0, 0]), Err(NoIp::Truncated)),
            ("cooked", 113, &frame(14, &[8, 0]), Ok(16)),
            ("cooked with a tag", 113, &frame(14, &[0x81, 0, 0, 7, 8, 0]), Ok(20)),
            ("cooked v2", 276, &v6_in_sll2, Ok(20)),
            ("raw", 101, &[], Ok(0)),
            ("raw, OpenBSD's number", 14, &[], Ok(0)),
            ("raw IPv6", 229, &[], Ok(0)),
            ("null, little endian", 0, &[2, 0, 0, 0], Ok(4)),
            ("null, big endian, macOS IPv6", 0, &[0, 0, 0, 30], Ok(4)),
            ("loop", 108, &[0, 0, 0, 2], Ok(4)),
            ("null, IPX", 0, &[23, 0, 0, 0], Err(NoIp::Other)),
            ("null, cut", 0, &[2, 0, 0], Err(NoIp::Truncated)),
        ];
        for (name, number, bytes, want) in cases {
            let link = Link::from_number(*number).unwrap();
            assert_eq!(link.ip_at(bytes), *want, "{name}");
        }
        assert_eq!(Link::from_number(105), None, "802.11");
    }
}
