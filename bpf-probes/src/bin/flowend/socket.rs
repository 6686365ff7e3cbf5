//! sockops: establishment, giving up, and CLOSE.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTO_CB_FLAG, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    helpers::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_getsockopt, bpf_ktime_get_boot_ns,
        bpf_sock_ops_cb_flags_set,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use flowend_probe_types::{Account, Addr, Claim, EventKind, TcpEvent, TcpState};

use crate::ring::reserve_for;

const HANDLED: u32 = 1;
const AF_INET6: u32 = 10;

/// A 32-bit field of the context, with its offset in the load instruction itself.
///
/// The verifier takes no pointer that was derived from the context, and the compiler likes to derive
/// one where a field is read in two places. Unsafe to use; the verifier checks the offset.
macro_rules! ctx {
    ($ops:expr, $($field:tt)+) => {{
        let value: u64;
        core::arch::asm!(
            "{value} = *(u32 *)({ops} + {offset})",
            value = lateout(reg) value,
            ops = in(reg) $ops,
            offset = const core::mem::offset_of!(bpf_sock_ops, $($field)+),
            options(pure, readonly, nostack, preserves_flags),
        );
        value as u32
    }};
}

/// As [`ctx`], for an element of an array of 32-bit words.
macro_rules! ctx_word {
    ($ops:expr, $field:ident, $index:literal) => {{
        let value: u64;
        core::arch::asm!(
            "{value} = *(u32 *)({ops} + {offset})",
            value = lateout(reg) value,
            ops = in(reg) $ops,
            offset = const core::mem::offset_of!(bpf_sock_ops, $field) + 4 * $index,
            options(pure, readonly, nostack, preserves_flags),
        );
        value as u32
    }};
}

/// As [`ctx`], for 64-bit fields.
macro_rules! ctx_u64 {
    ($ops:expr, $field:ident) => {{
        let value: u64;
        core::arch::asm!(
            "{value} = *(u64 *)({ops} + {offset})",
            value = lateout(reg) value,
            ops = in(reg) $ops,
            offset = const core::mem::offset_of!(bpf_sock_ops, $field),
            options(pure, readonly, nostack, preserves_flags),
        );
        value
    }};
}

/// 1 where the kernel lets sockops programs ask for the namespace's cookie (since Linux 5.15). The
/// loader sets it; the verifier then never looks at what is behind a 0.
#[unsafe(no_mangle)]
static NETNS_COOKIE: u8 = 1;

#[sock_ops]
fn flowend_sockops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    // SAFETY: the context is valid.
    let (op, args) = unsafe {
        (ctx!(ops, op), [ctx_word!(ops, __bindgen_anon_1, 1), ctx_word!(ops, __bindgen_anon_1, 2)])
    };
    let [new_state, gives_up] = args;
    let kind = match op {
        // Before the SYN leaves: from here on the end is seen, whatever the answer.
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            watch(ops);
            return HANDLED;
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            watch(ops);
            EventKind::ActiveEstablished
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            watch(ops);
            EventKind::PassiveEstablished
        }
        // args: retransmissions so far, RTO in ms, whether the kernel gives up now
        BPF_SOCK_OPS_RTO_CB if gives_up != 0 => EventKind::GaveUp,
        // args: old state, new state
        BPF_SOCK_OPS_STATE_CB if new_state == TcpState::Close as u32 => EventKind::Closed,
        _ => return HANDLED,
    };
    report(&ctx, kind);
    HANDLED
}

/// Asks for the callbacks of state changes and retransmission timeouts, beside what others asked for.
#[inline(always)]
fn watch(ops: *mut bpf_sock_ops) {
    // SAFETY: the context is valid.
    unsafe {
        let flags = ctx!(ops, bpf_sock_ops_cb_flags);
        bpf_sock_ops_cb_flags_set(
            ops,
            (flags | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG) as i32,
        );
    }
}

