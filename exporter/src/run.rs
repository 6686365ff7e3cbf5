//! `flowend run`: from settings to a running sidecar, and to an orderly end.

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flowend_probe_types::LOST_SLOTS;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::config::{Output, Settings};
use crate::enrich::{Processes, WorkloadSettings, Workloads};
use crate::export::{self, OwnSockets, Queue, Signal, StreamFormat};
use crate::ids::Ids;
use crate::ledger::{Count, DropCause, Ledger, Line, OutputLedger};
use crate::pipeline::{Pipeline, Stages};
use crate::probe::{LoadOptions, Probe, TargetWatch};
use crate::record::Record;
use crate::sample::Sampler;
use crate::source::RingSource;
use crate::{cgroup, clock};

/// Lost events are complained about at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A sidecar whose programs are attached and whose outputs stand ready.
pub struct Sidecar {
    source: RingSource,
    pipeline: Pipeline,
    watch: TargetWatch,
    outputs: Vec<RunningOutput>,
    ledger: Arc<Ledger>,
    shutdown_timeout: Duration,
}

#[derive(Debug)]
struct RunningOutput {
    queue: Arc<Queue<Arc<Record>>>,
    ledger: Arc<OutputLedger>,
    task: JoinHandle<std::io::Result<()>>,
}

/// What became of every end, when the sidecar has stopped.
#[derive(Debug)]
pub struct Report {
    /// Common to all outputs.
    pub ledger: Arc<Ledger>,
    /// One for each output and signal.
    pub outputs: Vec<Arc<OutputLedger>>,
    /// Events of the probe that found the ring full, by kind.
    pub lost: [u64; LOST_SLOTS.len()],
}

impl Sidecar {
    /// Counts how often somebody else detached flowend's programs.
    pub fn detachments(&self) -> Arc<Count> {
        self.watch.detachments()
    }

    /// Loads, attaches, and builds the outputs.
    ///
    /// # Errors
    /// The first thing that is missing, with the remedy; then nothing stays attached.
    pub fn start(settings: &Settings) -> anyhow::Result<Self> {
        let mount = cgroup::find_mount()?;
        let mut probe = Probe::load(LoadOptions {
            ring_bytes: settings.ring_bytes,
            process: settings.process,
        })?;
        let ring = probe.take_ring().context("the BPF object has no ring buffer EVENTS")?;
        let lost = probe.take_lost().context("the BPF object has no map LOST")?;
        let source = RingSource::new(ring, lost, settings.drain_interval)?;
        let own = OwnSockets::default();
        let outputs = start_outputs(settings, &own)?;
        let ledger = Arc::new(Ledger::default());
        let pipeline = Pipeline::new(
            settings.max_flows,
            Stages {
                processes: Processes::new(settings.max_flows),
                workloads: Workloads::new(mount.clone(), workload_settings(settings)),
                own,
                ids: Ids::new(&settings.ids_key, random_seed()),
                peer_cidrs: settings.peer_cidrs.clone(),
                sampler: Sampler::new(settings.sampling_ratio),
                ledger: Arc::clone(&ledger),
                queues: outputs.iter().map(|o| Arc::clone(&o.queue)).collect(),
            },
        );
        // Last, so that nothing is attached when something else fails.
        let watch = TargetWatch::start(probe, mount, settings.targets.clone())?;
        Ok(Self {
            source,
            pipeline,
            watch,
            outputs,
            ledger,
            shutdown_timeout: settings.shutdown_timeout,
        })
    }

    /// Runs until `shutdown` is ready or stdout is closed; then sends what is left, within the
    /// deadline.
    ///
    /// # Errors
    /// When an output ended by itself.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<Report> {
        info!(
            "{} cgroup(s) attached; reporting the ends of TCP connections",
            self.watch.attached()
        );
        let watch = tokio::spawn(self.watch.run());
        tokio::pin!(shutdown);
        let mut health = tokio::time::interval(REPORT_EVERY);
        let mut lost_before = [0; LOST_SLOTS.len()];
        let mut failed = None;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                () = self.source.ready() => {
                    while read(&mut self.source, &mut self.pipeline) {
                        // A flood must not keep the outputs from their turn.
                        tokio::task::yield_now().await;
                    }
                }
                _ = health.tick() => lost_before = report_lost(&self.source, lost_before),
            }
            failed = failed_output(&mut self.outputs).await;
            if failed.is_some() {
                break;
            }
        }
        while read(&mut self.source, &mut self.pipeline) {}
        self.pipeline.finish(clock::boot_to_unix_ns());
        watch.abort();
        report_lost(&self.source, lost_before);
        let outputs = finish_outputs(self.outputs, self.shutdown_timeout).await;
        for output in &outputs {
            info!("{}", Line(&self.ledger, output));
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Report { ledger: self.ledger, outputs, lost: self.source.lost() }),
        }
    }
}

