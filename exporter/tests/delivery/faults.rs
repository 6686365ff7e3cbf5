//! Each way in which a receiver fails: nothing is lost without a count, and the receiver agrees.

use std::time::{Duration, Instant};

use flowend::ledger::DropCause;
use tonic::Code;

use super::injector::Injector;
use super::mode::{Mode, Protocol};
use super::offer::{Delivery as _, agree, deliver};
use super::site::{BATCH, MAIN, Site, settings, word};
use super::store::Signal;

/// Several requests of each signal.
const ENDS: u64 = 4 * BATCH;

/// After this a request has no answer.
const TIMEOUT: &str = "otlp.timeout=300ms";

/// Nothing is in flight any more, the identity holds, and the receiver agrees.
#[track_caller]
fn assert_agrees(site: &Site, destination: &str, injector: &Injector) {
    for signal in Signal::ALL {
        let totals = site.totals_at(destination, signal);
        assert_eq!(totals.in_flight, 0, "{destination} {signal:?}");
        if let Err(problem) = agree(signal, totals, &injector.received()) {
            panic!("{destination} {signal:?}: {problem}");
        }
    }
}

/// The only request, of the one signal, is told to come again after `pause`; it does, and not before.
async fn comes_again_after(protocol: Protocol, busy: Mode, pause: Duration) {
    for signal in Signal::ALL {
        let injector = Injector::start(protocol);
        let signals = format!("otlp.signals=[\"{}\"]", word(signal));
        let mut site = Site::start(settings(&injector, protocol, &[&signals]));
        injector.script([busy.clone()]);
        let start = Instant::now();
        deliver(&mut site, &injector, 0..BATCH).await;
        assert!(start.elapsed() >= pause, "{busy:?}: {:?}", start.elapsed());
        assert_eq!(site.counted(MAIN, signal).exported, BATCH, "{busy:?}");
        assert_eq!(injector.received().requests, 2, "{busy:?}");
    }
}

/// The receiver fails for a while, and flowend says why; then all arrives.
async fn all_arrives_after(protocol: Protocol, mode: Mode, why: &[&str]) {
    let injector = Injector::start(protocol);
    let mut site = Site::start(settings(&injector, protocol, &[TIMEOUT]));
    injector.set(mode.clone()).await;
    site.push(0..ENDS);
    site.until_it_says(why).await;
    for signal in Signal::ALL {
        let totals = site.totals(signal);
        assert_eq!((totals.exported, totals.dropped, totals.in_flight), (0, 0, ENDS), "{mode:?}");
        totals.add_up().unwrap();
    }
    injector.set(Mode::Healthy).await;
    site.settle().await;
    assert_agrees(&site, MAIN, &injector);
    let exported = Signal::ALL.map(|signal| site.counted(MAIN, signal).exported);
    assert_eq!(exported, [ENDS; 2], "{protocol:?} {mode:?}");
}

#[tokio::test]
async fn refused() {
    for protocol in Protocol::ALL {
        all_arrives_after(protocol, Mode::Refused, &["connection refused"]).await;
    }
}

#[tokio::test]
async fn a_black_hole() {
    for protocol in Protocol::ALL {
        all_arrives_after(protocol, Mode::BlackHole, &["no answer within 300ms"]).await;
    }
}

#[tokio::test]
async fn connections_that_are_cut_before_the_request_was_read() {
    for protocol in Protocol::ALL {
        all_arrives_after(protocol, Mode::CutBefore, &["connection", "canceled"]).await;
    }
}

#[tokio::test]
async fn a_page_of_html_with_status_200_takes_nothing() {
    for protocol in Protocol::ALL {
        all_arrives_after(protocol, Mode::Lie, &["text/html", "without a grpc status"]).await;
    }
}

#[tokio::test]
async fn busy_without_saying_until_when() {
    for status in [429, 502, 503, 504] {
        let mode = Mode::Status { status, retry_after: None };
        all_arrives_after(Protocol::Http, mode, &[&status.to_string()]).await;
    }
    let codes = [
        (Code::Cancelled, "cancelled"),
        (Code::DeadlineExceeded, "deadline_exceeded"),
        (Code::Aborted, "aborted"),
        (Code::OutOfRange, "out_of_range"),
        (Code::Unavailable, "unavailable"),
        (Code::DataLoss, "data_loss"),
    ];
    for (code, name) in codes {
        let mode = Mode::Code { code, retry_info: None };
        all_arrives_after(Protocol::Grpc, mode, &[name]).await;
    }
}

#[tokio::test]
async fn busy_and_saying_until_when() {
    // Seconds are the least that the header can say.
    let second = Duration::from_secs(1);
    for status in [429, 503] {
        let mode = Mode::Status { status, retry_after: Some(second) };
        comes_again_after(Protocol::Http, mode, second).await;
    }
    let pause = Duration::from_millis(400);
    for code in [Code::Unavailable, Code::ResourceExhausted] {
        let mode = Mode::Code { code, retry_info: Some(pause) };
        comes_again_after(Protocol::Grpc, mode, pause).await;
    }
}

