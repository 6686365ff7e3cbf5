//! `flowend run`: from settings to a running sidecar, and to an orderly end.

mod control;
mod names;

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use flowend_probe_types::{ERRORS_PER_SECOND, EventKind, LOST_SLOTS, SKIPPED_SLOTS};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::cgroup::{self, Paths};
use crate::clock;
use crate::config::{ScopeKind, Settings};
use crate::dns::Scopes;
use crate::enrich::{self, Processes, WorkloadSettings, Workloads};
use crate::exclude::Excluded;
use crate::export::{Outputs, OwnSockets};
use crate::fair::LossesByName;
use crate::flow::{FlowSettings, FlowStats, REORDER_NS};
use crate::ids::Ids;
use crate::ledger::{Count, DropReport, Ledger, Line, OutputLedger};
use crate::look::{Look, LookSettings, Looker};
use crate::notify::ServiceManager;
use crate::pipeline::{OpenedNames, Pipeline, Stages};
use crate::probe::{LoadOptions, Optional, Pins, Probe, TargetWatch};
use crate::reload::{Reload, Reloads};
use crate::restart::{self, GoingOn, Stopped};
use crate::sample::Sampler;
use crate::source::{Drained, RingSource};
use crate::targets::Watched;
use crate::telemetry::ConnectionCounts;
use crate::trim;
use control::{Ask, Control, Moment};

/// Paths of cgroups remembered at most: about 100 bytes each.
const MAX_PATHS: usize = 65_536;

/// A progress comes with the first look after it is due: so many looks in one interval.
const PROGRESS_LOOKS: u32 = 10;

/// What a ring still holds that others go on filling is read for so long at the end.
const LAST_READ: Duration = Duration::from_secs(1);

/// Lost events are complained about at most this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A sidecar whose programs are attached and whose outputs stand ready.
pub struct Sidecar {
    source: RingSource,
    pipeline: Pipeline,
    watch: TargetWatch,
    looks: LookSettings,
    paths: Paths,
    outputs: Outputs,
    ledger: Arc<Ledger>,
    control: Control,
    snapshot: Option<PathBuf>,
    /// Where the ring outlives this process.
    going_on: Option<GoingOn>,
    ids_key: String,
    own: OwnSockets,
    scope_kind: ScopeKind,
    shutdown_timeout: Duration,
}

/// The programs in the kernel, not attached to anything yet. With them the part of the start is over that takes
/// the most privileges.
#[derive(Debug)]
pub struct Loaded {
    mount: PathBuf,
    probe: Probe,
    errors_reported: bool,
}

impl Loaded {
    /// Loads the programs, and has the kernel's error reports told. Needs no runtime.
    ///
    /// # Errors
    /// The first thing that is missing, with the remedy.
    pub fn load(settings: &Settings) -> anyhow::Result<Self> {
        Self::load_with(settings, None)
    }

    /// The same with what is to outlive this process, as the settings say.
    ///
    /// # Errors
    /// As [`Loaded::load`].
    pub fn load_pinned(settings: &Settings) -> anyhow::Result<Self> {
        Self::load_with(settings, restart::pins(settings)?)
    }

