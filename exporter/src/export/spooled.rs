//! The spool beside the exporter: file operations in blocking threads, and the ledger kept in step.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::exporter::{Live, request};
use super::queue::{Queue, Taken};
use super::spool::{Frame, FrameId, Spool, SpoolError};
use super::{Held, Part, Signal};
use crate::ledger::{DropCause, OutputLedger};

/// A disk that failed is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// A frame that was read, until it is settled or given back.
pub(super) type Unspooled = FrameId;

/// The spool of one signal at one destination.
#[derive(Debug)]
pub(super) struct Spooled {
    spool: Mutex<Spool>,
    ledger: Arc<OutputLedger>,
    /// Whether there is anything in it that is not handed out.
    waiting: AtomicBool,
    filled: Notify,
    /// Counts settlements, so that who waits for room is told of each.
    settled: watch::Sender<u64>,
}

impl Spooled {
    /// Around a spool that was opened; what it holds is taken into the ledger, and what was lost of it.
    pub(super) fn new(spool: Spool, lost: [u64; 3], ledger: Arc<OutputLedger>) -> Arc<Self> {
        ledger.recover(spool.waiting(), lost);
        let waiting = AtomicBool::new(has_waiting(&spool));
        Arc::new(Self {
            spool: Mutex::new(spool),
            ledger,
            waiting,
            filled: Notify::new(),
            settled: watch::Sender::new(0),
        })
    }

    /// Whether there is anything to be handed out.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Waits until something was added.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The oldest request. What cannot be read back is counted, and passed over.
    pub(super) async fn next(self: &Arc<Self>) -> Option<(Bytes, Held, Unspooled)> {
        if !self.has_waiting() {
            return None;
        }
        self.with(|this, spool| {
            let next = loop {
                match spool.next() {
                    Ok(next) => break next,
                    Err(error @ SpoolError::Damaged { counts, .. }) => {
                        warn!("{}: {error}", this.ledger);
                        this.ledger.lose_spooled(counts);
                    }
                    Err(error) => {
                        warn!("{}: {error}", this.ledger);
                        break None;
                    }
                }
            };
            this.recount(spool);
            let (id, Frame { counts, body }) = next?;
            this.ledger.unspool(counts);
            Some((body, Held::new(Arc::clone(&this.ledger), counts), id))
        })
        .await
    }

    /// Adds a request at the end; where that fails, its records are still held.
    pub(super) async fn append(
        self: &Arc<Self>,
        held: Held,
        body: Bytes,
    ) -> Result<(), (Held, SpoolError)> {
        let appended = self
            .with(move |this, spool| {
                let appended = match spool.append(&Frame { counts: held.counts(), body }) {
                    // Before anybody can take it out again.
                    Ok(()) => {
                        held.spooled();
                        Ok(())
                    }
                    Err(error) => Err((held, error)),
                };
                this.recount(spool);
                appended
            })
            .await;
        if appended.is_ok() {
            self.filled.notify_one();
        }
        appended
    }

    /// The request is answered for: it is never handed out again.
    pub(super) async fn settle(self: &Arc<Self>, frame: Unspooled) {
        let result = self.with(move |_, spool| spool.settle(frame)).await;
        if let Err(error) = result {
            warn!("{}: {error}", self.ledger);
        }
        self.settled.send_modify(|n| *n += 1);
    }

    /// The request is handed out again, before the others.
    pub(super) async fn give_back(self: &Arc<Self>, frame: Unspooled) {
        self.with(move |this, spool| {
            spool.give_back(frame);
            this.recount(spool);
        })
        .await;
        self.filled.notify_one();
    }

    fn recount(&self, spool: &Spool) {
        self.waiting.store(has_waiting(spool), Ordering::Release);
    }

    /// Does something with the files, on a thread that may wait for the disk.
    async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Self, &mut Spool) -> T + Send + 'static,
    ) -> T {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut spool = this.spool.lock().unwrap_or_else(PoisonError::into_inner);
            act(&this, &mut spool)
        });
        match done.await {
            Ok(done) => done,
            // Not cancelled: nobody could.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn has_waiting(spool: &Spool) -> bool {
    spool.waiting().iter().any(|n| *n > 0)
}

/// Moves the oldest records from the queue to the spool while more than half of the queue is in use, until
/// it is closed.
pub(super) async fn spool_excess<W>(
    signal: Signal,
    queue: Arc<Queue<Part>>,
    spool: Arc<Spooled>,
    live: Arc<Live<W>>,
) {
    let mut settled = spool.settled.subscribe();
    let mut is_failing = false;
    while queue.pressing().await.is_some() {
        let Some(taken) = queue.take_now(live.get().export.batch()) else { continue };
        settled.mark_unchanged();
        let body = request(signal, &taken.items);
        let Taken { items, held } = taken;
        match spool.append(held, body).await {
            Ok(()) => {
                queue.full_because(DropCause::QueueFull);
                if std::mem::take(&mut is_failing) {
                    info!("{}: the spool takes records again", queue.ledger());
                }
                continue;
            }
            Err((held, SpoolError::Full { .. })) => {
                queue.put_back(Taken { items, held });
                queue.full_because(DropCause::SpoolFull);
                if !std::mem::replace(&mut is_failing, true) {
                    warn!("{}: the spool is full", queue.ledger());
                }
                // Room comes with what is delivered.
                tokio::select! {
                    _ = settled.changed() => {}
                    () = queue.closed() => {}
                }
            }
            Err((held, error)) => {
                queue.put_back(Taken { items, held });
                queue.full_because(DropCause::SpoolFailed);
                if !std::mem::replace(&mut is_failing, true) {
                    warn!("{}: {error}", queue.ledger());
                }
                tokio::select! {
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                    () = queue.closed() => {}
                }
            }
        }
    }
}
