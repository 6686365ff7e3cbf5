//! The outputs of the configuration: started, exchanged while flowend runs, and brought to an end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::exporter::{Ending, Exporter, Live};
use super::health::Health;
use super::queue::Queue;
use super::reach::Reach;
use super::retry::Gate;
use super::sinks::{Sink, Sinks};
use super::spool::Spool;
use super::spooled::{Spooled, spool_excess};
use super::stream::{self, SharedFormat, StreamFormat};
use super::transport::Client;
use super::{OwnSockets, Signal};
use crate::config::{Output, Receiver, Settings, SpoolSettings};
use crate::ledger::{DropCause, Ledger, OutputLedger};
use crate::record::EventSet;
use crate::telemetry::DestinationHealth;

/// How long an output may take to put away what is left, once it was told that there is no more time.
const PUT_AWAY: Duration = Duration::from_secs(5);

/// All outputs that are running, and those that were taken out of the configuration.
#[derive(Debug)]
pub struct Outputs {
    running: Vec<Running>,
    retired: Vec<Arc<OutputLedger>>,
    leaving: Vec<JoinHandle<()>>,
    ledger: Arc<Ledger>,
    own: OwnSockets,
}

/// One output: a signal of a destination, or stdout.
#[derive(Debug)]
struct Running {
    sink: Sink,
    task: JoinHandle<std::io::Result<()>>,
    ending: watch::Sender<Ending>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Stream(SharedFormat),
    Otlp { live: Arc<Live<Client>>, health: Arc<Health> },
}

/// One output as the configuration wants it.
enum Wanted {
    Stream(StreamFormat, EventSet),
    Otlp {
        destination: Arc<str>,
        signal: Signal,
        receiver: Box<Receiver>,
        client: Client,
        events: EventSet,
    },
}

impl Wanted {
    /// All that the settings name.
    ///
    /// # Errors
    /// A client that cannot be built: the destination, and why.
    fn all(settings: &Settings, own: &OwnSockets) -> anyhow::Result<Vec<Self>> {
        let mut wanted = Vec::new();
        for output in &settings.outputs {
            match output {
                Output::Text => wanted.push(Self::Stream(StreamFormat::Text, settings.events)),
                Output::Json => {
                    let format = StreamFormat::Json(Arc::clone(&settings.mapping));
                    wanted.push(Self::Stream(format, settings.events));
                }
                Output::Otlp => {}
            }
        }
        for destination in &settings.destinations {
            // A span is the whole connection: it is sent at its end.
            let signals = [
                (Signal::Logs, &destination.logs, settings.events),
                (Signal::Traces, &destination.traces, EventSet::ENDS),
            ];
            for (signal, receiver, events) in signals {
                let Some(receiver) = receiver.clone().map(Box::new) else { continue };
                let client = Client::new(signal, &receiver, own.clone()).with_context(|| {
                    format!("destination {} at {}", destination.name, receiver.endpoint)
                })?;
                let destination = Arc::clone(&destination.name);
                wanted.push(Self::Otlp { destination, signal, receiver, client, events });
            }
        }
        Ok(wanted)
    }

    fn is(&self, running: &Running) -> bool {
        let ledger = running.sink.ledger();
        match self {
            Self::Stream(format, events) => {
                &**ledger.destination() == OutputLedger::STDOUT
                    && ledger.signal() == format.as_str()
                    && ledger.events() == *events
            }
            Self::Otlp { destination, signal, events, .. } => {
                ledger.destination() == destination
                    && ledger.signal() == signal.as_str()
                    && ledger.events() == *events
            }
        }
    }
}

impl Outputs {
    /// Starts each output of the settings. Within a Tokio runtime.
    ///
    /// # Errors
    /// The first that cannot be built: its key, file or folder, and the remedy.
    pub fn start(
        settings: &Settings,
        own: &OwnSockets,
        ledger: &Arc<Ledger>,
    ) -> anyhow::Result<Self> {
        let wanted = Wanted::all(settings, own)?;
        let mut outputs = Self {
            running: Vec::new(),
            retired: Vec::new(),
            leaving: Vec::new(),
            ledger: Arc::clone(ledger),
            own: own.clone(),
        };
        for output in wanted {
            let running = outputs.begin(output, settings)?;
            outputs.running.push(running);
        }
        Ok(outputs)
    }

    /// The data path's end of them.
    pub fn sinks(&self, settings: &Settings) -> Sinks {
        let sinks = self.running.iter().map(|running| running.sink.clone()).collect();
        Sinks::new(Arc::clone(&settings.mapping), sinks)
    }

