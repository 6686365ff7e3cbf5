//! The ledger: what became of every end that was seen.
//!
//! For each output, at every moment:
//! `seen = exported + sampled_out + filtered + dropped{cause} + in_flight`,
//! where `in_flight` is measured (queue length and unanswered requests), never the remainder.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why an end was not exported though nobody asked for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropCause {
    /// The output's queue was full.
    QueueFull,
    /// Retries went on for longer than `export.retry_for`.
    RetryExhausted,
    /// The receiver refused the request for good.
    Refused,
    /// Still unsent when `shutdown.timeout` was over.
    Shutdown,
    /// stdout is closed.
    OutputClosed,
}

impl DropCause {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::QueueFull, Self::RetryExhausted, Self::Refused, Self::Shutdown, Self::OutputClosed];

    /// As in the ledger's lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::RetryExhausted => "retry_exhausted",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
            Self::OutputClosed => "output_closed",
        }
    }
}

/// Counts what happens before the outputs part.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Ends that the state machine yielded.
    pub seen: Count,
    /// Ends of flowend's own connections.
    pub filtered_self: Count,
    /// Ends that sampling left out.
    pub sampled_out: Count,
}

/// Counts what happens at one output.
#[derive(Debug)]
pub struct OutputLedger {
    /// "text", "json", "otlp.logs" or "otlp.traces".
    pub name: &'static str,
    /// Acknowledged by the receiver; written, for stdout.
    pub exported: Count,
    /// In the queue.
    pub queued: Count,
    /// Taken from the queue, and neither acknowledged nor dropped yet.
    pub unanswered: Count,
    dropped: [Count; DropCause::ALL.len()],
}

/// A counter or gauge that any thread may change.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Takes away, down to 0; for gauges.
    pub fn sub(&self, n: usize) {
        let less = |value: u64| Some(value.saturating_sub(n as u64));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl OutputLedger {
    /// All zero.
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            exported: Count::default(),
            queued: Count::default(),
            unanswered: Count::default(),
            dropped: Default::default(),
        })
    }

    /// Counts drops.
    pub fn drop_records(&self, cause: DropCause, n: usize) {
        self.dropped[cause as usize].add(n);
    }

    /// Drops of one cause.
    pub fn dropped(&self, cause: DropCause) -> u64 {
        self.dropped[cause as usize].get()
    }

    /// Waiting or unanswered.
    pub fn in_flight(&self) -> u64 {
        self.queued.get() + self.unanswered.get()
    }
}

/// The ledger of one output as a line, in the words of the identity.
pub struct Line<'a>(pub &'a Ledger, pub &'a OutputLedger);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(all, output) = self;
        write!(
            f,
            "{}: seen {} = exported {} + sampled_out {} + filtered{{self}} {}",
            output.name,
            all.seen.get(),
            output.exported.get(),
            all.sampled_out.get(),
            all.filtered_self.get(),
        )?;
        for cause in DropCause::ALL {
            let n = output.dropped(cause);
            if n > 0 {
                write!(f, " + dropped{{{}}} {n}", cause.as_str())?;
            }
        }
        write!(f, " + in_flight {}", output.in_flight())
    }
}