#[tokio::test]
async fn refused_for_good_is_counted_and_not_sent_again() {
    let code = |code| (Protocol::Grpc, Mode::Code { code, retry_info: None });
    let status = |status| (Protocol::Http, Mode::Status { status, retry_after: None });
    for (protocol, mode) in [
        // Without RetryInfo nobody says that it will recover.
        code(Code::ResourceExhausted),
        code(Code::InvalidArgument),
        code(Code::Unauthenticated),
        code(Code::Unimplemented),
        status(400),
        status(401),
        status(404),
        status(500),
    ] {
        let injector = Injector::start(protocol);
        let mut site = Site::start(settings(&injector, protocol, &[]));
        injector.set(mode.clone()).await;
        deliver(&mut site, &injector, 0..ENDS).await;
        assert_eq!(site.dropped(DropCause::Refused), 2 * ENDS, "{mode:?}");
        let requests = injector.received().requests;
        injector.set(Mode::Healthy).await;
        deliver(&mut site, &injector, ENDS..2 * ENDS).await;
        assert_eq!(site.dropped(DropCause::Refused), 2 * ENDS, "{mode:?}");
        // As many again, and not one more.
        assert_eq!(injector.received().requests, 2 * requests, "{mode:?}");
    }
}

#[tokio::test]
async fn a_slow_receiver() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let mut site = Site::start(settings(&injector, protocol, &["export.concurrency=2"]));
        injector.set(Mode::Slow(Duration::from_millis(30))).await;
        deliver(&mut site, &injector, 0..3 * ENDS).await;
        let exported = Signal::ALL.map(|signal| site.counted(MAIN, signal).exported);
        assert_eq!(exported, [3 * ENDS; 2]);
    }
}

#[tokio::test]
async fn a_request_that_is_too_large_is_split_until_it_fits() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        // About three records; then none at all.
        injector.set(Mode::LargerThan(4096)).await;
        let mut site = Site::start(settings(&injector, protocol, &[]));
        deliver(&mut site, &injector, 0..ENDS).await;
        let exported = Signal::ALL.map(|signal| site.counted(MAIN, signal).exported);
        assert_eq!(exported, [ENDS; 2], "{protocol:?}");
        assert!(injector.received().requests > 2 * ENDS / BATCH, "nothing was split");
        injector.set(Mode::LargerThan(100)).await;
        deliver(&mut site, &injector, ENDS..2 * ENDS).await;
        assert_eq!(site.dropped(DropCause::TooLarge), 2 * ENDS, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_part_is_rejected() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let mut site = Site::start(settings(&injector, protocol, &[]));
        injector.script([Mode::Rejecting(3), Mode::Healthy, Mode::Rejecting(1)]);
        deliver(&mut site, &injector, 0..ENDS).await;
        assert_eq!(site.dropped(DropCause::Rejected), 4, "{protocol:?}");
        let rejected =
            Signal::ALL.map(|signal| injector.received().count(signal, |times| times.rejected > 0));
        assert_eq!(rejected.iter().sum::<u64>(), 4, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_when_the_request_was_taken_brings_it_twice() {
    for protocol in Protocol::ALL {
        let injector = Injector::start(protocol);
        let mut site = Site::start(settings(&injector, protocol, &[]));
        injector.script([Mode::Healthy, Mode::CutAfter, Mode::CutAfter, Mode::Healthy]);
        deliver(&mut site, &injector, 0..ENDS).await;
        let exported = Signal::ALL.map(|signal| site.counted(MAIN, signal).exported);
        assert_eq!(exported, [ENDS; 2], "{protocol:?}");
        let received = injector.received();
        let twice = received.items.values().filter(|times| times.maybe > 0);
        assert!(twice.clone().count() as u64 >= BATCH, "{protocol:?}: {received:?}");
        // With the same ids: each is known by them, and there are no others.
        assert_eq!(received.items.len() as u64, 2 * ENDS, "{protocol:?}");
        assert!(twice.into_iter().all(|times| times.acknowledged == 1), "{protocol:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_expired_and_is_renewed() {
    for protocol in Protocol::ALL {
        let injector = Injector::start_tls(protocol);
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, injector.ca_pem()).unwrap();
        let ca_file = format!("otlp.ca_file={}", ca_file.display());
        let mut site = Site::start(settings(&injector, protocol, &[&ca_file]));
        deliver(&mut site, &injector, 0..ENDS).await;
        injector.set(Mode::ExpiredCertificate).await;
        site.push(ENDS..2 * ENDS);
        site.until_it_says(&["expired"]).await;
        injector.set(Mode::Healthy).await;
        site.settle().await;
        assert_agrees(&site, MAIN, &injector);
        let exported = Signal::ALL.map(|signal| site.counted(MAIN, signal).exported);
        assert_eq!(exported, [2 * ENDS; 2], "{protocol:?}");
    }
}

#[tokio::test]
async fn a_destination_that_is_a_black_hole_does_not_hold_up_another() {
    for protocol in Protocol::ALL {
        let (main, hole) = (Injector::start(protocol), Injector::start(protocol));
        hole.set(Mode::BlackHole).await;
        let endpoint = format!("destinations.hole.endpoint={}", hole.endpoint());
        let mut site = Site::start(settings(&main, protocol, &[&endpoint]));
        for round in 0..3 {
            deliver(&mut site, &main, round * ENDS..(round + 1) * ENDS).await;
            for signal in Signal::ALL {
                let totals = site.totals_at("hole", signal);
                // Measured: in the queue, and in requests without an answer.
                assert_eq!(totals.in_flight, (round + 1) * ENDS, "{protocol:?} {signal:?}");
                totals.add_up().unwrap();
            }
        }
        hole.set(Mode::Healthy).await;
        let in_flight = |site: &Site, signal| site.counted("hole", signal).in_flight();
        site.until(|site| Signal::ALL.iter().all(|signal| in_flight(site, *signal) == 0)).await;
        assert_agrees(&site, "hole", &hole);
        assert_eq!(site.counted("hole", Signal::Logs).exported, 3 * ENDS);
    }
}
