//! Names of addresses, from the DNS messages of the capture.
//!
//! The cache is that of `run`. A capture has no cgroups, so all of it counts as one: who asked is told by
//! address and port.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use flowend_probe_types::{Addr, DnsEvent, EventKind, FIN, RST, SYN};

use super::fragments::{FragmentStats, Fragments};
use super::ip::{IpPacket, TcpPacket, UdpPacket};
use crate::config::Settings;
use crate::dns::{Dns, DnsSettings, DnsStats, Scope, StreamStats};

const DNS_PORT: u16 = 53;
/// Multicast DNS (RFC 6762, section 3).
const MDNS_PORT: u16 = 5353;
/// LLMNR (RFC 4795, section 2).
const LLMNR_PORT: u16 = 5355;

/// The one cgroup of a capture.
const CGROUP: u64 = 0;

/// And what its names are for.
const SCOPE: Scope = Scope(CGROUP);

/// Everybody who speaks multicast DNS: an answer is for all who hear it, whoever asked.
const EVERYBODY: u64 = 0;

/// From which messages names are learnt, and for how long they hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameSources {
    pub(super) cache: DnsSettings,
    pub(super) mdns: bool,
    pub(super) llmnr: bool,
}

impl NameSources {
    /// `None` where names are not asked for.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let names = &settings.names;
        let sources = Self { cache: settings.dns, mdns: names.mdns, llmnr: names.llmnr };
        names.enabled.then_some(sources)
    }
}

/// What the capture's DNS answers say.
#[derive(Debug)]
pub(super) struct Names {
    dns: Dns,
    fragments: Fragments,
    sources: NameSources,
}

impl Names {
    /// Nothing is known yet.
    pub(super) fn new(sources: NameSources) -> Self {
        Self { dns: Dns::of_the_past(sources.cache), fragments: Fragments::new(), sources }
    }

    /// Takes in a packet that is none of TCP, if it is a query or an answer, or the last part of one.
    pub(super) fn packet(&mut self, packet: &IpPacket<'_>, time_ns: u64) {
        if let Some(datagram) = packet.udp() {
            return self.datagram(&datagram, time_ns);
        }
        let Some(part) = packet.udp_fragment() else { return };
        let Some(whole) = self.fragments.take(&part, time_ns) else { return };
        if let Some(datagram) = UdpPacket::new(part.src, part.dst, &whole) {
            self.datagram(&datagram, time_ns);
        }
    }

    /// Takes in a TCP segment, if it is to or from a DNS server and its receiver would take it.
    pub(super) fn segment(&mut self, tcp: &TcpPacket, captured: &[u8], time_ns: u64) {
        let segment = &tcp.segment;
        let (src, dst) = ((segment.src, segment.src_port), (segment.dst, segment.dst_port));
        let (kind, asker, server) = match (src.1, dst.1) {
            (_, DNS_PORT) => (EventKind::DnsStreamOut, src, dst),
            (DNS_PORT, _) => (EventKind::DnsStreamIn, dst, src),
            _ => return,
        };
        if tcp.bad_checksum || (segment.payload == 0 && segment.flags & (SYN | FIN | RST) == 0) {
            return;
        }
        let cut = u32::try_from(captured.len()).is_ok_and(|n| n < segment.payload);
        // One address and port may have connections to several servers.
        let cookie = cookie(&[asker, server]);
        let facts = DnsEvent {
            seq: segment.seq,
            flags: segment.flags,
            ..facts(kind, asker, server, cookie, cut, captured, time_ns)
        };
        self.dns.observe(kind, &facts, captured, SCOPE);
    }

    /// The names of an address at a time.
    pub(super) fn of(&self, addr: Addr, time_ns: u64) -> Vec<Arc<str>> {
        self.dns.names(&[SCOPE], addr, time_ns)
    }

    /// What became of the messages.
    pub(super) fn stats(&self) -> (DnsStats, StreamStats, FragmentStats) {
        (self.dns.stats(), self.dns.stream_stats(), self.fragments.stats())
    }

    fn datagram(&mut self, packet: &UdpPacket<'_>, time_ns: u64) {
        if let Some((kind, facts)) = self.sources.facts(packet, time_ns) {
            self.dns.observe(kind, &facts, packet.payload, SCOPE);
        }
    }
}

impl NameSources {
    /// What the probe would say of a datagram beside the socket that asked; `None` for one that is no
    /// query or answer.
    fn facts(&self, packet: &UdpPacket<'_>, time_ns: u64) -> Option<(EventKind, DnsEvent)> {
        let UdpPacket { src, dst, payload, cut } = *packet;
        let query = (EventKind::DnsQuery, src, dst);
        let answer = (EventKind::DnsAnswer, dst, src);
        // QR bit (RFC 1035, section 4.1.1): the only difference where both ports are the same.
        let is_answer = payload.get(2).is_some_and(|flags| flags & 0x80 != 0);
        let by_bit = if is_answer { answer } else { query };
        let ((kind, asker, server), cookie) = match (src.1, dst.1) {
            (DNS_PORT, DNS_PORT) => (by_bit, cookie(&[by_bit.1])),
            (_, DNS_PORT) => (query, cookie(&[src])),
            (DNS_PORT, _) => (answer, cookie(&[dst])),
            (MDNS_PORT, _) | (_, MDNS_PORT) if self.mdns => (by_bit, EVERYBODY),
            (_, LLMNR_PORT) if self.llmnr => (query, cookie(&[src])),
            (LLMNR_PORT, _) if self.llmnr => (answer, cookie(&[dst])),
            _ => return None,
        };
        Some((kind, facts(kind, asker, server, cookie, cut, payload, time_ns)))
    }
}

