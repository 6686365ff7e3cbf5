//! Work that may hang, on a thread that is then left behind.
//!
//! A workload's file system may be one of its own processes (FUSE) or a server that went away: the
//! kernel waits for either, for ever. One workload must not keep the others from being read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// Threads that may hang at a time. With so many, nothing is tried any more until one comes back.
const MAX_HANGING: usize = 4;

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one piece of work after the other, and its successors.
#[derive(Debug)]
pub(super) struct Patient {
    patience: Duration,
    thread: Option<SyncSender<Work>>,
    /// Threads that run, the present one too.
    running: Arc<AtomicUsize>,
}

/// Why there is no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Impatience {
    /// It takes longer than the patience, and goes on alone; or it panicked.
    NoResult,
    /// As many as may hang do hang.
    TooManyHang,
    /// No thread could be started.
    NoThread,
}

impl Patient {
    /// Waits at most so long for each piece of work.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, thread: None, running: Arc::default() }
    }

    /// Does the work, and waits for its result.
    pub(super) fn wait_for<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Impatience> {
        let (send, receive) = sync_channel(1);
        let work: Work = Box::new(move || {
            // Nobody waits any more for what took too long.
            let _ = send.send(work());
        });
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => self.start()?,
        };
        thread.send(work).map_err(|_| Impatience::NoThread)?;
        // Not kept on a timeout: the thread ends once it comes back and nothing more can follow.
        let result = receive.recv_timeout(self.patience).map_err(|_| Impatience::NoResult)?;
        self.thread = Some(thread);
        Ok(result)
    }

    fn start(&self) -> Result<SyncSender<Work>, Impatience> {
        if self.running.load(Ordering::Relaxed) >= MAX_HANGING {
            return Err(Impatience::TooManyHang);
        }
        let (send, receive) = sync_channel::<Work>(1);
        let running = Running::new(&self.running);
        std::thread::Builder::new()
            .name("hosts-read".into())
            .spawn(move || {
                let _running = running;
                receive.iter().for_each(|work| work());
            })
            .map_err(|_| Impatience::NoThread)?;
        Ok(send)
    }
}

/// Counts a thread until it is gone, however it ends.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn work_that_hangs_is_left_behind_and_counted() {
        let mut patient = Patient::new(Duration::from_millis(20));
        let mut stuck = Vec::new();
        for _ in 0..MAX_HANGING {
            let (release, hangs) = channel::<()>();
            stuck.push(release);
            assert_eq!(patient.wait_for(move || hangs.recv().is_ok()), Err(Impatience::NoResult));
        }
        assert_eq!(patient.wait_for(|| 7), Err(Impatience::TooManyHang));
        // One comes back: its thread ends, and the next work has room.
        drop(stuck.pop());
        while patient.running.load(Ordering::Relaxed) == MAX_HANGING {
            std::thread::yield_now();
        }
        let mut patient = Patient { patience: Duration::from_secs(60), ..patient };
        assert_eq!(patient.wait_for(|| 7), Ok(7));
        assert_eq!(patient.wait_for(|| 8), Ok(8), "the same thread again");
        assert_eq!(patient.running.load(Ordering::Relaxed), MAX_HANGING);
    }

    #[test]
    fn a_panic_is_no_result_and_no_end() {
        let mut patient = Patient::new(Duration::from_secs(60));
        assert_eq!(patient.wait_for(|| -> u8 { panic!("on purpose") }), Err(Impatience::NoResult));
        assert_eq!(patient.wait_for(|| 7), Ok(7));
    }
}