    fn load_with(settings: &Settings, pins: Option<Pins>) -> anyhow::Result<Self> {
        let mount = find_mount(settings)?;
        say_unknowns(settings);
        let options = LoadOptions::of(settings);
        let mut probe = match pins {
            Some(pins) => Probe::load_pinned(options, pins)?,
            None => Probe::load(options)?,
        };
        for refused in probe.refused() {
            warn!("{refused}");
        }
        for optional in Optional::ALL.into_iter().filter(|o| settings.without.contains(*o)) {
            // Of the error reports it is said just below.
            if optional != Optional::Errors {
                info!("{} switched off (probe.without): {}", optional.as_str(), optional.without());
            }
        }
        let errors_reported = match probe.attach_errors() {
            Ok(()) => true,
            Err(error) => {
                info!("{error}");
                false
            }
        };
        Ok(Self { mount, probe, errors_reported })
    }
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
        Self::start_with(Loaded::load(settings)?, settings)
    }

    /// The same with programs that are loaded already.
    ///
    /// # Errors
    /// As [`Sidecar::start`].
    pub fn start_with(loaded: Loaded, settings: &Settings) -> anyhow::Result<Self> {
        let Loaded { mount, mut probe, errors_reported } = loaded;
        let pinned = probe.pinned()?;
        let ring = probe.take_ring()?.context("the BPF object has no ring buffer EVENTS")?;
        let lost = probe.take_lost().context("the BPF object has no map LOST")?;
        let skipped = probe.take_skipped().context("the BPF object has no map SKIPPED")?;
        let asleep = probe.take_asleep().context("the BPF object has no map ASLEEP")?;
        let accounts = probe.take_accounts().context("the BPF object has no map ACCOUNTS")?;
        let mut source =
            RingSource::new(ring, asleep, lost, accounts, skipped, settings.drain_interval)?;
        let own = OwnSockets::default();
        let control = Control::start(settings, &own)?;
        let ledger = Arc::new(Ledger::default());
        let snapshot = match &pinned {
            Some(_) => restart::names_file(settings),
            None => settings.names.snapshot.clone(),
        };
        let outputs = Outputs::start(settings, &own, &ledger)?;
        let paths = Paths::new(MAX_PATHS);
        let seed = random_seed();
        let mut pipeline = Pipeline::new(
            FlowSettings {
                max: settings.max_flows,
                begins: settings.events.begin,
                progress_ns: settings.events.progress.then(|| nanos(settings.progress_interval)),
                handshakes_failed_per_second: settings.handshakes_failed_per_second,
                handshake_ns: nanos(settings.handshake_timeout),
                errors_reported,
            },
            Stages {
                processes: Processes::new(settings.max_flows),
                workloads: start_workloads(settings, &mount, &paths)?,
                dns: names::start(settings, snapshot.as_deref()),
                scopes: Scopes::new(settings.names.scope, settings.names.resolvers.clone()),
                hosts: names::start_hosts(settings, &mount, &paths)?,
                reverse: names::start_reverse(settings),
                opened: OpenedNames::new(settings.max_flows),
                own: own.clone(),
                excluded: Excluded::new(settings.watched.exclude.clone()),
                ids: Ids::new(&settings.ids_key, seed),
                community_id: settings.community_id,
                peer_cidrs: settings.peer_cidrs.clone(),
                connections: ConnectionCounts::new(settings.telemetry_max_services),
                sampler: Sampler::new(settings.sampling.clone()),
                ledger: Arc::clone(&ledger),
                sinks: outputs.sinks(settings),
            },
        );
        // Last, so that nothing is attached when something else fails.
        let looks = LookSettings {
            mount: mount.clone(),
            interval: if settings.events.progress {
                settings.look_interval.min(settings.progress_interval / PROGRESS_LOOKS)
            } else {
                settings.look_interval
            },
            keeps_interval: settings.events.progress,
            owners: settings.process,
        };
        let watch = TargetWatch::start(
            probe,
            mount,
            settings.watched.clone(),
            settings.names.resolver_patterns(),
            paths.clone(),
        )?;
        let control = control.attached(watch.state(), watch.detachments());
        // After everything that may fail: the state is taken once.
        let going_on = pinned.map(|pinned| {
            let file = settings.pinning.state.clone();
            let mut going_on = GoingOn::on(file, pinned, seed, paths.clone());
            going_on.start(&settings.ids_key, &mut pipeline, &mut source);
            going_on
        });
        Ok(Self {
            source,
            pipeline,
            watch,
            looks,
            paths,
            outputs,
            ledger,
            control,
            snapshot,
            going_on,
            ids_key: settings.ids_key.clone(),
            own,
            scope_kind: settings.names.scope,
            shutdown_timeout: settings.shutdown_timeout,
        })
    }

    /// Under a service manager, and with a configuration that may change.
    #[must_use]
    pub fn controlled_by(mut self, manager: ServiceManager, reloads: Reloads) -> Self {
        self.control.manager = Some(manager);
        self.control.reloads = Some(reloads);
        self
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
        let mut targets = names::AttachedTargets::new(
            self.looks.mount.clone(),
            self.watch.folders(),
            self.watch.state(),
        );
        let mut looker = Looker::start(self.looks, self.paths, self.watch.folders());
        let mut look = None;
        let to_watch = self.watch.to_watch();
        let watching = tokio::spawn(self.watch.run());
        tokio::pin!(shutdown);
        let mut health = tokio::time::interval(REPORT_EVERY);
        let (lost, skipped) = self.source.before();
        let mut said = Health { lost, skipped, ..Health::default() };
        let mut more = false;
        self.control.ready();
        if let Err(error) = trim::release_files() {
            debug!("what the start alone needed stays resident: {error}");
        }
        let failed = loop {
            tokio::select! {
                () = &mut shutdown => break None,
                // A flood must not keep the others from their turn.
                () = tokio::task::yield_now(), if more => more = read(&mut self.source, &mut self.pipeline, &mut targets),
                () = self.source.ready(), if !more => more = read(&mut self.source, &mut self.pipeline, &mut targets),
                _ = health.tick() => said = said.report(&self.source, &self.pipeline, &self.outputs),
                taken = looker.next(), if look.is_none() => look = Some(taken),
                ask = self.control.next() => match ask {
                    Ask::Reload(Reload { settings, done }) => {
                        let taken_over = take_over(&settings, &mut self.outputs, &mut self.pipeline);
                        if taken_over.is_ok() {
                            want(&to_watch, settings.watched.clone());
                            self.control.apply(&settings);
                            self.shutdown_timeout = settings.shutdown_timeout;
                        }
                        // Whoever asked may be gone.
                        let _ = done.send(taken_over);
                    }
                    ask => {
                        let (source, pipeline) = (&self.source, &self.pipeline);
                        let moment = Moment { source, pipeline, ledger: &self.ledger };
                        self.control.answer(ask, &moment, &self.outputs);
                    }
                },
            }
            if !more {
                take_in(&mut look, &mut self.pipeline);
                if look.is_none() && self.pipeline.flows().wants_look(clock::boot_ns()) {
                    looker.want(|| self.pipeline.flows().may_time_wait().collect());
                }
            }
            if let Some(error) = self.outputs.failed().await {
                break Some(error);
            }
            if looker.is_finished() {
                break Some(anyhow::anyhow!(
                    "the task that looks at the kernel's sockets ended by itself"
                ));
            }
            if watching.is_finished() {
                break Some(anyhow::anyhow!("the task that watches the cgroups ended by itself"));
            }
        };
        self.control.stop();
        // Detached first, but for what is pinned: then what the ring holds comes to an end.
        watching.abort();
        let _ = watching.await;
        let going_on = self.going_on.as_ref();
        let stopped = hand_over(going_on, &mut self.pipeline, &self.source, &self.ids_key);
        if stopped.is_none() {
            // Where pinned programs go on, and nothing could be kept, it may never be empty.
            let begun = Instant::now();
            while read(&mut self.source, &mut self.pipeline, &mut targets)
                && (self.going_on.is_none() || begun.elapsed() < LAST_READ)
            {}
        }
        match &stopped {
            Some(_) => self.pipeline.close(),
            None => self.pipeline.finish(clock::boot_to_unix_ns()),
        }
        let said = said.report(&self.source, &self.pipeline, &self.outputs);
        names::keep(self.snapshot.as_deref(), &self.pipeline, self.scope_kind);
        for line in names::lines(&self.pipeline, &self.ledger) {
            info!("{line}");
        }
        let deadline = Instant::now() + self.shutdown_timeout;
        let outputs = self.outputs.finish(tokio::time::sleep_until(deadline)).await;
        said.drops.report(&outputs);
        // Last, since it tells what became of everything else.
        let told = {
            let (source, pipeline) = (&self.source, &self.pipeline);
            let moment = Moment { source, pipeline, ledger: &self.ledger };
            self.control.finish(&moment, &outputs)
        };
        let _ = tokio::time::timeout_at(deadline, told).await;
        // That of the metrics is one of them.
        if let Some(stopped) = stopped {
            stopped.add_own(&self.own);
        }
        for output in &outputs {
            for line in Line::all(&self.ledger, output) {
                info!("{line}");
                if line.missing() > 0 {
                    error!(
                        "{output}: {} records are not accounted for; this is a fault of flowend, please report it",
                        line.missing()
                    );
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Report { ledger: self.ledger, outputs, lost: self.source.lost() }),
        }
    }
}

