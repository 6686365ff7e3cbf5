//! Records in somebody's hands.

use std::sync::Arc;

use crate::ledger::{DropCause, KindCounts, OutputLedger};

/// Records that were taken from a queue or a spool, and count as unanswered until somebody says what became
/// of them. Let go of without a word they are lost, and the ledger does not add up any more: so a mistake
/// shows.
#[derive(Debug)]
#[must_use]
pub struct Held {
    ledger: Arc<OutputLedger>,
    counts: KindCounts,
    /// What became of them where the task that holds them is aborted.
    if_dropped: Option<DropCause>,
}

impl Held {
    /// The ledger has counted them as unanswered.
    pub(super) const fn new(ledger: Arc<OutputLedger>, counts: KindCounts) -> Self {
        Self { ledger, counts, if_dropped: None }
    }

    /// For a task that is aborted at the end: then they count as dropped for this cause.
    pub const fn or(mut self, cause: DropCause) -> Self {
        self.if_dropped = Some(cause);
        self
    }

    /// How many of each kind.
    pub const fn counts(&self) -> KindCounts {
        self.counts
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.counts.iter().map(|n| u64::from(*n)).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts == KindCounts::default()
    }

    /// They were exported, or dropped.
    pub fn settle(mut self, outcome: Result<(), DropCause>) {
        let counts = self.give_up();
        self.ledger.settle(counts, outcome);
    }

    /// The receiver took the request without `rejected` of its records. It does not say which: ends are
    /// taken to be among them first, then progresses.
    pub(super) fn settle_without(mut self, rejected: u64) {
        let mut left = rejected;
        let mut kinds = KindCounts::default();
        for (kind, held) in kinds.iter_mut().zip(self.counts).rev() {
            // Not more than there were, whatever the receiver says.
            let n = held.min(u32::try_from(left).unwrap_or(u32::MAX));
            *kind = n;
            left -= u64::from(n);
        }
        self.part(kinds).settle(Err(DropCause::Rejected));
        let rest = self.give_up();
        self.ledger.settle(rest, Ok(()));
    }

    /// They were written to the spool.
    pub(super) fn spooled(mut self) {
        let counts = self.give_up();
        self.ledger.spool(counts);
    }

    /// They were put back into the queue.
    pub(super) fn requeued(mut self) {
        let counts = self.give_up();
        self.ledger.requeue(counts);
    }

    /// A part of them, apart from here on. Never more than there are.
    pub(super) fn part(&mut self, counts: KindCounts) -> Self {
        let mut part = KindCounts::default();
        for ((part, held), wanted) in part.iter_mut().zip(&mut self.counts).zip(counts) {
            *part = wanted.min(*held);
            *held -= *part;
        }
        Self { ledger: Arc::clone(&self.ledger), counts: part, if_dropped: self.if_dropped }
    }

    fn give_up(&mut self) -> KindCounts {
        std::mem::take(&mut self.counts)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let counts = self.give_up();
        match self.if_dropped {
            Some(cause) => self.ledger.settle(counts, Err(cause)),
            None => self.ledger.lose(counts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::record::{EventSet, RecordKind};

    const ALL: EventSet = EventSet { begin: true, progress: true };

    fn held(counts: KindCounts) -> (Arc<OutputLedger>, Held) {
        let ledger = OutputLedger::new("otlp", "logs", ALL, &Ledger::default());
        for (kind, n) in RecordKind::ALL.into_iter().zip(counts) {
            for _ in 0..n {
                ledger.enqueue(kind);
            }
        }
        ledger.dequeue(counts);
        let held = Held::new(Arc::clone(&ledger), counts);
        (ledger, held)
    }

    /// Exported, rejected and unanswered of each kind.
    fn became(ledger: &OutputLedger) -> [(u64, u64, u64); 3] {
        let of = |kind| {
            let kind = ledger.of(kind);
            (kind.exported, kind.dropped(DropCause::Rejected), kind.unanswered)
        };
        RecordKind::ALL.map(of)
    }

    #[test]
    fn what_a_receiver_rejects_is_at_most_what_it_got() {
        for (rejected, want) in [
            (0, [(1, 0, 0), (2, 0, 0), (3, 0, 0)]),
            (2, [(1, 0, 0), (2, 0, 0), (1, 2, 0)]),
            (4, [(1, 0, 0), (1, 1, 0), (0, 3, 0)]),
            (6, [(0, 1, 0), (0, 2, 0), (0, 3, 0)]),
            (u64::MAX, [(0, 1, 0), (0, 2, 0), (0, 3, 0)]),
        ] {
            let (ledger, held) = held([1, 2, 3]);
            held.settle_without(rejected);
            assert_eq!(became(&ledger), want, "{rejected}");
        }
    }

    #[test]
    fn a_part_is_settled_apart() {
        let (ledger, mut whole) = held([0, 0, 5]);
        let part = whole.part([9, 0, 2]);
        assert_eq!((part.counts(), whole.counts()), ([0, 0, 2], [0, 0, 3]));
        part.settle(Ok(()));
        assert_eq!(became(&ledger)[2], (2, 0, 3));
        whole.settle(Err(DropCause::Rejected));
        assert_eq!(became(&ledger)[2], (2, 3, 0));
    }

    #[test]
    fn what_is_let_go_of_without_a_word_is_missing() {
        let (ledger, held_back) = held([0, 0, 2]);
        drop(held_back);
        let end = ledger.of(RecordKind::End);
        assert_eq!(end.in_flight() + end.exported + end.dropped_in_all(), 0, "2 are nowhere");
        let (ledger, held_back) = held([0, 0, 2]);
        drop(held_back.or(DropCause::Shutdown));
        assert_eq!(ledger.dropped(DropCause::Shutdown), 2);
    }
}
