//! The ring buffer and the count of what did not fit into it.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use flowend_probe_types::{EventKind, LOST_SLOTS, SKIPPED_SLOTS, Skip};

/// Events to user space. The loader sets the size (`ring.bytes`).
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Events that found the ring full, and DNS messages that found it half full, by [`EventKind::lost_slot`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST_SLOTS.len() as u32, 0);

/// Packets that looked like a SYN, FIN or RST and could not be read, by [`Skip::slot`].
#[map]
static SKIPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(SKIPPED_SLOTS.len() as u32, 0);

/// Not 0 while user space sleeps until it is woken, and reads on no timer.
#[map]
static ASLEEP: Array<u32> = Array::with_max_entries(1, 0);

/// Counts a packet that could not be read.
#[inline(always)]
pub fn count_skipped(skip: Skip) {
    if let Some(slot) = skip.slot()
        && let Some(count) = SKIPPED.get_ptr_mut(slot)
    {
        // SAFETY: as in `count_lost`.
        unsafe { *count += 1 };
    }
}

/// Room for one event in the ring, or `None`, counted as lost. It must be submitted.
#[inline(always)]
pub fn reserve<T: 'static>(kind: EventKind) -> Option<RingBufEntry<T>> {
    let entry = EVENTS.reserve::<T>(0);
    if entry.is_none() {
        count_lost(kind);
    }
    entry
}

/// As [`reserve`], for a DNS message: names give way to the ends of connections, so half of the ring is
/// not for them.
#[inline(always)]
pub fn reserve_name<T: 'static>(kind: EventKind) -> Option<RingBufEntry<T>> {
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    if waiting >= EVENTS.query(u64::from(BPF_RB_RING_SIZE)) / 2 {
        count_lost(kind);
        return None;
    }
    reserve(kind)
}

/// Counts an event that user space will not get.
#[inline(always)]
pub fn count_lost(kind: EventKind) {
    if let Some(count) = LOST.get_ptr_mut(kind.lost_slot()) {
        // SAFETY: a per-CPU slot, and programs of one CPU do not interrupt each other here; should
        // one do so, the count is one short and nothing else happens.
        unsafe { *count += 1 };
    }
}

/// Hands a written event to user space.
///
/// No wake-up: user space drains on a timer. Past half of the ring, and where it sleeps, it is woken at once.
#[inline(always)]
pub fn submit<T: 'static>(entry: RingBufEntry<T>) {
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    let half = EVENTS.query(u64::from(BPF_RB_RING_SIZE)) / 2;
    let wake_up =
        if waiting > half || found_asleep() { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    entry.submit(u64::from(wake_up));
}

/// Whether user space sleeps; only the first who asks is told so, since one wake-up is enough.
///
/// User space says that it sleeps and looks into the ring after that, so whatever it did not see was reserved
/// later, and finds the flag set.
#[inline(always)]
fn found_asleep() -> bool {
    let Some(asleep) = ASLEEP.get_ptr_mut(0) else { return false };
    // SAFETY: a slot of the map, aligned, read and written whole. Two CPUs may both find it set: then there are
    // two wake-ups.
    unsafe {
        let found = asleep.read_volatile() != 0;
        if found {
            asleep.write_volatile(0);
        }
        found
    }
}
