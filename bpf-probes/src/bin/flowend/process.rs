//! cgroup connect and bind hooks: the process behind a socket, in its own context.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_ktime_get_boot_ns},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use flowend_probe_types::{EventKind, ProcessEvent};

use crate::ring::{reserve, submit};

const PASS: i32 = 1;
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

#[cgroup_sock_addr(connect4)]
fn flowend_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn flowend_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx)
}

#[cgroup_sock(post_bind4)]
fn flowend_post_bind4(ctx: SockContext) -> i32 {
    bind(&ctx)
}

#[cgroup_sock(post_bind6)]
fn flowend_post_bind6(ctx: SockContext) -> i32 {
    bind(&ctx)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the context is valid and the verifier checks offset and size.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind == SOCK_STREAM && protocol == IPPROTO_TCP {
        report(EventKind::Connect, ctx.as_ptr());
    }
    PASS
}

#[inline(always)]
fn bind(ctx: &SockContext) -> i32 {
    // SAFETY: the context is valid and the verifier checks offset and size.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    if kind == SOCK_STREAM && protocol == IPPROTO_TCP {
        report(EventKind::Bind, ctx.as_ptr());
    }
    PASS
}

#[inline(always)]
fn report(kind: EventKind, ctx: *mut c_void) {
    // SAFETY: helpers take the context; the event is reserved.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx);
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        let time_ns = bpf_ktime_get_boot_ns();
        let Some(mut entry) = reserve::<ProcessEvent>(kind) else { return };
        let e = entry.as_mut_ptr();
        (*e).kind = kind as u8;
        (*e).reserved = [0; 3];
        (*e).pid = pid;
        (*e).time_ns = time_ns;
        (*e).cookie = cookie;
        submit(entry);
    }
}