/// One turn of the data path. Says whether the ring may hold more.
fn read(source: &mut RingSource, pipeline: &mut Pipeline) -> bool {
    let offset = clock::boot_to_unix_ns();
    let more = source.drain(|event| pipeline.event(event, offset));
    pipeline.tick(clock::boot_ns(), offset);
    more
}

fn report_lost(source: &RingSource, before: [u64; LOST_SLOTS.len()]) -> [u64; LOST_SLOTS.len()] {
    let now = source.lost();
    let new: Vec<_> = LOST_SLOTS
        .iter()
        .zip(now.iter().zip(&before))
        .filter(|(_, (now, before))| now > before)
        .map(|(name, (now, before))| format!("{name} {}", now - before))
        .collect();
    if !new.is_empty() {
        warn!("the ring was full: events lost: {}; raise ring.bytes", new.join(", "));
    }
    now
}

fn start_outputs(settings: &Settings, own: &OwnSockets) -> anyhow::Result<Vec<RunningOutput>> {
    let mut outputs = Vec::new();
    let queue = |name| {
        let ledger = OutputLedger::new(name);
        (Queue::new(settings.export.queue_records, Arc::clone(&ledger)), ledger)
    };
    for output in &settings.outputs {
        let format = match output {
            Output::Text => StreamFormat::Text,
            Output::Json => StreamFormat::Json(settings.profile),
            Output::Otlp => {
                for (signal, receiver) in [
                    (Signal::Logs, &settings.receivers.logs),
                    (Signal::Traces, &settings.receivers.traces),
                ] {
                    let (queue, ledger) = queue(signal.output());
                    let task = export::spawn_otlp(
                        signal,
                        Arc::clone(&queue),
                        receiver,
                        settings.export.clone(),
                        settings.profile,
                        own.clone(),
                    )?;
                    let task = tokio::spawn(async { task.await.map_err(std::io::Error::other) });
                    outputs.push(RunningOutput { queue, ledger, task });
                }
                continue;
            }
        };
        let (queue, ledger) = queue(output.as_str());
        let task = export::spawn_stream(Arc::clone(&queue), format, tokio::io::stdout());
        outputs.push(RunningOutput { queue, ledger, task });
    }
    Ok(outputs)
}

/// An output that ended though nobody told it to.
async fn failed_output(outputs: &mut [RunningOutput]) -> Option<anyhow::Error> {
    for output in outputs {
        if output.task.is_finished() {
            let name = output.ledger.name;
            return Some(match (&mut output.task).await {
                Ok(Ok(())) => anyhow::anyhow!("output {name} ended"),
                Ok(Err(error)) => anyhow::anyhow!("output {name}: {error}"),
                Err(error) => anyhow::anyhow!("output {name}: {error}"),
            });
        }
    }
    None
}

/// Waits for the queues to run empty, for as long as the deadline lets it; counts what is left.
async fn finish_outputs(outputs: Vec<RunningOutput>, timeout: Duration) -> Vec<Arc<OutputLedger>> {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut ledgers = Vec::new();
    for RunningOutput { queue, ledger, mut task } in outputs {
        if !task.is_finished() && tokio::time::timeout_at(deadline, &mut task).await.is_err() {
            task.abort();
            let _ = task.await;
        }
        queue.abandon(DropCause::Shutdown);
        let left = ledger.dropped(DropCause::Shutdown);
        if left > 0 {
            warn!("{}: {left} records unsent when shutdown.timeout was over", ledger.name);
        }
        ledgers.push(ledger);
    }
    ledgers
}

fn workload_settings(settings: &Settings) -> WorkloadSettings {
    let host_name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into());
    WorkloadSettings {
        service_name: settings.service_name.clone(),
        attributes: settings.resource_attributes.clone(),
        host_name,
    }
}

/// Different in every process.
fn random_seed() -> u128 {
    let word = || u128::from(RandomState::new().build_hasher().finish());
    word() << 64 | word()
}
