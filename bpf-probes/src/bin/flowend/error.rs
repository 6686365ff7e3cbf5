//! Tracepoint `sock:inet_sk_error_report`: why a socket failed, where no segment tells it.
//!
//! An ICMP error, an expired keepalive or a destroyed socket leave nothing at the other hooks but CLOSE.
//! The tracepoint's fields are its interface (its `format` file, which the loader compares with
//! [`ERROR_FORMAT`](flowend_probe_types::ERROR_FORMAT)); it fires only when a socket fails, and for all
//! cgroups: user space knows which sockets are watched.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_ktime_get_boot_ns,
    macros::{map, tracepoint},
    maps::PerCpuArray,
    programs::TracePointContext,
};
use flowend_probe_types::{Addr, ERROR_FIELDS, ERRORS_PER_SECOND, ErrorEvent, EventKind};

use crate::ring::{count_lost, reserve};

const IPPROTO_TCP: u16 = 6;
const EPIPE: i32 = 32;
const ECONNRESET: i32 = 104;

#[tracepoint]
fn flowend_error(ctx: TracePointContext) -> u32 {
    report(&ctx);
    0
}

#[inline(always)]
fn report(ctx: &TracePointContext) {
    let base = ctx.as_ptr().cast::<u8>();
    // SAFETY: the offsets are those of the tracepoint's format, and the verifier checks them against its
    // size; volatile, so that each is a load from the context itself.
    unsafe {
        let protocol = base.add(ERROR_FIELDS.protocol).cast::<u16>().read_volatile();
        let error = base.add(ERROR_FIELDS.error).cast::<i32>().read_volatile();
        // A reset shows in its RST. No error at all is reported where something waits in the error queue
        // (MSG_ZEROCOPY, SO_TIMESTAMPING).
        if protocol != IPPROTO_TCP || error == 0 || error == ECONNRESET || error == EPIPE {
            return;
        }
        let time_ns = bpf_ktime_get_boot_ns();
        if !is_within_budget(time_ns) {
            return count_lost(EventKind::Error);
        }
        let Some(mut room) = reserve::<ErrorEvent>(EventKind::Error) else { return };
        let e = room.as_mut_ptr();
        (*e).kind = EventKind::Error as u8;
        (*e).reserved = 0;
        (*e).error = error as u16;
        (*e).local_port = base.add(ERROR_FIELDS.local_port).cast::<u16>().read_volatile();
        (*e).remote_port = base.add(ERROR_FIELDS.remote_port).cast::<u16>().read_volatile();
        (*e).time_ns = time_ns;
        (*e).local = address(base.add(ERROR_FIELDS.local));
        (*e).remote = address(base.add(ERROR_FIELDS.remote));
        room.submit();
    }
}

/// The second, as the high bits of the time, and the reports in it.
#[map]
static ERROR_BUDGET: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn is_within_budget(time_ns: u64) -> bool {
    let Some(budget) = ERROR_BUDGET.get_ptr_mut(0) else { return true };
    // About a second (2^30 ns), without a division.
    let second = time_ns >> 30;
    // SAFETY: a per-CPU slot; as with the counters, an interruption costs nothing but exactness.
    unsafe {
        if (*budget)[0] != second {
            (*budget)[0] = second;
            (*budget)[1] = 0;
        }
        (*budget)[1] += 1;
        (*budget)[1] <= ERRORS_PER_SECOND
    }
}

/// The IPv6 form, which the tracepoint fills for IPv4, too (mapped).
#[inline(always)]
unsafe fn address(at: *const u8) -> Addr {
    // SAFETY: as above; four bytes are the largest aligned load here.
    unsafe {
        let words = at.cast::<u32>();
        Addr::v6([
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ])
    }
}
