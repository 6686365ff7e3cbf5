//! One flowend, one receiver, three families side by side, and the comparison at the end.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use flowend::demo::{Received, Receiver};
use flowend::kernel::IPV6_SYN_ACKS;

use super::super::connections::Role;
use super::super::support::{Cgroup, Flowend, can_run};
use super::super::tracefs::{self, Tracefs};
use super::bench::{Bench, Family};
use super::case::{Case, Ends, Make};
use super::check::{Record, check, records};
use super::made::Made;

const TOOLS: &[&str] = &["ip", "ss", "unshare", "mount", "mountpoint"];
/// A record is there by then, or will not come: longer than any verdict waits.
const NO_NEWS: Duration = Duration::from_secs(5);
/// A record too many is there by then.
const GRACE: Duration = Duration::from_millis(300);

/// A case and what it made in one family.
struct Outcome {
    family: Family,
    case: &'static Case,
    made: Vec<Made>,
}

/// Runs the cases in all families, and fails with everything that is wrong.
pub(super) async fn run(test: &str, parts: &[&'static [Case]], tracefs: Tracefs) {
    if !can_run(test, TOOLS) {
        return;
    }
    let only = std::env::var("MATRIX_CASE").unwrap_or_default();
    let cases: Vec<&'static Case> =
        parts.iter().flat_map(|part| part.iter()).filter(|c| c.name.contains(&only)).collect();
    if cases.is_empty() {
        return;
    }
    let cgroup = Cgroup::new();
    let receiver = Receiver::start().await.expect("a receiver");
    let settings = [
        format!("otlp.endpoint={}", receiver.endpoint()),
        format!("targets={}", cgroup.name),
        "export.interval=20ms".to_owned(),
        // The listeners here give up after 3 s (tcp_synack_retries).
        "flows.handshake_timeout=4s".to_owned(),
    ];
    let (outcomes, flowend) = tokio::task::block_in_place(|| {
        make_all(&cases, &cgroup, || tracefs::start(&settings, tracefs))
    });
    let expected = outcomes.iter().map(Outcome::records).sum();
    wait_for(&receiver, expected).await;
    let (status, messages) = tokio::task::block_in_place(|| flowend.stop());
    assert_eq!(status, Some(0), "{messages}");

    let wrong = compare(&outcomes, &receiver.received());
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(!messages.contains("WARN"), "{messages}");
}

/// All cases in all families; older connections are opened before flowend starts.
fn make_all(
    cases: &[&'static Case],
    cgroup: &Cgroup,
    start: impl FnOnce() -> Flowend + Send,
) -> (Vec<Outcome>, Flowend) {
    let ready = std::sync::Barrier::new(Family::ALL.len() + 1);
    let started = std::sync::Barrier::new(Family::ALL.len() + 1);
    std::thread::scope(|scope| {
        let families = Family::ALL.map(|family| {
            let (ready, started) = (&ready, &started);
            scope.spawn(move || {
                // Waits even when it fails, so that the others go on.
                let prepared = std::panic::catch_unwind(|| {
                    let mut bench = Bench::new(family, cgroup.folder.clone());
                    let open: Vec<_> = cases
                        .iter()
                        .map(|case| match case.make {
                            Make::Watched(_) => None,
                            Make::Older(_) => Some(bench.open_and_exchange()),
                        })
                        .collect();
                    (bench, open)
                });
                ready.wait();
                started.wait();
                let (mut bench, open) = prepared.expect("the family's links and connections");
                cases
                    .iter()
                    .zip(open)
                    .map(|(case, open)| {
                        let made = match (case.make, open) {
                            (Make::Watched(make), _) => make(&mut bench),
                            (Make::Older(make), Some(open)) => make(&mut bench, open),
                            (Make::Older(_), None) => unreachable!("it was opened above"),
                        };
                        Outcome { family, case, made }
                    })
                    .collect::<Vec<_>>()
            })
        });
        ready.wait();
        // Where it fails, too: the families wait for it.
        let flowend = std::panic::catch_unwind(AssertUnwindSafe(start));
        started.wait();
        let flowend = flowend.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        let outcomes = families
            .into_iter()
            .flat_map(|family| family.join().expect("a family's cases"))
            .collect();
        (outcomes, flowend)
    })
}

/// Until all are here and a while longer, or nothing more comes.
async fn wait_for(receiver: &Receiver, expected: usize) {
    loop {
        let before = receiver.received().logs.len();
        receiver.wait_for(expected.max(before), NO_NEWS).await;
        let received = receiver.received();
        let is_all = received.logs.len() >= expected && received.spans.len() >= expected;
        if is_all || received.logs.len() == before {
            break;
        }
    }
    tokio::time::sleep(GRACE).await;
}

impl Outcome {
    /// What is true of its connections, as far as this kernel shows it.
    fn ends(&self) -> Vec<Ends> {
        let hidden = self.family == Family::V6 && !IPV6_SYN_ACKS.is_here();
        let shown = |ends: &Ends| if hidden { ends.without_syn_acks() } else { *ends };
        self.case.ends.iter().map(shown).collect()
    }

    fn records(&self) -> usize {
        self.ends().into_iter().map(Ends::records).sum()
    }
}

/// Everything that is wrong, each with its case.
fn compare(outcomes: &[Outcome], received: &Received) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut left = records(received, &mut wrong);
    for outcome in outcomes {
        let Outcome { family, case, made } = outcome;
        let expected = outcome.ends();
        assert_eq!(made.len(), expected.len(), "{}: its connections", case.name);
        for (made, ends) in made.iter().zip(expected) {
            let client = ends.client.and_then(|_| take(&mut left, made, Role::Client));
            let server = ends.server.and_then(|_| take(&mut left, made, Role::Server));
            for (role, row, record) in
                [(Role::Client, ends.client, &client), (Role::Server, ends.server, &server)]
            {
                let Some(row) = row else { continue };
                let words = match record {
                    Some(record) => check(made, role, &row, record, client.as_ref()),
                    None => vec![format!("no record ({}, {})", row.reason, row.history)],
                };
                for words in words {
                    wrong.push(format!("{} ({family:?}, {role:?}): {words}", case.name));
                }
            }
        }
    }
    for record in left {
        let case = outcomes.iter().find(|o| {
            o.made
                .iter()
                .any(|m| [Role::Client, Role::Server].iter().any(|r| record.is_of(m.addresses(*r))))
        });
        let name = case.map_or("no case", |o| o.case.name);
        let mut words = format!("{name}: one record too many:");
        for (key, value) in &record.a {
            let _ = write!(words, " {key}={value:?}");
        }
        wrong.push(words);
    }
    wrong
}

/// The first record of a socket that no connection before it has had.
fn take(records: &mut Vec<Record>, made: &Made, role: Role) -> Option<Record> {
    let at = records.iter().position(|record| record.is_of(made.addresses(role)))?;
    Some(records.remove(at))
}
