//! A receiver that is not there, and a spool: what lay in it outlives flowend, however it ends.

use std::collections::BTreeMap;
use std::path::Path;

use flowend::demo::Received;
use flowend::export::spool::Spool;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;

use super::connections::Role::{Client, Server};
use super::ledger::{ledger, terms};
use super::receiver::{Answers, HttpReceiver, Id, ids, ids_of_json, refusing, sorted};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};
use super::telemetry::{port, scrape, sum};
use super::ways::{Pair, Way};

const SIGNALS: [&str; 2] = ["logs", "traces"];

/// Two ends each.
const CONNECTIONS: usize = 100;
/// `export.queue_records`: the spool takes what goes beyond half of it.
const QUEUE: usize = 100;

/// A cgroup and a spool, which flowend after flowend uses.
struct Site {
    cgroup: Cgroup,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { cgroup: Cgroup::new(), folder: tempfile::tempdir().unwrap() }
    }

    /// Sends one small request at a time.
    fn start(&self, endpoint: &str, args: &[&str]) -> Flowend {
        let settings = [
            format!("--set=targets={}", self.cgroup.name),
            format!("--set=spool.directory={}", self.spool().display()),
            format!("--set=otlp.endpoint={endpoint}"),
            format!("--set=export.queue_records={QUEUE}"),
        ];
        let mut all: Vec<&str> = settings.iter().map(String::as_str).collect();
        all.extend([
            "--output=otlp",
            "--set=otlp.protocol=http/protobuf",
            "--set=export.interval=10ms",
            "--set=export.batch_records=5",
            "--set=export.concurrency=1",
            "--set=export.retry_initial=20ms",
            "--set=export.retry_max=50ms",
        ]);
        all.extend(args);
        Flowend::run(&all)
    }

    /// Makes connections while the receiver takes nothing, and kills flowend when the spool has its part.
    fn fill_and_kill(&self, endpoint: &str) {
        let flowend = self.start(endpoint, &["--set=telemetry.listen=127.0.0.1:0"]);
        let port = port(&flowend);
        self.connect(CONNECTIONS);
        let has_spooled = || {
            let now = scrape(port);
            let queued = ["log", "span"].map(|signal| {
                sum(&now, &format!("otel_sdk_processor_{signal}_queue_size"), "/otlp\"")
            });
            let seen = sum(&now, "flowend_ends_seen_total", "");
            seen == 2 * CONNECTIONS as u64 && queued.iter().all(|n| *n <= QUEUE as u64 / 2)
        };
        wait_until(has_spooled, || flowend.stderr());
        kill_hard(flowend);
    }

    fn connect(&self, n: usize) {
        let puppet = || Puppet::in_cgroup(&self.cgroup);
        let mut pair = Pair::new(puppet(), puppet(), "127.0.0.1:0");
        for role in [Client, Server].into_iter().cycle().take(n) {
            let mut conn = pair.open(Way::Closed(role));
            pair.end(&mut conn);
        }
    }

    fn spool(&self) -> std::path::PathBuf {
        self.folder.path().join("spool")
    }

    /// The ids in each request of the spool, oldest first: of log records, and of spans.
    fn spooled(&self) -> [Vec<Vec<Id>>; 2] {
        SIGNALS.map(|signal| frames(&self.spool().join("otlp").join(signal), signal))
    }
}

fn frames(folder: &Path, signal: &str) -> Vec<Vec<Id>> {
    let (mut spool, recovered) = Spool::open(folder, 1 << 30).expect("the spool");
    assert_eq!((recovered.lost, recovered.foreign), (vec![], vec![]));
    let mut frames = Vec::new();
    while let Some((_, frame)) = spool.next().expect("a request") {
        let mut received = Received::default();
        if signal == "logs" {
            received.add_logs(ExportLogsServiceRequest::decode(frame.body).unwrap());
        } else {
            received.add_spans(ExportTraceServiceRequest::decode(frame.body).unwrap());
        }
        let [logs, spans] = ids(&received);
        let ids = [logs, spans].concat();
        assert_eq!(u64::from(frame.counts.iter().sum::<u32>()), ids.len() as u64);
        frames.push(ids);
    }
    frames
}

/// SIGKILL, and waits until it is gone.
fn kill_hard(flowend: Flowend) {
    kill(Pid::from_raw(flowend.pid().cast_signed()), Signal::SIGKILL).unwrap();
    drop(flowend);
}

