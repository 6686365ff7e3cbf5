//! When flowend stops: who is not there is not waited for, who is there is. In both cases the ledger adds up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowend::ledger::DropCause;
use flowend::record::RecordKind;

use super::deaf::Deaf;
use super::injector::{Injector, PATIENCE};
use super::mode::{Mode, Protocol};
use super::offer::agree;
use super::site::{BATCH, MAIN, Site, settings};
use super::store::Signal;

/// More than is on its way at once.
const ENDS: u64 = 40 * BATCH;

/// Longer than a test has patience for.
const PAUSES: [&str; 2] = ["export.retry_initial=4m", "export.retry_max=4m"];

/// Stops without a deadline, and fails the test if that takes for ever.
async fn finish(site: Site) -> Vec<(Signal, u64, u64)> {
    let signals = Signal::ALL.map(|signal| (signal, site.output(MAIN, signal).unwrap()));
    let finished = tokio::time::timeout(PATIENCE, site.finish(std::future::pending())).await;
    for (output, totals) in finished.expect("it waits for nobody") {
        totals.add_up().unwrap_or_else(|problem| panic!("{output}: {problem}"));
    }
    let counted = signals.map(|(signal, output)| {
        let end = output.of(RecordKind::End);
        (signal, end.exported, end.dropped(DropCause::Shutdown))
    });
    counted.to_vec()
}

#[tokio::test]
async fn a_closed_port_and_one_without_an_answer_and_a_name_without_an_address_are_not_waited_for()
{
    let deaf = Deaf::new();
    let timeout = "otlp.timeout=400ms";
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        injector.set(Mode::Refused).await;
        for (endpoint, why) in [
            (injector.endpoint(), "refused"),
            (deaf.endpoint.clone(), "no answer in time"),
            ("http://nowhere.invalid:4317".into(), "looking up nowhere.invalid"),
        ] {
            let endpoint = format!("otlp.endpoint={endpoint}");
            let more = [&PAUSES[..], &[timeout, &endpoint]].concat();
            let mut site = Site::start(settings(&injector, protocol, &more));
            site.push(0..ENDS);
            // Requests that wait for one connection are canceled with it.
            site.until_it_says(&[why, "canceled"]).await;
            for (signal, exported, dropped) in finish(site).await {
                assert_eq!((exported, dropped), (0, ENDS), "{protocol:?} {signal:?} {endpoint}");
            }
        }
    }
}

#[tokio::test]
async fn a_receiver_that_has_come_back_gets_all_with_the_last_try() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        injector.set(Mode::Refused).await;
        let mut site = Site::start(settings(&injector, protocol, &PAUSES));
        site.push(0..ENDS);
        site.until_it_says(&["refused", "canceled"]).await;
        injector.set(Mode::Slow(Duration::from_millis(30))).await;
        for (signal, exported, dropped) in finish(site).await {
            assert_eq!((exported, dropped), (ENDS, 0), "{protocol:?} {signal:?}");
            assert_eq!(injector.received().acknowledged(signal), ENDS, "{protocol:?} {signal:?}");
        }
    }
}

#[tokio::test]
async fn who_is_there_and_does_not_answer_is_waited_for_until_the_deadline() {
    for protocol in Protocol::ALL {
        for mode in [Mode::BlackHole, Mode::CutBefore] {
            let injector = Injector::start(protocol);
            injector.set(mode.clone()).await;
            let mut site = Site::start(settings(&injector, protocol, &["otlp.timeout=100ms"]));
            site.push(0..ENDS);
            let no_answer = ["no answer", "connection", "canceled"];
            site.until_it_says(&no_answer).await;
            let is_late = AtomicBool::new(false);
            // Longer than the last try of one that is not there.
            let deadline = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                is_late.store(true, Ordering::Relaxed);
            };
            for (output, totals) in site.finish(deadline).await {
                totals.add_up().unwrap_or_else(|problem| panic!("{output}: {problem}"));
                assert_eq!(output.dropped(DropCause::Shutdown), ENDS, "{protocol:?} {mode:?}");
            }
            assert!(is_late.load(Ordering::Relaxed), "{protocol:?} {mode:?}: not waited for");
        }
    }
}

#[tokio::test]
async fn an_output_that_is_taken_away_while_nobody_is_there_is_not_waited_for() {
    let (main, other) = (Injector::start(Protocol::Grpc), Injector::start(Protocol::Grpc));
    other.set(Mode::Refused).await;
    let endpoint = format!("destinations.other.endpoint={}", other.endpoint());
    let mut site = Site::start(settings(&main, Protocol::Grpc, &[&endpoint]));
    site.push(0..ENDS);
    site.until(|site| site.outputs.health().iter().any(|of| of.last_error.is_some())).await;
    site.apply(settings(&main, Protocol::Grpc, &[]), 2 * PATIENCE);
    let dropped = |site: &Site, signal| site.counted("other", signal).dropped(DropCause::Removed);
    site.until(|site| Signal::ALL.iter().all(|signal| dropped(site, *signal) == ENDS)).await;
    for signal in Signal::ALL {
        site.totals_at("other", signal).add_up().unwrap();
        // The one that stays is not concerned.
        site.until(|site| site.counted(MAIN, signal).in_flight() == 0).await;
        agree(signal, site.totals_at(MAIN, signal), &main.received()).unwrap();
    }
}
