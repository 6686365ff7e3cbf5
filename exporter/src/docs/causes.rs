//! The pages that say what to do about a drop know each cause of one.

use super::page;
use crate::ledger::DropCause;

#[test]
fn each_cause_of_a_drop_is_explained() {
    let (delivery, troubleshooting) = (page("delivery.md"), page("troubleshooting.md"));
    for cause in DropCause::ALL {
        let word = cause.as_str();
        let row = format!("| `{word}` |");
        assert!(delivery.contains(&row), "docs/delivery.md has no row {row}");
        let drop = format!("`dropped{{{word}}}`");
        assert!(troubleshooting.contains(&drop), "docs/troubleshooting.md does not say {drop}");
    }
}
