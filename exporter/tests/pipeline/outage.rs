//! The Collector is stopped for a minute, and started again, while the services go on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::programs::Built;
use super::stack::Stack;
use super::stores::{Stores, eventually};

const TEST: &str = "a_minute_without_the_collector_loses_nothing_and_doubles_nothing";

/// How long it is away: long enough for flowend's retries to have reached their longest pause.
const AWAY: Duration = Duration::from_secs(60);
/// Connection ends of an order.
const ENDS: usize = 4;

#[test]
fn a_minute_without_the_collector_loses_nothing_and_doubles_nothing() {
    let Some(built) = Built::find(TEST) else { return };
    let mut stack = Stack::start(built, "flowend-pipeline-outage.slice");
    let flowend = stack.flowend(&[]);
    let mut orders = 0;
    // Some that are at rest in the stores when it stops.
    for _ in 0..10 {
        stack.shop.order();
        orders += 1;
    }
    let stores = stack.stores();
    let before = stack.network.reach(|| eventually("Loki's lines", || all(&stores, orders)));

    // And some that are on their way.
    for _ in 0..10 {
        stack.shop.order();
        orders += 1;
    }
    stack.stop_collector();
    let back = Instant::now() + AWAY;
    while Instant::now() < back {
        stack.shop.order();
        orders += 1;
        std::thread::sleep(Duration::from_millis(250));
    }
    let on_the_way = orders;
    stack.start_collector();
    for _ in 0..10 {
        stack.shop.order();
        orders += 1;
    }

    let lines = stack.network.reach(|| {
        let lines = eventually("Loki's lines", || all(&stores, orders));
        eventually("Tempo's traces", || {
            let traces = stores.tempo_search(r#"{ resource.service.name = "database" }"#)?;
            if traces.len() == orders {
                Ok(())
            } else {
                Err(format!("{} of {orders} traces", traces.len()))
            }
        });
        lines
    });
    // Twice may come only what was unanswered when the Collector stopped.
    let doubled: Vec<_> = lines.iter().filter(|(_, n)| **n > 1).collect();
    for (ids, n) in &doubled {
        assert!(
            !before.contains_key(*ids),
            "{ids:?} came {n} times, and was in the store before the stop"
        );
    }
    assert!(
        doubled.len() <= ENDS * 10,
        "{} of {on_the_way} orders doubled: {doubled:?}",
        doubled.len()
    );
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let n = ENDS * orders;
    for signal in ["logs", "traces"] {
        let line = format!("otlp.{signal}: seen {n} = exported {n} ");
        assert!(messages.contains(&line), "no \"{line}\": {messages}");
    }
}

/// How often Loki has each record, by trace and span id, once it has them all.
fn all(stores: &Stores, orders: usize) -> Result<BTreeMap<(String, String), usize>, String> {
    let mut times = BTreeMap::new();
    for mut line in stores.loki(r#"{service_name=~"frontend|orders|database"}"#)? {
        let mut id = |key: &str| line.labels.remove(key).expect(key);
        *times.entry((id("trace_id"), id("span_id"))).or_insert(0) += 1;
    }
    if times.len() == ENDS * orders {
        Ok(times)
    } else {
        Err(format!("{} of {} ends", times.len(), ENDS * orders))
    }
}
