//! flowend's delivery, from where the data path hands its records over.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flowend::config::{self, Settings, Sources};
use flowend::enrich::Workload;
use flowend::export::{Outputs, OwnSockets, Sinks};
use flowend::ledger::{Counted, DropCause, Ledger, OutputLedger};
use flowend::record::RecordKind;

use super::injector::{Injector, PATIENCE};
use super::mode::Protocol;
use super::offer::{Delivery, Totals};
use super::store::Signal;
use super::synthetic;

/// The destination of `[otlp]`.
pub(crate) const MAIN: &str = "otlp";

/// Records in a request.
pub(crate) const BATCH: u64 = 10;

/// Outputs with a data path that offers what it is told to.
pub(crate) struct Site {
    pub(crate) outputs: Outputs,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) settings: Settings,
    sinks: Sinks,
    workload: Arc<Workload>,
}

/// Settings that send to the injector, and try again soon.
pub(crate) fn set(injector: &Injector, protocol: Protocol) -> Vec<String> {
    let set = [
        "outputs=[\"otlp\"]".to_owned(),
        format!("otlp.endpoint={}", injector.endpoint()),
        format!("otlp.protocol={}", name(protocol)),
        format!("export.batch_records={BATCH}"),
        "export.interval=5ms".into(),
        "export.retry_initial=10ms".into(),
        "export.retry_max=50ms".into(),
    ];
    set.into()
}

/// As in the configuration.
pub(crate) const fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Grpc => "grpc",
        Protocol::Http => "http/protobuf",
    }
}

/// With further settings, as `--set` takes them.
pub(crate) fn settings(injector: &Injector, protocol: Protocol, more: &[&str]) -> Settings {
    let mut set = set(injector, protocol);
    set.extend(more.iter().map(|&setting| setting.into()));
    config::load(&Sources { set, ..Sources::default() }).unwrap().settings
}

impl Site {
    pub(crate) fn start(settings: Settings) -> Self {
        let ledger = Arc::new(Ledger::default());
        let outputs = Outputs::start(&settings, &OwnSockets::default(), &ledger).unwrap();
        let sinks = outputs.sinks(&settings);
        Self { outputs, ledger, settings, sinks, workload: synthetic::workload() }
    }

    /// What the data path does with an end.
    pub(crate) fn push(&mut self, numbers: Range<u64>) {
        for number in numbers {
            self.ledger.of(RecordKind::End).seen.add(1);
            self.sinks.push(&synthetic::end(number, &self.workload));
        }
    }

    /// A reload.
    pub(crate) fn apply(&mut self, settings: Settings, patience: Duration) {
        let leaving = self.outputs.apply(&settings).unwrap();
        self.sinks = self.outputs.sinks(&settings);
        self.outputs.let_go(leaving, patience);
        self.settings = settings;
    }

    /// None: the destination does not get this signal.
    pub(crate) fn output(&self, destination: &str, signal: Signal) -> Option<Arc<OutputLedger>> {
        let is_it = |output: &&Arc<OutputLedger>| {
            &**output.destination() == destination && output.signal() == word(signal)
        };
        self.outputs.ledgers().iter().find(is_it).map(Arc::clone)
    }

    /// What is counted of ends.
    pub(crate) fn counted(&self, destination: &str, signal: Signal) -> Counted {
        let output = self.output(destination, signal);
        output.map(|output| output.of(RecordKind::End)).unwrap_or_default()
    }

    /// Drops of all signals of the main destination.
    pub(crate) fn dropped(&self, cause: DropCause) -> u64 {
        Signal::ALL.map(|signal| self.counted(MAIN, signal).dropped(cause)).iter().sum()
    }

    pub(crate) fn totals_at(&self, destination: &str, signal: Signal) -> Totals {
        let output = self.output(destination, signal);
        output.map(|output| totals(&self.ledger, &output)).unwrap_or_default()
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "not so: {:#?} {:#?}",
                self.outputs.ledgers(),
                self.outputs.health()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the main destination fails with one of these words, for each signal.
    pub(crate) async fn until_it_says(&self, why: &[&str]) {
        let is_said = |error: &str| why.iter().any(|why| error.to_lowercase().contains(why));
        self.until(|site| {
            let health = site.outputs.health();
            let mut main = health.iter().filter(|health| &*health.destination == MAIN);
            main.all(|health| health.last_error.as_deref().is_some_and(is_said))
        })
        .await;
    }

    /// The end of flowend; says what became of each output's records.
    pub(crate) async fn finish(
        self,
        deadline: impl Future<Output = ()>,
    ) -> Vec<(Arc<OutputLedger>, Totals)> {
        self.sinks.close();
        let outputs = self.outputs.finish(deadline).await;
        let with_totals = |output| (Arc::clone(&output), totals(&self.ledger, &output));
        outputs.into_iter().map(with_totals).collect()
    }
}

impl Delivery for Site {
    async fn offer(&mut self, numbers: Range<u64>) {
        self.push(numbers);
    }

    fn totals(&self, signal: Signal) -> Totals {
        self.totals_at(MAIN, signal)
    }

    async fn settle(&mut self) {
        let in_flight = |site: &Self, signal| site.counted(MAIN, signal).in_flight();
        self.until(|site| Signal::ALL.iter().all(|signal| in_flight(site, *signal) == 0)).await;
    }
}

/// As in the ledger.
pub(crate) const fn word(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "logs",
        Signal::Traces => "traces",
    }
}

fn totals(ledger: &Ledger, output: &OutputLedger) -> Totals {
    let common = output.share_of(ledger)[RecordKind::End as usize];
    let end = output.of(RecordKind::End);
    Totals {
        seen: common.seen,
        recovered: end.recovered,
        exported: end.exported,
        dropped: end.dropped_in_all(),
        in_flight: end.in_flight(),
    }
}
