//! OTLP export of one signal: a task that empties its queue into opentelemetry-otlp's exporter.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{
    LogExporter, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _};
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tracing::{info, warn};

use super::Queue;
use super::transport::{OwnHttpClient, OwnSockets, channel};
use crate::config::{Compression, Export, Profile, Protocol, Receiver};
use crate::encode::{self, LogEncoder};
use crate::enrich::Workload;
use crate::ledger::DropCause;
use crate::record::Record;
use crate::telemetry::Failing;

/// A failing receiver is complained about at most this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// Which of the two OTLP signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Log records.
    Logs,
    /// Spans.
    Traces,
}

impl Signal {
    /// The name of its output in the ledger.
    pub const fn output(self) -> &'static str {
        match self {
            Self::Logs => "otlp.logs",
            Self::Traces => "otlp.traces",
        }
    }
}

/// Exports what comes through the queue until it is closed and empty.
///
/// # Errors
/// When the exporter cannot be built: its message, with the endpoint.
pub fn spawn(
    signal: Signal,
    queue: Arc<Queue<Arc<Record>>>,
    receiver: &Receiver,
    export: Export,
    profile: Profile,
    own: OwnSockets,
    failing: Arc<Failing>,
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let (client, last_error) = Client::build(signal, receiver, profile, own)
        .map_err(|error| anyhow::anyhow!("OTLP receiver {}: {error}", receiver.endpoint))?;
    let task = ExportTask {
        signal,
        queue,
        client,
        last_error,
        endpoint: receiver.endpoint.to_string(),
        export,
        failing,
        failing_since: None,
        complained: None,
    };
    Ok(tokio::spawn(task.run()))
}

struct ExportTask {
    signal: Signal,
    queue: Arc<Queue<Arc<Record>>>,
    client: Client,
    last_error: Arc<Mutex<Option<String>>>,
    endpoint: String,
    export: Export,
    failing: Arc<Failing>,
    failing_since: Option<Instant>,
    complained: Option<Instant>,
}

impl ExportTask {
    async fn run(mut self) -> std::io::Result<()> {
        while let Some(batch) =
            self.queue.take(self.export.batch_records, self.export.interval).await
        {
            for (workload, records) in by_workload(&batch) {
                let outcome = self.deliver(workload, &records).await;
                self.queue.settle(&records, outcome);
            }
        }
        Ok(())
    }

    /// Sends until it is acknowledged, refused for good, or tried for too long.
    async fn deliver(
        &mut self,
        workload: &Workload,
        records: &[Arc<Record>],
    ) -> Result<(), DropCause> {
        let start = Instant::now();
        let mut pause = self.export.retry_initial;
        loop {
            let Err(error) = self.client.export(&workload.resource, records).await else {
                self.recovered();
                return Ok(());
            };
            let detail = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take();
            let error = match detail {
                Some(detail) => format!("{error}: {detail}"),
                None => error.to_string(),
            };
            if is_final(&error) {
                self.complain(&format!("{error}; {} records refused for good", records.len()));
                return Err(DropCause::Refused);
            }
            if start.elapsed() + pause > self.export.retry_for {
                self.complain(&format!(
                    "{error}; {} records given up after export.retry_for",
                    records.len()
                ));
                return Err(DropCause::RetryExhausted);
            }
            self.complain(&format!("{error}; flowend goes on and tries again"));
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(self.export.retry_max);
        }
    }

    fn complain(&mut self, words: &str) {
        self.failing.failed(words);
        self.failing_since.get_or_insert_with(Instant::now);
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            warn!("{} to {}: {words}", self.signal.output(), self.endpoint);
        }
    }

    fn recovered(&mut self) {
        if let Some(since) = self.failing_since.take() {
            self.failing.worked();
            self.complained = None;
            info!(
                "{} to {}: works again after {} s",
                self.signal.output(),
                self.endpoint,
                since.elapsed().as_secs(),
            );
        }
    }
}

/// A pause of between half and the whole of `pause`, so that a fleet does not retry in step.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    pause / 2 + (pause / 2).mul_f64(f64::from(nanos % 1000) / 1000.0)
}

/// Whether a receiver said no for good, by the OTLP specification: any gRPC code or HTTP status
/// that is not among the retryable ones. No answer at all is retryable.
///
/// opentelemetry-otlp gives its errors as text only; the words are those of 0.33 and pinned by tests
/// against a real receiver.
fn is_final(error: &str) -> bool {
    const RETRYABLE_GRPC: [&str; 8] = [
        "Cancelled",
        "DeadlineExceeded",
        "Aborted",
        "OutOfRange",
        "Unavailable",
        "DataLoss",
        "ResourceExhausted",
        "Unknown",
    ];
    const RETRYABLE_HTTP: [&str; 4] = ["429", "502", "503", "504"];
    let word_after = |marker: &str| {
        let rest = &error[error.find(marker)? + marker.len()..];
        Some(rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default())
    };
    if let Some(code) = word_after("gRPC code: ") {
        return !RETRYABLE_GRPC.contains(&code);
    }
    if let Some(status) = word_after("status code: ") {
        return !RETRYABLE_HTTP.contains(&status);
    }
    false
}

