//! The spool beside the exporter: file operations in blocking threads, and the ledger kept in step.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::exporter::{Live, request};
use super::queue::{Queue, Taken};
use super::spool::{Frame, FrameId, Spool, SpoolError};
use super::{Held, Part, Signal};
use crate::ledger::{DropCause, OutputLedger};

/// A request that cannot be read from the disk is given up after so many tries.
const READS: u32 = 5;

/// A disk that failed is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// A frame that was read, until it is settled or given back.
pub(super) type Unspooled = FrameId;

/// What was read of the spool and is not taken yet.
#[derive(Debug, Default)]
struct Slot {
    request: Option<(Bytes, Held, Unspooled)>,
    is_closed: bool,
}

/// The spool of one signal at one destination.
#[derive(Debug)]
pub(super) struct Spooled {
    spool: Mutex<Spool>,
    slot: Mutex<Slot>,
    ledger: Arc<OutputLedger>,
    /// Whether there is anything in it that is not handed out.
    waiting: AtomicBool,
    filled: Notify,
    /// How often the oldest request could not be read, one time after the other.
    unread: AtomicU32,
    /// The largest request that is put into it, bytes: it has room for several.
    pub(super) max_request: usize,
    /// Counts settlements, so that who waits for room is told of each.
    settled: watch::Sender<u64>,
}

impl Spooled {
    /// Around a spool that was opened; what it holds is taken into the ledger, and what was lost of it.
    pub(super) fn new(
        spool: Spool,
        max_bytes: u64,
        lost: [u64; 3],
        ledger: Arc<OutputLedger>,
    ) -> Arc<Self> {
        ledger.recover(spool.waiting(), lost);
        let waiting = AtomicBool::new(has_waiting(&spool));
        Arc::new(Self {
            spool: Mutex::new(spool),
            slot: Mutex::default(),
            ledger,
            waiting,
            filled: Notify::new(),
            unread: AtomicU32::new(0),
            max_request: usize::try_from(max_bytes / 8).unwrap_or(usize::MAX),
            settled: watch::Sender::new(0),
        })
    }

    /// Whether there is anything to be handed out.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire) || self.slot().request.is_some()
    }

    /// Waits until something was added.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The oldest request. What cannot be read back is counted, and passed over. Cancel safe, for one caller at
    /// a time: what was read for one who did not wait for it is the next one's.
    pub(super) async fn next(self: &Arc<Self>) -> Option<(Bytes, Held, Unspooled)> {
        if self.has_waiting() && self.slot().request.is_none() {
            self.with(|this, spool| {
                let mut slot = this.slot();
                if slot.request.is_none() && !slot.is_closed {
                    slot.request = this.read(spool);
                }
            })
            .await;
        }
        self.slot().request.take()
    }

    /// Nothing more is handed out. What was read and not taken goes back.
    pub(super) async fn close(self: &Arc<Self>) {
        self.with(|this, spool| {
            let mut slot = this.slot();
            slot.is_closed = true;
            if let Some((_, held, frame)) = slot.request.take() {
                held.spooled();
                spool.give_back(frame);
            }
        })
        .await;
    }

    fn read(&self, spool: &mut Spool) -> Option<(Bytes, Held, Unspooled)> {
        let next = loop {
            match spool.next() {
                Ok(next) => {
                    self.unread.store(0, Ordering::Relaxed);
                    break next;
                }
                Err(error @ SpoolError::Damaged { counts, .. }) => {
                    warn!("{}: {error}", self.ledger);
                    self.ledger.lose_spooled(counts);
                }
                Err(error) => {
                    warn!("{}: {error}", self.ledger);
                    self.give_up_unreadable(spool);
                    break None;
                }
            }
        };
        self.recount(spool);
        let (id, Frame { counts, body }) = next?;
        self.ledger.unspool(counts);
        Some((body, Held::new(Arc::clone(&self.ledger), counts), id))
    }

    /// A disk may have a bad moment, or a bad sector: what is behind it is not held up for ever.
    fn give_up_unreadable(&self, spool: &mut Spool) {
        if self.unread.fetch_add(1, Ordering::Relaxed) + 1 < READS {
            return;
        }
        self.unread.store(0, Ordering::Relaxed);
        if let Some((counts, written)) = spool.drop_oldest() {
            self.ledger.lose_spooled(counts);
            if let Err(error) = written {
                warn!("{}: {error}", self.ledger);
            }
        }
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

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
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
            let done = act(&this, &mut spool);
            if let Some(warning) = spool.take_warning() {
                warn!("{}: {warning}", this.ledger);
            }
            done
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
        let batch = live.get().export.batch().at_most(spool.max_request);
        let Some(taken) = queue.take_now(batch) else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::record::{EventSet, RecordKind};

    #[tokio::test]
    async fn what_is_read_for_nobody_is_handed_out_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open(folder.path(), 1 << 20).unwrap();
        spool.append(&Frame { counts: [0, 0, 7], body: Bytes::from_static(b"body") }).unwrap();
        let ledger = OutputLedger::new("otlp", "logs", EventSet::ENDS, &Ledger::default());
        let spooled = Spooled::new(spool, 1 << 20, [0; 3], Arc::clone(&ledger));
        for _ in 0..10 {
            // Begun, and given up at once, as by an answer that comes first.
            tokio::select! {
                biased;
                read = spooled.next() => if let Some((_, held, frame)) = read {
                    // Faster than a poll.
                    held.spooled();
                    spooled.give_back(frame).await;
                },
                () = std::future::ready(()) => {}
            }
        }
        // The file is read all the same, some time; then the request is where it was.
        let reading = async {
            loop {
                match spooled.next().await {
                    Some(read) => break read,
                    None => spooled.filled().await,
                }
            }
        };
        let patience = Duration::from_secs(20);
        let (body, held, _) = tokio::time::timeout(patience, reading).await.expect("it is lost");
        assert_eq!((&*body, held.counts()), (&b"body"[..], [0, 0, 7]));
        assert_eq!(ledger.of(RecordKind::End).unanswered, 7);
        held.settle(Ok(()));
        let end = ledger.of(RecordKind::End);
        assert_eq!((end.recovered, end.exported, end.in_flight()), (7, 7, 0));
    }
}
