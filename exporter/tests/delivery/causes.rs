//! No drop is silent: each cause, made to happen, has its counter, its metric and its line in the log.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flowend::config::SpoolSettings;
use flowend::export::{Limits, Queue, SharedFormat, StreamFormat, spawn_stream};
use flowend::ledger::{DropCause, DropReport, Ledger, OutputLedger};
use flowend::record::{EventSet, RecordKind};
use flowend::telemetry::{Counts, Sources, encode, gather};
use tonic::Code;

use super::injector::Injector;
use super::mode::{Mode, Protocol};
use super::offer::Delivery as _;
use super::site::{BATCH, MAIN, Site, settings};
use super::store::Signal;
use super::synthetic;

/// Where a drop happened.
struct Scene {
    ledger: Arc<Ledger>,
    output: Arc<OutputLedger>,
}

impl Scene {
    /// At the end of flowend, so that nothing is counted any more.
    async fn at_end_of(site: Site, destination: &str) -> Self {
        let output = site.output(destination, Signal::Logs).unwrap();
        let ledger = Arc::clone(&site.ledger);
        for (output, totals) in site.finish(std::future::ready(())).await {
            totals.add_up().unwrap_or_else(|problem| panic!("{output}: {problem}"));
        }
        Self { ledger, output }
    }
}

/// Makes a drop happen. A new cause does not compile before it is here.
async fn happen(cause: DropCause) -> Scene {
    match cause {
        DropCause::QueueFull => at_site(Mode::BlackHole, &["export.queue_records=5"], cause).await,
        DropCause::RetryExhausted => {
            at_site(Mode::Refused, &["export.retry_for=50ms"], cause).await
        }
        DropCause::Refused => {
            let mode = Mode::Code { code: Code::InvalidArgument, retry_info: None };
            at_site(mode, &[], cause).await
        }
        DropCause::Rejected => at_site(Mode::Rejecting(2), &[], cause).await,
        DropCause::TooLarge => at_site(Mode::LargerThan(100), &[], cause).await,
        DropCause::SpoolFull => spool_full().await,
        DropCause::SpoolFailed => spool_failed().await,
        DropCause::SpoolDamaged => spool_damaged().await,
        DropCause::Shutdown => shutdown().await,
        DropCause::Removed => removed().await,
        DropCause::OutputClosed => output_closed().await,
    }
}

/// Offers ends to a receiver that fails, until the drop has happened.
async fn at_site(mode: Mode, more: &[&str], cause: DropCause) -> Scene {
    let injector = Injector::start(Protocol::Grpc);
    injector.set(mode).await;
    let mut site = Site::start(settings(&injector, Protocol::Grpc, more));
    site.push(0..100);
    let has_happened = |site: &Site| site.counted(MAIN, Signal::Logs).dropped(cause) > 0;
    site.until(has_happened).await;
    Scene::at_end_of(site, MAIN).await
}

/// A spool behind a small queue, and a receiver that is away.
async fn with_spool(folder: &Path, max_bytes: u64) -> Site {
    let injector = Injector::start(Protocol::Grpc);
    injector.set(Mode::Refused).await;
    let mut settings = settings(&injector, Protocol::Grpc, &["export.queue_records=20"]);
    // Less than may be configured.
    settings.spool = Some(SpoolSettings { directory: folder.to_owned(), max_bytes });
    Site::start(settings)
}

/// Offers until a drop for this cause has happened.
async fn offer_until(site: &mut Site, cause: DropCause) {
    for first in (0..).step_by(BATCH as usize) {
        site.push(first..first + BATCH);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if site.counted(MAIN, Signal::Logs).dropped(cause) > 0 {
            return;
        }
        assert!(first < 100_000, "never {cause:?}");
    }
}

async fn spool_full() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let mut site = with_spool(folder.path(), 65_536).await;
    offer_until(&mut site, DropCause::SpoolFull).await;
    Scene::at_end_of(site, MAIN).await
}

async fn spool_failed() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let mut site = with_spool(folder.path(), 1 << 20).await;
    std::fs::remove_dir_all(folder.path().join(MAIN)).unwrap();
    offer_until(&mut site, DropCause::SpoolFailed).await;
    Scene::at_end_of(site, MAIN).await
}

async fn spool_damaged() -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let mut site = with_spool(folder.path(), 1 << 20).await;
    site.push(0..20);
    drop(site.finish(std::future::pending()).await);
    let spool = folder.path().join(MAIN).join("logs");
    let is_frames = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "frames");
    let mut files = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path());
    let path = files.find(is_frames).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    // In the body of the first frame.
    let (at, mut byte) = (1000, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    let site = with_spool(folder.path(), 1 << 20).await;
    let counted = site.counted(MAIN, Signal::Logs);
    assert_eq!(counted.recovered, 20, "{counted:?}");
    assert_eq!(counted.dropped(DropCause::SpoolDamaged) + counted.in_flight(), 20, "{counted:?}");
    Scene::at_end_of(site, MAIN).await
}

