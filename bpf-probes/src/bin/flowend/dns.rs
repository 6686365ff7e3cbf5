//! DNS messages over UDP, copied whole: queries on their way out, answers on their way in.

use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_sock},
    helpers::{
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_skb_cgroup_id, bpf_skb_load_bytes,
    },
    programs::SkBuffContext,
};
use flowend_probe_types::{Addr, DNS_ROOM, DnsEvent, EventKind};

use crate::ring::{reserve, submit};
use crate::segment::socket_of;

/// Whether DNS messages are copied; the loader sets it (`dns.enabled`).
#[unsafe(no_mangle)]
static DNS_ENABLED: u8 = 1;

const IPV6_HEADER: u32 = 40;
const IPV4_HEADER: u32 = 20;
const UDP_HEADER: u32 = 8;

/// A message and room for its bytes.
#[repr(C)]
struct Message<const ROOM: usize> {
    facts: DnsEvent,
    bytes: [u8; ROOM],
}

/// Copies the DNS message of a packet without IP options into the ring.
#[inline(always)]
pub fn report(ctx: &SkBuffContext, kind: EventKind, is_v6: bool) {
    let skb = ctx.skb.skb;
    // SAFETY: a valid static; volatile, since the loader writes it.
    if unsafe { core::ptr::addr_of!(DNS_ENABLED).read_volatile() } == 0 {
        return;
    }
    let at = UDP_HEADER + if is_v6 { IPV6_HEADER } else { IPV4_HEADER };
    // SAFETY: the context is valid.
    let packet = unsafe { (*skb).len };
    if packet <= at {
        return;
    }
    let len = packet - at;
    if len < DNS_ROOM[0] as u32 {
        copy::<{ DNS_ROOM[0] }>(ctx, kind, is_v6, at, len);
    } else if len < DNS_ROOM[1] as u32 {
        copy::<{ DNS_ROOM[1] }>(ctx, kind, is_v6, at, len);
    } else {
        copy::<{ DNS_ROOM[2] }>(ctx, kind, is_v6, at, len);
    }
}

#[inline(always)]
fn copy<const ROOM: usize>(ctx: &SkBuffContext, kind: EventKind, is_v6: bool, at: u32, len: u32) {
    let skb = ctx.skb.skb;
    // SAFETY: pointers come from the context and from helpers, and are checked for null; the event is
    // reserved, and the copy is bounded by its room.
    unsafe {
        let Some(sk) = socket_of(skb) else { return };
        let Some((from, to)) = packet_ends(skb, is_v6) else { return };
        let whole = len < ROOM as u32;
        let len = if whole { len } else { ROOM as u32 - 1 };
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        let cgroup_id = bpf_skb_cgroup_id(skb);
        let time_ns = bpf_ktime_get_boot_ns();
        let Some(mut entry) = reserve::<Message<ROOM>>(kind) else { return };
        let message = entry.as_mut_ptr();
        let e = core::ptr::addr_of_mut!((*message).facts);
        (*e).kind = kind as u8;
        (*e).cut = u8::from(!whole);
        (*e).len = len as u16;
        (*e).time_ns = time_ns;
        (*e).cookie = cookie;
        (*e).cgroup_id = cgroup_id;
        (*e).seq = 0;
        (*e).flags = 0;
        (*e).translated = 0;
        (*e).reserved = 0;
        let (local, remote) =
            if matches!(kind, EventKind::DnsAnswer) { (to, from) } else { (from, to) };
        (*e).local = local.0;
        (*e).local_port = local.1;
        (*e).remote = remote.0;
        (*e).remote_port = remote.1;
        if (*sk).dst_port != 0 {
            connected_server(e, sk, is_v6);
        }
        // A bound that the verifier sees, whatever became of the comparisons.
        let bounded = bound::<ROOM>(len);
        let bytes = message.cast::<u8>().add(size_of::<DnsEvent>());
        if bpf_skb_load_bytes(skb as *const c_void, at, bytes.cast(), bounded) != 0 {
            (*e).len = 0;
        }
        submit(entry);
    }
}

/// `len` as the verifier must see it: from 1 to `ROOM` - 1, `ROOM` being a power of two. Compared by
/// "greater": of "not equal" kernels before 6.8 learn nothing.
#[inline(always)]
fn bound<const ROOM: usize>(len: u32) -> u32 {
    let mut len = u64::from(len);
    // SAFETY: arithmetic on a register; in assembly, since the compiler would leave out what it can
    // prove and the verifier cannot.
    unsafe {
        core::arch::asm!(
            "{len} &= {mask}",
            "if {len} > 0 goto +1",
            "{len} = 1",
            len = inout(reg) len,
            mask = const ROOM as i32 - 1,
            options(pure, nomem, nostack),
        );
    }
    len as u32
}

/// Source and destination of the packet: address and port.
#[inline(always)]
fn packet_ends(skb: *mut __sk_buff, is_v6: bool) -> Option<((Addr, u16), (Addr, u16))> {
    let load = |offset: u32, to: *mut u8, n: u32| {
        // SAFETY: the helper checks the offset and writes n bytes.
        unsafe { bpf_skb_load_bytes(skb as *const c_void, offset, to.cast(), n) == 0 }
    };
    let mut ports = [0_u8; 4];
    let (from, to) = if is_v6 {
        let mut words = [0_u32; 8];
        if !load(8, words.as_mut_ptr().cast(), 32) || !load(IPV6_HEADER, ports.as_mut_ptr(), 4) {
            return None;
        }
        let [a, b, c, d, e, f, g, h] = words;
        (Addr::v6([a, b, c, d]), Addr::v6([e, f, g, h]))
    } else {
        let mut words = [0_u32; 2];
        if !load(12, words.as_mut_ptr().cast(), 8) || !load(IPV4_HEADER, ports.as_mut_ptr(), 4) {
            return None;
        }
        (Addr::v4(words[0]), Addr::v4(words[1]))
    };
    let port = |high, low| u16::from_be_bytes([high, low]);
    Some(((from, port(ports[0], ports[1])), (to, port(ports[2], ports[3]))))
}

/// The server as the connected socket knows it.
///
/// Volatile, and both families: the compiler would fold the two into one read at a computed offset,
/// which the verifier refuses for a socket.
#[inline(always)]
unsafe fn connected_server(e: *mut DnsEvent, sk: *const bpf_sock, is_v6: bool) {
    // SAFETY: the caller passes a reserved event and a checked full socket.
    unsafe {
        let v4 = core::ptr::addr_of!((*sk).dst_ip4).read_volatile();
        let a = core::ptr::addr_of!((*sk).dst_ip6[0]).read_volatile();
        let b = core::ptr::addr_of!((*sk).dst_ip6[1]).read_volatile();
        let c = core::ptr::addr_of!((*sk).dst_ip6[2]).read_volatile();
        let d = core::ptr::addr_of!((*sk).dst_ip6[3]).read_volatile();
        (*e).remote = if is_v6 { Addr::v6([a, b, c, d]) } else { Addr::v4(v4) };
        (*e).remote_port = u16::from_be((*sk).dst_port);
    }
}