    /// Makes the outputs what the settings say: what stays goes on with its queue, its spool and its counts.
    /// The data path must take [`Self::sinks`] anew, and then [`Self::let_go`] ends what is not wanted.
    ///
    /// # Errors
    /// As [`Self::start`]; then nothing has changed.
    pub fn apply(&mut self, settings: &Settings) -> anyhow::Result<Leaving> {
        let wanted = Wanted::all(settings, &self.own)?;
        let mut running = Vec::new();
        let mut begun = Vec::new();
        let mut kept = Vec::new();
        for output in wanted {
            match self.running.iter().position(|running| output.is(running)) {
                Some(at) => kept.push((at, output)),
                // May fail: before anything is changed.
                None => match self.begin(output, settings) {
                    Ok(output) => begun.push(output),
                    Err(error) => {
                        let leaving = self.retire(begun);
                        self.let_go(leaving, Duration::ZERO);
                        return Err(error);
                    }
                },
            }
        }
        let mut before: Vec<_> = self.running.drain(..).map(Some).collect();
        for (at, output) in kept {
            if let Some(stays) = before[at].take() {
                stays.change(output, settings);
                running.push(stays);
            }
        }
        running.extend(begun);
        self.running = running;
        Ok(self.retire(before.into_iter().flatten().collect()))
    }

    fn retire(&mut self, leaving: Vec<Running>) -> Leaving {
        for output in &leaving {
            output.sink.ledger().retire(&self.ledger);
            self.retired.push(Arc::clone(output.sink.ledger()));
        }
        Leaving(leaving)
    }

    /// The account of an output that begins. One that was there before, and comes back, goes on with its own.
    fn account(
        &mut self,
        destination: Arc<str>,
        signal: &'static str,
        events: EventSet,
    ) -> Arc<OutputLedger> {
        let is_it = |ledger: &Arc<OutputLedger>| {
            (ledger.destination(), ledger.signal(), ledger.events())
                == (&destination, signal, events)
        };
        match self.retired.iter().position(is_it) {
            Some(at) => {
                let ledger = self.retired.swap_remove(at);
                ledger.resume(&self.ledger);
                ledger
            }
            None => OutputLedger::new(destination, signal, events, &self.ledger),
        }
    }

    /// Ends outputs that the data path does not use any more: what they hold may still be sent for this long.
    pub fn let_go(&mut self, leaving: Leaving, patience: Duration) {
        for output in leaving.0 {
            // First: an exporter whose receiver is not there ends with its queue.
            output.ending.send_replace(Ending::Closing(DropCause::Removed));
            output.sink.close();
            self.leaving.push(tokio::spawn(async move {
                output.end(tokio::time::sleep(patience), DropCause::Removed).await;
            }));
        }
        self.leaving.retain(|task| !task.is_finished());
    }

    /// What became of the records of each output, those taken out of the configuration last.
    pub fn ledgers(&self) -> Vec<Arc<OutputLedger>> {
        let running = self.running.iter().map(|running| running.sink.ledger());
        running.chain(&self.retired).cloned().collect()
    }

    /// Whether the destinations take what they are sent.
    pub fn health(&self) -> Vec<DestinationHealth> {
        let of = |running: &Running| {
            let Kind::Otlp { health, .. } = &running.kind else { return None };
            let (failing_for, last_error) = health.failing().unzip();
            let ledger = running.sink.ledger();
            Some(DestinationHealth {
                destination: Arc::clone(ledger.destination()),
                signal: ledger.signal(),
                failing_for,
                last_error,
            })
        };
        self.running.iter().filter_map(of).collect()
    }

    /// An output that ended though nobody told it to.
    pub async fn failed(&mut self) -> Option<anyhow::Error> {
        for output in &mut self.running {
            if output.task.is_finished() {
                let name = output.sink.ledger();
                return Some(match (&mut output.task).await {
                    Ok(Ok(())) => anyhow::anyhow!("output {name} ended"),
                    Ok(Err(error)) => anyhow::anyhow!("output {name}: {error}"),
                    Err(error) => anyhow::anyhow!("output {name}: {error}"),
                });
            }
        }
        None
    }

    /// Waits until all is sent, or the deadline is ready, or of a receiver is known that it is not there; what is
    /// left then goes into the spool, or is dropped and counted. The sinks must be closed.
    pub async fn finish(self, deadline: impl Future<Output = ()>) -> Vec<Arc<OutputLedger>> {
        let ledgers = self.ledgers();
        let (late, is_late) = watch::channel(false);
        let ends: Vec<_> = self
            .running
            .into_iter()
            .map(|output| {
                let mut is_late = is_late.clone();
                tokio::spawn(async move {
                    let deadline = async { drop(is_late.wait_for(|late| *late).await) };
                    output.end(deadline, DropCause::Shutdown).await;
                })
            })
            .chain(self.leaving)
            .collect();
        let all = async {
            for end in ends {
                let _ = end.await;
            }
        };
        tokio::pin!(all, deadline);
        tokio::select! {
            () = &mut all => {}
            () = &mut deadline => {
                late.send_replace(true);
                all.await;
            }
        }
        for ledger in &ledgers {
            let left = ledger.dropped(DropCause::Shutdown);
            if left > 0 {
                warn!("{ledger}: {left} records unsent when flowend stopped");
            }
        }
        ledgers
    }

