//! The source of events: the ring buffer, read on a timer or when the kernel says that it fills up; and when
//! nothing has come for a while, once the kernel says that something did.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use flowend_probe_types::{EventKind, LOST_SLOTS, RingItem, SKIPPED_SLOTS};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::probe::{Asleep, Lost, Pollable, Skipped, register};

/// Events taken from the ring in one go, so that a flood cannot keep others from their turn.
const MAX_DRAIN: usize = 65_536;

/// Once the ring has been empty for so long, the timer rests, and the programs wake whoever reads: fifty wakes a
/// second would be most of what an idle flowend costs.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// A rest takes no longer than this: what time alone brings about, such as a handshake that is given up, still
/// has to be found.
const REST: Duration = Duration::from_millis(250);

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
    asleep: Asleep,
    /// When the ring was read the last time, and when something was in it the last time.
    read: Instant,
    news: Instant,
    /// Whether the last turn found nothing at all.
    found_nothing: bool,
    lost: Lost,
    skipped: Skipped,
    lost_before: u64,
    malformed: u64,
}

impl RingSource {
    /// Reads `ring` at least once in `interval` as long as events come.
    ///
    /// # Errors
    /// When the ring cannot be polled.
    pub fn new(
        ring: RingBuf<MapData>,
        asleep: Asleep,
        lost: Lost,
        skipped: Skipped,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let mut timer = tokio::time::interval(interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Ok(Self {
            ring: register(ring)?,
            timer,
            asleep,
            read: now,
            news: now,
            found_nothing: false,
            lost,
            skipped,
            lost_before: 0,
            malformed: 0,
        })
    }

    /// Waits for the timer or for the kernel's wake-up. Cancel safe.
    pub async fn ready(&mut self) {
        let rests = self.news.elapsed() >= IDLE_AFTER && self.asleep.set().is_ok();
        // What was reserved before the flag was seen wakes nobody.
        if rests && has_data(self.ring.get_ref().0.as_fd()) {
            return;
        }
        let rest_is_over = self.read + REST.max(self.timer.period());
        tokio::select! {
            _ = self.timer.tick(), if !rests => {}
            () = tokio::time::sleep_until(rest_is_over), if rests => {}
            guard = self.ring.readable_mut() => {
                if let Ok(mut guard) = guard {
                    guard.clear_ready();
                }
            }
        }
    }

    /// Hands out what is in the ring.
    pub fn drain(&mut self, mut take: impl FnMut(&RingItem<'_>)) -> Drained {
        let (mut events, mut malformed) = (0_usize, 0);
        let drained = self.take_all(&mut |item| {
            events += 1;
            match RingItem::decode(item) {
                Ok(item) => take(&item),
                Err(_) => malformed += 1,
            }
        });
        self.malformed += malformed;
        self.read = Instant::now();
        self.found_nothing = events == 0 && drained == Drained::Empty;
        if !self.found_nothing {
            self.news = self.read;
        }
        drained
    }

    fn take_all(&mut self, take: &mut impl FnMut(&[u8])) -> Drained {
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
            take(&item);
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
        // Nothing is lost but by a full ring. This one was empty when it was last read, that was after the
        // counters, and it is empty now: whatever had filled it since would still be there.
        if self.found_nothing && !has_data(self.ring.get_ref().0.as_fd()) {
            return false;
        }
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
