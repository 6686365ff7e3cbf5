//! The delivery of flowend as a process that can be killed: synthetic ends, a configuration, no kernel.
//!
//! `deliver FIRST COUNT RATE [KEY=VALUE]...` offers the ends from number FIRST on, RATE in each second, or with a
//! RATE of 0 as fast as they go. It stops on SIGTERM, or when COUNT were offered and nothing is in flight.
//!
//! It says on stdout, in this order: the lines of the ledger before the first end is offered; `ready`; the lines again,
//! all along; `end`; the lines as they stand at the end; `peak N`, the most memory it had, kB.

#[path = "synthetic.rs"]
mod synthetic;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flowend::config::{self, Sources};
use flowend::export::{Outputs, OwnSockets, Sinks};
use flowend::ledger::{Ledger, Line, OutputLedger};
use flowend::record::RecordKind;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often ends are offered where there is a rate.
const TICK: Duration = Duration::from_millis(1);

/// Ends offered in one go where there is none.
const RUSH: u64 = 256;

/// How often the ledger is told.
const TELL: Duration = Duration::from_millis(20);

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [first, count, rate, set @ ..] = args.as_slice() else { anyhow::bail!("see deliver.rs") };
    let plan = Plan { next: first.parse()?, left: count.parse()?, rate: rate.parse()? };
    let sources = Sources { set: set.to_vec(), ..Sources::default() };
    let settings = config::load(&sources)?.settings;
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build()?;
    runtime.block_on(deliver(plan, &settings))
}

/// What is still to be offered.
struct Plan {
    next: u64,
    left: u64,
    /// Per second.
    rate: u64,
}

async fn deliver(mut plan: Plan, settings: &config::Settings) -> anyhow::Result<()> {
    let ledger = Arc::new(Ledger::default());
    let outputs = Outputs::start(settings, &OwnSockets::default(), &ledger)?;
    let mut sinks = outputs.sinks(settings);
    let workload = synthetic::workload();
    let mut terminated = signal(SignalKind::terminate())?;
    tell(&ledger, &outputs.ledgers())?;
    say("ready")?;
    let start = Instant::now();
    let mut offered = 0;
    let mut ticks = interval(if plan.rate == 0 { Duration::from_nanos(1) } else { TICK });
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut telling = interval(TELL);
    telling.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            _ = terminated.recv() => break,
            _ = telling.tick() => {
                let ledgers = outputs.ledgers();
                tell(&ledger, &ledgers)?;
                if plan.left == 0 && ledgers.iter().all(|ledger| in_flight(ledger) == 0) {
                    break;
                }
            }
            // Never for the receiver: only until others had their turn.
            () = tokio::task::yield_now(), if plan.rate == 0 && plan.left > 0 => {
                plan.offer(RUSH, &ledger, &mut sinks, &workload);
            }
            _ = ticks.tick(), if plan.rate > 0 && plan.left > 0 => {
                let due = (start.elapsed().as_micros() as u64).saturating_mul(plan.rate) / 1_000_000;
                plan.offer(due - offered, &ledger, &mut sinks, &workload);
                offered = due;
            }
        }
    }
    sinks.close();
    let ledgers = outputs.finish(tokio::time::sleep(settings.shutdown_timeout)).await;
    say("end")?;
    tell(&ledger, &ledgers)?;
    say(&format!("peak {}", peak_kb()?))
}

impl Plan {
    fn offer(
        &mut self,
        n: u64,
        ledger: &Ledger,
        sinks: &mut Sinks,
        workload: &Arc<flowend::enrich::Workload>,
    ) {
        let n = n.min(self.left);
        for number in self.next..self.next + n {
            ledger.of(RecordKind::End).seen.add(1);
            sinks.push(&synthetic::end(number, workload));
        }
        self.next += n;
        self.left -= n;
    }
}

fn in_flight(ledger: &OutputLedger) -> u64 {
    ledger.of(RecordKind::End).in_flight()
}

fn tell(ledger: &Ledger, outputs: &[Arc<OutputLedger>]) -> anyhow::Result<()> {
    outputs
        .iter()
        .flat_map(|output| Line::all(ledger, output))
        .try_for_each(|line| say(&line.to_string()))
}

/// In one write: a line is there as a whole, or not.
fn say(line: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).context("stdout")
}

/// VmHWM (proc_pid_status(5)): the most memory that was resident, kB.
fn peak_kb() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