/// Keeps what is known for the flowend that goes on with the same ring, if there is to be one: from now on nothing is
/// read from it. `None` where there is none, or where nothing could be kept.
fn hand_over(
    going_on: Option<&GoingOn>,
    pipeline: &mut Pipeline,
    source: &RingSource,
    ids_key: &str,
) -> Option<Stopped> {
    let stopped = going_on?.stop(pipeline, source, ids_key);
    stopped.map_err(|error| error!("{error}")).ok()
}

/// Has the data path and the outputs go on with other settings. On an error nothing has changed.
fn take_over(
    settings: &Settings,
    outputs: &mut Outputs,
    pipeline: &mut Pipeline,
) -> anyhow::Result<()> {
    let leaving = outputs.apply(settings)?;
    pipeline.apply(settings, workload_settings(settings), outputs.sinks(settings));
    outputs.let_go(leaving, settings.shutdown_timeout);
    Ok(())
}

/// Has something else watched. The same is no news.
fn want(to_watch: &watch::Sender<Watched>, watched: Watched) {
    to_watch.send_if_modified(|before| {
        let changed = *before != watched;
        *before = watched;
        changed
    });
}

/// The folder of the cgroup2 mount, once it is said which one it is.
fn find_mount(settings: &Settings) -> anyhow::Result<PathBuf> {
    let mount = cgroup::mount(settings.cgroup_mount.as_deref())?;
    if mount.is_whole {
        info!("cgroup v2: {mount}");
    } else {
        warn!("cgroup v2: {mount}");
    }
    Ok(mount.point)
}

