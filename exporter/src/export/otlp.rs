//! OTLP export of one signal: a task that empties its queue into a client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::InstrumentationScope;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::logs::tonic::group_logs_by_resource_and_scope;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::LogBatch;
use prost::Message as _;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::Queue;
use super::transport::{Answer, Client, OwnSockets};
use crate::config::{Export, Profile, Receiver};
use crate::encode::{self, LogEncoder};
use crate::enrich::Workload;
use crate::ledger::DropCause;
use crate::record::Record;

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
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let client = Client::new(signal, receiver, own)?;
    let encoder = match signal {
        Signal::Logs => Encoder::Logs(LogEncoder::new(profile)),
        Signal::Traces => Encoder::Traces(profile, encode::scope()),
    };
    let task = ExportTask {
        signal,
        queue,
        client,
        encoder,
        endpoint: receiver.endpoint.to_string(),
        export,
        failing_since: None,
        complained: None,
    };
    Ok(tokio::spawn(task.run()))
}

struct ExportTask {
    signal: Signal,
    queue: Arc<Queue<Arc<Record>>>,
    client: Client,
    encoder: Encoder,
    endpoint: String,
    export: Export,
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
        let body = self.encoder.encode(&workload.resource, records);
        loop {
            let (after, why) = match self.client.send(body.clone()).await {
                Answer::Taken { rejected, message } => {
                    self.recovered();
                    if rejected > 0 || !message.is_empty() {
                        warn!("{}: {rejected} records rejected: {message}", self.signal.output());
                    }
                    return Ok(());
                }
                Answer::Again { after, why } => (after, why),
                Answer::TooLarge { why } | Answer::Refused { why } => {
                    self.complain(&format!("{why}; {} records refused for good", records.len()));
                    return Err(DropCause::Refused);
                }
            };
            let wait = after.unwrap_or_else(|| jittered(pause));
            if start.elapsed() + wait > self.export.retry_for {
                self.complain(&format!(
                    "{why}; {} records given up after export.retry_for",
                    records.len()
                ));
                return Err(DropCause::RetryExhausted);
            }
            self.complain(&format!("{why}; flowend goes on and tries again"));
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(self.export.retry_max);
        }
    }

    fn complain(&mut self, words: &str) {
        self.failing_since.get_or_insert_with(Instant::now);
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            warn!("{} to {}: {words}", self.signal.output(), self.endpoint);
        }
    }

    fn recovered(&mut self) {
        if let Some(since) = self.failing_since.take() {
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

/// Makes request bodies of records, by way of the SDK's types.
enum Encoder {
    Logs(LogEncoder),
    Traces(Profile, InstrumentationScope),
}

impl Encoder {
    /// The request with the records of one workload.
    fn encode(&self, resource: &Resource, records: &[Arc<Record>]) -> Bytes {
        let resource = ResourceAttributesWithSchema::from(resource);
        let body = match self {
            Self::Logs(encoder) => {
                let logs: Vec<_> = records.iter().map(|r| encoder.encode(r)).collect();
                let with_scope: Vec<_> = logs.iter().map(|log| (log, &encoder.scope)).collect();
                let batch = LogBatch::new(&with_scope);
                let resource_logs = group_logs_by_resource_and_scope(&batch, &resource);
                ExportLogsServiceRequest { resource_logs }.encode_to_vec()
            }
            Self::Traces(profile, scope) => {
                let spans = records.iter().map(|r| encode::span(r, *profile, scope)).collect();
                let resource_spans = group_spans_by_resource_and_scope(spans, &resource);
                ExportTraceServiceRequest { resource_spans }.encode_to_vec()
            }
        };
        body.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_half_and_whole() {
        let pause = Duration::from_secs(2);
        for _ in 0..100 {
            let jittered = jittered(pause);
            assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
        }
    }
}