#[inline(always)]
fn report(ctx: &SockOpsContext, kind: EventKind) {
    let ops = ctx.ops;
    // SAFETY: the context is valid, helpers take it, and the event is reserved.
    unsafe {
        let state = if matches!(kind, EventKind::Closed) {
            ctx_word!(ops, __bindgen_anon_1, 0)
        } else {
            ctx!(ops, state)
        };
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        let time_ns = bpf_ktime_get_boot_ns();
        let netns = if core::ptr::read_volatile(&raw const NETNS_COOKIE) != 0 {
            bpf_get_netns_cookie(ctx.as_ptr())
        } else {
            0
        };
        let keepalive_ms =
            if matches!(kind, EventKind::Closed) { keepalive_ms(ops, state) } else { 0 };
        // The namespace stands for the cgroup, which this hook cannot tell.
        let holder = if netns != 0 { Account::NETNS | netns } else { 0 };
        let Some(mut room) = reserve_for::<TcpEvent>(kind, Claim::Connection, holder) else {
            return;
        };
        let e = room.as_mut_ptr();
        (*e).kind = kind as u8;
        (*e).flags = 0;
        (*e).state = state as u8;
        (*e).reserved = 0;
        (*e).time_ns = time_ns;
        (*e).cookie = cookie;
        // sockops programs may not call bpf_sk_cgroup_id(); segments of the socket tell it.
        (*e).cgroup_id = 0;
        (*e).netns = netns;
        (*e).seq = 0;
        (*e).ack = 0;
        (*e).payload = 0;
        (*e).keepalive_ms = keepalive_ms;
        let remote6 = Addr::v6([
            ctx_word!(ops, remote_ip6, 0),
            ctx_word!(ops, remote_ip6, 1),
            ctx_word!(ops, remote_ip6, 2),
            ctx_word!(ops, remote_ip6, 3),
        ]);
        if ctx!(ops, family) == AF_INET6 && !remote6.is_v4() {
            (*e).local = Addr::v6([
                ctx_word!(ops, local_ip6, 0),
                ctx_word!(ops, local_ip6, 1),
                ctx_word!(ops, local_ip6, 2),
                ctx_word!(ops, local_ip6, 3),
            ]);
            (*e).remote = remote6;
        } else {
            (*e).local = Addr::v4(ctx!(ops, local_ip4));
            (*e).remote = Addr::v4(ctx!(ops, remote_ip4));
        }
        // local_port is in host order, remote_port in network order within 32 bits.
        (*e).local_port = ctx!(ops, local_port) as u16;
        (*e).remote_port = u32::from_be(ctx!(ops, remote_port)) as u16;
        (*e).bytes_acked = ctx_u64!(ops, bytes_acked);
        (*e).bytes_received = ctx_u64!(ops, bytes_received);
        (*e).snd_nxt = ctx!(ops, snd_nxt);
        (*e).snd_una = ctx!(ops, snd_una);
        (*e).rcv_nxt = ctx!(ops, rcv_nxt);
        (*e).srtt_8us = ctx!(ops, srtt_us);
        (*e).rtt_min_us = ctx!(ops, rtt_min);
        (*e).segs_out = ctx!(ops, segs_out);
        (*e).segs_in = ctx!(ops, segs_in);
        (*e).data_segs_out = ctx!(ops, data_segs_out);
        (*e).data_segs_in = ctx!(ops, data_segs_in);
        (*e).total_retrans = ctx!(ops, total_retrans);
        room.submit();
    }
}

const SOL_SOCKET: i32 = 1;
const SO_KEEPALIVE: i32 = 9;
const SOL_TCP: i32 = 6;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

/// The silence after which keepalive gives up; for the states in which nothing else explains an own RST.
/// Kernels before 6.1 do not tell a sockops program, and 0 is then the answer.
#[inline(always)]
fn keepalive_ms(ops: *mut bpf_sock_ops, state: u32) -> u32 {
    let idle = state == TcpState::Established as u32
        || state == TcpState::CloseWait as u32
        || state == TcpState::FinWait2 as u32;
    if !idle || option(ops, SOL_SOCKET, SO_KEEPALIVE) == 0 {
        return 0;
    }
    let idle_s = option(ops, SOL_TCP, TCP_KEEPIDLE);
    let probes = option(ops, SOL_TCP, TCP_KEEPCNT);
    let interval_s = option(ops, SOL_TCP, TCP_KEEPINTVL);
    let user_ms = option(ops, SOL_TCP, TCP_USER_TIMEOUT);
    // TCP_USER_TIMEOUT takes the place of the number of probes (net/ipv4/tcp_timer.c,
    // tcp_keepalive_timer): at least one is sent all the same.
    let probing_s = if user_ms > 0 { 0 } else { u64::from(probes) * u64::from(interval_s) };
    let silence_ms = (u64::from(idle_s) + probing_s) * 1000;
    let silence_ms = if silence_ms > u64::from(user_ms) { silence_ms } else { u64::from(user_ms) };
    // The defaults are sysctls of any size.
    if silence_ms > u64::from(u32::MAX) { u32::MAX } else { silence_ms as u32 }
}

/// An integer option of the socket; 0 where the kernel refuses.
#[inline(always)]
fn option(ops: *mut bpf_sock_ops, level: i32, name: i32) -> u32 {
    let mut value = 0_u32;
    // SAFETY: the helper writes at most the four bytes that it is told of.
    let error = unsafe { bpf_getsockopt(ops.cast(), level, name, (&raw mut value).cast(), 4) };
    if error == 0 { value } else { 0 }
}
