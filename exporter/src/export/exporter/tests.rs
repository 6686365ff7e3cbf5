//! The exporter against a wire that answers as it is told, in virtual time.

mod stop;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::encode::Mapping;
use crate::encode::tests::record;
use crate::encode::wire::{Encoded, RecordEncoder};
use crate::export::spool::Spool;
use crate::export::spooled::spool_excess;
use crate::ledger::{Ledger, OutputLedger};
use crate::record::{EventSet, RecordKind};

/// What the receiver makes of a request of so many records and bytes, at this moment of virtual time.
type Say = Box<dyn FnMut(Duration, usize, usize) -> Answer + Send>;

/// A receiver that nobody needs to reach.
#[derive(Clone)]
struct Fake(Arc<FakeState>);

struct FakeState {
    start: Instant,
    say: Mutex<Say>,
    /// When each request came, and how many records it held.
    requests: Mutex<Vec<(Duration, usize)>>,
    /// Records of the requests that were taken.
    taken: AtomicUsize,
    /// How long an answer takes.
    delay: Duration,
    /// How long it takes to find out that nobody is there.
    missed_after: Duration,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Fake {
    fn new(
        delay: Duration,
        say: impl FnMut(Duration, usize, usize) -> Answer + Send + 'static,
    ) -> Self {
        Self::missed(Duration::ZERO, delay, say)
    }

    fn missed(
        missed_after: Duration,
        delay: Duration,
        say: impl FnMut(Duration, usize, usize) -> Answer + Send + 'static,
    ) -> Self {
        Self(Arc::new(FakeState {
            start: Instant::now(),
            say: Mutex::new(Box::new(say)),
            requests: Mutex::default(),
            taken: AtomicUsize::new(0),
            delay,
            missed_after,
            open: AtomicUsize::new(0),
            most_open: AtomicUsize::new(0),
        }))
    }

    /// Gives these answers, and then takes all.
    fn scripted(answers: impl IntoIterator<Item = Answer>) -> Self {
        let mut answers: VecDeque<_> = answers.into_iter().collect();
        Self::new(Duration::ZERO, move |_, _, _| answers.pop_front().unwrap_or_else(taken))
    }

    fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// When each request came, ms.
    fn times(&self) -> Vec<u128> {
        self.0.requests.lock().unwrap().iter().map(|(at, _)| at.as_millis()).collect()
    }
}

impl Wire for Fake {
    async fn send(&self, body: Bytes, hopeless: impl Future<Output = ()> + Send) -> Answer {
        let state = &*self.0;
        let open = state.open.fetch_add(1, Ordering::Relaxed) + 1;
        state.most_open.fetch_max(open, Ordering::Relaxed);
        let n: usize = wire::kinds(Signal::Logs, &body).unwrap().iter().map(|n| *n as usize).sum();
        let at = state.start.elapsed();
        state.requests.lock().unwrap().push((at, n));
        let answer = (state.say.lock().unwrap())(at, n, body.len());
        if matches!(answer, Answer::Unreached { .. }) {
            let _ = tokio::time::timeout(state.missed_after, hopeless).await;
        } else {
            tokio::time::sleep(state.delay).await;
        }
        if let Answer::Taken { rejected, .. } = &answer {
            state
                .taken
                .fetch_add(n - usize::try_from(*rejected).unwrap().min(n), Ordering::Relaxed);
        }
        state.open.fetch_sub(1, Ordering::Relaxed);
        answer
    }
}

fn taken() -> Answer {
    Answer::Taken { rejected: 0, message: String::new() }
}

fn unreached() -> Answer {
    Answer::Unreached { why: "refused".into() }
}

fn again(after: Option<u64>) -> Answer {
    Answer::Again { after: after.map(Duration::from_secs), why: "busy".into() }
}

fn export() -> Export {
    Export {
        queue_records: 65_536,
        queue_bytes: 1 << 30,
        batch_records: 10,
        batch_bytes: 1 << 20,
        concurrency: 1,
        interval: Duration::from_millis(100),
        retry_initial: Duration::from_secs(1),
        retry_max: Duration::from_secs(8),
        retry_for: Duration::from_secs(300),
    }
}

/// An exporter that runs, and all that a test wants to know of it.
struct Site {
    wire: Fake,
    queue: Arc<Queue<Part>>,
    encoded: Arc<Encoded>,
    ledger: Arc<Ledger>,
    output: Arc<OutputLedger>,
    health: Arc<Health>,
    ending: watch::Sender<Ending>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
    live: Arc<Live<Fake>>,
}

impl Site {
    fn new(wire: Fake, export: Export) -> Self {
        Self::with_spool(wire, export, None)
    }

