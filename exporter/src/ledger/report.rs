//! What was dropped, said.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::warn;

use super::{DropCause, OutputLedger};

/// Drops that were said, by output and cause.
#[derive(Debug, Default)]
pub struct DropReport(BTreeMap<String, [u64; DropCause::ALL.len()]>);

impl DropReport {
    /// Says what each output has dropped since the last time, by cause, and what can be done.
    pub fn report(self, outputs: &[Arc<OutputLedger>]) -> Self {
        let mut all = BTreeMap::new();
        for output in outputs {
            // An output that was taken away and came back has two ledgers of one name.
            let sums = all.entry(output.to_string()).or_insert([0; DropCause::ALL.len()]);
            for (sum, cause) in sums.iter_mut().zip(DropCause::ALL) {
                *sum += output.dropped(cause);
            }
        }
        for (output, now) in &all {
            let before = self.0.get(output).copied().unwrap_or_default();
            for ((cause, now), before) in DropCause::ALL.into_iter().zip(now).zip(before) {
                if *now > before {
                    let (word, remedy) = (cause.as_str(), cause.remedy());
                    warn!("{output}: {} records dropped{{{word}}}: {remedy}", now - before);
                }
            }
        }
        Self(all)
    }
}
