//! The ring buffer, each cgroup's share of it, and the count of what did not fit.
//!
//! All cgroups write to one ring. While a part of it is in use, each is held to a share that depends on what is
//! free (dynamic thresholds, as in switches with shared memory): a flood leaves room for everybody else's
//! events. Until then nobody's account is looked at.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        BPF_RB_PROD_POS,
    },
    macros::map,
    maps::{Array, LruHashMap, PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use flowend_probe_types::{Account, Claim, EventKind, LOST_SLOTS, SKIPPED_SLOTS, Skip};

/// Events to user space. The loader sets the size (`ring.bytes`).
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// The size of [`EVENTS`]; the loader sets it.
#[unsafe(no_mangle)]
static RING_BYTES: u64 = 4096;

/// Of those who wrote last while the ring was in use; see [`Account`].
#[map]
static ACCOUNTS: LruHashMap<u64, [u64; Account::WORDS]> = LruHashMap::with_max_entries(4096, 0);

/// Events that the ring had no room for, or no more for their cgroup, by [`EventKind::lost_slot`].
#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST_SLOTS.len() as u32, 0);

/// Packets that looked like a SYN, FIN or RST and could not be read, by [`Skip::slot`].
#[map]
static SKIPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(SKIPPED_SLOTS.len() as u32, 0);

/// Not 0 while user space sleeps until it is woken, and reads on no timer.
#[map]
static ASLEEP: Array<u32> = Array::with_max_entries(1, 0);

/// What the kernel puts before each record (`BPF_RINGBUF_HDR_SZ`).
const HEADER: u64 = 8;

/// Counts a packet that could not be read.
#[inline(always)]
pub fn count_skipped(skip: Skip) {
    if let Some(slot) = skip.slot()
        && let Some(count) = SKIPPED.get_ptr_mut(slot)
    {
        // As in `count_lost`.
        add(count, 0, 1);
    }
}

/// Room for one event. It must be submitted.
pub struct Room<T: 'static> {
    entry: RingBufEntry<T>,
    /// What else waited in the ring, bytes.
    waiting: u64,
}

impl<T: 'static> Room<T> {
    /// Where the event goes.
    #[inline(always)]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.entry.as_mut_ptr()
    }

    /// Hands a written event to user space.
    ///
    /// No wake-up: user space drains on a timer. Past half of the ring, and where it sleeps, it is woken at once.
    #[inline(always)]
    pub fn submit(self) {
        let wake_up = if self.waiting > ring_bytes() / 2 || found_asleep() {
            BPF_RB_FORCE_WAKEUP
        } else {
            BPF_RB_NO_WAKEUP
        };
        self.entry.submit(u64::from(wake_up));
    }

    /// As [`Room::submit`], for an event after which the same run of the program submits another of this size or a
    /// smaller one: whether user space sleeps is asked then. Should that one find no room, then more than half of
    /// the ring is in use with this one, and user space is woken.
    ///
    /// Without a branch: in a loop each would multiply what the verifier walks.
    #[inline(always)]
    pub fn submit_before_another(self) {
        const { assert!(BPF_RB_NO_WAKEUP + 1 == BPF_RB_FORCE_WAKEUP) };
        let used = self.waiting + size_of::<T>() as u64 + HEADER;
        let is_past_half = (ring_bytes() / 2).wrapping_sub(used) >> (u64::BITS - 1);
        self.entry.submit(u64::from(BPF_RB_NO_WAKEUP) + is_past_half);
    }
}

/// Room for an event, or `None`, counted as lost.
#[inline(always)]
pub fn reserve<T: 'static>(kind: EventKind) -> Option<Room<T>> {
    let room = room();
    if room.is_none() {
        count_lost(kind);
    }
    room
}

/// Room for an event of this holder, a cgroup or a network namespace, or `None`, counted as lost. 0 is one that is
/// not known.
#[inline(always)]
pub fn reserve_for<T: 'static>(kind: EventKind, claim: Claim, holder: u64) -> Option<Room<T>> {
    if !admits(kind, claim, holder, size_of::<T>() as u64) {
        return None;
    }
    let room = room();
    if room.is_none() {
        count_lost_of(holder, kind, claim);
    }
    room
}