/// Three lives that end by SIGKILL: with nobody there, in the middle of the delivery, with a receiver that
/// refuses. The fourth one finds all that was in the spool.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_spooled_outlives_three_kills_and_arrives_with_the_same_ids() {
    if !can_run("what_was_spooled_outlives_three_kills_and_arrives_with_the_same_ids", &[]) {
        return;
    }
    /// Requests of each signal that are answered before the second kill.
    const ANSWERED: usize = 2;
    let site = Site::new();
    let (_bound, closed) = refusing();
    let halting = HttpReceiver::start(Answers::SilentAfter(ANSWERED)).await;
    let unavailable = HttpReceiver::start(Answers::Unavailable).await;
    let whole = HttpReceiver::start(Answers::Taken).await;
    let (after, messages) = tokio::task::block_in_place(|| {
        site.fill_and_kill(&format!("http://127.0.0.1:{closed}"));
        let first = site.spooled();
        assert!(first.iter().all(|frames| frames.len() > 2 * ANSWERED), "{first:?}");

        let flowend = site.start(&halting.endpoint(), &[]);
        let begun: [usize; 2] =
            std::array::from_fn(|of| first[of][..=ANSWERED].iter().map(Vec::len).sum());
        let has_begun = || halting.ids().map(|ids| ids.len()) == begun;
        wait_until(has_begun, || flowend.stderr());
        kill_hard(flowend);
        let second = site.spooled();
        for (of, ids) in halting.ids().into_iter().enumerate() {
            assert_eq!(ids, first[of][..=ANSWERED].concat(), "the oldest first");
            assert_eq!(second[of], first[of][ANSWERED..], "all but what was answered");
        }

        site.fill_and_kill(&unavailable.endpoint());
        let third = site.spooled();
        for (before, after) in second.iter().zip(&third) {
            assert!(after.starts_with(before) && after.len() > before.len(), "new ones behind");
        }

        let flowend = site.start(&whole.endpoint(), &[]);
        let all = third.each_ref().map(|frames| frames.concat());
        let has_all = || whole.ids().iter().zip(&all).all(|(ids, all)| ids.len() >= all.len());
        wait_until(has_all, || flowend.stderr());
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        for (of, signal) in SIGNALS.into_iter().enumerate() {
            let n = all[of].len();
            let want = terms([("recovered", n), ("exported", n)]);
            assert_eq!(ledger(&messages, &format!("otlp.{signal}")), want, "{messages}");
            let unanswered = &first[of][ANSWERED];
            check_arrivals(&[halting.ids()[of].clone(), whole.ids()[of].clone()], unanswered);
        }
        assert_eq!(whole.ids(), all, "all of it, and in its order");
        (site.spooled(), messages)
    });
    assert_eq!(after, [Vec::<Vec<Id>>::new(), vec![]], "nothing is left: {messages}");
}

/// Each came once, but those that were on their way at the kill, which came twice.
fn check_arrivals(arrivals: &[Vec<Id>], unanswered: &[Id]) {
    let mut times = BTreeMap::<&Id, usize>::new();
    for id in arrivals.iter().flatten() {
        *times.entry(id).or_default() += 1;
    }
    for (id, n) in times {
        assert_eq!(n, if unanswered.contains(id) { 2 } else { 1 }, "{id:?}");
    }
}

/// What the queue holds, and what is tried again and again, goes into the spool; the next start finds it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_a_receiver_drops_nothing_where_there_is_a_spool() {
    if !can_run("a_stop_without_a_receiver_drops_nothing_where_there_is_a_spool", &[]) {
        return;
    }
    const MADE: usize = 6;
    const ENDS: usize = 2 * MADE;
    let site = Site::new();
    let (_bound, closed) = refusing();
    let receiver = HttpReceiver::start(Answers::Taken).await;
    tokio::task::block_in_place(|| {
        let flowend = site.start(&format!("http://127.0.0.1:{closed}"), &["--output=json"]);
        site.connect(MADE);
        wait_until(|| flowend.json().len() == ENDS, || flowend.stderr());
        flowend.wait_for_message("tries again");
        let made = sorted(ids_of_json(&flowend.json()));
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        assert!(!messages.contains("dropped"), "{messages}");
        for signal in SIGNALS {
            let want = terms([("seen", ENDS), ("in_flight", ENDS)]);
            assert_eq!(ledger(&messages, &format!("otlp.{signal}")), want, "{messages}");
        }
        for frames in site.spooled() {
            assert_eq!(sorted(frames.concat()), made);
        }

        let flowend = site.start(&receiver.endpoint(), &[]);
        let has_all = || receiver.ids().iter().all(|ids| ids.len() >= ENDS);
        wait_until(has_all, || flowend.stderr());
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        for signal in SIGNALS {
            let want = terms([("recovered", ENDS), ("exported", ENDS)]);
            assert_eq!(ledger(&messages, &format!("otlp.{signal}")), want, "{messages}");
        }
        assert_eq!(receiver.ids().map(sorted), [made.clone(), made], "each once");
    });
}