    fn with_spool(wire: Fake, export: Export, spool: Option<Spool>) -> Self {
        let ledger = Arc::new(Ledger::default());
        let output = OutputLedger::new("otlp", "logs", EventSet::ENDS, &ledger);
        let queue = Queue::new(export.queue(), Arc::clone(&output));
        let live = Arc::new(Live::new(wire.clone(), export));
        let health = Arc::new(Health::new("otlp.logs".into()));
        let spool = spool.map(|spool| Spooled::new(spool, 64 << 20, [0; 3], Arc::clone(&output)));
        let spooler = spool.as_ref().map(|spool| {
            let (queue, live) = (Arc::clone(&queue), Arc::clone(&live));
            tokio::spawn(spool_excess(Signal::Logs, queue, Arc::clone(spool), live))
        });
        let (ending, is_ending) = watch::channel(Ending::default());
        let exporter = Exporter {
            signal: Signal::Logs,
            queue: Arc::clone(&queue),
            spool,
            spooler,
            live: Arc::clone(&live),
            health: Arc::clone(&health),
            gate: Gate::default(),
            reach: Reach::default(),
            ending: is_ending,
        };
        let encoded = RecordEncoder::new(Arc::new(Mapping::new(crate::config::Profile::Semconv)))
            .encode(&record(RecordKind::End));
        Self {
            wire,
            queue,
            encoded: Arc::new(encoded),
            ledger,
            output,
            health,
            ending,
            task: tokio::spawn(exporter.run()),
            live,
        }
    }

    fn offer(&self, n: usize) {
        for _ in 0..n {
            self.ledger.of(RecordKind::End).seen.add(1);
            self.queue.push(Part { encoded: Arc::clone(&self.encoded), signal: Signal::Logs });
        }
    }

    /// seen + recovered = exported + dropped + in_flight, now; and exported is what the receiver took.
    #[track_caller]
    fn check(&self) {
        let seen = self.ledger.of(RecordKind::End).seen.get();
        let end = self.output.of(RecordKind::End);
        assert_eq!(
            seen + end.recovered,
            end.exported + end.dropped_in_all() + end.in_flight(),
            "{end:?}"
        );
    }

