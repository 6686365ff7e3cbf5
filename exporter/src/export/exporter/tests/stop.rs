//! How long an exporter that is to end goes on.

use super::*;

const RECORDS: usize = 45;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Concurrency 2, and all in its hands for 10 s; then it is to end. Says how long that took.
async fn stopped(site: Site) -> (Duration, Finished) {
    site.offer(RECORDS);
    tokio::time::sleep(secs(10)).await;
    let begun = Instant::now();
    let done = site.finish().await;
    (begun.elapsed(), done)
}

fn two() -> Export {
    Export { concurrency: 2, ..export() }
}

/// Tries that came at 10 s or later.
fn late_tries(wire: &Fake) -> usize {
    wire.times().iter().filter(|at| **at >= 10_000).count()
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_refuses_gets_one_more_try_at_once() {
    let site = Site::new(Fake::new(Duration::ZERO, |_, _, _| unreached()), two());
    let (took, done) = stopped(site).await;
    assert_eq!(took, Duration::ZERO);
    assert_eq!(done.end.dropped(DropCause::Shutdown), RECORDS as u64);
    assert!((1..=2).contains(&late_tries(&done.wire)), "{:?}", done.wire.times());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_never_accepts_gets_half_a_second() {
    let wire = Fake::missed(Duration::from_millis(7500), Duration::ZERO, |_, _, _| unreached());
    let (took, done) = stopped(Site::new(wire, two())).await;
    assert!(took <= LAST_TRY, "{took:?}");
    assert_eq!(done.end.dropped(DropCause::Shutdown), RECORDS as u64);
}

#[tokio::test(start_paused = true)]
async fn who_was_never_tried_is_tried_twice() {
    let site = Site::new(Fake::new(Duration::ZERO, |_, _, _| unreached()), two());
    site.offer(RECORDS);
    let begun = Instant::now();
    let done = site.finish().await;
    assert!(begun.elapsed() <= LAST_TRY, "{:?}", begun.elapsed());
    assert_eq!(done.end.dropped(DropCause::Shutdown), RECORDS as u64);
    // Two of the same moment are one try.
    let times = done.wire.times();
    assert!((3..=4).contains(&times.len()), "{times:?}");
    assert!(times[0] == times[1] && times[2] > times[1], "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn who_was_there_and_does_not_accept_any_more_is_not_waited_for_for_a_second() {
    let mut first = true;
    let say = move |_, _, _| if std::mem::take(&mut first) { taken() } else { unreached() };
    let wire = Fake::missed(secs(60), Duration::ZERO, say);
    let (took, done) = stopped(Site::new(wire, Export { concurrency: 1, ..export() })).await;
    assert_eq!(took, LAST_CONNECTION);
    assert_eq!((done.end.exported, done.end.dropped(DropCause::Shutdown)), (10, 35));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_there_at_the_last_try_takes_all_however_slow_it_is() {
    let say = |at, _, _| if at < secs(10) { unreached() } else { taken() };
    let (took, done) = stopped(Site::new(Fake::new(secs(1), say), two())).await;
    // Five requests, two at a time.
    assert_eq!((took, done.end.exported), (secs(3), RECORDS as u64));
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_busy_gets_all_the_time_there_is() {
    let say = |at, _, _| if at < secs(14) { again(None) } else { taken() };
    let (took, done) = stopped(Site::new(Fake::new(Duration::ZERO, say), two())).await;
    assert!(took >= secs(4), "{took:?}");
    assert_eq!(done.end.exported, RECORDS as u64);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_a_connection_waits_for_its_answer_though_others_find_nobody() {
    let mut first = true;
    let say = move |_, _, _| if std::mem::take(&mut first) { taken() } else { unreached() };
    let (took, done) = stopped(Site::new(Fake::new(secs(12), say), two())).await;
    assert_eq!(took, secs(2));
    assert_eq!((done.end.exported, done.end.dropped(DropCause::Shutdown)), (10, 35));
}

#[tokio::test(start_paused = true)]
async fn the_spool_keeps_what_nobody_was_there_for() {
    for missed_after in [Duration::ZERO, Duration::from_millis(7500)] {
        let folder = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(folder.path(), 64 << 20).unwrap();
        let wire = Fake::missed(missed_after, Duration::ZERO, |_, _, _| unreached());
        let (took, done) = stopped(Site::with_spool(wire, two(), Some(spool))).await;
        assert!(took <= LAST_TRY, "{took:?}");
        assert_eq!((done.end.spooled, done.end.dropped_in_all()), (RECORDS as u64, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_output_is_taken_away_with_is_not_shutdown() {
    let site = Site::new(Fake::new(Duration::ZERO, |_, _, _| unreached()), two());
    site.ending.send_replace(Ending::Closing(DropCause::Removed));
    let (took, done) = stopped(site).await;
    assert_eq!(took, Duration::ZERO);
    assert_eq!(done.end.dropped(DropCause::Removed), RECORDS as u64);
}