/// Says what cannot be known of processes that flowend does not see.
fn say_unknowns(settings: &Settings) {
    if enrich::is_in_initial_pid_namespace() {
        return;
    }
    if settings.process {
        info!("{}", enrich::NO_EXECUTABLES);
    }
    if settings.names.hosts {
        info!("{}", enrich::FEW_HOSTS);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One turn of the data path. Says whether the ring may hold more.
fn read(
    source: &mut RingSource,
    pipeline: &mut Pipeline,
    targets: &mut names::AttachedTargets,
) -> bool {
    // Before the events of a new target are read.
    targets.tell_news(pipeline);
    let offset = clock::boot_to_unix_ns();
    // Before the ring is read: what happened by then is in it, or was lost.
    let now = clock::boot_ns();
    // Dated after the counters were read: it was lost before.
    source.lost_since_last(|of| pipeline.note_loss(of, clock::boot_ns()));
    pipeline.note_checked(now);
    let drained = source.drain(|item| pipeline.item(item, offset));
    if drained == Drained::Empty {
        pipeline.tick(now, offset);
    }
    drained == Drained::More
}

/// Takes in a look at the kernel's sockets, once everything that happened by then has been read: the ring
/// was read to its end just now, and again after the look was over.
fn take_in(look: &mut Option<Look>, pipeline: &mut Pipeline) {
    let is_read = |look: &Look| look.census.done_ns + REORDER_NS <= pipeline.read_ns();
    if look.as_ref().is_some_and(is_read)
        && let Some(look) = look.take()
    {
        pipeline.look(&look, clock::boot_to_unix_ns());
    }
}

/// What went wrong inside and was said.
#[derive(Default)]
struct Health {
    lost: [u64; LOST_SLOTS.len()],
    malformed: u64,
    skipped: [u64; SKIPPED_SLOTS.len()],
    flows: FlowStats,
    losses: LossesByName,
    drops: DropReport,
}

/// Which counts grew, and by how much; `None` where none did.
fn grown<const N: usize>(names: [&str; N], now: [u64; N], before: [u64; N]) -> Option<String> {
    let grown: Vec<_> = names
        .iter()
        .zip(now.iter().zip(&before))
        .filter(|(_, (now, before))| now > before)
        .map(|(name, (now, before))| format!("{name} {}", now - before))
        .collect();
    (!grown.is_empty()).then(|| grown.join(", "))
}

impl Health {
    /// Says what is new since the last time.
    fn report(self, source: &RingSource, pipeline: &Pipeline, outputs: &Outputs) -> Self {
        let now = Self {
            lost: source.lost(),
            malformed: source.malformed(),
            skipped: source.skipped(),
            flows: pipeline.flows().stats(),
            losses: pipeline.losses(source.losses()),
            drops: self.drops.report(&outputs.ledgers()),
        };
        // Those of error reports have a limit of their own.
        let error = EventKind::Error.lost_slot() as usize;
        let but_errors = |lost: [u64; LOST_SLOTS.len()]| {
            std::array::from_fn::<_, { LOST_SLOTS.len() }, _>(
                |n| if n == error { 0 } else { lost[n] },
            )
        };
        if let Some(lost) = grown(LOST_SLOTS, but_errors(now.lost), but_errors(self.lost)) {
            warn!("the ring was full: events lost: {lost}; raise ring.bytes");
        }
        let errors = now.lost[error].saturating_sub(self.lost[error]);
        if errors > 0 {
            warn!(
                "{errors} error reports were lost, of sockets anywhere on this machine: there were more than \
                 {ERRORS_PER_SECOND} in a second on one CPU, or the ring was full. Of a connection that only an error \
                 report explains, the reason is `vanished`"
            );
        }
        let losers = now.losses.since(&self.losses);
        if !losers.is_empty() {
            warn!("lost for want of room, by cgroup: {losers}");
        }
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let malformed = since(now.malformed, self.malformed);
        if malformed > 0 {
            warn!("{malformed} events could not be decoded: the BPF object is of another version");
        }
        let evicted = since(now.flows.evicted, self.flows.evicted);
        if evicted > 0 {
            warn!(
                "{evicted} connections forgotten because flows.max was reached; their ends are reported \
                 with flowend.start_known = false"
            );
        }
        let found = since(now.flows.found, self.flows.found);
        if found > 0 {
            info!(
                "{found} connections found that are older than flowend, or whose beginning was lost"
            );
        }
        let gone = since(now.flows.gone, self.flows.gone);
        if gone > 0 {
            info!("{gone} connections ended whose socket was found to be gone");
        }
        let unreported = since(now.flows.handshakes_unreported, self.flows.handshakes_unreported);
        if unreported > 0 {
            warn!(
                "{unreported} failed handshakes past flows.handshakes_failed_per_second; they are not reported"
            );
        }
        if let Some(skipped) = grown(SKIPPED_SLOTS, now.skipped, self.skipped) {
            warn!("packets that could not be read: {skipped}");
        }
        let embryos = since(now.flows.embryos_evicted, self.flows.embryos_evicted);
        if embryos > 0 {
            warn!(
                "{embryos} half-open connections forgotten because there were too many: a SYN flood?"
            );
        }
        now
    }
}

/// Reads the labels of the pod, too, where there are any.
fn start_workloads(settings: &Settings, mount: &Path, paths: &Paths) -> anyhow::Result<Workloads> {
    let workloads = Workloads::new(mount.to_owned(), paths.clone(), workload_settings(settings));
    let Some(file) = &settings.labels_file else { return Ok(workloads) };
    Ok(workloads.with_labels(enrich::start_labels(file.clone())?))
}

fn workload_settings(settings: &Settings) -> WorkloadSettings {
    WorkloadSettings {
        service_name: settings.service_name.clone(),
        attributes: settings.resource_attributes.clone(),
        host_name: host_name(),
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
}

/// Different in every process.
fn random_seed() -> u128 {
    let word = || u128::from(RandomState::new().build_hasher().finish());
    word() << 64 | word()
}
