//! Export of one signal to one destination: from its queue, and from its spool, into requests.
//!
//! Several requests are on their way at once. What becomes of each is decided by the receiver's answer alone:
//! taken, and then the records are exported; not now, and then it is tried again; too large, and then it is split;
//! refused for good.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tracing::error;

use super::health::Health;
use super::queue::{Limits, Queue, Taken};
use super::reach::{LAST_CONNECTION, LAST_TRY, Reach};
use super::retry::{Gate, jittered};
use super::spooled::{Spooled, Unspooled};
use super::transport::{Answer, Client};
use super::{Held, Part, Signal};
use crate::config::Export;
use crate::encode::wire;
use crate::ledger::{DropCause, KindCounts};

/// Sends requests; several at once.
pub trait Wire: Send + Sync + 'static {
    /// Sends the protobuf of an export request, and waits for the answer; for a connection only until `hopeless`
    /// is ready.
    fn send(
        &self,
        body: Bytes,
        hopeless: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = Answer> + Send;
}

impl Wire for Client {
    fn send(
        &self,
        body: Bytes,
        hopeless: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = Answer> + Send {
        self.send_unless(body, hopeless)
    }
}

/// How an exporter is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    /// Not yet. A queue that is closed all the same is closed because flowend stops.
    #[default]
    Open,
    /// Once its queue is closed, this is why what is left is dropped.
    Closing(DropCause),
    /// There is no more time.
    Now(DropCause),
}

/// What may be exchanged while the exporter runs.
#[derive(Debug)]
pub(super) struct Live<W>(RwLock<Arc<Current<W>>>);

/// What is in force.
#[derive(Debug)]
pub(super) struct Current<W> {
    pub(super) wire: W,
    pub(super) export: Export,
}

impl<W> Live<W> {
    pub(super) fn new(wire: W, export: Export) -> Self {
        Self(RwLock::new(Arc::new(Current { wire, export })))
    }

    pub(super) fn get(&self) -> Arc<Current<W>> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests that are on their way are not disturbed; the next try goes the new way.
    pub(super) fn set(&self, wire: W, export: Export) {
        let current = Arc::new(Current { wire, export });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = current;
    }
}

impl Export {
    pub(super) const fn batch(&self) -> Limits {
        Limits { records: self.batch_records, bytes: self.batch_bytes }
    }

    pub(super) const fn queue(&self) -> Limits {
        Limits { records: self.queue_records, bytes: self.queue_bytes }
    }
}

/// A request, or what is left of one.
#[derive(Debug)]
struct Piece {
    body: Bytes,
    held: Held,
}

/// Exports one signal to one destination.
#[derive(Debug)]
pub(super) struct Exporter<W> {
    pub(super) signal: Signal,
    pub(super) queue: Arc<Queue<Part>>,
    pub(super) spool: Option<Arc<Spooled>>,
    /// The task that fills it.
    pub(super) spooler: Option<JoinHandle<()>>,
    pub(super) live: Arc<Live<W>>,
    pub(super) health: Arc<Health>,
    pub(super) gate: Gate,
    pub(super) reach: Reach,
    pub(super) ending: watch::Receiver<Ending>,
}

/// What became of a piece.
enum Fate {
    /// It is settled.
    Settled,
    /// The receiver wants it smaller.
    Split(Piece, Piece),
    /// There is no more time to send it.
    Left(Piece),
}

impl<W: Wire> Exporter<W> {
    /// Until the queue is closed and empty, or there is no more time, or nobody is there. What is left then goes
    /// into the spool, or is dropped.
    pub(super) async fn run(mut self) -> std::io::Result<()> {
        let spooler = self.spooler.take();
        let this = Arc::new(self);
        let mut flights = JoinSet::new();
        // The same one until it is ready: a record that waits for company does not wait longer for each answer
        // that comes meanwhile.
        let mut next = std::pin::pin!(this.next());
        loop {
            if flights.len() >= this.live.get().export.concurrency {
                landed(flights.join_next().await);
                continue;
            }
            tokio::select! {
                biased;
                () = this.stopped() => break,
                () = this.reach.given_up() => break,
                Some(ended) = flights.join_next() => landed(Some(ended)),
                found = next.as_mut() => match found {
                    None => break,
                    Some((piece, frame)) => {
                        flights.spawn(Arc::clone(&this).deliver(piece, frame));
                        next.set(this.next());
                    }
                },
            }
        }
        while let Some(ended) = flights.join_next().await {
            landed(Some(ended));
        }
        this.queue.close();
        if let Some(spooler) = spooler {
            // What it has in its hands is in the spool, or back in the queue, before that is emptied.
            landed(Some(spooler.await));
        }
        this.leave().await;
        Ok(())
    }

