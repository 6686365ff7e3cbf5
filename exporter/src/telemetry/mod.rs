//! flowend's own counts while it runs: `telemetry.listen`, for Prometheus.
//!
//! The counts of one answer belong together: they are taken in one moment by the task that owns the data
//! path, which is asked for each scrape.

mod connections;
mod counts;
mod names;
mod server;

pub use connections::ConnectionCounts;
pub use counts::{Counts, Sources, gather};
pub use server::{Scrape, Telemetry};

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
    /// Without the `_total` that a counter's name ends with.
    pub name: &'static str,
    /// What it counts, in words.
    pub help: &'static str,
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
        Self { name, help, kind: MetricKind::Counter, samples: Vec::new() }
    }

    /// A gauge without labels yet.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricKind::Gauge, samples: Vec::new() }
    }

    /// With one more value.
    pub fn with<const N: usize>(
        mut self,
        labels: [(&'static str, &'static str); N],
        value: u64,
    ) -> Self {
        let labels = labels.map(|(name, value)| (name, Cow::Borrowed(value))).to_vec();
        self.samples.push(Sample { labels, value });
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
                MetricKind::Gauge => MetricType::Gauge,
            };
            let mut encoder = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for sample in &metric.samples {
                if sample.labels.is_empty() {
                    // A family of no labels would be written as an empty pair of braces.
                    write(metric.kind, sample.value, encoder)?;
                    break;
                }
                let labels: Vec<_> =
                    sample.labels.iter().map(|(name, value)| (*name, escaped(value))).collect();
                write(metric.kind, sample.value, encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// A label's value as OpenMetrics text has it: prometheus-client leaves that to its users. Whoever names an
/// executable would else write metrics of his own.
fn escaped(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n"))
}

fn write(kind: MetricKind, value: u64, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
    match kind {
        MetricKind::Counter => ConstCounter::new(value).encode(encoder),
        MetricKind::Gauge => {
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
            Metric::counter("flowend_things", "Things")
                .with([("kind", "one")], 1)
                .with([("kind", "two")], u64::MAX),
            Metric {
                samples: vec![Sample {
                    labels: vec![("of", Cow::Borrowed("a \"b\"\\\nflowend_forged 1"))],
                    value: 3,
                }],
                ..Metric::gauge("flowend_named", "Of somebody's choice")
            },
            Metric::gauge("flowend_waiting", "Things that wait").with([], 7),
        ];
        let want = "# HELP flowend_things Things\n# TYPE flowend_things counter\n\
            flowend_things_total{kind=\"one\"} 1\n\
            flowend_things_total{kind=\"two\"} 18446744073709551615\n\
            # HELP flowend_named Of somebody's choice\n# TYPE flowend_named gauge\n\
            flowend_named{of=\"a \\\"b\\\"\\\\\\nflowend_forged 1\"} 3\n\
            # HELP flowend_waiting Things that wait\n# TYPE flowend_waiting gauge\n\
            flowend_waiting 7\n# EOF\n";
        assert_eq!(encode(metrics), want);
    }
}
