//! The ring buffer and the count of what did not fit into it.

use core::ptr::addr_of_mut;

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use flowend_probe_types::{EventKind, LOST_SLOTS};

/// Events to user space. The loader sets the size (`ring.bytes`).
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Events that found the ring full, by [`EventKind::lost_slot`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST_SLOTS.len() as u32, 0);

/// Puts one event into the ring, written in place by `fill`, or counts it as lost.
///
/// No wake-up: user space drains on a timer. Past half of the ring it is woken at once.
#[inline(always)]
pub fn emit<T: 'static>(kind: EventKind, fill: impl FnOnce(*mut T)) {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        if let Some(count) = LOST.get_ptr_mut(kind.lost_slot()) {
            // SAFETY: a per-CPU slot, and programs of one CPU do not interrupt each other here;
            // should one do so, the count is one short and nothing else happens.
            unsafe { *count += 1 };
        }
        return;
    };
    fill(addr_of_mut!(*entry).cast::<T>());
    let half_full = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > EVENTS.query(u64::from(BPF_RB_RING_SIZE)) / 2;
    entry.submit(u64::from(if half_full { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
}
