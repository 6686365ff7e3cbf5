//! flowend's own counts while it runs, for Prometheus (`telemetry.listen`) and over OTLP (`telemetry.otlp`), and
//! how it is.
//!
//! Metrics and attributes have OpenTelemetry's names, with dots. For Prometheus these become underscores, and a
//! counter's name ends in `_total` (OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility").
//!
//! The counts of one answer belong together: they are taken in one moment by the task that owns the data
//! path, which is asked for each scrape.

mod connections;
mod counts;
#[cfg(test)]
mod documented;
mod health;
mod names;
mod otlp;
mod sdk;
mod server;

pub use connections::ConnectionCounts;
pub use counts::{Counts, Sources, gather};
pub use health::{DestinationHealth, why_not_ready};
pub use otlp::MetricsExport;
pub use server::{Question, Telemetry};

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// A metric with the value of each of its label sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// As OpenTelemetry has it.
    pub name: &'static str,
    /// What it counts, in words.
    pub help: &'static str,
    /// Of OTLP, by UCUM; empty where it is in the name.
    pub unit: &'static str,
    /// Whether it can fall.
    pub kind: MetricKind,
    /// At least one.
    pub samples: Vec<Sample>,
}

/// Whether a metric can fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down, and the sum over all labels means something: OTLP's sum that is not monotonic.
    UpDown,
    /// Goes up and down.
    Gauge,
}

/// A value and what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Name and value of each label.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// The value.
    pub value: u64,
}

impl Metric {
    /// A counter without labels yet.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, unit: "", kind: MetricKind::Counter, samples: Vec::new() }
    }

    /// A gauge without labels yet.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, unit: "", kind: MetricKind::Gauge, samples: Vec::new() }
    }

    /// A sum that goes up and down, without labels yet.
    pub const fn up_down(name: &'static str, help: &'static str) -> Self {
        Self { name, help, unit: "", kind: MetricKind::UpDown, samples: Vec::new() }
    }

    /// In this unit.
    pub const fn in_unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    /// With one more value.
    pub fn with<const N: usize>(
        self,
        labels: [(&'static str, &'static str); N],
        value: u64,
    ) -> Self {
        self.with_labels(labels.into_iter().map(|(key, label)| (key, label.into())), value)
    }

    /// With one more value, whose labels are not all known beforehand.
    pub fn with_labels(
        mut self,
        labels: impl IntoIterator<Item = (&'static str, Cow<'static, str>)>,
        value: u64,
    ) -> Self {
        self.samples.push(Sample { labels: labels.into_iter().collect(), value });
        self
    }
}

/// Content type of [`encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics as OpenMetrics text, which Prometheus reads.
pub fn encode(metrics: Vec<Metric>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All(metrics)));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct All(Vec<Metric>);

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in &self.0 {
            let kind = match metric.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::UpDown | MetricKind::Gauge => MetricType::Gauge,
            };
            let name = underscored(metric.name);
            let mut encoder = encoder.encode_descriptor(&name, metric.help, None, kind)?;
            for sample in &metric.samples {
                if sample.labels.is_empty() {
                    // A family of no labels would be written as an empty pair of braces.
                    write(metric.kind, sample.value, encoder)?;
                    break;
                }
                let labels: Vec<_> = sample
                    .labels
                    .iter()
                    .map(|(key, value)| (underscored(key), escaped(value)))
                    .collect();
                write(metric.kind, sample.value, encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// A name as Prometheus takes it.
fn underscored(name: &str) -> String {
    name.replace('.', "_")
}

/// A label's value as OpenMetrics writes it between quotes (section "ABNF"); prometheus-client leaves that to
/// its user.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn write(kind: MetricKind, value: u64, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
    match kind {
        MetricKind::Counter => ConstCounter::new(value).encode(encoder),
        MetricKind::UpDown | MetricKind::Gauge => {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_as_openmetrics_text() {
        let metrics = vec![
            Metric::counter("flowend.things", "Things")
                .with([("kind", "one")], 1)
                .with([("kind.of", "two")], u64::MAX),
            Metric::gauge("flowend.waiting", "Things that wait").with([], 7),
            Metric::up_down("flowend.named", "Things with a name")
                .with_labels([("name", "a\"b\\c\nd".into())], 8),
        ];
        let want = "# HELP flowend_things Things\n# TYPE flowend_things counter\n\
            flowend_things_total{kind=\"one\"} 1\n\
            flowend_things_total{kind_of=\"two\"} 18446744073709551615\n\
            # HELP flowend_waiting Things that wait\n# TYPE flowend_waiting gauge\n\
            flowend_waiting 7\n\
            # HELP flowend_named Things with a name\n# TYPE flowend_named gauge\n\
            flowend_named{name=\"a\\\"b\\\\c\\nd\"} 8\n# EOF\n";
        assert_eq!(encode(metrics), want);
    }
}