    /// The next request: the oldest of the spool, or else from the queue.
    async fn next(&self) -> Option<(Piece, Option<Unspooled>)> {
        let export = self.live.get().export.clone();
        let Some(spool) = &self.spool else {
            let taken = self.queue.take(export.batch(), export.interval).await?;
            return Some((self.piece(taken), None));
        };
        loop {
            // Who stops with a spool behind him keeps what is there for the next start: the receiver has not
            // kept up, and need not be waited for.
            if self.queue.is_closed() && spool.has_waiting() {
                return None;
            }
            if let Some((body, held, frame)) = spool.next().await {
                return Some((Piece { body, held }, Some(frame)));
            }
            tokio::select! {
                taken = self.queue.take(export.batch(), export.interval) => {
                    return Some((self.piece(taken?), None));
                }
                () = spool.filled() => {}
            }
        }
    }

    fn piece(&self, taken: Taken<Part>) -> Piece {
        Piece { body: request(self.signal, &taken.items), held: taken.held }
    }

    /// Sends a request until it is settled, or there is no more time.
    async fn deliver(self: Arc<Self>, piece: Piece, frame: Option<Unspooled>) {
        let mut pieces = vec![piece];
        let mut left = Vec::new();
        let mut is_whole = true;
        while let Some(piece) = pieces.pop() {
            match self.send(piece).await {
                Fate::Settled => is_whole = false,
                Fate::Split(first, second) => pieces.extend([second, first]),
                Fate::Left(piece) => left.push(piece),
            }
        }
        match (&self.spool, frame) {
            // As it was.
            (Some(spool), Some(frame)) if is_whole => {
                left.into_iter().for_each(|piece| piece.held.spooled());
                spool.give_back(frame).await;
            }
            (Some(spool), frame) => {
                for piece in left {
                    self.keep(spool, piece).await;
                }
                if let Some(frame) = frame {
                    spool.settle(frame).await;
                }
            }
            (None, _) => {
                let cause = self.cause();
                left.into_iter().for_each(|piece| piece.held.settle(Err(cause)));
            }
        }
    }

    /// Tries until there is an answer that decides.
    async fn send(&self, piece: Piece) -> Fate {
        let start = Instant::now();
        let mut pause = None;
        loop {
            tokio::select! {
                () = self.gate.open() => {}
                () = self.leaving() => return Fate::Left(piece),
            }
            let current = self.live.get();
            let was_missed = self.reach.was_missed();
            let is_late = AtomicBool::new(false);
            let hopeless = async {
                self.hopeless(was_missed).await;
                is_late.store(true, Ordering::Relaxed);
            };
            let answer = tokio::select! {
                answer = current.wire.send(piece.body.clone(), hopeless) => answer,
                () = self.stopped() => return Fate::Left(piece),
            };
            let is_last = was_missed && self.queue.is_closed();
            self.reach.note(&answer, is_last || is_late.load(Ordering::Relaxed));
            let is_missed = matches!(answer, Answer::Unreached { .. });
            let n = piece.held.len();
            let (after, why) = match answer {
                Answer::Taken { rejected, message } => {
                    self.health.works(rejected.min(n), &message);
                    piece.held.settle_without(rejected);
                    return Fate::Settled;
                }
                Answer::TooLarge { why } => return self.split(piece, &why),
                Answer::Refused { why } => {
                    self.health.fails(&why, &format!("{n} records refused for good"));
                    piece.held.settle(Err(DropCause::Refused));
                    return Fate::Settled;
                }
                Answer::Again { after, why } => (after, why),
                Answer::Unreached { why } => (None, why),
            };
            let export = &current.export;
            let now = *pause.get_or_insert(export.retry_initial);
            let wait = after.unwrap_or_default().max(jittered(now));
            pause = Some((now * 2).min(export.retry_max));
            if self.spool.is_none() && start.elapsed() + wait > export.retry_for {
                self.health.fails(&why, &format!("{n} records given up after export.retry_for"));
                piece.held.settle(Err(DropCause::RetryExhausted));
                return Fate::Settled;
            }
            self.health.fails(&why, "flowend goes on and tries again");
            if let Some(after) = after {
                self.gate.close_for(after);
            }
            tokio::select! {
                () = self.pause(wait, is_missed) => {}
                () = self.leaving() => return Fate::Left(piece),
            }
        }
    }

