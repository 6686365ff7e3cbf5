//! The ledger in words.

use std::fmt;

use super::{Common, DropCause, Ledger, OutputLedger};
use crate::record::RecordKind;

/// The ledger of one kind of record at one output as a line, in the words of the identity.
pub struct Line<'a> {
    common: Common,
    output: &'a OutputLedger,
    kind: RecordKind,
}

impl<'a> Line<'a> {
    /// By how many the line does not add up: records of which nobody knows what became. 0 unless flowend has a
    /// fault.
    pub fn missing(&self) -> u64 {
        let (all, own) = (self.common, self.output.of(self.kind));
        let filtered = all.filtered_self + all.filtered_excluded + all.filtered_rule;
        let left_out = all.sampled_out + filtered;
        let became = own.exported + left_out + own.dropped_in_all() + own.in_flight();
        (all.seen + own.recovered).abs_diff(became)
    }

    /// A line for each kind that the output gets: ends first.
    pub fn all(ledger: &Ledger, output: &'a OutputLedger) -> impl Iterator<Item = Self> {
        let common = output.share_of(ledger);
        [RecordKind::End, RecordKind::Begin, RecordKind::Progress]
            .into_iter()
            .filter(|kind| output.events().contains(*kind))
            .map(move |kind| Self { common: common[kind as usize], output, kind })
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, own) = (self.common, self.output.of(self.kind));
        write!(f, "{}", self.output)?;
        if self.kind != RecordKind::End {
            write!(f, " {}", self.kind.as_str())?;
        }
        write!(f, ": seen {}", all.seen)?;
        if own.recovered > 0 {
            write!(f, " + recovered {}", own.recovered)?;
        }
        write!(
            f,
            " = exported {} + sampled_out {} + filtered{{self}} {}",
            own.exported, all.sampled_out, all.filtered_self,
        )?;
        if all.filtered_excluded > 0 {
            write!(f, " + filtered{{excluded}} {}", all.filtered_excluded)?;
        }
        if all.filtered_rule > 0 {
            write!(f, " + filtered{{rule}} {}", all.filtered_rule)?;
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