    /// Closes the queue, and waits until everything is settled.
    async fn finish(self) -> Finished {
        self.queue.close();
        self.task.await.unwrap().unwrap();
        let end = self.output.of(RecordKind::End);
        let seen = self.ledger.of(RecordKind::End).seen.get();
        assert_eq!(seen + end.recovered, end.exported + end.dropped_in_all() + end.in_flight());
        assert_eq!(end.in_flight(), end.spooled, "nothing is left but in the spool");
        assert_eq!(end.exported, self.wire.taken() as u64, "exported = acknowledged");
        Finished { end, wire: self.wire }
    }
}

struct Finished {
    end: crate::ledger::Counted,
    wire: Fake,
}

#[tokio::test(start_paused = true)]
async fn what_is_taken_is_exported() {
    let site = Site::new(Fake::scripted([]), export());
    site.offer(25);
    site.check();
    let done = site.finish().await;
    assert_eq!(done.end.exported, 25);
    assert_eq!(
        done.wire.0.requests.lock().unwrap().iter().map(|r| r.1).collect::<Vec<_>>(),
        [10, 10, 5]
    );
}

#[tokio::test(start_paused = true)]
async fn it_is_tried_again_with_growing_pauses() {
    let site = Site::new(Fake::scripted((0..6).map(|_| again(None))), export());
    site.offer(10);
    let done = site.finish().await;
    assert_eq!(done.end.exported, 10);
    let times = done.wire.times();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Each is between half and the whole of 1, 2, 4, 8, 8, 8 s.
    for (pause, longest) in pauses.iter().zip([1000, 2000, 4000, 8000, 8000, 8000]) {
        assert!((longest / 2..=longest + 1).contains(pause), "{pauses:?}");
    }
    assert_eq!(pauses.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_asks_for_quiet_gets_it_from_all_requests() {
    let export = Export { concurrency: 4, ..export() };
    let site = Site::new(Fake::scripted([again(Some(20))]), export);
    site.offer(10);
    tokio::time::sleep(Duration::from_millis(1)).await;
    site.offer(30);
    let failing = site.health.failing().expect("failing");
    assert_eq!(failing.1, "busy");
    let done = site.finish().await;
    assert_eq!(done.end.exported, 40);
    let times = done.wire.times();
    assert!(times[0] == 0 && times[1..].iter().all(|at| *at >= 20_000), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn it_is_given_up_after_the_time_for_retries() {
    let export = Export { retry_for: Duration::from_secs(60), ..export() };
    let site = Site::new(Fake::new(Duration::ZERO, |_, _, _| again(None)), export);
    site.offer(25);
    let done = site.finish().await;
    assert_eq!(done.end.dropped(DropCause::RetryExhausted), 25);
    // Each request has its own budget.
    let last = *done.wire.times().last().unwrap();
    assert!((150_000..=180_000).contains(&last), "{last}");
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_tried_again() {
    let site = Site::new(Fake::scripted([Answer::Refused { why: "no".into() }]), export());
    site.offer(15);
    let done = site.finish().await;
    assert_eq!((done.end.dropped(DropCause::Refused), done.end.exported), (10, 5));
    assert_eq!(done.wire.times().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_rejected_is_counted() {
    let answer = |rejected| Answer::Taken { rejected, message: "some".into() };
    let site = Site::new(Fake::scripted([answer(3), answer(u64::MAX)]), export());
    site.offer(20);
    let done = site.finish().await;
    assert_eq!((done.end.dropped(DropCause::Rejected), done.end.exported), (13, 7));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_too_large_is_split() {
    for (limit, want) in [(3, 10), (1, 10), (0, 0)] {
        let say = move |_, n: usize, _| {
            if n <= limit { taken() } else { Answer::TooLarge { why: "too large".into() } }
        };
        let site = Site::new(Fake::new(Duration::ZERO, say), export());
        site.offer(10);
        let done = site.finish().await;
        assert_eq!((done.end.exported, done.end.dropped(DropCause::TooLarge)), (want, 10 - want));
    }
}

#[tokio::test(start_paused = true)]
async fn several_requests_are_on_their_way_at_once_and_no_more() {
    for concurrency in [1, 4] {
        let wire = Fake::new(Duration::from_millis(50), |_, _, _| taken());
        let site = Site::new(wire, Export { concurrency, ..export() });
        site.offer(100);
        let done = site.finish().await;
        assert_eq!(done.wire.0.most_open.load(Ordering::Relaxed), concurrency);
        assert_eq!(done.end.exported, 100);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_does_not_make_others_wait_longer_for_company() {
    let wire = Fake::new(Duration::from_millis(60), |_, _, _| taken());
    let site = Site::new(wire, Export { concurrency: 4, ..export() });
    // A request at 100 ms, whose answer comes at 160 ms, while the second record waits from 110 ms on.
    site.offer(1);
    tokio::time::sleep(Duration::from_millis(110)).await;
    site.offer(1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(site.wire.times(), [100, 210]);
    site.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_next_try_goes_the_new_way() {
    let site = Site::new(Fake::new(Duration::ZERO, |_, _, _| again(None)), export());
    site.offer(10);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mended = Fake::scripted([]);
    site.live.set(mended.clone(), export());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((mended.taken(), site.output.of(RecordKind::End).exported), (10, 10));
    site.check();
    site.task.abort();
}

#[tokio::test(start_paused = true)]
async fn when_there_is_no_more_time_what_is_left_is_counted() {
    let wire = Fake::new(Duration::from_secs(3600), |_, _, _| taken());
    let site = Site::new(wire, Export { concurrency: 2, ..export() });
    site.offer(45);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let end = site.output.of(RecordKind::End);
    assert_eq!((end.queued, end.unanswered), (25, 20));
    site.ending.send_replace(Ending::Now(DropCause::Removed));
    let output = Arc::clone(&site.output);
    site.task.await.unwrap().unwrap();
    assert_eq!(output.dropped(DropCause::Removed), 45);
    assert_eq!(output.of(RecordKind::End).in_flight(), 0);
}

/// The identity is not a tautology: what nobody answers for is missing from it.
#[tokio::test(start_paused = true)]
async fn a_batch_that_is_lost_shows() {
    let wire = Fake::new(Duration::ZERO, |at, _, _| {
        assert!(at < Duration::from_secs(5), "a panic loses the batch");
        taken()
    });
    let site = Site::new(wire, export());
    site.offer(10);
    tokio::time::sleep(Duration::from_secs(6)).await;
    site.check();
    site.offer(10);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let end = site.output.of(RecordKind::End);
    let sum = end.exported + end.dropped_in_all() + end.in_flight();
    assert_eq!((site.ledger.of(RecordKind::End).seen.get(), sum), (20, 10), "10 are nowhere");
    site.task.abort();
}

/// 5,000 ends a second for 12 minutes; the receiver is gone for 10 of them.
async fn outage(spool: Option<Spool>) -> Finished {
    const RATE: usize = 5000;
    let down = Duration::from_secs(60)..Duration::from_secs(660);
    let say = move |at, _, _| if down.contains(&at) { again(None) } else { taken() };
    let wire = Fake::new(Duration::from_millis(20), say);
    let export = Export { batch_records: 512, concurrency: 4, ..export() };
    let site = Site::with_spool(wire, export, spool);
    for _ in 0..12 * 60 * 10 {
        site.offer(RATE / 10);
        tokio::time::sleep(Duration::from_millis(100)).await;
        site.check();
    }
    // The last look before the end, when all that can be sent has been.
    tokio::time::sleep(Duration::from_secs(120)).await;
    site.check();
    assert_eq!(site.health.failing(), None);
    site.finish().await
}

#[tokio::test(start_paused = true)]
async fn in_ten_minutes_without_a_receiver_the_queue_holds_what_it_can_and_the_rest_is_counted() {
    let end = outage(None).await.end;
    // What came in 600 s, less what the queue and four requests hold, and what is given up while it lasts.
    let lost = end.dropped(DropCause::QueueFull) + end.dropped(DropCause::RetryExhausted);
    assert_eq!(end.exported + lost, 3_600_000);
    assert_eq!(end.dropped_in_all(), lost);
    assert!((2_900_000..3_000_000).contains(&lost), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn in_ten_minutes_without_a_receiver_the_spool_holds_more() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(folder.path(), 64 << 20).unwrap();
    let end = outage(Some(spool)).await.end;
    let lost = end.dropped(DropCause::SpoolFull) + end.dropped(DropCause::QueueFull);
    assert_eq!((end.exported + lost, end.dropped_in_all()), (3_600_000, lost));
    assert!(lost < 2_950_000, "{lost}");
    assert_eq!(end.spooled, 0);
}
