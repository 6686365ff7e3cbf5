//! OTLP export of flowend's own metrics, by opentelemetry-otlp over flowend's own connections.

use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_otlp::{
    MetricExporter, RetryPolicy, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter as _;

use super::transport::{Headers, OwnHttpClient, OwnSockets, channel};
use crate::config::{Compression, Protocol, Receiver};

/// Sends metrics to one receiver.
#[derive(Debug)]
pub struct MetricsClient {
    exporter: MetricExporter,
    /// Why the last request got no answer; opentelemetry-otlp keeps it to itself.
    last_error: Arc<Mutex<Option<String>>>,
    /// Where to, for messages.
    pub endpoint: String,
}

impl MetricsClient {
    /// Connects with the first export.
    ///
    /// # Errors
    /// When the exporter cannot be built: its message, with the endpoint.
    pub fn new(receiver: &Receiver, own: OwnSockets) -> anyhow::Result<Self> {
        Self::build(receiver, own)
            .map_err(|error| anyhow::anyhow!("OTLP receiver {}: {error}", receiver.endpoint))
    }

    fn build(
        receiver: &Receiver,
        own: OwnSockets,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let compression = receiver.compression.map(|c| match c {
            Compression::Gzip => opentelemetry_otlp::Compression::Gzip,
            Compression::Zstd => opentelemetry_otlp::Compression::Zstd,
        });
        // Not delta, whatever the environment says: a lost export would be a lost count.
        let builder = MetricExporter::builder().with_temporality(Temporality::Cumulative);
        let mut last_error = Arc::default();
        let exporter = match receiver.protocol {
            Protocol::Grpc => {
                let mut builder = builder
                    .with_tonic()
                    .with_channel(channel(receiver, own)?)
                    .with_timeout(receiver.timeout)
                    .with_retry_policy(RetryPolicy::disabled())
                    .with_interceptor(Headers::new(receiver));
                if let Some(compression) = compression {
                    builder = builder.with_compression(compression);
                }
                builder.build()?
            }
            Protocol::Http => {
                let client = OwnHttpClient::new(receiver, own)?;
                last_error = Arc::clone(&client.last_error);
                let mut builder = builder
                    .with_http()
                    .with_http_client(client)
                    .with_endpoint(receiver.endpoint.to_string())
                    .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                    .with_timeout(receiver.timeout)
                    .with_retry_policy(RetryPolicy::disabled());
                if let Some(compression) = compression {
                    builder = builder.with_compression(compression);
                }
                builder.build()?
            }
        };
        Ok(Self { exporter, last_error, endpoint: receiver.endpoint.to_string() })
    }

    /// Sends once.
    ///
    /// # Errors
    /// What the receiver, or the network before it, said.
    pub async fn export(&self, metrics: &ResourceMetrics) -> Result<(), String> {
        let outcome = self.exporter.export(metrics).await;
        let detail = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
        outcome.map_err(|error| match detail {
            Some(detail) => format!("{error}: {detail}"),
            None => error.to_string(),
        })
    }
}
