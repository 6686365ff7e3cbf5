//! What became of the records at one output.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Common, DropCause, KindCounts, Ledger};
use crate::record::{EventSet, RecordKind};

const KINDS: usize = RecordKind::ALL.len();

/// Counts what happens at one output: a signal of a destination, or stdout in one format.
///
/// One lock for all of its counts, so that what is read at one moment adds up. Records move between the
/// places where they can be; nothing is computed from the rest.
#[derive(Debug)]
pub struct OutputLedger {
    destination: Arc<str>,
    signal: &'static str,
    events: EventSet,
    share: Mutex<Share>,
    kinds: Mutex<[Counted; KINDS]>,
}

/// The part of what is seen that an output gets: it may be taken away, and come back.
#[derive(Debug)]
struct Share {
    /// Of the times that are over.
    earlier: [Common; KINDS],
    /// What had been seen when the present time began; `None` while the output is away.
    since: Option<[Common; KINDS]>,
}

impl Share {
    fn at(&self, now: [Common; KINDS]) -> [Common; KINDS] {
        let present = |kind: usize, since: [Common; KINDS]| now[kind].since(since[kind]);
        std::array::from_fn(|kind| {
            let earlier = self.earlier[kind];
            self.since.map_or(earlier, |since| earlier.plus(present(kind, since)))
        })
    }
}

/// What is counted of one kind of record at one output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Left in the spool by an earlier run.
    pub recovered: u64,
    /// Acknowledged by the receiver; written, for stdout.
    pub exported: u64,
    /// In the queue.
    pub queued: u64,
    /// Taken from the queue or the spool, and neither settled nor put back.
    pub unanswered: u64,
    /// In the spool.
    pub spooled: u64,
    dropped: [u64; DropCause::ALL.len()],
}

impl Counted {
    /// Drops of one cause.
    pub const fn dropped(&self, cause: DropCause) -> u64 {
        self.dropped[cause as usize]
    }

    /// Drops of all causes.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Waiting, unanswered or spooled.
    pub const fn in_flight(&self) -> u64 {
        self.queued + self.unanswered + self.spooled
    }
}

impl fmt::Display for OutputLedger {
    /// `otlp.logs`; `text` for stdout.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if &*self.destination == Self::STDOUT {
            f.write_str(self.signal)
        } else {
            write!(f, "{}.{}", self.destination, self.signal)
        }
    }
}

impl OutputLedger {
    /// The destination of what is written to stdout.
    pub const STDOUT: &'static str = "stdout";

    /// All zero, for an output that gets records of these kinds from now on.
    pub fn new(
        destination: impl Into<Arc<str>>,
        signal: &'static str,
        events: EventSet,
        ledger: &Ledger,
    ) -> Arc<Self> {
        Arc::new(Self {
            destination: destination.into(),
            signal,
            events,
            share: Mutex::new(Share { earlier: Default::default(), since: Some(ledger.common()) }),
            kinds: Mutex::default(),
        })
    }

    /// The destination's name in the configuration, or [`Self::STDOUT`].
    pub fn destination(&self) -> &Arc<str> {
        &self.destination
    }

