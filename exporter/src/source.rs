//! The source of events: the ring buffer, read on a timer or when the kernel says that it fills up; and when
//! nothing has come for a while, once the kernel says that something did.

mod losses;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use flowend_probe_types::{LOST_SLOTS, RingItem, SKIPPED_SLOTS};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::fair::Losses;
use crate::flow::{LostOf, UNEXPLAINED_NS};
use crate::probe::{Accounts, Asleep, Lost, Pollable, Ring, Skipped, register};
use losses::LossBook;

/// Events taken from the ring in one go, so that a flood cannot keep others from their turn.
const MAX_DRAIN: usize = 8_192;

/// Once the ring has been empty for so long, the timer rests, and the programs wake whoever reads: fifty wakes a
/// second would be most of what an idle flowend costs.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// By then all is judged that waits for what its CLOSE leaves open, with some to spare.
const LONG_IDLE_AFTER: Duration = Duration::from_nanos(2 * UNEXPLAINED_NS);

/// A rest takes no longer than this: what time alone brings about, such as a handshake that is given up, still
/// has to be found.
const REST: Duration = Duration::from_secs(1);

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

/// As many counts as there are slots here.
fn counts_of<const N: usize>(counts: &[u64]) -> [u64; N] {
    std::array::from_fn(|slot| counts.get(slot).copied().unwrap_or(0))
}

/// Reads events of the kernel.
pub struct RingSource {
    ring: AsyncFd<Pollable<Ring>>,
    timer: Interval,
    asleep: Asleep,
    turns: Turns,
    lost: Lost,
    accounts: Accounts,
    skipped: Skipped,
    losses: LossBook,
    before: ([u64; LOST_SLOTS.len()], [u64; SKIPPED_SLOTS.len()]),
    malformed: u64,
}

/// What was found in the ring, and when.
#[derive(Clone, Copy, Debug)]
struct Turns {
    /// The ring was read the last time.
    read: Instant,
    /// Something was in it the last time.
    news: Instant,
    /// Whether the last turn found nothing at all.
    found_nothing: bool,
}

impl Turns {
    const fn new(now: Instant) -> Self {
        Self { read: now, news: now, found_nothing: false }
    }

    fn note(&mut self, now: Instant, found_nothing: bool) {
        self.read = now;
        self.found_nothing = found_nothing;
        if !found_nothing {
            self.news = now;
        }
    }

    /// Whether nothing has come for so long that the timer may rest.
    fn is_idle(&self, now: Instant) -> bool {
        now.duration_since(self.news) >= IDLE_AFTER
    }

    /// Whether no verdict waits for what comes late any more, and the last turn found nothing.
    fn is_long_idle(&self, now: Instant) -> bool {
        self.found_nothing && now.duration_since(self.news) >= LONG_IDLE_AFTER
    }

    /// Until when a rest takes at most, with a timer of that interval.
    fn rest_is_over(&self, interval: Duration) -> Instant {
        self.read + REST.max(interval)
    }
}

impl RingSource {
    /// Reads `ring` at least once in `interval` as long as events come.
    ///
    /// # Errors
    /// When the ring cannot be polled.
    pub fn new(
        ring: Ring,
        asleep: Asleep,
        lost: Lost,
        accounts: Accounts,
        skipped: Skipped,
        interval: Duration,
    ) -> std::io::Result<Self> {
        let mut timer = tokio::time::interval(interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            ring: register(ring)?,
            timer,
            asleep,
            turns: Turns::new(Instant::now()),
            lost,
            accounts,
            skipped,
            losses: LossBook::new(),
            before: ([0; LOST_SLOTS.len()], [0; SKIPPED_SLOTS.len()]),
            malformed: 0,
        })
    }

    /// Waits for the timer or for the kernel's wake-up. Cancel safe.
    pub async fn ready(&mut self) {
        let rests = self.turns.is_idle(Instant::now()) && self.asleep.set().is_ok();
        // What was reserved before the flag was seen wakes nobody.
        if rests && has_data(self.ring.get_ref().0.as_fd()) {
            return;
        }
        let rest_is_over = self.turns.rest_is_over(self.timer.period());
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
        self.turns.note(Instant::now(), events == 0 && drained == Drained::Empty);
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

    /// Tells of whose connections events were lost since this was asked last. Events that only name things do not
    /// count: processes and DNS messages.
    pub fn lost_since_last(&mut self, whose: impl FnMut(LostOf)) {
        // An event of a connection is not lost but by a ring that is in use. This one was empty when it was last read,
        // that was after the counters, and it is empty now: whatever had filled it since would still be there. Error
        // reports are lost past their budget, too, and matter for as long as a verdict waits for one.
        if self.turns.is_long_idle(Instant::now()) && !has_data(self.ring.get_ref().0.as_fd()) {
            return;
        }
        let lost = self.lost();
        if self.losses.has_news(&lost) {
            // After the counters: an account is written before them.
            self.losses.take(lost, self.accounts.read(), whose);
        }
    }

    /// Events that each cgroup lost, by id.
    pub const fn losses(&self) -> &Losses {
        self.losses.by_cgroup()
    }

    /// These were counted, said and judged by a flowend before this one.
    pub fn go_on(&mut self, lost: &[u64], skipped: &[u64]) {
        self.before = (counts_of(lost), counts_of(skipped));
        self.losses.go_on(self.before.0);
    }

    /// The losses that were judged so far, as [`RingSource::go_on`] takes them: those since are not among them.
    pub const fn judged(&self) -> [u64; LOST_SLOTS.len()] {
        self.losses.judged()
    }

    /// What was counted before this flowend: lost and skipped.
    pub const fn before(&self) -> ([u64; LOST_SLOTS.len()], [u64; SKIPPED_SLOTS.len()]) {
        self.before
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_timer_rests_a_second_after_the_last_event_and_no_sooner() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let mut turns = Turns::new(start);
        assert!(!turns.is_idle(ms(999)) && turns.is_idle(ms(1000)));
        // Reading what is not there is no news.
        turns.note(ms(1500), true);
        assert!(turns.is_idle(ms(1500)));
        assert!(!turns.is_long_idle(ms(1999)) && turns.is_long_idle(ms(2000)));
        turns.note(ms(1700), false);
        assert!(!turns.is_idle(ms(2699)) && turns.is_idle(ms(2700)));
        assert!(!turns.is_long_idle(ms(3800)), "something was found");
        turns.note(ms(3600), true);
        assert!(!turns.is_long_idle(ms(3699)) && turns.is_long_idle(ms(3700)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_ends_a_while_after_the_last_turn_or_an_interval_where_that_is_longer() {
        let start = Instant::now();
        let mut turns = Turns::new(start);
        for (interval, want) in [(REST / 10, REST), (REST, REST), (4 * REST, 4 * REST)] {
            for read in [start, start + REST, start + 3 * REST] {
                turns.note(read, true);
                assert_eq!(turns.rest_is_over(interval) - read, want);
            }
        }
    }
}
