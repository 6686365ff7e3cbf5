//! A bounded queue that is measured: what is in it, and what was taken and not settled yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::ledger::{DropCause, OutputLedger};
use crate::record::{Record, RecordKind};

/// What a queue holds: the ledger counts each kind by itself.
pub trait Counted {
    /// The kind that it counts as.
    fn kind(&self) -> RecordKind;
}

impl Counted for Arc<Record> {
    fn kind(&self) -> RecordKind {
        self.kind
    }
}

/// Between the data path, which never waits, and one output, which may.
#[derive(Debug)]
pub struct Queue<T> {
    inner: Mutex<Inner<T>>,
    filled: Notify,
    emptied: Notify,
    capacity: usize,
    ledger: Arc<OutputLedger>,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
    /// When this many wait, the consumer is woken.
    wake_at: usize,
}

impl<T: Counted> Queue<T> {
    /// For at most `capacity` items.
    pub fn new(capacity: usize, ledger: Arc<OutputLedger>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner { items: VecDeque::new(), closed: false, wake_at: 1 }),
            filled: Notify::new(),
            emptied: Notify::new(),
            capacity,
            ledger,
        })
    }

    /// The output's ledger.
    pub fn ledger(&self) -> &OutputLedger {
        &self.ledger
    }

    /// Takes an item in, or counts it as dropped when the queue is full. Never waits.
    pub fn push(&self, item: T) {
        let counts = self.ledger.of(item.kind());
        let mut inner = self.lock();
        if inner.items.len() >= self.capacity || inner.closed {
            let cause = if inner.closed { DropCause::OutputClosed } else { DropCause::QueueFull };
            counts.drop_records(cause, 1);
            return;
        }
        inner.items.push_back(item);
        counts.queued.add(1);
        if inner.items.len() >= inner.wake_at {
            inner.wake_at = usize::MAX;
            self.filled.notify_one();
        }
    }

    /// Waits until there is room, or nothing is taken in any more; for the one producer that may wait.
    pub async fn room(&self) {
        loop {
            {
                let inner = self.lock();
                if inner.items.len() < self.capacity || inner.closed {
                    return;
                }
            }
            self.emptied.notified().await;
        }
    }

    /// Nothing more is taken in; what is there is still handed out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    /// Waits for the first item, then for company: until there are `max`, or `linger` is over, or
    /// the queue is closed. `None` when it is closed and empty. What is handed out counts as
    /// unanswered until [`Queue::settle`].
    pub async fn take(&self, max: usize, linger: Duration) -> Option<Vec<T>> {
        self.wait_for(1).await?;
        let enough = self.wait_for(max);
        // Either outcome is fine: a full batch, or what has come by then.
        let _ = tokio::time::timeout(linger, enough).await;
        let mut inner = self.lock();
        let n = inner.items.len().min(max);
        let batch: Vec<T> = inner.items.drain(..n).collect();
        for item in &batch {
            let counts = self.ledger.of(item.kind());
            counts.queued.sub(1);
            counts.unanswered.add(1);
        }
        self.emptied.notify_one();
        Some(batch)
    }

    /// Says what became of items that were taken: exported, or dropped.
    pub fn settle(&self, items: &[T], outcome: Result<(), DropCause>) {
        for item in items {
            let counts = self.ledger.of(item.kind());
            match outcome {
                Ok(()) => counts.exported.add(1),
                Err(cause) => counts.drop_records(cause, 1),
            }
            counts.unanswered.sub(1);
        }
    }

    /// Counts everything that is left as dropped, what was taken and not settled too; for when the
    /// consumer is gone.
    pub fn abandon(&self, cause: DropCause) {
        let mut inner = self.lock();
        inner.closed = true;
        for item in inner.items.drain(..) {
            let counts = self.ledger.of(item.kind());
            counts.queued.sub(1);
            counts.drop_records(cause, 1);
        }
        for kind in RecordKind::ALL {
            let counts = self.ledger.of(kind);
            let unanswered = usize::try_from(counts.unanswered.get()).unwrap_or(usize::MAX);
            counts.unanswered.sub(unanswered);
            counts.drop_records(cause, unanswered);
        }
        self.emptied.notify_one();
    }

    /// Until `n` items wait, or the queue is closed; `None` when it is closed and empty.
    async fn wait_for(&self, n: usize) -> Option<()> {
        loop {
            {
                let mut inner = self.lock();
                if inner.items.len() >= n {
                    return Some(());
                }
                if inner.closed {
                    return (!inner.items.is_empty()).then_some(());
                }
                inner.wake_at = n;
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::EventSet;

    /// 0 counts as a begin.
    impl Counted for u32 {
        fn kind(&self) -> RecordKind {
            if *self == 0 { RecordKind::Begin } else { RecordKind::End }
        }
    }

    fn queue(capacity: usize) -> Arc<Queue<u32>> {
        Queue::new(capacity, OutputLedger::new("test", EventSet { begin: true, progress: true }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_full_or_late() {
        let q = queue(10);
        for n in 1..6 {
            q.push(n);
        }
        let linger = Duration::from_secs(1);
        assert_eq!(q.take(3, linger).await, Some(vec![1, 2, 3]));
        let before = tokio::time::Instant::now();
        assert_eq!(q.take(3, linger).await, Some(vec![4, 5]));
        assert_eq!(before.elapsed(), linger);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_consumer_is_woken_by_a_full_batch() {
        let q = queue(10);
        let consumer = tokio::spawn({
            let q = Arc::clone(&q);
            async move { (q.take(2, Duration::from_secs(3600)).await, tokio::time::Instant::now()) }
        });
        let start = tokio::time::Instant::now();
        tokio::task::yield_now().await;
        q.push(1);
        tokio::task::yield_now().await;
        q.push(2);
        let (batch, at) = consumer.await.unwrap();
        assert_eq!(batch, Some(vec![1, 2]));
        assert_eq!(at - start, Duration::ZERO);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_counted() {
        let q = queue(2);
        let ends = q.ledger().of(RecordKind::End);
        for n in 1..6 {
            q.push(n);
        }
        assert_eq!(ends.dropped(DropCause::QueueFull), 3);
        assert_eq!(ends.in_flight(), 2);
        let batch = q.take(10, Duration::ZERO).await.unwrap();
        assert_eq!((batch.len(), ends.in_flight(), ends.exported.get()), (2, 2, 0));
        q.settle(&batch, Ok(()));
        assert_eq!((ends.in_flight(), ends.exported.get()), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_producer_may_wait_for_room() {
        let q = queue(2);
        q.room().await;
        q.push(1);
        q.push(2);
        let producer = tokio::spawn({
            let q = Arc::clone(&q);
            async move {
                for n in 3..=10 {
                    q.room().await;
                    q.push(n);
                }
                q.close();
            }
        });
        let mut got = Vec::new();
        while let Some(batch) = q.take(2, Duration::ZERO).await {
            got.extend(batch);
        }
        producer.await.unwrap();
        assert_eq!(got, (1..=10).collect::<Vec<_>>());
        assert_eq!(q.ledger().dropped(DropCause::QueueFull), 0);
        // Nobody takes anything any more: waiting would never end.
        let gone = queue(1);
        gone.push(1);
        gone.abandon(DropCause::Shutdown);
        gone.room().await;
    }

    #[tokio::test]
    async fn a_closed_queue_is_emptied_first() {
        let q = queue(2);
        q.push(1);
        q.close();
        q.push(2);
        assert_eq!(q.take(1, Duration::from_secs(3600)).await, Some(vec![1]));
        assert_eq!(q.take(1, Duration::from_secs(3600)).await, None);
        assert_eq!(q.ledger().dropped(DropCause::OutputClosed), 1);
    }

    #[tokio::test]
    async fn what_is_abandoned_is_counted() {
        let q = queue(5);
        for n in 1..4 {
            q.push(n);
        }
        q.abandon(DropCause::Shutdown);
        assert_eq!(q.ledger().dropped(DropCause::Shutdown), 3);
        assert_eq!(q.ledger().of(RecordKind::End).in_flight(), 0);
        assert_eq!(q.take(1, Duration::ZERO).await, None);
    }

    #[tokio::test]
    async fn each_kind_is_counted_by_itself_all_along() {
        let q = queue(4);
        // What became of begins and of ends: exported, refused, queue full, shutdown, in flight.
        let counts = || {
            [RecordKind::Begin, RecordKind::End].map(|kind| {
                let of = q.ledger().of(kind);
                let dropped = [DropCause::Refused, DropCause::QueueFull, DropCause::Shutdown]
                    .map(|c| of.dropped(c));
                (of.exported.get(), dropped, of.in_flight())
            })
        };
        for item in [0, 1, 0, 2, 0, 3, 4] {
            q.push(item);
        }
        assert_eq!(counts(), [(0, [0, 1, 0], 2), (0, [0, 2, 0], 2)]);
        let batch = q.take(2, Duration::ZERO).await.unwrap();
        assert_eq!(batch, [0, 1]);
        q.settle(&batch[..1], Ok(()));
        q.settle(&batch[1..], Err(DropCause::Refused));
        assert_eq!(counts(), [(1, [0, 1, 0], 1), (0, [1, 2, 0], 1)]);
        // One of the two is in a request when the output is given up.
        assert_eq!(q.take(1, Duration::ZERO).await, Some(vec![0]));
        q.abandon(DropCause::Shutdown);
        assert_eq!(counts(), [(1, [0, 1, 1], 0), (0, [1, 2, 1], 0)]);
    }
}
