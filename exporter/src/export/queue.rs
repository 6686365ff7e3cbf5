//! A bounded queue between the data path, which never waits, and one output, which may.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Held;
use crate::ledger::{DropCause, KindCounts, OutputLedger};
use crate::record::{Record, RecordKind};

/// What a queue holds.
pub trait Item {
    /// The ledger counts each kind by itself.
    fn kind(&self) -> RecordKind;
    /// The memory that it keeps from being freed, bytes, about.
    fn memory(&self) -> usize;
    /// What it adds to a request, bytes.
    fn size(&self) -> usize;
}

impl Item for Arc<Record> {
    fn kind(&self) -> RecordKind {
        self.kind
    }

    fn memory(&self) -> usize {
        size_of::<Record>() + self.local_names.len() * 16 + self.remote_names.len() * 16
    }

    fn size(&self) -> usize {
        self.memory()
    }
}

/// How much a queue takes, or a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Bytes: of memory, for a queue; of the request, for a batch.
    pub bytes: usize,
}

impl Limits {
    /// Not more bytes than that.
    pub(super) fn at_most(self, bytes: usize) -> Self {
        Self { bytes: self.bytes.min(bytes), ..self }
    }
}

/// Between the data path, which never waits, and one output, which may.
#[derive(Debug)]
pub struct Queue<T> {
    inner: Mutex<Inner<T>>,
    /// For the one who takes.
    filled: Notify,
    /// For the one producer that may wait.
    emptied: Notify,
    /// For the spooler.
    pressing: Notify,
    /// Whether it is closed, for those who wait for that.
    closing: watch::Sender<bool>,
    ledger: Arc<OutputLedger>,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    memory: usize,
    size: usize,
    limits: Limits,
    closed: bool,
    /// When this much waits, the consumer is woken.
    wake_at: Limits,
    /// Whether the spooler wants to know when more than half of the queue is in use.
    spooler_waits: bool,
    /// Why records are dropped when the queue is full.
    full: DropCause,
}

/// What was taken from a queue, in its order.
#[derive(Debug)]
#[must_use]
pub struct Taken<T> {
    /// At least one.
    pub items: Vec<T>,
    /// Their account.
    pub held: Held,
}

const NEVER: Limits = Limits { records: usize::MAX, bytes: usize::MAX };

impl<T> Inner<T> {
    fn has(&self, much: Limits) -> bool {
        self.items.len() >= much.records || self.size >= much.bytes
    }

    fn is_full(&self) -> bool {
        self.items.len() >= self.limits.records || self.memory >= self.limits.bytes
    }

    fn is_pressing(&self) -> bool {
        self.items.len() > self.limits.records / 2 || self.memory > self.limits.bytes / 2
    }
}

