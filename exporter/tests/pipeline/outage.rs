//! The Collector is stopped for a minute, and started again, while the services go on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::programs::Built;
use super::stack::Stack;
use super::stores::{Stores, eventually};

const TEST: &str = "a_minute_without_the_collector_loses_nothing_and_doubles_nothing";

/// How long it is away: long enough for flowend's retries to have reached their longest pause.
const AWAY: Duration = Duration::from_secs(60);
/// Connection ends of an order.
const ENDS: usize = 4;
/// Orders that may be on their way when it stops.
const UNANSWERED: usize = 10;

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
    stack.network.reach(|| eventually("Loki's lines", || arrived(&stores, orders)));

    // And some that are on their way.
    for _ in 0..UNANSWERED {
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
    stack.start_collector();
    for _ in 0..10 {
        stack.shop.order();
        orders += 1;
    }

    let n = ENDS * orders;
    stack.network.reach(|| {
        eventually("Loki's lines", || arrived(&stores, orders));
        eventually("Tempo's traces", || {
            let traces = stores.tempo_search(r#"{ resource.service.name = "database" }"#)?;
            if traces.len() == orders {
                Ok(())
            } else {
                Err(format!("{} of {orders} traces", traces.len()))
            }
        });
        // Twice may come only what was unanswered when the Collector stopped.
        for sent in stores.sent().unwrap() {
            let twice = sent as usize - n;
            println!("{twice} of {n} twice");
            assert!(twice <= ENDS * UNANSWERED, "{twice} of {n} were sent twice");
        }
    });
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    for signal in ["logs", "traces"] {
        let line = format!("otlp.{signal}: seen {n} = exported {n} ");
        assert!(messages.contains(&line), "no \"{line}\": {messages}");
    }
}

/// Whether Loki has each record, by trace and span id.
fn arrived(stores: &Stores, orders: usize) -> Result<(), String> {
    let mut ids = BTreeSet::new();
    for mut line in stores.loki(r#"{service_name=~"frontend|orders|database"}"#)? {
        let mut id = |key: &str| line.labels.remove(key).expect(key);
        ids.insert((id("trace_id"), id("span_id")));
    }
    if ids.len() == ENDS * orders {
        Ok(())
    } else {
        Err(format!("{} of {} ends", ids.len(), ENDS * orders))
    }
}