async fn shutdown() -> Scene {
    let injector = Injector::start(Protocol::Grpc);
    injector.set(Mode::BlackHole).await;
    let mut site = Site::start(settings(&injector, Protocol::Grpc, &[]));
    site.push(0..100);
    let scene = Scene::at_end_of(site, MAIN).await;
    assert_eq!(scene.output.dropped(DropCause::Shutdown), 100);
    scene
}

async fn removed() -> Scene {
    let (main, other) = (Injector::start(Protocol::Grpc), Injector::start(Protocol::Grpc));
    other.set(Mode::BlackHole).await;
    let endpoint = format!("destinations.other.endpoint={}", other.endpoint());
    let mut site = Site::start(settings(&main, Protocol::Grpc, &[&endpoint]));
    site.push(0..100);
    site.apply(settings(&main, Protocol::Grpc, &[]), Duration::ZERO);
    // They are not for it any more, and not in its sum.
    site.push(100..110);
    site.until(|site| site.counted("other", Signal::Logs).in_flight() == 0).await;
    site.settle().await;
    let totals = site.totals_at("other", Signal::Logs);
    assert_eq!((totals.seen, totals.dropped), (100, 100));
    Scene::at_end_of(site, "other").await
}

/// Of what is written to stdout the reader has gone.
async fn output_closed() -> Scene {
    let ledger = Arc::new(Ledger::default());
    let output = OutputLedger::new(OutputLedger::STDOUT, "text", EventSet::ENDS, &ledger);
    let queue = Queue::new(Limits { records: 100, bytes: 1 << 20 }, Arc::clone(&output));
    let (reader, writer) = tokio::io::duplex(64);
    drop(reader);
    let workload = synthetic::workload();
    for number in 0..10 {
        ledger.of(RecordKind::End).seen.add(1);
        queue.push(synthetic::end(number, &workload));
    }
    let format = SharedFormat::new(StreamFormat::Text);
    let ended = spawn_stream(Arc::clone(&queue), format, writer).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    Scene { ledger, output }
}

#[tokio::test]
async fn each_cause_has_its_counter_its_metric_and_its_line() {
    for cause in DropCause::ALL {
        let Scene { ledger, output } = happen(cause).await;
        let n = output.dropped(cause);
        assert!(n > 0, "{cause:?}");
        let word = cause.as_str();
        let outputs = [Arc::clone(&output)];
        let text = metrics(&ledger, &outputs);
        let sample = format!(
            "flowend_ends_total{{signal=\"{}\",destination=\"{}\",outcome=\"dropped\",cause=\"{word}\"}} {n}",
            output.signal(),
            output.destination()
        );
        assert!(text.lines().any(|line| line == sample), "no {sample} in {text}");
        let (lines, report) = said(DropReport::default(), &outputs);
        let line = format!("{output}: {n} records dropped{{{word}}}: {}", cause.remedy());
        assert_eq!(lines.matches(&line).count(), 1, "{line}: {lines}");
        // The next interval has nothing new.
        assert_eq!(said(report, &outputs).0, "", "{cause:?}");
    }
}

/// What is dropped at an output that was taken away is said once, whatever comes after it under its name.
#[tokio::test]
async fn an_output_that_comes_back_is_not_complained_about_again() {
    let (hole, main) = (Injector::start(Protocol::Grpc), Injector::start(Protocol::Grpc));
    hole.set(Mode::BlackHole).await;
    let endpoint = format!("destinations.other.endpoint={}", hole.endpoint());
    let with_other = || settings(&main, Protocol::Grpc, &[&endpoint]);
    let mut site = Site::start(with_other());
    site.push(0..100);
    site.apply(settings(&main, Protocol::Grpc, &[]), Duration::ZERO);
    site.until(|site| site.counted("other", Signal::Logs).in_flight() == 0).await;
    site.until(|site| site.counted("other", Signal::Traces).in_flight() == 0).await;
    site.apply(with_other(), Duration::ZERO);
    let (lines, report) = said(DropReport::default(), &site.outputs.ledgers());
    assert_eq!(lines.matches("100 records dropped{removed}").count(), 2, "{lines}");
    let (lines, _) = said(report, &site.outputs.ledgers());
    assert_eq!(lines, "");
}

/// As Prometheus gets them.
fn metrics(ledger: &Ledger, outputs: &[Arc<OutputLedger>]) -> String {
    encode(gather(&Counts {
        ledger,
        outputs,
        queue_records: 100,
        lost: Default::default(),
        losses: Default::default(),
        connections: None,
        names: Sources::default(),
        skipped: Default::default(),
        attached: 1,
        programs: &[],
        detachments: 0,
        reloads: None,
    }))
}

/// What a report writes to the log.
fn said(report: DropReport, outputs: &[Arc<OutputLedger>]) -> (String, DropReport) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    let report = tracing::subscriber::with_default(subscriber.finish(), || report.report(outputs));
    let bytes = std::mem::take(&mut *log.0.lock().unwrap());
    (String::from_utf8(bytes).unwrap(), report)
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
