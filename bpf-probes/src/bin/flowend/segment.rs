//! cgroup skb hooks: SYN, SYN-ACK, FIN and RST segments of both directions.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock, bpf_tcp_sock},
    helpers::{
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_sk_fullsock, bpf_skb_cgroup_id,
        bpf_skb_load_bytes, bpf_tcp_sock as tcp_sock_of,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use flowend_probe_types::{
    Addr, EventKind, PacketBytes, Segment, TERMINATING, TcpEvent, TcpState, parse,
};

use crate::dns;
use crate::ring::{count_skipped, reserve, submit};

const PASS: i32 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// RFC 1035, section 4.2.
const DNS_PORT: u8 = 53;
/// Offset in the UDP header.
const SOURCE_PORT: usize = 0;
/// Offset in the UDP header.
const DESTINATION_PORT: usize = 2;
const SOCK_RAW: u32 = 3;
const AF_INET6: u32 = 10;

#[cgroup_skb(ingress)]
fn flowend_ingress(ctx: SkBuffContext) -> i32 {
    match classify(&ctx, SOURCE_PORT) {
        Packet::Other => {}
        Packet::MayTerminate => report(&ctx, EventKind::SegmentIn),
        Packet::Dns { is_v6 } => dns::report(&ctx, EventKind::DnsAnswer, is_v6),
    }
    PASS
}

#[cgroup_skb(egress)]
fn flowend_egress(ctx: SkBuffContext) -> i32 {
    match classify(&ctx, DESTINATION_PORT) {
        Packet::Other => {}
        Packet::MayTerminate => report(&ctx, EventKind::SegmentOut),
        Packet::Dns { is_v6 } => dns::report(&ctx, EventKind::DnsQuery, is_v6),
    }
    PASS
}

/// What a packet is to the probe.
enum Packet {
    /// Nothing.
    Other,
    /// Perhaps a SYN, FIN or RST; the parser will tell.
    MayTerminate,
    /// UDP from or to the DNS port.
    Dns { is_v6: bool },
}

/// The test every packet pays for.
///
/// Direct packet access, a few instructions for TCP without IP options. TCP packets with options,
/// extension headers or headers outside the linear part go to the parser; such DNS messages are missed.
#[inline(always)]
fn classify(ctx: &SkBuffContext, port: usize) -> Packet {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid, and every read is inside `end`, which the verifier checks.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if data + V6_HEADERS <= end {
            let first = byte(data, 0);
            if first == V4_PLAIN {
                return classify_v4(data, port);
            }
            if first & 0xf0 == 0x60 {
                return classify_v6(data, port);
            }
            return may_terminate(byte(data, 9) == IPPROTO_TCP);
        }
        // An ACK without options ends here.
        if data + V4_HEADERS <= end && byte(data, 0) == V4_PLAIN {
            return classify_v4(data, port);
        }
        may_terminate((*skb).len >= V4_HEADERS as u32)
    }
}

/// IPv4 without options: version and header length.
const V4_PLAIN: u8 = 0x45;
/// Plain IP and TCP headers.
const V4_HEADERS: usize = 20 + 20;
/// Plain IP and TCP headers.
const V6_HEADERS: usize = 40 + 20;

#[inline(always)]
const fn may_terminate(yes: bool) -> Packet {
    if yes { Packet::MayTerminate } else { Packet::Other }
}

/// Volatile: otherwise the compiler turns comparisons of one byte into a jump table, and TCP, which
/// comes first here, pays for the others.
#[inline(always)]
unsafe fn byte(data: usize, offset: usize) -> u8 {
    // SAFETY: the caller has checked the offset against the packet's end.
    unsafe { ((data + offset) as *const u8).read_volatile() }
}

/// At least [`V4_HEADERS`] bytes.
#[inline(always)]
unsafe fn classify_v4(data: usize, port: usize) -> Packet {
    // SAFETY: the caller has checked the length.
    unsafe {
        if byte(data, 9) == IPPROTO_TCP {
            return may_terminate(byte(data, 20 + 13) & TERMINATING != 0);
        }
        if byte(data, 9) == IPPROTO_UDP && is_dns_port(data, 20 + port) {
            return Packet::Dns { is_v6: false };
        }
        Packet::Other
    }
}

/// At least [`V6_HEADERS`] bytes.
#[inline(always)]
unsafe fn classify_v6(data: usize, port: usize) -> Packet {
    // SAFETY: the caller has checked the length.
    unsafe {
        if byte(data, 6) == IPPROTO_TCP {
            return may_terminate(byte(data, 40 + 13) & TERMINATING != 0);
        }
        if byte(data, 6) == IPPROTO_UDP {
            let is_dns = is_dns_port(data, 40 + port);
            return if is_dns { Packet::Dns { is_v6: true } } else { Packet::Other };
        }
        // The extension headers that the parser follows.
        may_terminate(matches!(byte(data, 6), 0 | 43 | 44 | 51 | 60 | 135))
    }
}

#[inline(always)]
unsafe fn is_dns_port(data: usize, offset: usize) -> bool {
    // SAFETY: the caller has checked the length.
    unsafe { byte(data, offset) == 0 && byte(data, offset + 1) == DNS_PORT }
}

/// The slow way into a packet: works where direct access does not, past the linear part too.
struct Loaded(*mut __sk_buff);

impl PacketBytes for Loaded {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0_u8; N];
        // SAFETY: the helper checks the offset and writes N bytes.
        let error = unsafe {
            bpf_skb_load_bytes(self.0 as *const c_void, offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        (error == 0).then_some(bytes)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { (*self.0).len }
    }
}

