//! When to try again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A pause of between half and the whole of `pause`, so that a fleet does not retry in step.
pub(super) fn jittered(pause: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&foldhash::fast::RandomState::default(), 0_u8);
    #[allow(clippy::cast_precision_loss)] // it is random
    let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
    pause / 2 + (pause / 2).mul_f64(share)
}

/// Closed while a receiver has asked for quiet (`RetryInfo`, `Retry-After`): that goes for every request to
/// it, not only for the one that it answered.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    /// Closed for at least this long.
    pub(super) fn close_for(&self, pause: Duration) {
        let until = Instant::now() + pause;
        let mut closed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(until, |before| before.max(until)));
    }

    /// Waits until it is open.
    pub(super) async fn open(&self) {
        loop {
            let closed = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match closed.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_half_and_whole_and_differs() {
        let pause = Duration::from_secs(2);
        let pauses: std::collections::HashSet<_> = (0..100).map(|_| jittered(pause)).collect();
        assert!(pauses.len() > 10, "{pauses:?}");
        for jittered in pauses {
            assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_is_closed_for_the_longest_that_was_asked_for() {
        let gate = Gate::default();
        let start = Instant::now();
        gate.open().await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        gate.close_for(Duration::from_secs(5));
        gate.close_for(Duration::from_secs(2));
        gate.open().await;
        assert_eq!(start.elapsed(), Duration::from_secs(5));
    }
}