/// Whether a holder may have this much of the ring, bytes, for one or more events. If so, it counts as held; if not,
/// one event counts as lost.
#[inline(always)]
pub fn admits(kind: EventKind, claim: Claim, holder: u64, bytes: u64) -> bool {
    let size = ring_bytes();
    if in_use() < size / Account::RESTS || holder == 0 {
        return true;
    }
    let account = account_of(holder);
    if account.is_null() {
        return true;
    }
    let end = EVENTS.query(u64::from(BPF_RB_PROD_POS));
    // Asked again: a number kept from above would have the verifier walk all that follows once for each way here.
    let is_admitted = claim.allows(held(account, end), in_use(), size);
    if is_admitted {
        add(account, Account::PRESENT, bytes + HEADER);
        // SAFETY: an account, checked for null; of CPUs that write at the same time, any may be the last.
        unsafe { account.add(Account::LAST).write_volatile(end) };
    } else {
        count_lost_of(holder, kind, claim);
    }
    is_admitted
}

#[inline(always)]
fn in_use() -> u64 {
    EVENTS.query(u64::from(BPF_RB_AVAIL_DATA))
}

#[inline(always)]
fn ring_bytes() -> u64 {
    // SAFETY: a valid static; volatile, since the loader writes it.
    unsafe { core::ptr::read_volatile(&raw const RING_BYTES) }
}

#[inline(always)]
fn room<T: 'static>() -> Option<Room<T>> {
    let waiting = in_use();
    let entry = EVENTS.reserve::<T>(0)?;
    Some(Room { entry, waiting })
}

/// What a holder has held and lost at first: nothing. Not written on the stack by a call of memset.
#[unsafe(no_mangle)]
static NEW_ACCOUNT: [u64; Account::WORDS] = [0; Account::WORDS];

/// The account of a holder, a new one where it had none; null where the map has no room.
#[inline(always)]
fn account_of(holder: u64) -> *mut u64 {
    if let Some(account) = ACCOUNTS.get_ptr_mut(holder) {
        return account.cast();
    }
    // Another CPU may have made it meanwhile: then that one is found. An error says that, or that there is none.
    let _ = ACCOUNTS.insert(holder, &NEW_ACCOUNT, u64::from(BPF_NOEXIST));
    match ACCOUNTS.get_ptr_mut(holder) {
        Some(account) => account.cast(),
        None => core::ptr::null_mut(),
    }
}

/// What is held of the ring, bytes, when it is written up to `end`; a little more, where a part of it is read
/// already.
#[inline(always)]
fn held(account: *mut u64, end: u64) -> u64 {
    // SAFETY: the caller passes an account, checked for null, of the words that are read here. CPUs that move the
    // parts on at the same time may forget what was just added: it then gets a little more.
    unsafe {
        let start = account.add(Account::START);
        let present = account.add(Account::PRESENT);
        let earlier = account.add(Account::EARLIER);
        let read = EVENTS.query(u64::from(BPF_RB_CONS_POS));
        if read >= start.read_volatile() {
            let is_all_read = read > account.add(Account::LAST).read_volatile();
            earlier.write_volatile(if is_all_read { 0 } else { present.read_volatile() });
            present.write_volatile(0);
            start.write_volatile(end);
        }
        earlier.read_volatile() + present.read_volatile()
    }
}

#[inline(always)]
fn add(account: *mut u64, word: usize, n: u64) {
    // SAFETY: the caller passes an account, checked for null, and one of its words, which other CPUs add to at
    // the same time. In assembly, since the target has no atomics that the compiler knows.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({at} + 0) += {n}",
            at = in(reg) account.add(word),
            n = in(reg) n,
            options(nostack),
        );
    }
}

#[inline(always)]
fn count_lost_of(holder: u64, kind: EventKind, claim: Claim) {
    // The account first: user space reads it after the count, and so finds whose loss it was.
    if holder != 0
        && let Some(account) = ACCOUNTS.get_ptr_mut(holder)
    {
        let names_alone =
            matches!(claim, Claim::Name) || matches!(kind, EventKind::Connect | EventKind::Bind);
        add(account.cast(), if names_alone { Account::LOST_NAMES } else { Account::LOST }, 1);
    }
    count_lost(kind);
}

/// Counts an event that user space will not get.
#[inline(always)]
pub fn count_lost(kind: EventKind) {
    if let Some(count) = LOST.get_ptr_mut(kind.lost_slot()) {
        // Of this CPU alone; but a program that sends may be interrupted by one that receives.
        add(count, 0, 1);
    }
}

/// Whether user space sleeps; only the first who asks is told so, since one wake-up is enough.
///
/// User space says that it sleeps and looks into the ring after that, so whatever it did not see was, as a rule, reserved
/// later, and finds the flag set. Two CPUs may see the two in another order: such an event waits until the rest is over.
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
