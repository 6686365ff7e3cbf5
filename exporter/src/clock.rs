//! The kernel's clock and the wall clock.

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME` in ns: what the probe stamps events with.
pub fn boot_ns() -> u64 {
    now(ClockId::CLOCK_BOOTTIME)
}

/// What to add to `CLOCK_BOOTTIME` ns for ns since 1970. Measured anew for each batch, since the wall
/// clock may be set.
pub fn boot_to_unix_ns() -> u64 {
    now(ClockId::CLOCK_REALTIME).saturating_sub(boot_ns())
}

fn now(clock: ClockId) -> u64 {
    // Both clocks exist since Linux 2.6.39, so the call cannot fail.
    clock_gettime(clock).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}