/// Groups a batch by workload, each in the order of the batch: each workload is a resource.
fn by_workload(batch: &[Arc<Record>]) -> Vec<(&Workload, Vec<Arc<Record>>)> {
    let mut groups: Vec<(&Workload, Vec<Arc<Record>>)> = Vec::new();
    let mut index = std::collections::HashMap::new();
    for record in batch {
        let at = *index.entry(Arc::as_ptr(&record.workload)).or_insert_with(|| {
            groups.push((record.workload.as_ref(), Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(Arc::clone(record));
    }
    groups
}

/// opentelemetry-otlp's exporter of one signal.
enum Client {
    Logs(LogExporter, LogEncoder),
    Traces(SpanExporter, Profile, InstrumentationScope),
}

type LastError = Arc<Mutex<Option<String>>>;

impl Client {
    fn build(
        signal: Signal,
        receiver: &Receiver,
        profile: Profile,
        own: OwnSockets,
    ) -> Result<(Self, LastError), Box<dyn std::error::Error + Send + Sync>> {
        let compression = receiver.compression.map(|c| match c {
            Compression::Gzip => opentelemetry_otlp::Compression::Gzip,
            Compression::Zstd => opentelemetry_otlp::Compression::Zstd,
        });
        // Retries are ours: flowend counts what becomes of each record.
        let no_retry = opentelemetry_otlp::RetryPolicy::disabled();
        let mut last_error = LastError::default();
        macro_rules! build {
            ($exporter:ident) => {
                match receiver.protocol {
                    Protocol::Grpc => {
                        let mut builder = $exporter::builder()
                            .with_tonic()
                            .with_channel(channel(receiver, own)?)
                            .with_timeout(receiver.timeout)
                            .with_retry_policy(no_retry)
                            .with_interceptor(Headers::new(receiver));
                        if let Some(compression) = compression {
                            builder = builder.with_compression(compression);
                        }
                        builder.build()?
                    }
                    Protocol::Http => {
                        let client = OwnHttpClient::new(receiver, own)?;
                        last_error = Arc::clone(&client.last_error);
                        let mut builder = $exporter::builder()
                            .with_http()
                            .with_http_client(client)
                            .with_endpoint(receiver.endpoint.to_string())
                            .with_protocol(opentelemetry_otlp::Protocol::HttpBinary)
                            .with_timeout(receiver.timeout)
                            .with_retry_policy(no_retry);
                        if let Some(compression) = compression {
                            builder = builder.with_compression(compression);
                        }
                        builder.build()?
                    }
                }
            };
        }
        let client = match signal {
            Signal::Logs => Self::Logs(build!(LogExporter), LogEncoder::new(profile)),
            Signal::Traces => Self::Traces(build!(SpanExporter), profile, encode::scope()),
        };
        Ok((client, last_error))
    }

    /// Sends the records of one workload in one request.
    async fn export(&mut self, resource: &Resource, records: &[Arc<Record>]) -> OTelSdkResult {
        match self {
            Self::Logs(exporter, encoder) => {
                exporter.set_resource(resource);
                let logs: Vec<_> = records.iter().map(|r| encoder.encode(r)).collect();
                let with_scope: Vec<_> = logs.iter().map(|log| (log, &encoder.scope)).collect();
                exporter.export(LogBatch::new(&with_scope)).await
            }
            Self::Traces(exporter, profile, scope) => {
                exporter.set_resource(resource);
                let spans = records.iter().map(|r| encode::span(r, *profile, scope)).collect();
                exporter.export(spans).await
            }
        }
    }
}

/// Puts the configured headers on each gRPC request. They replace what opentelemetry-otlp reads from
/// the environment by itself: the layers of the configuration have decided already.
#[derive(Clone)]
pub(super) struct Headers(MetadataMap);

impl Headers {
    pub(super) fn new(receiver: &Receiver) -> Self {
        Self(MetadataMap::from_headers(receiver.headers.iter().cloned().collect()))
    }
}

impl Interceptor for Headers {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        *request.metadata_mut() = self.0.clone();
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_specification_calls_final_is_final() {
        for (error, want) in [
            ("TonicLogsClient export failed with gRPC code: Unavailable: tcp connect error", false),
            ("x export failed with gRPC code: ResourceExhausted", false),
            ("x export failed with gRPC code: InvalidArgument", true),
            ("x export failed with gRPC code: Unauthenticated", true),
            ("x export failed with gRPC code: Unimplemented", true),
            ("HTTP export failed with status code: 503", false),
            ("HTTP export failed with status code: 429", false),
            ("HTTP export failed with status code: 400", true),
            ("HTTP export failed with status code: 404", true),
            ("HTTP export failed: network error", false),
        ] {
            assert_eq!(is_final(error), want, "{error}");
        }
    }

    #[test]
    fn the_configured_headers_replace_all_others() {
        let receiver = Receiver {
            endpoint: http::Uri::from_static("http://localhost:4317"),
            protocol: Protocol::Grpc,
            compression: None,
            timeout: Duration::from_secs(1),
            headers: vec![("x-tenant".parse().unwrap(), "a".parse().unwrap())],
        };
        let mut request = tonic::Request::new(());
        request.metadata_mut().insert("x-tenant", "from the environment".parse().unwrap());
        request.metadata_mut().insert("other", "from the environment".parse().unwrap());
        let request = Headers::new(&receiver).call(request).unwrap();
        let got: Vec<_> = request.metadata().clone().into_headers().into_iter().collect();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].1, "a");
    }

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let pause = Duration::from_secs(2);
        for _ in 0..100 {
            let jittered = jittered(pause);
            assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
        }
    }
}
