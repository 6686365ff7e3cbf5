//! The source of events: the ring buffer, read on a timer or when the kernel says that it fills up.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use flowend_probe_types::{EventKind, LOST_SLOTS, RingItem, SKIPPED_SLOTS};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use crate::probe::{Lost, Pollable, Skipped, register};

/// Events taken from the ring in one go, so that a flood cannot keep others from their turn.
const MAX_DRAIN: usize = 65_536;

/// How far the ring was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// To its end.
    Empty,
    /// As far as one turn goes.
    More,
    /// Up to an event that a program is still writing.
    HeldBack,
}

/// Whether the kernel sees anything in the ring, finished or not (kernel/bpf/ringbuf.c,
/// ringbuf_map_poll_kern).
fn has_data(ring: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(ring, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Reads events of the kernel.
pub struct RingSource {
    ring: AsyncFd<Pollable<RingBuf<MapData>>>,
    timer: Interval,
    lost: Lost,
    skipped: Skipped,
    lost_before: u64,
    malformed: u64,
}

impl RingSource {
    /// Reads `ring` at least once in `interval`.
    ///
    /// # Errors
    /// When the ring cannot be polled.
    pub fn new(
        ring: RingBuf<MapData>,
        lost: Lost,
        skipped: Skipped,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let mut timer = tokio::time::interval(interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { ring: register(ring)?, timer, lost, skipped, lost_before: 0, malformed: 0 })
    }

    /// Waits for the timer or for the kernel's wake-up. Cancel safe.
    pub async fn ready(&mut self) {
        tokio::select! {
            _ = self.timer.tick() => {}
            guard = self.ring.readable_mut() => {
                if let Ok(mut guard) = guard {
                    guard.clear_ready();
                }
            }
        }
    }

    /// Hands out what is in the ring.
    pub fn drain(&mut self, mut take: impl FnMut(&RingItem<'_>)) -> Drained {
        let ring = &mut self.ring.get_mut().0;
        let mut again = false;
        for _ in 0..MAX_DRAIN {
            let Some(item) = ring.next() else {
                // What is being written holds back what lies behind it; only the kernel can tell.
                if !has_data(ring.as_fd()) {
                    return Drained::Empty;
                }
                // Or it came just now.
                if std::mem::replace(&mut again, true) {
                    return Drained::HeldBack;
                }
                continue;
            };
            again = false;
            match RingItem::decode(&item) {
                Ok(item) => take(&item),
                Err(_) => self.malformed += 1,
            }
        }
        Drained::More
    }

    /// Events that found the ring full, by [`LOST_SLOTS`].
    pub fn lost(&self) -> [u64; LOST_SLOTS.len()] {
        self.lost.read()
    }

    /// Whether events of connections found the ring full since this was asked last. Those that only name
    /// things do not count: processes and DNS messages.
    pub fn lost_since_last(&mut self) -> bool {
        let of_connections = [
            EventKind::SegmentIn,
            EventKind::ActiveEstablished,
            EventKind::Closed,
            EventKind::GaveUp,
            EventKind::Error,
        ];
        let lost = self.lost();
        let lost = of_connections.iter().map(|kind| lost[kind.lost_slot() as usize]).sum();
        std::mem::replace(&mut self.lost_before, lost) != lost
    }

    /// Packets with SYN, FIN or RST that the probe could not read, by [`SKIPPED_SLOTS`].
    pub fn skipped(&self) -> [u64; SKIPPED_SLOTS.len()] {
        self.skipped.read()
    }

    /// Records of the ring that were no events: 0 unless probe and host disagree.
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }
}
