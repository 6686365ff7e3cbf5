//! flowend's own counts over OTLP, by opentelemetry_sdk: the same [`Metric`]s that Prometheus gets.
//!
//! The counts of one export belong together: the task that owns the data path gathers them once per interval,
//! and the instruments only read them. An export that fails is not repeated: the next one says all that it said,
//! since the counts are cumulative.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider as _};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::reader::MetricReader;
use opentelemetry_sdk::metrics::{
    InstrumentKind, ManualReader, Pipeline, SdkMeterProvider, Temporality,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tracing::{info, warn};

use super::{Metric, MetricKind};
use crate::export::MetricsClient;

/// Exports what it is given. The task ends with this.
#[derive(Debug)]
pub struct MetricsExport {
    timer: Interval,
    give: mpsc::Sender<Vec<Metric>>,
    task: JoinHandle<()>,
}

impl Drop for MetricsExport {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MetricsExport {
    /// Exports through `client` once per `interval`, first after one interval; within a Tokio runtime only.
    pub fn start(client: MetricsClient, interval: Duration, resource: Resource) -> Self {
        let mut timer = tokio::time::interval_at(Instant::now() + interval, interval);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (give, given) = mpsc::channel(1);
        let task = tokio::spawn(export(client, Instruments::new(resource), given));
        Self { timer, give, task }
    }

    /// Waits until an export is due. Cancel safe.
    pub async fn due(&mut self) {
        self.timer.tick().await;
    }

    /// Has the counts exported. Where the export before is not over and another one waits already, these are
    /// left out: the next ones say more.
    pub fn give(&self, metrics: Vec<Metric>) {
        let _ = self.give.try_send(metrics);
    }

    /// Exports the last counts, and waits until that is over.
    pub async fn finish(mut self, metrics: Vec<Metric>) {
        let (give, _) = mpsc::channel(1);
        let give = std::mem::replace(&mut self.give, give);
        if give.send(metrics).await.is_ok() {
            drop(give);
            let _ = (&mut self.task).await;
        }
    }
}

/// Until nothing more can be given.
async fn export(
    client: MetricsClient,
    mut instruments: Instruments,
    mut given: mpsc::Receiver<Vec<Metric>>,
) {
    let mut failing_since = None;
    while let Some(metrics) = given.recv().await {
        let outcome = match instruments.collect(metrics) {
            Ok(collected) => client.export(&collected).await,
            Err(error) => Err(error.to_string()),
        };
        let to = &client.endpoint;
        match outcome {
            Ok(()) => {
                if let Some(since) = failing_since.take() {
                    let length = Instant::now().duration_since(since).as_secs();
                    info!("metrics to {to}: works again after {length} s");
                }
            }
            // Said once for each outage.
            Err(error) if failing_since.is_none() => {
                failing_since = Some(Instant::now());
                warn!("metrics to {to}: {error}; the next export is tried in its turn");
            }
            Err(_) => {}
        }
    }
}

type Latest = Arc<Mutex<Arc<[Metric]>>>;

/// An instrument for each metric that there ever was.
struct Instruments {
    latest: Latest,
    known: HashSet<&'static str>,
    meter: Meter,
    reader: SharedReader,
    /// It ends the instruments with itself.
    _provider: SdkMeterProvider,
}

impl Instruments {
    fn new(resource: Resource) -> Self {
        let reader = SharedReader::default();
        let provider =
            SdkMeterProvider::builder().with_reader(reader.clone()).with_resource(resource).build();
        let scope = InstrumentationScope::builder("flowend")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let meter = provider.meter_with_scope(scope);
        let latest = Arc::new(Mutex::new(Arc::from(Vec::new())));
        Self { latest, known: HashSet::new(), meter, reader, _provider: provider }
    }

    fn collect(&mut self, metrics: Vec<Metric>) -> Result<ResourceMetrics, impl std::fmt::Display> {
        for metric in &metrics {
            if self.known.insert(metric.name) {
                self.add(metric);
            }
        }
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = metrics.into();
        let mut collected = ResourceMetrics::default();
        self.reader.collect(&mut collected).map(|()| collected)
    }

    /// The SDK keeps the instrument for as long as its provider lives.
    fn add(&self, metric: &Metric) {
        let (name, latest) = (metric.name, Arc::clone(&self.latest));
        let (help, unit) = (metric.help, metric.unit);
        match metric.kind {
            MetricKind::Counter => {
                let builder = self.meter.u64_observable_counter(name).with_description(help);
                let observe = move |to: &dyn AsyncInstrument<u64>| {
                    observe(&latest, name, |n, attributes| to.observe(n, attributes));
                };
                builder.with_unit(unit).with_callback(observe).build();
            }
            MetricKind::Gauge => {
                let builder = self.meter.u64_observable_gauge(name).with_description(help);
                let observe = move |to: &dyn AsyncInstrument<u64>| {
                    observe(&latest, name, |n, attributes| to.observe(n, attributes));
                };
                builder.with_unit(unit).with_callback(observe).build();
            }
            MetricKind::UpDown => {
                let builder =
                    self.meter.i64_observable_up_down_counter(name).with_description(help);
                let observe = move |to: &dyn AsyncInstrument<i64>| {
                    observe(&latest, name, |n, attributes| {
                        to.observe(i64::try_from(n).unwrap_or(i64::MAX), attributes);
                    });
                };
                builder.with_unit(unit).with_callback(observe).build();
            }
        }
    }
}

/// Hands on each value of one metric.
fn observe(latest: &Latest, name: &str, mut to: impl FnMut(u64, &[KeyValue])) {
    let metrics = Arc::clone(&latest.lock().unwrap_or_else(PoisonError::into_inner));
    for sample in metrics.iter().filter(|m| m.name == name).flat_map(|m| &m.samples) {
        let labels = sample.labels.iter();
        let attributes: Vec<_> =
            labels.map(|(key, value)| KeyValue::new(*key, value.to_string())).collect();
        to(sample.value, &attributes);
    }
}

/// The SDK wants to own its reader, and flowend to ask it.
#[derive(Clone, Debug, Default)]
struct SharedReader(Arc<ManualReader>);

impl MetricReader for SharedReader {
    fn register_pipeline(&self, pipeline: Weak<Pipeline>) {
        self.0.register_pipeline(pipeline);
    }

    fn collect(&self, into: &mut ResourceMetrics) -> OTelSdkResult {
        self.0.collect(into)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn temporality(&self, kind: InstrumentKind) -> Temporality {
        self.0.temporality(kind)
    }
}

#[cfg(test)]
mod tests;
