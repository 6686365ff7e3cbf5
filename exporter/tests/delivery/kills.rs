//! kill -9 at random moments, again and again: what had been spooled arrives, and only requests without an answer
//! arrive twice.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;
use std::time::Duration;

use flowend::export::spool::Spool;
use tonic::Code;

use super::injector::Injector;
use super::mode::{Mode, Protocol};
use super::program::{Life, Plan, Program};
use super::site::{BATCH, MAIN, set, word};
use super::store::{Decoded, Key, Signal};

const KILLS: u64 = 50;

/// Every so many lives one ends in order.
const ORDERLY: u64 = 10;

/// Requests on their way at the same time.
const CONCURRENCY: u64 = 4;

/// A life does not offer more.
const NUMBERS: u64 = 1_000_000;

/// Ends in a second: while the receiver is busy, half of the queue is in use after 13 ms.
const RATE: u64 = 1_500;
const QUEUE: u64 = 40;

/// The longest of a life, after its start, and of a mood of the receiver, ms.
const LIFE: u64 = 250;
const MOOD: u64 = 60;

fn random_below(n: u64) -> u64 {
    RandomState::new().hash_one(()) % n
}

/// The receiver takes all, or nothing.
async fn change_mood(injector: &Injector, protocol: Protocol) {
    let busy = match protocol {
        Protocol::Grpc => Mode::Code { code: Code::Unavailable, retry_info: None },
        Protocol::Http => Mode::Status { status: 503, retry_after: None },
    };
    injector.set(if random_below(2) == 0 { busy } else { Mode::Healthy }).await;
}

/// The ids that the spool of a signal holds. Nobody else may have it open.
fn held(directory: &Path, signal: Signal) -> BTreeSet<Key> {
    let folder = directory.join(MAIN).join(word(signal));
    let (mut spool, recovered) = Spool::open(&folder, 1 << 30).unwrap();
    assert!(recovered.lost.is_empty() && recovered.foreign.is_empty(), "{recovered:?}");
    let mut held = BTreeSet::new();
    // Handed out, and never settled: it all stays.
    while let Some((_, frame)) = spool.next().unwrap() {
        let decoded = match signal {
            Signal::Logs => prost::Message::decode(frame.body).map(Decoded::Logs),
            Signal::Traces => prost::Message::decode(frame.body).map(Decoded::Traces),
        };
        for key in decoded.unwrap().keys() {
            assert!(held.insert(key.clone()), "twice in the spool: {key:?}");
        }
    }
    assert_eq!(recovered.records, [0, 0, held.len() as u64]);
    held
}

/// What is known after each life.
struct Story {
    /// In the spool after the last life.
    held: [BTreeSet<Key>; 2],
    /// In the spool after any kill.
    killed_with: [BTreeSet<Key>; 2],
    /// The most that may have arrived twice, of each signal.
    may_come_twice: u64,
    /// What the lives said to be exported, as far as they came to say it.
    exported: [u64; 2],
    kills: u64,
}

impl Story {
    /// What the spool held is what the life began with; what it exported counts.
    fn add(&mut self, life: &Life) {
        for (exported, last) in self.exported.iter_mut().zip(life.last.into_iter().flatten()) {
            *exported += last.exported;
        }
        let Some(start) = &life.start else { return };
        for signal in Signal::ALL {
            let held = self.held[signal as usize].len() as u64;
            assert_eq!(start[signal as usize].recovered, held, "{signal:?}");
        }
    }

    fn killed(&mut self, life: &Life, directory: &Path, injector: &Injector) {
        self.add(life);
        self.kills += 1;
        self.may_come_twice += CONCURRENCY * BATCH;
        let received = injector.received();
        for signal in Signal::ALL {
            let held = held(directory, signal);
            // What is there and arrived all the same: requests without an answer, or whose answer was not
            // written down yet.
            let arrived = held.iter().filter(|key| received.items.contains_key(key)).count() as u64;
            let before = self.killed_with[signal as usize].intersection(&held);
            let again = before.filter(|key| received.items.contains_key(key)).count() as u64;
            assert!(
                arrived - again <= CONCURRENCY * BATCH,
                "{signal:?}: {arrived}, {again} of before"
            );
            self.killed_with[signal as usize].extend(held.iter().cloned());
            self.held[signal as usize] = held;
        }
    }

