//! A bounded queue between the data path, which never waits, and one output, which may.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Held;
use crate::fair::{Holder, Losses, NAMED_LOSERS, Shares};
use crate::ledger::{DropCause, KindCounts, OutputLedger};
use crate::record::{Record, RecordKind};

/// What a queue holds.
pub trait Item {
    /// The ledger counts each kind by itself.
    fn kind(&self) -> RecordKind;
    /// The memory that it keeps from being freed, bytes, about.
    fn memory(&self) -> usize;
    /// Whose it is.
    fn holder(&self) -> Holder;
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

    fn holder(&self) -> Holder {
        self.end.cgroup_id.unwrap_or(0)
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
    /// Whether it was full when something was pushed last, and nothing was taken since.
    was_full: AtomicBool,
}

#[derive(Debug)]
struct Inner<T> {
    /// In the order in which they came; `None` for one that gave way.
    items: VecDeque<Option<T>>,
    /// The number of the first of them.
    first: u64,
    /// Those that are there.
    len: usize,
    /// Their numbers by cgroup, once the queue was full, and until it is half empty again.
    shares: Option<Shares<u64>>,
    /// Dropped because the queue was full, by cgroup.
    dropped: Losses,
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

/// Places of records that gave way which are not worth the work of going through the queue.
const PLACES: usize = 64;

const NEVER: Limits = Limits { records: usize::MAX, bytes: usize::MAX };

impl<T> Inner<T> {
    fn has(&self, much: Limits) -> bool {
        self.len >= much.records || self.size >= much.bytes
    }

    fn is_full(&self) -> bool {
        self.len >= self.limits.records || self.memory >= self.limits.bytes
    }

    fn is_pressing(&self) -> bool {
        self.len > self.limits.records / 2 || self.memory > self.limits.bytes / 2
    }
}

impl<T: Item> Inner<T> {
    fn push(&mut self, item: T) {
        if let Some(shares) = &mut self.shares {
            shares.add(item.holder(), self.first + self.items.len() as u64);
        }
        self.memory += item.memory();
        self.size += item.size();
        self.len += 1;
        self.items.push_back(Some(item));
    }

    /// The first one, unless there is none.
    fn pop(&mut self) -> Option<T> {
        loop {
            let item = self.items.pop_front()?;
            let number = self.first;
            self.first += 1;
            if let Some(item) = item {
                self.left(&item, number);
                return Some(item);
            }
        }
    }

    /// The first one stays.
    fn peek(&self) -> Option<&T> {
        self.items.iter().flatten().next()
    }

    fn left(&mut self, item: &T, number: u64) {
        if let Some(shares) = &mut self.shares {
            shares.remove(item.holder(), &number);
        }
        self.memory -= item.memory();
        self.size -= item.size();
        self.len -= 1;
    }

    /// In a full queue: takes the youngest out of a cgroup that has more than its share waiting, to make room for
    /// one of `newcomer`. `None` where that has its own share, and gives way itself.
    fn displace(&mut self, newcomer: Holder) -> Option<T> {
        let Self { items, first, shares, .. } = self;
        let shares = shares.get_or_insert_with(|| {
            let mut shares = Shares::default();
            for (number, item) in (*first..).zip(items.iter()) {
                item.iter().for_each(|item| shares.add(item.holder(), number));
            }
            shares
        });
        let loser = shares.gives_way(newcomer).filter(|loser| *loser != newcomer)?;
        let number = shares.youngest(loser)?;
        let item = items.get_mut((number - *first) as usize)?.take()?;
        self.left(&item, number);
        self.compact();
        Some(item)
    }

    /// The places of those that gave way are not to be more than those that are there, and then some.
    fn compact(&mut self) {
        while let Some(None) = self.items.back() {
            self.items.pop_back();
        }
        if self.items.len() > 2 * self.len + PLACES {
            self.items.retain(Option::is_some);
            // They are numbered anew.
            (self.shares, self.first) = (None, 0);
        }
    }
}

impl<T: Item> Queue<T> {
    /// Empty.
    pub fn new(limits: Limits, ledger: Arc<OutputLedger>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                first: 0,
                len: 0,
                shares: None,
                dropped: Losses::new(NAMED_LOSERS),
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
            was_full: AtomicBool::new(false),
        })
    }

    /// The output's ledger.
    pub const fn ledger(&self) -> &Arc<OutputLedger> {
        &self.ledger
    }

    /// What each cgroup lost because the queue was full.
    pub fn dropped(&self) -> Losses {
        self.lock().dropped.clone()
    }

    /// Takes an item in. When the queue is full, the youngest of the cgroup that has most waiting gives way, or this
    /// item where it is of a cgroup with its share; either is counted as dropped. Never waits.
    pub fn push(&self, item: T) {
        let kind = item.kind();
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            return self.ledger.drop_new(kind, DropCause::OutputClosed);
        }
        if !self.make_room(&mut inner, kind, item.holder()) {
            return;
        }
        inner.push(item);
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

    /// Whether an item of this kind and cgroup is not taken in: then it is counted as dropped, and need not be made.
    pub(super) fn refuses(&self, kind: RecordKind, holder: Holder) -> bool {
        if !self.was_full.load(Ordering::Relaxed) {
            return false;
        }
        let mut inner = self.lock();
        !inner.closed && !self.make_room(&mut inner, kind, holder)
    }

    /// Makes room for one item; false where it has to give way itself, and is counted.
    fn make_room(&self, inner: &mut Inner<T>, kind: RecordKind, newcomer: Holder) -> bool {
        while inner.is_full() {
            self.was_full.store(true, Ordering::Relaxed);
            let cause = inner.full;
            let Some(displaced) = inner.displace(newcomer) else {
                inner.dropped.add(newcomer, 1);
                self.ledger.drop_new(kind, cause);
                return false;
            };
            inner.dropped.add(displaced.holder(), 1);
            self.ledger.drop_queued(displaced.kind(), cause);
        }
        true
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
        let mut items = Vec::with_capacity(batch.records.min(inner.len));
        let (mut size, mut counts) = (0, KindCounts::default());
        while let Some(next) = inner.peek() {
            size += next.size();
            if !items.is_empty() && (items.len() >= batch.records || size > batch.bytes) {
                break;
            }
            items.extend(inner.pop().inspect(|item| counts[item.kind() as usize] += 1));
        }
        if items.is_empty() {
            return None;
        }
        self.was_full.store(false, Ordering::Relaxed);
        if !inner.is_pressing() {
            inner.shares = None;
        }
        self.ledger.dequeue(counts);
        self.emptied.notify_one();
        Some(Taken { items, held: Held::new(Arc::clone(&self.ledger), counts) })
    }

    /// Puts back what was taken, to where it was.
    pub(super) fn put_back(&self, taken: Taken<T>) {
        let mut inner = self.lock();
        // They are numbered anew, should it be full again.
        (inner.shares, inner.first) = (None, 0);
        for item in taken.items.into_iter().rev() {
            inner.memory += item.memory();
            inner.size += item.size();
            inner.len += 1;
            inner.items.push_front(Some(item));
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
                    return (inner.len > 0).then_some(());
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
