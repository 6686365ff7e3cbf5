//! cgroup sendmsg hooks: which server an unconnected UDP socket asked.
//!
//! The hook runs in sendto(), before netfilter translates the packet, and the packet leaves before sendto()
//! returns. What was asked is put down here, by socket, and taken by the egress program.

use core::cell::UnsafeCell;

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_socket_cookie,
    macros::{cgroup_sock_addr, map},
    maps::LruHashMap,
    programs::SockAddrContext,
};
use flowend_probe_types::{Addr, IPPROTO_UDP};

use crate::dns::is_service;

const PASS: i32 = 1;

/// The server that a datagram was meant for.
#[repr(C)]
#[derive(Clone, Copy)]
struct Asked {
    addr: Addr,
    port: u16,
    /// 0 once the datagram was seen.
    is_pending: u16,
    reserved: u32,
}

/// Of the datagrams on their way from sendto() to the egress program, by socket cookie: one for each
/// thread that sends at the moment, beside those that never left.
#[map]
static ASKED: LruHashMap<u64, Asked> = LruHashMap::with_max_entries(4096, 0);

/// By local port: how often a packet is looked up in [`ASKED`] before the mark is gone. So a packet of an
/// unconnected socket that sends no query costs one load.
///
/// Sockets of different network namespaces share a mark. One that finds nothing of its own takes 1 off,
/// and so a datagram that never left marks its port for a while only.
#[unsafe(no_mangle)]
static MARKS: Marks = Marks(UnsafeCell::new([0; 65536]));
const LOOKS: u8 = 16;

struct Marks(UnsafeCell<[u8; 65536]>);
// SAFETY: only single bytes are read and written (the target has no atomics of that size); see `mark_of`.
unsafe impl Sync for Marks {}

#[cgroup_sock_addr(sendmsg4)]
fn flowend_sendmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the verifier checks offset and size.
    let addr = unsafe { Addr::v4((*ctx.sock_addr).user_ip4) };
    note(&ctx, addr)
}

#[cgroup_sock_addr(sendmsg6)]
fn flowend_sendmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above; each word by itself, since the verifier takes no other read of an array.
    let addr = unsafe {
        let words = core::ptr::addr_of!((*ctx.sock_addr).user_ip6);
        let word = |i: usize| words.cast::<u32>().add(i).read_volatile();
        Addr::v6([word(0), word(1), word(2), word(3)])
    };
    note(&ctx, addr)
}

/// Puts down what was asked; forgets it where the socket sends something else.
#[inline(always)]
fn note(ctx: &SockAddrContext, addr: Addr) -> i32 {
    // SAFETY: the context is valid, the verifier checks offset and size, and the socket is checked for null.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if (*ctx.sock_addr).protocol != u32::from(IPPROTO_UDP) || sk.is_null() {
            return PASS;
        }
        let port = (*ctx.sock_addr).user_port as u16;
        let mark = mark_of((*sk).src_port);
        if is_service(port) && !is_unspecified(&addr) {
            let asked = Asked { addr, port: u16::from_be(port), is_pending: 1, reserved: 0 };
            let cookie = bpf_get_socket_cookie(ctx.as_ptr());
            if ASKED.insert(cookie, asked, 0).is_ok() {
                mark.write_volatile(LOOKS);
            }
        } else if mark.read_volatile() != 0 {
            // A query that never left: this datagram must not pass for it. An error says that there is none.
            let _ = ASKED.remove(bpf_get_socket_cookie(ctx.as_ptr()));
        }
    }
    PASS
}

/// 0.0.0.0 and ::, which the kernel takes for the own host: the packet shows which address that is.
#[inline(always)]
const fn is_unspecified(addr: &Addr) -> bool {
    let Addr([a, b, c, d]) = *addr;
    d == 0 && a | b == 0 && (c == 0 || addr.is_v4())
}

/// Whether a socket with this local port may have asked something just now.
#[inline(always)]
pub fn is_marked(local_port: u32) -> bool {
    // SAFETY: inside the array.
    unsafe { mark_of(local_port).read_volatile() != 0 }
}

/// The server that the datagram now leaving was meant for, once.
#[inline(always)]
pub fn take(cookie: u64, local_port: u32) -> Option<(Addr, u16)> {
    let mark = mark_of(local_port);
    // SAFETY: entries are written whole before they are found, and of one socket by the thread that now
    // sends; where two threads send from one socket, one's server may be told of the other. The mark is
    // inside the array.
    unsafe {
        if let Some(asked) = ASKED.get_ptr_mut(cookie)
            && (*asked).is_pending != 0
        {
            (*asked).is_pending = 0;
            mark.write_volatile(0);
            return Some(((*asked).addr, (*asked).port));
        }
        let looks = mark.read_volatile();
        if looks != 0 {
            mark.write_volatile(looks - 1);
        }
    }
    None
}

/// Volatile reads and writes of a byte that all CPUs share: a lost one costs a look-up, or the translation
/// of one query.
#[inline(always)]
fn mark_of(local_port: u32) -> *mut u8 {
    // SAFETY: 16 bits index the array.
    unsafe { MARKS.0.get().cast::<u8>().add((local_port & 0xffff) as usize) }
}