    /// The ledger adds up, and what it says is in flight is what the spool holds.
    fn ended(&mut self, life: &Life, directory: &Path) {
        self.add(life);
        let last = life.last.unwrap();
        for signal in Signal::ALL {
            let held = held(directory, signal);
            assert_eq!(last[signal as usize].in_flight, held.len() as u64, "{signal:?}");
            self.held[signal as usize] = held;
        }
    }
}

async fn survive(protocol: Protocol) {
    let injector = Injector::start(protocol);
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("spool");
    let mut set = set(&injector, protocol);
    set.extend([
        format!("export.queue_records={QUEUE}"),
        format!("export.concurrency={CONCURRENCY}"),
        "export.retry_max=20ms".into(),
        "shutdown.timeout=15s".into(),
        format!("spool.directory={}", directory.display()),
    ]);
    let log = folder.path().join("log");
    let mut story = Story {
        held: Default::default(),
        killed_with: Default::default(),
        may_come_twice: 0,
        exported: [0; 2],
        kills: 0,
    };
    let mut life = 0;
    while story.kills < KILLS {
        life += 1;
        let plan = Plan { first: life * NUMBERS, count: NUMBERS, rate: RATE };
        let mut program = Program::start(&plan, &set, &log);
        // Now and then the start itself is what is killed.
        let mut left = random_below(LIFE);
        if random_below(8) > 0 {
            program.wait_for("ready");
        }
        while left > 0 {
            change_mood(&injector, protocol).await;
            let pause = left.min(random_below(MOOD) + 1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            left -= pause;
        }
        if life % ORDERLY == 0 {
            program.wait_for("ready");
            let ended = program.terminate();
            story.ended(&ended, &directory);
        } else {
            let killed = program.kill();
            story.killed(&killed, &directory, &injector);
        }
    }
    injector.set(Mode::Healthy).await;
    // The last offers nothing, and ends when nothing is left.
    let last = Program::start(&Plan { first: 0, count: 0, rate: 0 }, &set, &log).wait();
    story.ended(&last, &directory);
    let received = injector.received();
    for signal in Signal::ALL {
        assert!(story.held[signal as usize].is_empty(), "{signal:?}");
        let spooled = &story.killed_with[signal as usize];
        assert!(spooled.len() as u64 > 10 * BATCH, "{signal:?}: hardly anything was spooled");
        let missing: Vec<_> = spooled
            .iter()
            .filter(|key| received.items.get(key).is_none_or(|times| times.acknowledged == 0))
            .collect();
        assert!(missing.is_empty(), "{signal:?}: {} are lost: {:?}", missing.len(), missing[0]);
        let mut again = 0;
        for (key, times) in received.items.iter().filter(|(key, _)| key.signal == signal) {
            let more = u64::from(times.acknowledged + times.maybe) - 1;
            assert!(more == 0 || spooled.contains(key), "twice, and never in a spool: {key:?}");
            again += more;
        }
        let of_signal = received.items.iter().filter(|(key, _)| key.signal == signal);
        let acknowledged: u64 = of_signal.map(|(_, times)| u64::from(times.acknowledged)).sum();
        let exported = story.exported[signal as usize];
        assert!(exported <= acknowledged, "{signal:?}: {exported} of {acknowledged}");
        assert!(again <= story.may_come_twice, "{signal:?}: {again} came again");
        println!(
            "{protocol:?} {signal:?}: {life} lives, {} kills; {} records arrived; {} were in the spool at a kill, \
             {again} came twice",
            story.kills,
            received.count(signal, |_| true),
            spooled.len()
        );
    }
}

#[tokio::test]
async fn what_was_spooled_survives_fifty_kills_over_grpc() {
    survive(Protocol::Grpc).await;
}

#[tokio::test]
async fn what_was_spooled_survives_fifty_kills_over_http() {
    survive(Protocol::Http).await;
}