    /// "logs" or "traces"; "text" or "json" on stdout.
    pub const fn signal(&self) -> &'static str {
        self.signal
    }

    /// The kinds of records that it gets.
    pub const fn events(&self) -> EventSet {
        self.events
    }

    /// What was seen while the output was there, of each kind.
    pub fn share_of(&self, ledger: &Ledger) -> [Common; KINDS] {
        self.share().at(ledger.common())
    }

    /// From now on the output gets nothing more of what is seen.
    pub fn retire(&self, ledger: &Ledger) {
        let mut share = self.share();
        *share = Share { earlier: share.at(ledger.common()), since: None };
    }

    /// The output is back: it gets what is seen from now on, and its counts go on.
    pub fn resume(&self, ledger: &Ledger) {
        self.share().since.get_or_insert_with(|| ledger.common());
    }

    /// Whether it gets nothing of what is seen.
    pub fn is_retired(&self) -> bool {
        self.share().since.is_none()
    }

    /// What is counted of one kind at this moment.
    pub fn of(&self, kind: RecordKind) -> Counted {
        self.lock()[kind as usize]
    }

    /// What is counted of each kind at this moment.
    pub fn snapshot(&self) -> [Counted; KINDS] {
        *self.lock()
    }

    /// Drops of one cause, of all kinds together.
    pub fn dropped(&self, cause: DropCause) -> u64 {
        self.lock().iter().map(|kind| kind.dropped(cause)).sum()
    }

    /// These are in the spool that was opened, and there were these others, which cannot be read. What this
    /// ledger knew of is not recovered; the rest an earlier run left.
    pub(crate) fn recover(&self, left: [u64; KINDS], lost: [u64; KINDS]) {
        for (kind, (left, lost)) in self.lock().iter_mut().zip(left.into_iter().zip(lost)) {
            let known = std::mem::replace(&mut kind.spooled, left);
            kind.recovered += (left + lost).saturating_sub(known);
            // Of what it knew of, too, nothing goes without a count.
            kind.dropped[DropCause::SpoolDamaged as usize] += lost.max(known.saturating_sub(left));
        }
    }

    /// One went into the queue.
    pub(crate) fn enqueue(&self, kind: RecordKind) {
        self.lock()[kind as usize].queued += 1;
    }

    /// One did not get into the queue.
    pub(crate) fn drop_new(&self, kind: RecordKind, cause: DropCause) {
        self.lock()[kind as usize].dropped[cause as usize] += 1;
    }

    /// One that was in the queue gave way to another.
    pub(crate) fn drop_queued(&self, kind: RecordKind, cause: DropCause) {
        let counted = &mut self.lock()[kind as usize];
        counted.queued -= 1;
        counted.dropped[cause as usize] += 1;
    }

    /// These were taken out of the queue.
    pub(crate) fn dequeue(&self, counts: KindCounts) {
        self.each(counts, |kind, n| {
            kind.queued -= n;
            kind.unanswered += n;
        });
    }

    /// These were put back into the queue.
    pub(crate) fn requeue(&self, counts: KindCounts) {
        self.each(counts, |kind, n| {
            kind.unanswered -= n;
            kind.queued += n;
        });
    }

    /// These were written to the spool.
    pub(crate) fn spool(&self, counts: KindCounts) {
        self.each(counts, |kind, n| {
            kind.unanswered -= n;
            kind.spooled += n;
        });
    }

    /// These were read from the spool.
    pub(crate) fn unspool(&self, counts: KindCounts) {
        self.each(counts, |kind, n| {
            kind.spooled -= n;
            kind.unanswered += n;
        });
    }

    /// These lay in the spool, and cannot be read.
    pub(crate) fn lose_spooled(&self, counts: KindCounts) {
        self.each(counts, |kind, n| {
            kind.spooled -= n;
            kind.dropped[DropCause::SpoolDamaged as usize] += n;
        });
    }

    /// These were exported, or dropped.
    pub(crate) fn settle(&self, counts: KindCounts, outcome: Result<(), DropCause>) {
        self.each(counts, |kind, n| {
            kind.unanswered -= n;
            match outcome {
                Ok(()) => kind.exported += n,
                Err(cause) => kind.dropped[cause as usize] += n,
            }
        });
    }

    /// These are in nobody's hands any more, and nobody has said what became of them: the ledger does not
    /// add up from here on, and shows it.
    pub(crate) fn lose(&self, counts: KindCounts) {
        self.each(counts, |kind, n| kind.unanswered -= n);
    }

    fn each(&self, counts: KindCounts, mut change: impl FnMut(&mut Counted, u64)) {
        let mut kinds = self.lock();
        for (kind, n) in kinds.iter_mut().zip(counts) {
            if n > 0 {
                change(kind, u64::from(n));
            }
        }
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, [Counted; KINDS]> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