impl<T: Item> Queue<T> {
    /// Empty.
    pub fn new(limits: Limits, ledger: Arc<OutputLedger>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                memory: 0,
                size: 0,
                limits,
                closed: false,
                wake_at: Limits { records: 1, bytes: usize::MAX },
                spooler_waits: false,
                full: DropCause::QueueFull,
            }),
            filled: Notify::new(),
            emptied: Notify::new(),
            pressing: Notify::new(),
            closing: watch::Sender::new(false),
            ledger,
        })
    }

    /// The output's ledger.
    pub const fn ledger(&self) -> &Arc<OutputLedger> {
        &self.ledger
    }

    /// Takes an item in, or counts it as dropped when the queue is full. Never waits.
    pub fn push(&self, item: T) {
        let kind = item.kind();
        let mut inner = self.lock();
        if inner.closed || inner.is_full() {
            let cause = if inner.closed { DropCause::OutputClosed } else { inner.full };
            drop(inner);
            return self.ledger.drop_new(kind, cause);
        }
        inner.memory += item.memory();
        inner.size += item.size();
        inner.items.push_back(item);
        self.ledger.enqueue(kind);
        if inner.has(inner.wake_at) {
            inner.wake_at = NEVER;
            self.filled.notify_one();
        }
        if inner.spooler_waits && inner.is_pressing() {
            inner.spooler_waits = false;
            self.pressing.notify_one();
        }
    }

    /// Waits until there is room, or nothing is taken in any more; for the one producer that may wait.
    pub async fn room(&self) {
        loop {
            {
                let inner = self.lock();
                if !inner.is_full() || inner.closed {
                    return;
                }
            }
            self.emptied.notified().await;
        }
    }

    /// Nothing more is taken in; what is there is still handed out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.closing.send_replace(true);
        self.filled.notify_one();
        self.pressing.notify_one();
        self.emptied.notify_one();
    }

    /// Whether nothing more is taken in.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until nothing more is taken in.
    pub(super) async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        // The sender is here.
        let _ = closing.wait_for(|closed| *closed).await;
    }

    /// New limits; what is there stays.
    pub fn limit(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Why records are dropped from now on when the queue is full.
    pub(super) fn full_because(&self, cause: DropCause) {
        self.lock().full = cause;
    }

    /// Waits for the first item, then for company: until there is enough for a batch, or `linger` is
    /// over, or the queue is closed. `None` when it is closed and empty. Cancel safe.
    pub async fn take(&self, batch: Limits, linger: Duration) -> Option<Taken<T>> {
        loop {
            self.wait_for(Limits { records: 1, bytes: usize::MAX }).await?;
            // Either outcome is fine: a full batch, or what has come by then.
            let _ = tokio::time::timeout(linger, self.wait_for(batch)).await;
            // Or the spooler was faster.
            if let Some(taken) = self.take_now(batch) {
                return Some(taken);
            }
        }
    }

    /// What there is at the front, as much as goes into a batch, and at least one. `None` when it is empty.
    pub(super) fn take_now(&self, batch: Limits) -> Option<Taken<T>> {
        let mut inner = self.lock();
        let mut size = 0;
        let fits = |item: &&T| {
            size += item.size();
            size <= batch.bytes
        };
        let n = inner.items.iter().take(batch.records).take_while(fits).count();
        let n = n.max(1).min(inner.items.len());
        if n == 0 {
            return None;
        }
        let items: Vec<T> = inner.items.drain(..n).collect();
        let mut counts = KindCounts::default();
        for item in &items {
            inner.memory -= item.memory();
            inner.size -= item.size();
            counts[item.kind() as usize] += 1;
        }
        self.ledger.dequeue(counts);
        self.emptied.notify_one();
        Some(Taken { items, held: Held::new(Arc::clone(&self.ledger), counts) })
    }

    /// Puts back what was taken, to where it was.
    pub(super) fn put_back(&self, taken: Taken<T>) {
        let mut inner = self.lock();
        for item in taken.items.into_iter().rev() {
            inner.memory += item.memory();
            inner.size += item.size();
            inner.items.push_front(item);
        }
        taken.held.requeued();
        self.filled.notify_one();
    }

    /// Waits until more than half of the queue is in use. `None` when it is closed.
    pub(super) async fn pressing(&self) -> Option<()> {
        loop {
            {
                let mut inner = self.lock();
                if inner.closed {
                    return None;
                }
                if inner.is_pressing() {
                    return Some(());
                }
                inner.spooler_waits = true;
            }
            self.pressing.notified().await;
        }
    }

    /// Counts what is left as dropped, and takes nothing more in.
    pub fn abandon(&self, cause: DropCause) {
        self.close();
        while let Some(taken) = self.take_now(NEVER) {
            taken.held.settle(Err(cause));
        }
    }

    /// Until this much waits, or the queue is closed; `None` when it is closed and empty.
    async fn wait_for(&self, much: Limits) -> Option<()> {
        loop {
            {
                let mut inner = self.lock();
                if inner.has(much) {
                    return Some(());
                }
                if inner.closed {
                    return (!inner.items.is_empty()).then_some(());
                }
                inner.wake_at = much;
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
