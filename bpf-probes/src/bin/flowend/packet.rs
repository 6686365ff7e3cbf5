//! cgroup skb hooks: which packets are worth a look, and the look.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use flowend_probe_types::{
    IPPROTO_TCP, IPPROTO_UDP, PacketBytes, TERMINATING, parse_network, parse_tcp, parse_udp,
};

use crate::asked;
use crate::dns::{self, DNS_PORT, is_service};
use crate::ring::count_skipped;
use crate::segment;

const PASS: i32 = 1;
const SOCK_RAW: u32 = 3;

#[cgroup_skb(ingress)]
fn flowend_ingress(ctx: SkBuffContext) -> i32 {
    tap::<false, true>(&ctx)
}

#[cgroup_skb(egress)]
fn flowend_egress(ctx: SkBuffContext) -> i32 {
    tap::<true, true>(&ctx)
}

/// Of a cgroup that only looks names up for others: no ends of connections.
#[cgroup_skb(ingress)]
fn flowend_dns_ingress(ctx: SkBuffContext) -> i32 {
    tap::<false, false>(&ctx)
}

/// As [`flowend_dns_ingress`].
#[cgroup_skb(egress)]
fn flowend_dns_egress(ctx: SkBuffContext) -> i32 {
    tap::<true, false>(&ctx)
}

/// `EGRESS`: the packet leaves. `ENDS`: SYN, FIN and RST are reported, too, and not names alone.
#[inline(always)]
fn tap<const EGRESS: bool, const ENDS: bool>(ctx: &SkBuffContext) -> i32 {
    if is_worth_a_look::<EGRESS, ENDS>(ctx.skb.skb) {
        look::<EGRESS, ENDS>(ctx);
    }
    PASS
}

/// IPv4 without options: version and header length.
const V4_PLAIN: u8 = 0x45;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// RFC 1035, section 4.1.1. With the UDP header as long as a TCP header.
const DNS_HEADER: usize = 12;

/// The test every packet pays for: direct packet access, a few instructions for TCP and UDP without IP
/// options. Where headers are not all in the linear part, or are behind options or extension headers, it
/// says yes, and the parser will tell.
#[inline(always)]
fn is_worth_a_look<const EGRESS: bool, const ENDS: bool>(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid, and every read is inside `end`, which the verifier checks.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if data + V6_HEADER + TCP_HEADER <= end {
            let first = byte(data, 0);
            if first == V4_PLAIN {
                let protocol = byte(data, 9);
                return transport::<EGRESS, ENDS>(skb, data + V4_HEADER, protocol);
            }
            if first & 0xf0 == 0x60 {
                let next = byte(data, 6);
                if matches!(next, IPPROTO_TCP | IPPROTO_UDP) {
                    return transport::<EGRESS, ENDS>(skb, data + V6_HEADER, next);
                }
                // The extension headers that the parser follows.
                return matches!(next, 0 | 43 | 44 | 51 | 60 | 135);
            }
            return matches!(byte(data, 9), IPPROTO_TCP | IPPROTO_UDP);
        }
        // An ACK without options ends here.
        if data + V4_HEADER + TCP_HEADER <= end {
            let first = byte(data, 0);
            if first == V4_PLAIN {
                return transport::<EGRESS, ENDS>(skb, data + V4_HEADER, byte(data, 9));
            }
            let is_datagram = first & 0xf0 == 0x60 && byte(data, 6) == IPPROTO_UDP;
            if is_datagram && ((*skb).len as usize) < V6_HEADER + UDP_HEADER + DNS_HEADER {
                return false;
            }
        }
        // What is shorter is no segment, and as a datagram no DNS message.
        (*skb).len as usize >= V4_HEADER + UDP_HEADER + DNS_HEADER
    }
}

/// As [`is_worth_a_look`], for what lies behind the IP header.
///
/// At egress a packet may show another server and another port than its sender asked for: cgroup programs
/// run after netfilter's translation. What was asked, the socket tells: `skb->sk` is read without a helper.
#[inline(always)]
unsafe fn transport<const EGRESS: bool, const ENDS: bool>(
    skb: *mut __sk_buff,
    header: usize,
    protocol: u8,
) -> bool {
    // SAFETY: the caller has checked that there is room for a TCP header; the socket is checked for null,
    // and of a `bpf_sock` that is not full these fields may be read.
    unsafe {
        if protocol == IPPROTO_TCP {
            if ENDS && byte(header, 13) & TERMINATING != 0 {
                return true;
            }
            if !EGRESS {
                return port(header, SOURCE_PORT) == DNS_PORT.to_be();
            }
            let sk = (*skb).__bindgen_anon_2.sk;
            return !sk.is_null() && (*sk).dst_port == DNS_PORT.to_be();
        }
        if protocol != IPPROTO_UDP {
            return false;
        }
        if !EGRESS {
            return is_service(port(header, SOURCE_PORT));
        }
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return false;
        }
        let connected = (*sk).dst_port;
        is_service(port(header, DESTINATION_PORT))
            || is_service(connected)
            || (connected == 0 && asked::is_marked((*sk).src_port))
    }
}

/// Offset in the headers of TCP and UDP.
const SOURCE_PORT: usize = 0;
/// Offset in the headers of TCP and UDP.
const DESTINATION_PORT: usize = 2;

/// Volatile: otherwise the compiler turns comparisons of one byte into a jump table, and TCP, which
/// comes first here, pays for the others.
#[inline(always)]
unsafe fn byte(data: usize, offset: usize) -> u8 {
    // SAFETY: the caller has checked the offset against the packet's end.
    unsafe { ((data + offset) as *const u8).read_volatile() }
}

/// In network order.
#[inline(always)]
unsafe fn port(header: usize, offset: usize) -> u16 {
    // SAFETY: as for `byte`; IP headers are aligned to two bytes at least.
    unsafe { ((header + offset) as *const u16).read_volatile() }
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

/// Reads the headers and reports what is to be reported.
#[inline(always)]
fn look<const EGRESS: bool, const ENDS: bool>(ctx: &SkBuffContext) {
    let skb = ctx.skb.skb;
    let packet = Loaded(skb);
    let network = match parse_network(&packet) {
        Ok(network) => network,
        Err(skip) => {
            return if ENDS {
                count_skipped(skip)
            };
        }
    };
    // SAFETY: the context is valid.
    let Some(sk) = (unsafe { socket_of(skb) }) else { return };
    // The kernel sends its own RSTs from a raw socket that has no TCP state, and programs may send TCP and
    // UDP from raw sockets of their own, which get copies of what others receive. Every other socket that
    // sends them is a TCP or UDP socket, save that of a test run, which has no type.
    // SAFETY: a checked full socket.
    if unsafe { (*sk).type_ } == SOCK_RAW {
        return;
    }
    if network.protocol == IPPROTO_UDP {
        if let Ok(datagram) = parse_udp(&packet, &network) {
            dns::report_message::<EGRESS>(ctx, sk, &network, &datagram);
        }
        return;
    }
    match parse_tcp(&packet, &network) {
        Ok(segment) => {
            if ENDS && segment.flags & TERMINATING != 0 {
                segment::report::<EGRESS>(ctx, sk, &segment);
            }
            dns::report_segment::<EGRESS>(ctx, sk, &segment);
        }
        Err(skip) => {
            if ENDS {
                count_skipped(skip);
            }
        }
    }
}

/// The full socket of a packet, where it has one.
#[inline(always)]
unsafe fn socket_of(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
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
