//! The ledger: what became of every end that was seen, and of every begin and progress.
//!
//! For each output and each kind of record, at every moment:
//! `seen + recovered = exported + sampled_out + filtered{cause} + dropped{cause} + in_flight`,
//! where `recovered` is what an earlier run left in the spool, and `in_flight` is measured: what lies in the
//! queue, what is in a request that is not answered, what lies in the spool. It is never the remainder, so a
//! record that is lost without a count shows. The kinds are counted apart, so that the count of ends is the
//! count of connections.

mod cause;
mod line;
mod output;
mod report;

pub use cause::DropCause;
pub use line::Line;
pub use output::{Counted, OutputLedger};
pub use report::DropReport;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

pub use crate::record::KindCounts;
use crate::record::RecordKind;

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
    /// Those of excluded cgroups.
    pub filtered_excluded: Count,
    /// Those that a rule of the configuration dropped.
    pub filtered_rule: Count,
    /// Those that sampling left out.
    pub sampled_out: Count,
}

/// What a [`KindLedger`] said at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// Yielded by the state machine.
    pub seen: u64,
    /// Of flowend's own connections.
    pub filtered_self: u64,
    /// Of excluded cgroups.
    pub filtered_excluded: u64,
    /// Dropped by a rule.
    pub filtered_rule: u64,
    /// Left out by sampling.
    pub sampled_out: u64,
}

impl Common {
    /// What came between `earlier` and this.
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            seen: self.seen - earlier.seen,
            filtered_self: self.filtered_self - earlier.filtered_self,
            filtered_excluded: self.filtered_excluded - earlier.filtered_excluded,
            filtered_rule: self.filtered_rule - earlier.filtered_rule,
            sampled_out: self.sampled_out - earlier.sampled_out,
        }
    }

    /// Both together.
    pub const fn plus(self, other: Self) -> Self {
        Self {
            seen: self.seen + other.seen,
            filtered_self: self.filtered_self + other.filtered_self,
            filtered_excluded: self.filtered_excluded + other.filtered_excluded,
            filtered_rule: self.filtered_rule + other.filtered_rule,
            sampled_out: self.sampled_out + other.sampled_out,
        }
    }
}

impl Ledger {
    /// What is counted of one kind.
    pub const fn of(&self, kind: RecordKind) -> &KindLedger {
        &self.kinds[kind as usize]
    }

    /// What is counted of each kind at this moment.
    pub fn common(&self) -> [Common; RecordKind::ALL.len()] {
        self.kinds.each_ref().map(|kind| Common {
            seen: kind.seen.get(),
            filtered_self: kind.filtered_self.get(),
            filtered_excluded: kind.filtered_excluded.get(),
            filtered_rule: kind.filtered_rule.get(),
            sampled_out: kind.sampled_out.get(),
        })
    }
}

/// A counter that any thread may raise.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
