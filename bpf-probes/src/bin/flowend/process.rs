//! cgroup connect and bind hooks: the process behind a socket, in its own context, and the address that it
//! asked for.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_socket_cookie,
        bpf_ktime_get_boot_ns,
    },
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use flowend_probe_types::{Addr, Claim, EventKind, ProcessEvent};

use crate::ring::reserve_for;

const PASS: i32 = 1;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

#[cgroup_sock_addr(connect4)]
fn flowend_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the verifier checks offset and size.
    let addr = unsafe { Addr::v4((*ctx.sock_addr).user_ip4) };
    connect(&ctx, addr)
}

#[cgroup_sock_addr(connect6)]
fn flowend_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above; each word by itself, since the verifier takes no other read of an array.
    let addr = unsafe {
        let words = core::ptr::addr_of!((*ctx.sock_addr).user_ip6);
        let word = |i: usize| words.cast::<u32>().add(i).read_volatile();
        Addr::v6([word(0), word(1), word(2), word(3)])
    };
    connect(&ctx, addr)
}

#[cgroup_sock(post_bind4)]
fn flowend_post_bind4(ctx: SockContext) -> i32 {
    bind(&ctx)
}

#[cgroup_sock(post_bind6)]
fn flowend_post_bind6(ctx: SockContext) -> i32 {
    bind(&ctx)
}

/// Whether the process is told; the loader sets it (`process.enabled`). The address that connect() was
/// given is told all the same.
#[unsafe(no_mangle)]
static TELL_PROCESS: u8 = 1;

#[inline(always)]
fn connect(ctx: &SockAddrContext, addr: Addr) -> i32 {
    // SAFETY: the context is valid and the verifier checks offset and size.
    let (kind, protocol, port) =
        unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port) };
    if kind == SOCK_STREAM && protocol == IPPROTO_TCP {
        let port = u16::from_be(port as u16);
        report(EventKind::Connect, ctx.as_ptr(), (addr, port));
    }
    PASS
}

#[inline(always)]
fn bind(ctx: &SockContext) -> i32 {
    // SAFETY: the context is valid and the verifier checks offset and size.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    if kind == SOCK_STREAM && protocol == IPPROTO_TCP {
        report(EventKind::Bind, ctx.as_ptr(), (Addr::default(), 0));
    }
    PASS
}

#[inline(always)]
fn report(kind: EventKind, ctx: *mut c_void, remote: (Addr, u16)) {
    // SAFETY: helpers take the context; the event is reserved.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx);
        let pid = if core::ptr::read_volatile(&raw const TELL_PROCESS) != 0 {
            (bpf_get_current_pid_tgid() >> 32) as u32
        } else {
            0
        };
        let time_ns = bpf_ktime_get_boot_ns();
        // That of the process, which is that of the sockets it makes.
        let cgroup_id = bpf_get_current_cgroup_id();
        let Some(mut room) = reserve_for::<ProcessEvent>(kind, Claim::Stranger, cgroup_id) else {
            return;
        };
        let e = room.as_mut_ptr();
        (*e).kind = kind as u8;
        (*e).reserved = 0;
        (*e).remote_port = remote.1;
        // Volatile: else the address of none is a call of memset, a loop over bytes.
        (&raw mut (*e).remote).write_volatile(remote.0);
        (*e).pid = pid;
        (*e).time_ns = time_ns;
        (*e).cookie = cookie;
        (*e).cgroup_id = cgroup_id;
        room.submit();
    }
}
