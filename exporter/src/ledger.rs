//! The ledger: what became of every end that was seen, and of every begin and progress.
//!
//! For each output and each kind of record, at every moment:
//! `seen = exported + sampled_out + filtered + dropped{cause} + in_flight`,
//! where `in_flight` is measured (queue length and unanswered requests), never the remainder.
//! The kinds are counted apart, so that the count of ends is the count of connections.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::record::{EventSet, RecordKind};

/// Why a record was not exported though nobody asked for that.
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
    kinds: [KindLedger; RecordKind::ALL.len()],
    /// Of the ends that are neither filtered nor sampled out.
    pub names: NameCounts,
}

/// Connections by whether their peer has a name: lookups that cannot be seen (DNS over HTTPS or TLS, a
/// resolver asked over a socket) show as connections without one.
///
/// Counted at the end, once for each connection: `with + without` is `seen` less `filtered` and
/// `sampled_out` of the ends.
#[derive(Debug, Default)]
pub struct NameCounts {
    /// The peer's address has a name.
    pub with: Count,
    /// It has none.
    pub without: Count,
}

impl NameCounts {
    /// Counts one connection.
    pub fn add(&self, has_name: bool) {
        if has_name { &self.with } else { &self.without }.add(1);
    }
}

impl fmt::Display for NameCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (with, without) = (self.with.get(), self.without.get());
        let all = with + without;
        write!(f, "names: {all} connections, {with} with a name of the peer, {without} without")
    }
}

/// Of one kind of record.
#[derive(Debug, Default)]
pub struct KindLedger {
    /// Those that the state machine yielded.
    pub seen: Count,
    /// Those of flowend's own connections.
    pub filtered_self: Count,
    /// Those that a rule of the configuration dropped.
    pub filtered_rule: Count,
    /// Those that sampling left out.
    pub sampled_out: Count,
}

impl Ledger {
    /// What is counted of one kind.
    pub const fn of(&self, kind: RecordKind) -> &KindLedger {
        &self.kinds[kind as usize]
    }
}

/// Counts what happens at one output.
#[derive(Debug)]
pub struct OutputLedger {
    /// "text", "json", "otlp.logs" or "otlp.traces".
    pub name: &'static str,
    /// The kinds of records that it gets.
    pub events: EventSet,
    kinds: [KindOutput; RecordKind::ALL.len()],
}

/// Of one kind of record at one output.
#[derive(Debug, Default)]
pub struct KindOutput {
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
    /// All zero, for an output that gets records of these kinds.
    pub fn new(name: &'static str, events: EventSet) -> Arc<Self> {
        Arc::new(Self { name, events, kinds: Default::default() })
    }

    /// What is counted of one kind.
    pub const fn of(&self, kind: RecordKind) -> &KindOutput {
        &self.kinds[kind as usize]
    }

    /// Drops of one cause, of all kinds together.
    pub fn dropped(&self, cause: DropCause) -> u64 {
        self.kinds.iter().map(|kind| kind.dropped(cause)).sum()
    }
}

impl KindOutput {
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

/// The ledger of one kind of record at one output as a line, in the words of the identity.
pub struct Line<'a> {
    ledger: &'a Ledger,
    output: &'a OutputLedger,
    kind: RecordKind,
}

impl<'a> Line<'a> {
    /// A line for each kind that the output gets: ends first.
    pub fn all(ledger: &'a Ledger, output: &'a OutputLedger) -> impl Iterator<Item = Self> {
        [RecordKind::End, RecordKind::Begin, RecordKind::Progress]
            .into_iter()
            .filter(|kind| output.events.contains(*kind))
            .map(move |kind| Self { ledger, output, kind })
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, own) = (self.ledger.of(self.kind), self.output.of(self.kind));
        f.write_str(self.output.name)?;
        if self.kind != RecordKind::End {
            write!(f, " {}", self.kind.as_str())?;
        }
        write!(
            f,
            ": seen {} = exported {} + sampled_out {} + filtered{{self}} {}",
            all.seen.get(),
            own.exported.get(),
            all.sampled_out.get(),
            all.filtered_self.get(),
        )?;
        let by_rule = all.filtered_rule.get();
        if by_rule > 0 {
            write!(f, " + filtered{{rule}} {by_rule}")?;
        }
        for cause in DropCause::ALL {
            let n = own.dropped(cause);
            if n > 0 {
                write!(f, " + dropped{{{}}} {n}", cause.as_str())?;
            }
        }
        write!(f, " + in_flight {}", own.in_flight())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_with_and_without_a_name_are_one_line() {
        let names = NameCounts::default();
        for has_name in [true, true, false] {
            names.add(has_name);
        }
        let want = "names: 3 connections, 2 with a name of the peer, 1 without";
        assert_eq!(names.to_string(), want);
    }

    #[test]
    fn kinds_are_counted_apart_and_each_that_is_on_has_its_line() {
        let ledger = Ledger::default();
        ledger.of(RecordKind::Begin).seen.add(3);
        ledger.of(RecordKind::Begin).filtered_rule.add(1);
        ledger.of(RecordKind::End).seen.add(7);
        ledger.of(RecordKind::End).filtered_self.add(3);
        ledger.of(RecordKind::End).sampled_out.add(1);
        let lines = |events| {
            let output = OutputLedger::new("otlp.logs", events);
            output.of(RecordKind::Begin).exported.add(2);
            output.of(RecordKind::End).queued.add(1);
            output.of(RecordKind::End).unanswered.add(1);
            output.of(RecordKind::End).drop_records(DropCause::QueueFull, 1);
            Line::all(&ledger, &output).map(|line| line.to_string()).collect::<Vec<_>>()
        };
        let end = "otlp.logs: seen 7 = exported 0 + sampled_out 1 + filtered{self} 3 + \
                   dropped{queue_full} 1 + in_flight 2";
        let begin = "otlp.logs begin: seen 3 = exported 2 + sampled_out 0 + filtered{self} 0 + \
                     filtered{rule} 1 + in_flight 0";
        let progress = "otlp.logs progress: seen 0 = exported 0 + sampled_out 0 + \
                        filtered{self} 0 + in_flight 0";
        assert_eq!(lines(EventSet::ENDS), [end]);
        assert_eq!(lines(EventSet { begin: true, progress: false }), [end, begin]);
        assert_eq!(lines(EventSet { begin: true, progress: true }), [end, begin, progress]);
    }
}
