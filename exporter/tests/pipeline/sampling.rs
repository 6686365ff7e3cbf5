//! With sampling at 1 % the counts are still those of all connections.

use super::panels;
use super::programs::Built;
use super::stack::Stack;
use super::stores::eventually;

const TEST: &str = "sampled_at_one_percent_the_counts_are_still_true";

const ORDERS: usize = 600;
const RESETS: usize = 5;
const ENDS: usize = 4 * ORDERS + 2 * RESETS;

#[test]
fn sampled_at_one_percent_the_counts_are_still_true() {
    let Some(built) = Built::find(TEST) else { return };
    let mut stack = Stack::start(built, "flowend-pipeline-sampling.slice");
    let flowend = stack.flowend(&["sampling.ratio=0.01"]);
    (0..ORDERS).for_each(|_| stack.shop.order());
    (0..RESETS).for_each(|_| stack.shop.reset());
    let stores = stack.stores();
    stack.network.reach(|| {
        for panel in ["Connections ended", "Workloads and reasons"] {
            let shown = eventually(panel, || {
                let shown = panels::shown(&stores, panel)?;
                if shown >= ENDS as f64 { Ok(shown) } else { Err(format!("{shown} of {ENDS}")) }
            });
            assert_eq!(shown, ENDS as f64, "{panel}");
        }
        let share = panels::shown(&stores, "Ended with an error").unwrap();
        assert!((share - 2.0 * RESETS as f64 / ENDS as f64).abs() < 1e-9, "{share}");
    });
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let reported = exported(&messages);
    // Errors are kept whatever the ratio says; of the rest every hundredth connection, give or take.
    // That none of so many is kept happens once in 100,000 runs, and that four times too many are, far less often.
    assert!(reported > 2 * RESETS && reported < 2 * RESETS + ENDS / 25, "{messages}");
    stack.network.reach(|| {
        eventually("Loki's lines", || {
            let lines = stores.loki(r#"{service_name=~".+"}"#)?;
            if lines.len() == reported {
                Ok(())
            } else {
                Err(format!("{} of {reported} lines", lines.len()))
            }
        });
    });
}

/// How many log records were sent.
fn exported(messages: &str) -> usize {
    let start = format!("otlp.logs: seen {ENDS} = exported ");
    let (_, rest) =
        messages.split_once(&start).unwrap_or_else(|| panic!("no \"{start}\": {messages}"));
    rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a count")
}
