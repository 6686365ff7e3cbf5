//! Sampling and filters: which records are kept.
//!
//! Rules stand in order and the first that matches decides; where none does, the default ratio does. A
//! ratio's choice is a function of the trace id alone ([`Share`]), so both ends of a connection choose
//! alike at the same ratio, and the sample of a lower ratio is part of that of a higher one.
//!
//! Errors are kept: no ratio takes them away, unless its rule names their reason. A rule that drops
//! does drop them.

mod rule;
mod share;

use std::sync::Arc;

use opentelemetry::TraceId;

use crate::flow::ConnectionEnd;
use crate::record::RecordKind;

pub use rule::{Action, Condition, Globs, PortRange, Rule};
pub use share::Share;

/// What of the configuration shapes the choice.
#[derive(Clone, Debug)]
pub struct SamplingSettings {
    /// The share that is kept where no rule matches, 0 to 1.
    pub ratio: f64,
    /// Whether endings with an error are kept whatever a ratio says.
    pub keep_errors: bool,
    /// In order: the first that matches decides.
    pub rules: Vec<Rule>,
}

impl Default for SamplingSettings {
    /// All is kept.
    fn default() -> Self {
        Self { ratio: 1.0, keep_errors: true, rules: Vec::new() }
    }
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// It goes on.
    Keep(Kept),
    /// A ratio left it out.
    SampledOut,
    /// A rule dropped it.
    Filtered,
}

/// How a record came to be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// How probable that was, more than 0 and up to 1: the record stands for 1 / probability of its kind.
    pub probability: f64,
    /// The rejection threshold T that its trace id passed, 0 to 2^56 - 1: kept if R >= T, where R is the
    /// last 56 bits of the trace id (OpenTelemetry, TraceState: Probability Sampling, `ot=th`). `Some(0)`
    /// for what was kept for certain, `None` where nothing is sampled or filtered at all.
    pub threshold: Option<u64>,
}

impl Kept {
    /// Where nothing is sampled or filtered at all.
    pub const UNSAMPLED: Self = Self { probability: 1.0, threshold: None };
}

/// What is known of a record when it is decided about.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Of its connection.
    pub trace_id: TraceId,
    /// What it reports. Why, how long and how much only an end can say.
    pub kind: RecordKind,
    /// The connection.
    pub end: &'a ConnectionEnd,
    /// The names of the peer's address. Need not be complete unless [`Sampler::looks_at_names`].
    pub remote_names: &'a [Arc<str>],
    /// The cgroup's path below the mount, "/" for the root, where it is known.
    pub cgroup_path: Option<&'a str>,
    /// Base name of the own side's executable, where it is known.
    pub executable: Option<&'a str>,
}

/// Decides about records.
#[derive(Clone, Debug)]
pub struct Sampler {
    rules: Vec<Rule>,
    keep_errors: bool,
    /// Where no rule matches.
    default: Share,
    /// Whether anything can be left out.
    in_force: bool,
}

impl Sampler {
    /// As the settings say.
    pub fn new(settings: SamplingSettings) -> Self {
        let SamplingSettings { ratio, keep_errors, rules } = settings;
        let in_force = ratio < 1.0 || !rules.is_empty();
        Self { rules, keep_errors, default: Share::new(ratio), in_force }
    }

    /// Whether a rule asks for the names of the peer.
    pub fn looks_at_names(&self) -> bool {
        self.rules.iter().any(Rule::looks_at_names)
    }

    /// What becomes of a record.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let rule = self.rules.iter().find(|rule| rule.matches(facts));
        let (share, names_reason) = match rule.map(|rule| (rule, &rule.action)) {
            Some((_, Action::Keep)) => return self.keep(Share::ALL),
            Some((_, Action::Drop)) => return Decision::Filtered,
            Some((rule, Action::Ratio(share))) => (*share, rule.names_reasons()),
            None => (self.default, false),
        };
        let is_error = facts.end.reason.error_type().is_some();
        if self.keep_errors && is_error && !names_reason {
            return self.keep(Share::ALL);
        }
        if share.takes(facts.trace_id) { self.keep(share) } else { Decision::SampledOut }
    }

    fn keep(&self, share: Share) -> Decision {
        let threshold = self.in_force.then_some(share.threshold());
        Decision::Keep(Kept { probability: share.probability(), threshold })
    }
}

#[cfg(test)]
mod tests;
