//! When to look for what nothing tells of: programs that somebody detached, attachments that failed and may succeed
//! now, links of cgroups that are gone for good.

use std::time::Duration;

use tokio::time::Instant;

/// Not more often than this.
pub(super) const RECHECK: Duration = Duration::from_secs(5);

/// Or after so many times what the last one took, up to [`LONGEST_RECHECK`]: with thousands of links to ask for it
/// would be most of what an idle flowend costs.
const LEISURE: u32 = 2000;
const LONGEST_RECHECK: Duration = Duration::from_secs(300);

/// The same while an attachment failed, or cgroups that are gone have links, which are descriptors that others need.
const HASTE: u32 = 20;

/// When the next recheck is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rechecks {
    pub(super) next: Instant,
    last: Instant,
    /// What the last one cost.
    took: Duration,
}

impl Rechecks {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now + RECHECK, last: now, took: Duration::ZERO }
    }

    /// One was made. `is_at_rest`: there is nothing that waits for the next.
    pub(super) fn made(&mut self, begun: Instant, now: Instant, is_at_rest: bool) {
        (self.last, self.took) = (now, now.duration_since(begun));
        self.next = now + self.pause(is_at_rest);
    }

    /// The folders were read for another reason. What was found to wait does not wait as long as nothing would; and
    /// who finds something all the time neither rechecks all the time nor puts it off.
    pub(super) fn between(&mut self, now: Instant, is_at_rest: bool) {
        if !is_at_rest {
            let soon = (self.last + self.pause(false)).max(now + RECHECK);
            self.next = self.next.min(soon);
        }
    }

    fn pause(&self, is_at_rest: bool) -> Duration {
        let times = if is_at_rest { LEISURE } else { HASTE };
        self.took.saturating_mul(times).clamp(RECHECK, LONGEST_RECHECK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Rechecks of which the last was over at `start`.
    fn after(start: Instant, took: Duration, is_at_rest: bool) -> Rechecks {
        let mut rechecks = Rechecks::new(start - took);
        rechecks.made(start - took, start, is_at_rest);
        rechecks
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_the_cost_and_less_where_something_waits() {
        let start = Instant::now() + Duration::from_secs(3600);
        for (took, at_rest, else_) in [
            (0, 5_000, 5_000),
            (1, 5_000, 5_000),
            (10, 20_000, 5_000),
            (100, 200_000, 5_000),
            (400, 300_000, 8_000),
            (60_000, 300_000, 300_000),
        ] {
            for (is_at_rest, want) in [(true, at_rest), (false, else_)] {
                let next = after(start, ms(took), is_at_rest).next;
                assert_eq!(next - start, ms(want), "{took} ms, {is_at_rest}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_found_in_between_brings_the_next_forward_and_never_puts_it_off() {
        let start = Instant::now() + Duration::from_secs(3600);
        // What the last one took, when something is found, and when the next is due then.
        for (took, found, want) in [
            (100, 10_000, 15_000),
            (100, 199_000, 200_000),
            (400, 1_000, 8_000),
            (400, 100_000, 105_000),
            (20_000, 10_000, 300_000),
        ] {
            let mut rechecks = after(start, ms(took), true);
            let leisurely = rechecks.next;
            rechecks.between(start + ms(found), true);
            assert_eq!(rechecks.next, leisurely, "nothing waits");
            rechecks.between(start + ms(found), false);
            assert_eq!(rechecks.next - start, ms(want), "{took} ms, found after {found}");
            // Once more, and once more: it stays.
            for later in (found..want).step_by(500) {
                rechecks.between(start + ms(later), false);
                assert_eq!(rechecks.next - start, ms(want), "again after {later}");
            }
            rechecks.between(start + ms(found), true);
            assert_eq!(rechecks.next - start, ms(want), "and it is looked once at least");
        }
    }
}
