//! Whether a destination takes what it is sent, and what is said about it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

/// A failing receiver is complained about at most this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// Of one signal at one destination.
#[derive(Debug)]
pub(crate) struct Health {
    /// `otlp.logs to http://collector:4317`.
    name: Mutex<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failing: Option<Failing>,
    complained: Option<Instant>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    error: String,
}

impl Health {
    pub(super) fn new(name: String) -> Self {
        Self { name: Mutex::new(name), state: Mutex::default() }
    }

    /// It is called otherwise from now on.
    pub(super) fn rename(&self, name: String) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// For how long it has been failing, and what it said last. `None` while it works, or nothing was
    /// sent yet.
    pub(crate) fn failing(&self) -> Option<(Duration, String)> {
        let state = self.lock();
        state.failing.as_ref().map(|failing| (failing.since.elapsed(), failing.error.clone()))
    }

    /// A request was taken, without this many of its records.
    pub(super) fn works(&self, rejected: u64, message: &str) {
        let mut state = self.lock();
        if let Some(failing) = state.failing.take() {
            state.complained = None;
            info!("{}: works again after {} s", self.name(), failing.since.elapsed().as_secs());
        }
        if rejected > 0 {
            let words = format!("{rejected} records were not kept by the receiver: {message}");
            self.complain(&mut state, &words);
        } else if !message.is_empty() {
            self.complain(&mut state, &format!("the receiver says: {message}"));
        }
    }

    /// A request was not taken: why, and what is done about it.
    pub(super) fn fails(&self, why: &str, then: &str) {
        let mut state = self.lock();
        match &mut state.failing {
            Some(failing) => why.clone_into(&mut failing.error),
            None => state.failing = Some(Failing { since: Instant::now(), error: why.into() }),
        }
        self.complain(&mut state, &format!("{why}; {then}"));
    }

    fn complain(&self, state: &mut State, words: &str) {
        if state.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            state.complained = Some(Instant::now());
            warn!("{}: {words}", self.name());
        }
    }

    fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_fails_from_the_first_failure_to_the_next_success() {
        let health = Health::new("otlp.logs".into());
        assert_eq!(health.failing(), None);
        health.fails("refused", "again");
        tokio::time::advance(Duration::from_secs(7)).await;
        health.fails("timed out", "again");
        assert_eq!(health.failing(), Some((Duration::from_secs(7), "timed out".into())));
        // A part of a request is better than nothing.
        health.works(3, "no room");
        assert_eq!(health.failing(), None);
        health.fails("refused", "again");
        assert_eq!(health.failing(), Some((Duration::ZERO, "refused".into())));
    }
}
