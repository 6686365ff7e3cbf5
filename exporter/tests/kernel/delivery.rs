//! Two destinations: what one of them does is nothing to the other.

use flowend::demo::Receiver;

use super::connections::Role::{Client, Server};
use super::ledger::{ledger, terms};
use super::receiver::{Answers, HttpReceiver, ids};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};
use super::telemetry::{port, scrape, sum};
use super::ways::{Pair, Way};

const CONNECTIONS: usize = 8;
/// Each has two ends.
const ENDS: usize = 2 * CONNECTIONS;

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_never_answers_does_not_hold_up_another() {
    if !can_run("a_destination_that_never_answers_does_not_hold_up_another", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let first = Receiver::start().await.unwrap();
    let second = HttpReceiver::start(Answers::SilentAfter(0)).await;
    let messages = tokio::task::block_in_place(|| {
        let flowend = Flowend::run(&[
            &format!("--set=targets={}", cgroup.name),
            &format!("--set=otlp.endpoint={}", first.endpoint()),
            &format!("--set=destinations.second.endpoint={}", second.endpoint()),
            "--set=destinations.second.protocol=http/protobuf",
            "--set=export.interval=10ms",
            // Fewer than there will be: what does not get on its way waits in the queue.
            "--set=export.batch_records=2",
            "--set=telemetry.listen=127.0.0.1:0",
            "--set=shutdown.timeout=300ms",
        ]);
        let telemetry = port(&flowend);
        let mut pair =
            Pair::new(Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup), "127.0.0.1:0");
        for role in [Client, Server].into_iter().cycle().take(CONNECTIONS) {
            let mut conn = pair.open(Way::Closed(role));
            pair.end(&mut conn);
        }
        let has_all = || ids(&first.received()).iter().all(|ids| ids.len() == ENDS);
        wait_until(has_all, || flowend.stderr());
        let is_asked = || second.ids().iter().all(|ids| !ids.is_empty());
        wait_until(is_asked, || flowend.stderr());
        // While it waits for the one, it has the other's answers.
        let now = scrape(telemetry);
        for signal in ["logs", "traces"] {
            let count = |metric: &str, destination: &str, more: &str| {
                let labels = format!("signal=\"{signal}\",destination=\"{destination}\"{more}");
                sum(&now, metric, &labels)
            };
            let exported = ",outcome=\"exported\"";
            assert_eq!(count("flowend_ends_in_flight", "second", ""), ENDS as u64);
            assert_eq!(count("flowend_ends_total", "second", exported), 0);
            // The last answer may be on its way.
            let answered = count("flowend_ends_total", "otlp", exported)
                + count("flowend_ends_in_flight", "otlp", "");
            assert_eq!(answered, ENDS as u64);
        }
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "a silent receiver is no failure: {messages}");
        messages
    });
    for signal in ["logs", "traces"] {
        let all = terms([("seen", ENDS), ("exported", ENDS)]);
        assert_eq!(ledger(&messages, &format!("otlp.{signal}")), all, "{messages}");
        let dropped = terms([("seen", ENDS), ("dropped{shutdown}", ENDS)]);
        assert_eq!(ledger(&messages, &format!("second.{signal}")), dropped, "{messages}");
        let told = format!("second.{signal}: {ENDS} records dropped{{shutdown}}: ");
        let line = messages.lines().find(|line| line.contains(&told));
        assert!(line.is_some_and(|line| line.contains("raise shutdown.timeout")), "{messages}");
    }
    assert_eq!(ids(&first.received()).map(|ids| ids.len()), [ENDS; 2], "and none twice");
}
