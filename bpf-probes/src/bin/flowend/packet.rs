//! cgroup skb hooks: which packets are worth a look, and the look.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::{bpf_sk_fullsock, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use flowend_probe_types::{
    Addr, IPPROTO_TCP, IPPROTO_UDP, PacketBytes, Segment, TERMINATING, parse_network, parse_tcp,
    parse_udp,
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
    let skb = ctx.skb.skb;
    if is_worth_a_look::<EGRESS, ENDS>(skb) {
        match (EGRESS, ENDS) {
            (false, true) => look_ingress(skb),
            (true, true) => look_egress(skb),
            (false, false) => look_dns_ingress(skb),
            (true, false) => look_dns_egress(skb),
        }
    }
    PASS
}

// Functions of their own: what they need of registers and stack, a packet that is not looked at does not pay for. Not
// mangled: the object is the same wherever it is built.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_ingress(skb: *mut __sk_buff) {
    look::<false, true>(&SkBuffContext::new(skb));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_egress(skb: *mut __sk_buff) {
    look::<true, true>(&SkBuffContext::new(skb));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_dns_ingress(skb: *mut __sk_buff) {
    look::<false, false>(&SkBuffContext::new(skb));
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn look_dns_egress(skb: *mut __sk_buff) {
    look::<true, false>(&SkBuffContext::new(skb));
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
                if byte(data, 6) == IPPROTO_TCP {
                    return transport::<EGRESS, ENDS>(skb, data + V6_HEADER, IPPROTO_TCP);
                }
                let next = byte(data, 6);
                if next == IPPROTO_UDP {
                    return transport::<EGRESS, ENDS>(skb, data + V6_HEADER, IPPROTO_UDP);
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

/// In the packet's order. IP headers are aligned to four bytes.
#[inline(always)]
unsafe fn word(data: usize, offset: usize) -> u32 {
    // SAFETY: as for `byte`.
    unsafe { ((data + offset) as *const u32).read_volatile() }
}

/// The slow way into a packet: works where direct access does not, past the linear part too.
struct Loaded(*mut __sk_buff);

impl Loaded {
    /// # Safety
    /// Of the type `T`, all bytes that there may be are values.
    #[inline(always)]
    unsafe fn load<T>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the offset and writes the whole value, which is read only then.
        unsafe {
            let (to, size) = (value.as_mut_ptr().cast(), size_of::<T>() as u32);
            let error = bpf_skb_load_bytes(self.0 as *const c_void, offset, to, size);
            if error == 0 { Some(value.assume_init()) } else { None }
        }
    }
}

impl PacketBytes for Loaded {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: bytes.
        unsafe { self.load(offset) }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        // SAFETY: numbers.
        unsafe { self.load(offset) }
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
    // SAFETY: the context is valid.
    let plain = unsafe { plain_segment(skb) };
    let network = if plain.is_some() {
        None
    } else {
        match parse_network(&Loaded(skb)) {
            Ok(network) => Some(network),
            Err(skip) => {
                return if ENDS {
                    count_skipped(skip)
                };
            }
        }
    };
    // SAFETY: the context is valid.
    let Some(sk) = (unsafe { socket_of(skb) }) else { return };
    let segment = match (plain, network) {
        (Some(segment), _) => Ok(segment),
        (None, Some(network)) if network.protocol == IPPROTO_UDP => {
            if let Ok(datagram) = parse_udp(&Loaded(skb), &network) {
                dns::report_message::<EGRESS>(ctx, sk, &network, &datagram);
            }
            return;
        }
        (None, Some(network)) => parse_tcp(&Loaded(skb), &network),
        (None, None) => return,
    };
    match segment {
        Ok(mut segment) => {
            segment.payload = forgotten(segment.payload);
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

/// The same number, of which the verifier knows nothing any more: it would follow each way through the headers apart
/// from here on, since it knows other bounds for what is left of the packet.
///
/// What it knows of a register, it keeps where that is written to the stack at a multiple of 8 bytes
/// (`check_stack_write_fixed_off` in `kernel/bpf/verifier.c`); here it is not.
#[inline(always)]
fn forgotten(n: u32) -> u32 {
    let mut slot = MaybeUninit::<u64>::uninit();
    // SAFETY: the second half of the slot; what is read was written just before.
    unsafe {
        let half = slot.as_mut_ptr().cast::<u32>().add(1);
        half.write_volatile(n);
        half.read_volatile()
    }
}

/// A segment without IP options or extension headers whose headers are all in the linear part, which is nearly
/// each: read directly, where three calls of a helper would cost as much as the rest of an event. What is not
/// plain, or damaged, is left to the parser.
#[inline(always)]
unsafe fn plain_segment(skb: *mut __sk_buff) -> Option<Segment> {
    // SAFETY: the context is valid, and every read is inside `end`, which the verifier checks.
    unsafe {
        let data = (*skb).data as usize;
        let end = (*skb).data_end as usize;
        if data + V4_HEADER + TCP_HEADER > end {
            return None;
        }
        if byte(data, 0) == V4_PLAIN {
            // No fragment but the first.
            if byte(data, 9) != IPPROTO_TCP || port(data, 6) & 0x1fff_u16.to_be() != 0 {
                return None;
            }
            let (src, dst) = (Addr::v4(word(data, 12)), Addr::v4(word(data, 16)));
            return segment_at(skb, data, V4_HEADER, src, dst);
        }
        if data + V6_HEADER + TCP_HEADER > end
            || byte(data, 0) & 0xf0 != 0x60
            || byte(data, 6) != IPPROTO_TCP
        {
            return None;
        }
        let src = [word(data, 8), word(data, 12), word(data, 16), word(data, 20)];
        let dst = [word(data, 24), word(data, 28), word(data, 32), word(data, 36)];
        segment_at(skb, data, V6_HEADER, Addr::v6(src), Addr::v6(dst))
    }
}

/// The TCP header at this offset.
#[inline(always)]
unsafe fn segment_at(
    skb: *mut __sk_buff,
    data: usize,
    at: usize,
    src: Addr,
    dst: Addr,
) -> Option<Segment> {
    // SAFETY: the caller has checked that the whole header is there.
    unsafe {
        let header = data + at;
        let length = u32::from(byte(header, 12) >> 4) * 4;
        let payload_at = at as u32 + length;
        let len = (*skb).len;
        if length < TCP_HEADER as u32 || payload_at > len {
            return None;
        }
        Some(Segment {
            src,
            dst,
            src_port: u16::from_be(port(header, SOURCE_PORT)),
            dst_port: u16::from_be(port(header, DESTINATION_PORT)),
            seq: u32::from_be(word(header, 4)),
            ack: u32::from_be(word(header, 8)),
            flags: byte(header, 13),
            payload: len - payload_at,
        })
    }
}

/// The full socket of a packet, where it has one that is not raw.
///
/// The kernel sends its own RSTs from a raw socket that has no TCP state, and programs may send TCP and
/// UDP from raw sockets of their own, which get copies of what others receive. Every other socket that
/// sends them is a TCP or UDP socket, save that of a test run, which has no type.
#[inline(always)]
unsafe fn socket_of(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the caller passes the context; the helper's result is checked for null.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() || (*sk).type_ == SOCK_RAW {
            return None;
        }
        Some(sk)
    }
}