fn facts(
    kind: EventKind,
    asker: (Addr, u16),
    server: (Addr, u16),
    cookie: u64,
    cut: bool,
    payload: &[u8],
    time_ns: u64,
) -> DnsEvent {
    DnsEvent {
        kind: kind as u8,
        cut: u8::from(cut),
        len: u16::try_from(payload.len()).unwrap_or(u16::MAX),
        local_port: asker.1,
        remote_port: server.1,
        time_ns,
        cookie,
        cgroup_id: CGROUP,
        local: asker.0,
        remote: server.0,
        ..DnsEvent::default()
    }
}

/// Stands for the socket that has these ends.
fn cookie(ends: &[(Addr, u16)]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (addr, port) in ends {
        (addr.octets(), port).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use std::time::Duration;

    type End = (&'static str, u16);

    /// Source, destination, QR bit; kind, asker and server.
    type Case = (End, End, bool, Option<(EventKind, End, End)>);

    fn end((ip, port): End) -> (Addr, u16) {
        (ip.parse::<IpAddr>().unwrap().into(), port)
    }

    fn facts_of(src: End, dst: End, is_answer: bool, on: bool) -> Option<(EventKind, DnsEvent)> {
        let second = Duration::from_secs(1);
        let cache = DnsSettings { cache_bytes: 1 << 16, min_ttl: second, max_ttl: second };
        let payload = [0, 0, if is_answer { 0x80 } else { 0 }];
        let packet = UdpPacket { src: end(src), dst: end(dst), payload: &payload, cut: false };
        NameSources { cache, mdns: on, llmnr: on }.facts(&packet, 5)
    }

    #[test]
    fn who_asked_whom_is_told_by_ports_or_the_message() {
        const HOST: End = ("192.0.2.1", 40_000);
        const RESOLVER: End = ("192.0.2.53", 53);
        const OLD_HOST: End = ("192.0.2.1", 53);
        const MDNS_HOST: End = ("192.0.2.1", 5353);
        const PRINTER: End = ("192.0.2.9", 5353);
        const MDNS: End = ("224.0.0.251", 5353);
        const LLMNR: End = ("224.0.0.252", 5355);
        const NEIGHBOUR: End = ("192.0.2.8", 5355);
        use EventKind::{DnsAnswer, DnsQuery};
        let cases: [Case; 12] = [
            (HOST, RESOLVER, false, Some((DnsQuery, HOST, RESOLVER))),
            (RESOLVER, HOST, true, Some((DnsAnswer, HOST, RESOLVER))),
            (MDNS_HOST, RESOLVER, false, Some((DnsQuery, MDNS_HOST, RESOLVER))),
            (OLD_HOST, RESOLVER, false, Some((DnsQuery, OLD_HOST, RESOLVER))),
            (RESOLVER, OLD_HOST, true, Some((DnsAnswer, OLD_HOST, RESOLVER))),
            (MDNS_HOST, MDNS, false, Some((DnsQuery, MDNS_HOST, MDNS))),
            (PRINTER, MDNS, true, Some((DnsAnswer, MDNS, PRINTER))),
            (HOST, MDNS, false, Some((DnsQuery, HOST, MDNS))),
            (PRINTER, HOST, true, Some((DnsAnswer, HOST, PRINTER))),
            (HOST, LLMNR, false, Some((DnsQuery, HOST, LLMNR))),
            (NEIGHBOUR, HOST, true, Some((DnsAnswer, HOST, NEIGHBOUR))),
            (HOST, ("192.0.2.7", 443), false, None),
        ];
        for (src, dst, is_answer, want) in cases {
            let got = facts_of(src, dst, is_answer, true);
            let ends = got.map(|(kind, f)| {
                assert_eq!((f.kind, f.time_ns, f.len), (kind as u8, 5, 3));
                (kind, (f.local, f.local_port), (f.remote, f.remote_port))
            });
            let want = want.map(|(kind, asker, server)| (kind, end(asker), end(server)));
            assert_eq!(ends, want, "{src:?} to {dst:?}");
            let is_multicast = [src.1, dst.1].iter().any(|port| [5353, 5355].contains(port))
                && ![src.1, dst.1].contains(&53);
            if is_multicast {
                assert!(facts_of(src, dst, is_answer, false).is_none(), "off: {src:?} to {dst:?}");
            }
        }
        let cookie = |src, dst, is_answer| facts_of(src, dst, is_answer, true).unwrap().1.cookie;
        assert_eq!(cookie(HOST, LLMNR, false), cookie(NEIGHBOUR, HOST, true));
        assert_eq!(cookie(MDNS_HOST, MDNS, false), cookie(PRINTER, MDNS, true));
        assert_ne!(cookie(HOST, RESOLVER, false), cookie(OLD_HOST, RESOLVER, false));
    }
}