    fn begin(&mut self, output: Wanted, settings: &Settings) -> anyhow::Result<Running> {
        let (ending, is_ending) = watch::channel(Ending::default());
        match output {
            Wanted::Stream(format, events) => {
                let name = format.as_str();
                let ledger = self.account(OutputLedger::STDOUT.into(), name, events);
                let queue = Queue::new(settings.export.queue(), ledger);
                let format = SharedFormat::new(format);
                let task = stream::spawn(Arc::clone(&queue), format.clone(), tokio::io::stdout());
                Ok(Running { sink: Sink::Lines(queue), task, ending, kind: Kind::Stream(format) })
            }
            Wanted::Otlp { destination, signal, receiver, client, events } => {
                let spool = open_spool(settings.spool.as_ref(), &destination, signal)?;
                let ledger = self.account(destination, signal.as_str(), events);
                let queue = Queue::new(settings.export.queue(), Arc::clone(&ledger));
                let live = Arc::new(Live::new(client, settings.export.clone()));
                let health = Arc::new(Health::new(format!("{ledger} to {}", receiver.endpoint)));
                let spool = spool
                    .map(|(spool, max_bytes, lost)| Spooled::new(spool, max_bytes, lost, ledger));
                let spooler = spool.as_ref().map(|spool| {
                    let (queue, live) = (Arc::clone(&queue), Arc::clone(&live));
                    tokio::spawn(spool_excess(signal, queue, Arc::clone(spool), live))
                });
                let exporter = Exporter {
                    signal,
                    queue: Arc::clone(&queue),
                    spool,
                    spooler,
                    live: Arc::clone(&live),
                    health: Arc::clone(&health),
                    gate: Gate::default(),
                    reach: Reach::default(),
                    ending: is_ending,
                };
                let task = tokio::spawn(exporter.run());
                let kind = Kind::Otlp { live, health };
                Ok(Running { sink: Sink::Otlp(signal, queue), task, ending, kind })
            }
        }
    }
}

/// Outputs that are not wanted any more.
#[must_use]
#[derive(Debug)]
pub struct Leaving(Vec<Running>);

impl Running {
    /// Goes on with other settings.
    fn change(&self, output: Wanted, settings: &Settings) {
        match (&self.kind, &self.sink, output) {
            (Kind::Stream(format), Sink::Lines(queue), Wanted::Stream(new, _)) => {
                queue.limit(settings.export.queue());
                format.set(new);
            }
            (
                Kind::Otlp { live, health },
                Sink::Otlp(_, queue),
                Wanted::Otlp { client, receiver, .. },
            ) => {
                queue.limit(settings.export.queue());
                health.rename(format!("{} to {}", queue.ledger(), receiver.endpoint));
                live.set(client, settings.export.clone());
            }
            // What is wanted is found by its name, so it is of the same kind.
            _ => {}
        }
    }

    /// Waits until everything is sent, or the deadline; then what is left is put away.
    async fn end(mut self, deadline: impl Future<Output = ()>, cause: DropCause) {
        tokio::select! {
            _ = &mut self.task => {}
            () = deadline => {
                self.ending.send_replace(Ending::Now(cause));
                // stdout may be a pipe that nobody reads.
                let is_stream = matches!(self.kind, Kind::Stream(_));
                let patience = if is_stream { Duration::ZERO } else { PUT_AWAY };
                if tokio::time::timeout(patience, &mut self.task).await.is_err() {
                    self.task.abort();
                    let _ = (&mut self.task).await;
                }
            }
        }
        self.sink.abandon(cause);
    }
}

/// The spool of a signal of a destination, and what is said of it.
fn open_spool(
    settings: Option<&SpoolSettings>,
    destination: &str,
    signal: Signal,
) -> anyhow::Result<Option<(Spool, u64, [u64; 3])>> {
    let Some(settings) = settings else { return Ok(None) };
    let folder = settings.directory.join(destination).join(signal.as_str());
    let (spool, recovered) = Spool::open(&folder, settings.max_bytes).with_context(|| {
        format!(
            "key `spool.directory`: the spool {} cannot be used; mend it, or name another folder",
            folder.display()
        )
    })?;
    let mut lost = [0; 3];
    for damage in recovered.cut.iter().chain(&recovered.lost) {
        warn!("{damage}; they are counted as dropped{{spool_damaged}}");
        for (lost, n) in lost.iter_mut().zip(damage.records) {
            *lost += n;
        }
    }
    for damage in &recovered.unsettled {
        warn!("{damage}; what they tell to be done is sent again");
    }
    for foreign in &recovered.foreign {
        warn!("{foreign}");
    }
    if recovered.frames > 0 {
        info!(
            "{}: {} records of before, which are sent first",
            folder.display(),
            recovered.records.iter().sum::<u64>()
        );
    }
    Ok(Some((spool, settings.max_bytes, lost)))
}
