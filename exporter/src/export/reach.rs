//! Whether a receiver can be reached; and when flowend stops, how long one that cannot is waited for.
//!
//! One that is there gets `shutdown.timeout`, however slow it is. One that could not be connected to gets one more
//! try: what it is for would be lost anyway, and whoever stops flowend does not want to wait for that.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::transport::Answer;

/// The last try has so long for its connection, and comes at most so long after the one before.
pub(super) const LAST_TRY: Duration = Duration::from_millis(500);

/// Where the last request was not in vain, a connection may take so long once flowend stops: a few round trips around
/// the world.
pub(super) const LAST_CONNECTION: Duration = Duration::from_millis(900);

/// Misses that are no further apart are of one try: requests that were on their way together.
const ONE_TRY: Duration = Duration::from_millis(100);

/// Of all requests of one exporter.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Since when no request found a connection.
    missed_since: Mutex<Option<Instant>>,
    given_up: watch::Sender<bool>,
}

impl Reach {
    /// Takes note of an answer. `is_final`: should it be a miss, nobody is waited for any more.
    pub(super) fn note(&self, answer: &Answer, is_final: bool) {
        let is_missed = matches!(answer, Answer::Unreached { .. });
        let mut since = self.missed_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = is_missed.then(|| since.unwrap_or_else(Instant::now));
        if is_missed && is_final {
            self.given_up.send_replace(true);
        }
    }

    /// Whether an earlier try found no connection, and none did since.
    pub(super) fn was_missed(&self) -> bool {
        let since = self.missed_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() >= ONE_TRY)
    }

    /// Ready once the last try was in vain, too.
    pub(super) async fn given_up(&self) {
        let mut given_up = self.given_up.subscribe();
        // The sender is here.
        let _ = given_up.wait_for(|given_up| *given_up).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_given_up_after_a_miss_that_was_the_last_try() {
        let missed = || Answer::Unreached { why: "refused".into() };
        let busy = || Answer::Again { after: None, why: "busy".into() };
        let taken = || Answer::Taken { rejected: 0, message: String::new() };
        for (answers, was_missed, is_given_up) in [
            (vec![(missed(), false)], true, false),
            (vec![(missed(), false), (missed(), true)], true, true),
            (vec![(missed(), false), (busy(), true)], false, false),
            (vec![(missed(), false), (taken(), true)], false, false),
            (vec![(busy(), false), (missed(), false)], true, false),
        ] {
            let reach = Reach::default();
            answers.iter().for_each(|(answer, is_final)| reach.note(answer, *is_final));
            assert!(!reach.was_missed(), "{answers:?}: of the same moment");
            tokio::time::sleep(ONE_TRY).await;
            let got = (reach.was_missed(), *reach.given_up.borrow());
            assert_eq!(got, (was_missed, is_given_up), "{answers:?}");
        }
    }
}
