//! Whether a receiver can be reached; and when flowend stops, how long one that cannot is waited for.
//!
//! One that is there gets `shutdown.timeout`, however slow it is. One that could not be connected to gets one more
//! try: what it is for would be lost anyway, and whoever stops flowend does not want to wait for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::transport::Answer;

/// The last try has so long for its connection, and comes at most so long after the one before.
pub(super) const LAST_TRY: Duration = Duration::from_millis(500);

/// Of all requests of one exporter.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Whether the last request that ended had not found a connection.
    is_missed: AtomicBool,
    given_up: watch::Sender<bool>,
}

impl Reach {
    /// Takes note of an answer; `is_last`: nobody wants to wait for a receiver that is not there any more.
    pub(super) fn note(&self, answer: &Answer, is_last: bool) {
        let is_missed = matches!(answer, Answer::Unreached { .. });
        let was_missed = self.is_missed.swap(is_missed, Ordering::AcqRel);
        if was_missed && is_missed && is_last {
            self.given_up.send_replace(true);
        }
    }

    /// Whether the last request that ended had not found a connection.
    pub(super) fn is_missed(&self) -> bool {
        self.is_missed.load(Ordering::Acquire)
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

    #[test]
    fn it_is_given_up_after_two_misses_in_a_row_of_which_the_second_was_the_last_try() {
        let missed = || Answer::Unreached { why: "refused".into() };
        let busy = || Answer::Again { after: None, why: "busy".into() };
        let taken = || Answer::Taken { rejected: 0, message: String::new() };
        for (answers, want) in [
            (vec![(missed(), false), (missed(), true)], true),
            (vec![(missed(), true), (missed(), true)], true),
            (vec![(missed(), false), (missed(), false)], false),
            (vec![(missed(), true)], false),
            (vec![(missed(), false), (busy(), true), (missed(), true)], false),
            (vec![(missed(), false), (taken(), true), (missed(), true)], false),
            (vec![(busy(), true), (busy(), true)], false),
        ] {
            let reach = Reach::default();
            answers.iter().for_each(|(answer, is_last)| reach.note(answer, *is_last));
            assert_eq!(*reach.given_up.borrow(), want, "{answers:?}");
        }
    }
}
