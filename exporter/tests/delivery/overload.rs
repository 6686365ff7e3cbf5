//! Ends generated faster than the receiver takes them: memory stays within what the settings say, and the counts
//! add up.

use std::time::Duration;

use super::injector::Injector;
use super::mode::{Mode, Protocol};
use super::offer::agree;
use super::program::{Plan, Program};
use super::site::{name, set};
use super::store::Signal;

const QUEUE_BYTES: u64 = 16 << 20;
const BATCH_BYTES: u64 = 1 << 20;
const CONCURRENCY: u64 = 4;
const SIGNALS: u64 = 2;

/// How often a request's bytes are in memory while it is on its way: itself, what the connection has taken of
/// it, and what the allocator keeps of those before it.
const COPIES: u64 = 3;

/// kB: what the queues and the requests that are on their way may take. A record that waits for both signals is
/// in memory once, and each queue counts all of it.
const ALLOWED_KB: u64 = SIGNALS * (QUEUE_BYTES + COPIES * CONCURRENCY * BATCH_BYTES) / 1024;

async fn overload(protocol: Protocol, length: Duration) {
    let injector = Injector::start(protocol);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut set = set(&injector, protocol);
    set.extend([
        format!("export.queue_bytes={QUEUE_BYTES}"),
        "export.queue_records=1000000".into(),
        "export.batch_records=512".into(),
        format!("export.batch_bytes={BATCH_BYTES}"),
        format!("export.concurrency={CONCURRENCY}"),
        "shutdown.timeout=60s".into(),
    ]);
    // What the process takes when it has sent a request, and no more.
    let base = Program::start(&Plan { first: 0, count: 512, rate: 0 }, &set, &log).wait();
    injector.set(Mode::Slow(Duration::from_millis(200))).await;
    let plan = Plan { first: 1 << 32, count: u64::MAX, rate: 0 };
    let mut program = Program::start(&plan, &set, &log);
    program.wait_for("ready");
    tokio::time::sleep(length).await;
    // What waits is taken within the time for that.
    injector.set(Mode::Healthy).await;
    let life = program.terminate();
    let (last, before) = (life.last.unwrap(), base.last.unwrap());
    let received = injector.received();
    for signal in Signal::ALL {
        let mut totals = last[signal as usize];
        assert!(totals.dropped > totals.exported, "not overloaded: {totals:?}");
        assert_eq!(totals.in_flight, 0);
        totals.add_up().unwrap();
        totals.seen += before[signal as usize].seen;
        totals.exported += before[signal as usize].exported;
        agree(signal, totals, &received).unwrap();
    }
    let (peak, base) = (life.peak.unwrap(), base.peak.unwrap());
    println!(
        "{}: {} ends in {length:?}, {} exported; peak {peak} kB, {base} kB without load, allowed {ALLOWED_KB} kB \
         more",
        name(protocol),
        last[0].seen,
        last[0].exported
    );
    assert!(peak <= base + ALLOWED_KB, "{peak} kB, {base} kB without load");
}

#[tokio::test]
async fn memory_stays_within_its_bound_under_overload() {
    for protocol in Protocol::ALL {
        overload(protocol, Duration::from_secs(3)).await;
    }
}

/// `cargo xtask stress` runs it.
#[tokio::test]
#[ignore = "takes two minutes of two cores"]
async fn memory_stays_within_its_bound_under_a_minute_of_overload() {
    for protocol in Protocol::ALL {
        overload(protocol, Duration::from_secs(60)).await;
    }
}