    /// Waits for the next try. That of a receiver that is not there comes soon when flowend stops: it is the last.
    async fn pause(&self, wait: Duration, is_missed: bool) {
        if !is_missed {
            return tokio::time::sleep(wait).await;
        }
        if self.queue.is_closed() {
            return tokio::time::sleep(wait.min(LAST_TRY)).await;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.queue.closed() => {}
        }
    }

    /// The receiver does not take a request of this size.
    fn split(&self, mut piece: Piece, why: &str) -> Fate {
        let halves = wire::halve(self.signal, &piece.body);
        let Some((first, second)) = halves else {
            self.health.fails(why, "a record is dropped");
            piece.held.settle(Err(DropCause::TooLarge));
            return Fate::Settled;
        };
        let counts = kinds(self.signal, &first);
        let held = piece.held.part(counts);
        Fate::Split(Piece { body: first, held }, Piece { body: second, held: piece.held })
    }

    /// Puts a piece into the spool; drops it where that fails.
    async fn keep(&self, spool: &Arc<Spooled>, piece: Piece) {
        if let Err((held, error)) = spool.append(piece.held, piece.body).await {
            error!("{}: {error}", self.queue.ledger());
            held.settle(Err(self.cause()));
        }
    }

    /// Why what is left is dropped.
    fn cause(&self) -> DropCause {
        match *self.ending.borrow() {
            Ending::Open => DropCause::Shutdown,
            Ending::Closing(cause) | Ending::Now(cause) => cause,
        }
    }

    /// What is left when the exporter ends.
    async fn leave(&self) {
        let mut batch = self.live.get().export.batch();
        if let Some(spool) = &self.spool {
            spool.close().await;
            batch = batch.at_most(spool.max_request);
        }
        while let Some(taken) = self.queue.take_now(batch) {
            match &self.spool {
                Some(spool) => self.keep(spool, self.piece(taken)).await,
                None => taken.held.settle(Err(self.cause())),
            }
        }
    }

    /// Ready when there is no more time.
    async fn stopped(&self) {
        let mut ending = self.ending.clone();
        // Nobody who could say so is no reason to stop.
        if ending.wait_for(|ending| matches!(ending, Ending::Now(_))).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ready when a request that waits for its next try should not wait any more: there is no more time, or
    /// nobody is there, or flowend stops and the spool can keep it.
    async fn leaving(&self) {
        tokio::select! {
            () = self.stopped() => {}
            () = self.reach.given_up() => {}
            () = self.queue.closed(), if self.spool.is_some() => {}
        }
    }

    /// Ready when a request should not wait for a connection any more: flowend stops, and there was time for one.
    async fn hopeless(&self, was_missed: bool) {
        self.queue.closed().await;
        tokio::select! {
            () = self.reach.given_up() => {}
            () = tokio::time::sleep(if was_missed { LAST_TRY } else { LAST_CONNECTION }) => {}
        }
    }
}

/// A request of these.
pub(super) fn request(signal: Signal, parts: &[Part]) -> Bytes {
    let encoded: Vec<_> = parts.iter().map(|part| Arc::clone(&part.encoded)).collect();
    wire::request(signal, &encoded)
}

/// A body that flowend has made itself, a moment ago.
fn kinds(signal: Signal, body: &Bytes) -> KindCounts {
    wire::kinds(signal, body).unwrap_or_default()
}

/// A task that panicked has let go of its records: the ledger will show it.
fn landed(ended: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(error)) = ended {
        error!("an export ended by itself: {error}; its records are lost");
    }
}

#[cfg(test)]
mod tests;
