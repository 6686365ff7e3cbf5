//! Being told to stop, and for how long records may still be sent then.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Running,
    Asked,
    Late,
}

/// Whether the user wants it to end.
#[derive(Clone, Debug)]
pub(super) struct Stop(watch::Receiver<Phase>);

impl Stop {
    /// Asked when `signal` is ready, late after `grace` more.
    pub(super) fn new(signal: impl Future<Output = ()> + Send + 'static, grace: Duration) -> Self {
        let (sender, receiver) = watch::channel(Phase::Running);
        tokio::spawn(async move {
            signal.await;
            sender.send_replace(Phase::Asked);
            tokio::time::sleep(grace).await;
            sender.send_replace(Phase::Late);
            // Kept until nobody listens: a channel without a sender cannot be waited for.
            sender.closed().await;
        });
        Self(receiver)
    }

    /// Whether nothing more is to be read.
    pub(super) fn is_asked(&self) -> bool {
        *self.0.borrow() >= Phase::Asked
    }

    /// Ready when nothing more is to be read.
    pub(super) async fn asked(&self) {
        self.reached(Phase::Asked).await;
    }

    /// Ready when nothing more is to be sent.
    pub(super) async fn is_late(&self) {
        self.reached(Phase::Late).await;
    }

    async fn reached(&self, least: Phase) {
        let mut phase = self.0.clone();
        if phase.wait_for(|phase| *phase >= least).await.is_err() {
            // The runtime is shutting down, and this with it.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn first_asked_then_late() {
        let (ask, asked) = tokio::sync::oneshot::channel::<()>();
        let grace = Duration::from_secs(5);
        let stop = Stop::new(async move { drop(asked.await) }, grace);
        tokio::task::yield_now().await;
        assert!(!stop.is_asked());
        drop(ask);
        tokio::task::yield_now().await;
        assert!(stop.is_asked());
        stop.asked().await;
        let before = tokio::time::Instant::now();
        stop.is_late().await;
        assert_eq!(before.elapsed(), grace);
    }
}