#[inline(always)]
fn report(ctx: &SkBuffContext, kind: EventKind) {
    let skb = ctx.skb.skb;
    let segment = match parse(&Loaded(skb)) {
        Ok(segment) => segment,
        Err(skip) => return count_skipped(skip),
    };
    if segment.flags & TERMINATING == 0 {
        return;
    }
    // SAFETY: pointers come from the context and from helpers, and are checked for null; the kernel
    // gives `bpf_sock` and `bpf_tcp_sock` as read-only structures of stable layout.
    unsafe {
        let Some(sk) = socket_of(skb) else { return };
        // The kernel sends its own RSTs from a raw socket that has no TCP state, and programs may send
        // TCP from raw sockets of their own. Every other socket that sends TCP is a TCP socket, save
        // that of a test run, which has no type.
        if (*sk).type_ == SOCK_RAW {
            return;
        }
        let state = (*sk).state as u8;
        let tp =
            if state == TcpState::Listen as u8 { core::ptr::null_mut() } else { tcp_sock_of(sk) };
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        let cgroup_id = bpf_skb_cgroup_id(skb);
        let time_ns = bpf_ktime_get_boot_ns();
        let Some(mut entry) = reserve::<TcpEvent>(kind) else { return };
        let e = entry.as_mut_ptr();
        (*e).kind = kind as u8;
        (*e).flags = segment.flags;
        (*e).state = state;
        (*e).reserved = 0;
        (*e).time_ns = time_ns;
        (*e).cookie = cookie;
        (*e).cgroup_id = cgroup_id;
        (*e).netns = 0;
        (*e).seq = segment.seq;
        (*e).ack = segment.ack;
        (*e).payload = segment.payload;
        (*e).keepalive_ms = 0;
        if state == TcpState::Listen as u8 {
            packet_addresses(e, &segment, kind);
        } else {
            socket_addresses(e, sk);
            // A socket that was not bound has given its port back when its RST leaves.
            if (*e).local_port == 0 && matches!(kind, EventKind::SegmentOut) {
                (*e).local_port = segment.src_port;
            }
        }
        counters(e, tp);
        submit(entry);
    }
}

/// The full socket of a packet, where it has one.
#[inline(always)]
pub unsafe fn socket_of(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the caller passes the context; the helper's result is checked for null.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let sk = bpf_sk_fullsock(sk);
        (!sk.is_null()).then_some(sk)
    }
}

/// A listener has no peer: the packet tells both ends.
#[inline(always)]
unsafe fn packet_addresses(e: *mut TcpEvent, segment: &Segment, kind: EventKind) {
    // SAFETY: the caller passes a reserved event.
    unsafe {
        if matches!(kind, EventKind::SegmentIn) {
            (*e).local = segment.dst;
            (*e).local_port = segment.dst_port;
            (*e).remote = segment.src;
            (*e).remote_port = segment.src_port;
        } else {
            (*e).local = segment.src;
            (*e).local_port = segment.src_port;
            (*e).remote = segment.dst;
            (*e).remote_port = segment.dst_port;
        }
    }
}

/// The socket's own addresses: at egress the packet may show translated ones.
#[inline(always)]
unsafe fn socket_addresses(e: *mut TcpEvent, sk: *const bpf_sock) {
    // SAFETY: the caller passes a reserved event and a checked full socket.
    unsafe {
        let local6 = [(*sk).src_ip6[0], (*sk).src_ip6[1], (*sk).src_ip6[2], (*sk).src_ip6[3]];
        let remote6 = [(*sk).dst_ip6[0], (*sk).dst_ip6[1], (*sk).dst_ip6[2], (*sk).dst_ip6[3]];
        if (*sk).family == AF_INET6 && !Addr::v6(remote6).is_v4() {
            (*e).local = Addr::v6(local6);
            (*e).remote = Addr::v6(remote6);
        } else {
            (*e).local = Addr::v4((*sk).src_ip4);
            (*e).remote = Addr::v4((*sk).dst_ip4);
        }
        (*e).local_port = (*sk).src_port as u16;
        (*e).remote_port = u16::from_be((*sk).dst_port);
    }
}

#[inline(always)]
unsafe fn counters(e: *mut TcpEvent, tp: *const bpf_tcp_sock) {
    // SAFETY: the caller passes a reserved event; `tp` is null or from bpf_tcp_sock().
    unsafe {
        if tp.is_null() {
            (*e).bytes_acked = 0;
            (*e).bytes_received = 0;
            (*e).snd_nxt = 0;
            (*e).snd_una = 0;
            (*e).rcv_nxt = 0;
            (*e).srtt_8us = 0;
            (*e).rtt_min_us = 0;
            (*e).segs_out = 0;
            (*e).segs_in = 0;
            (*e).data_segs_out = 0;
            (*e).data_segs_in = 0;
            (*e).total_retrans = 0;
            return;
        }
        (*e).bytes_acked = (*tp).bytes_acked;
        (*e).bytes_received = (*tp).bytes_received;
        (*e).snd_nxt = (*tp).snd_nxt;
        (*e).snd_una = (*tp).snd_una;
        (*e).rcv_nxt = (*tp).rcv_nxt;
        (*e).srtt_8us = (*tp).srtt_us;
        (*e).rtt_min_us = (*tp).rtt_min;
        (*e).segs_out = (*tp).segs_out;
        (*e).segs_in = (*tp).segs_in;
        (*e).data_segs_out = (*tp).data_segs_out;
        (*e).data_segs_in = (*tp).data_segs_in;
        (*e).total_retrans = (*tp).total_retrans;
    }
}
