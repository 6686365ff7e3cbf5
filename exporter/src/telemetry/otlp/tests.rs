//! Against a real OTLP/gRPC receiver, which decodes.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, NumberDataPoint};
use opentelemetry_sdk::Resource;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;
use crate::config::{Protocol, Receiver, TlsFiles};
use crate::export::OwnSockets;
use crate::telemetry::encode;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Hands on what it decodes, and answers as it is told to.
struct Collector {
    received: mpsc::UnboundedSender<ExportMetricsServiceRequest>,
    refuses: Arc<std::sync::atomic::AtomicBool>,
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let _ = self.received.send(request.into_inner());
        if self.refuses.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Status::unavailable("busy"));
        }
        Ok(Response::new(ExportMetricsServiceResponse { partial_success: None }))
    }
}

/// The receiver's end, and a client of it.
struct Site {
    received: mpsc::UnboundedReceiver<ExportMetricsServiceRequest>,
    refuses: Arc<std::sync::atomic::AtomicBool>,
    own: OwnSockets,
    receiver: Receiver,
}

impl Site {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (send, received) = mpsc::unbounded_channel();
        let refuses = Arc::<std::sync::atomic::AtomicBool>::default();
        let collector = Collector { received: send, refuses: Arc::clone(&refuses) };
        let serving = tonic::transport::Server::builder()
            .add_service(MetricsServiceServer::new(collector))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(serving);
        let receiver = Receiver {
            endpoint: endpoint.parse().unwrap(),
            protocol: Protocol::Grpc,
            compression: None,
            timeout: PATIENCE,
            headers: Vec::new(),
            headers_file: None,
            tls: TlsFiles::default(),
        };
        Self { received, refuses, own: OwnSockets::default(), receiver }
    }

    fn export(&self, interval: Duration) -> MetricsExport {
        let resource = Resource::builder_empty()
            .with_attribute(KeyValue::new("service.name", "flowend"))
            .build();
        let client = MetricsClient::new(&self.receiver, self.own.clone()).unwrap();
        MetricsExport::start(client, interval, resource)
    }

    async fn next(&mut self) -> ExportMetricsServiceRequest {
        tokio::time::timeout(PATIENCE, self.received.recv()).await.unwrap().unwrap()
    }
}

/// As many metrics of each kind as make a difference.
fn metrics(n: u64) -> Vec<Metric> {
    vec![
        Metric::counter("flowend.ends", "Ends")
            .with([("signal", "logs"), ("outcome", "exported")], n)
            .with([("signal", "logs"), ("outcome", "dropped"), ("cause", "refused")], 2 * n),
        Metric::counter("flowend.ends.seen", "Seen").with([], 3 * n),
        Metric::gauge("flowend.ends.in_flight", "Waiting").with([("signal", "logs")], 100 - n),
        Metric::up_down("otel.sdk.processor.log.queue.size", "Waiting")
            .with([("otel.component.name", "a/b")], 50 - n)
            .in_unit("{log_record}"),
    ]
}

/// Name, labels and value of each sample, as Prometheus has them; labels in their order.
fn lines(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = key.trim_end_matches('}').split_once('{').unwrap_or((key, ""));
            let mut labels: Vec<_> = labels.split(',').collect();
            labels.sort_unstable();
            (format!("{name}{{{}}}", labels.join(",")), value.to_owned())
        })
        .collect()
}

/// The same of what came over OTLP.
fn as_lines(request: &ExportMetricsServiceRequest) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let scopes = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics);
    for metric in scopes.flat_map(|s| &s.metrics) {
        let (points, suffix) = match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => {
                let cumulative = AggregationTemporality::Cumulative;
                assert_eq!(sum.aggregation_temporality(), cumulative, "{}", metric.name);
                (&sum.data_points, if sum.is_monotonic { "_total" } else { "" })
            }
            Data::Gauge(gauge) => (&gauge.data_points, ""),
            other => panic!("{}: {other:?}", metric.name),
        };
        for point in points {
            let Some(Number::AsInt(value)) = point.value else { panic!("{point:?}") };
            let name = metric.name.replace('.', "_");
            let key = format!("{name}{suffix}{{{}}}", labels(point));
            assert_eq!(found.insert(key, value.to_string()), None, "{metric:?}");
        }
    }
    found
}

fn labels(point: &NumberDataPoint) -> String {
    let mut labels: Vec<_> = point
        .attributes
        .iter()
        .map(|attribute| {
            let value = attribute.value.as_ref().and_then(|v| v.value.as_ref());
            let Some(Value::StringValue(value)) = value else { panic!("{attribute:?}") };
            format!("{}=\"{value}\"", attribute.key.replace('.', "_"))
        })
        .collect();
    labels.sort_unstable();
    labels.join(",")
}

#[tokio::test]
async fn what_arrives_is_what_prometheus_gets() {
    let mut site = Site::start().await;
    let export = site.export(Duration::from_secs(3600));
    for n in [1, 7] {
        export.give(metrics(n));
        let request = site.next().await;
        assert_eq!(as_lines(&request), lines(&encode(metrics(n))), "{n}");
        let [resource] = request.resource_metrics.as_slice() else { panic!("{request:?}") };
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(attributes.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(), ["service.name"]);
        let [scope] = resource.scope_metrics.as_slice() else { panic!("{resource:?}") };
        let unit = |name: &str| scope.metrics.iter().find(|m| m.name == name).unwrap().unit.clone();
        assert_eq!(unit("otel.sdk.processor.log.queue.size"), "{log_record}");
        assert_eq!(unit("flowend.ends"), "");
    }
    // What is not there any more is not sent on for ever.
    export.give(metrics(9).split_off(1));
    let request = site.next().await;
    assert_eq!(as_lines(&request), lines(&encode(metrics(9).split_off(1))));
    // The last counts come with the end.
    export.finish(metrics(8)).await;
    assert_eq!(as_lines(&site.received.try_recv().unwrap()), lines(&encode(metrics(8))));
}

#[tokio::test]
async fn an_outage_is_said_once_and_loses_no_count() {
    let mut site = Site::start().await;
    let said = Arc::<Mutex<Vec<u8>>>::default();
    let write_to = Arc::clone(&said);
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Said(Arc::clone(&write_to)))
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let export = site.export(Duration::from_secs(3600));
    for round in 0..2 {
        site.refuses.store(true, std::sync::atomic::Ordering::Relaxed);
        for n in 1..=3 {
            export.give(metrics(n));
            site.next().await;
        }
        site.refuses.store(false, std::sync::atomic::Ordering::Relaxed);
        export.give(metrics(4));
        assert_eq!(as_lines(&site.next().await), lines(&encode(metrics(4))));
        let text = || String::from_utf8(said.lock().unwrap().clone()).unwrap();
        let wait = async {
            while text().matches("works again").count() <= round {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
        assert_eq!(text().matches("tried in its turn").count(), round + 1, "{}", text());
        assert!(text().contains("Unavailable"), "{}", text());
    }
}

#[tokio::test(start_paused = true)]
async fn exports_are_due_once_per_interval_and_never_wait_for_the_receiver() {
    let site = Site::start().await;
    let interval = Duration::from_secs(60);
    let begin = Instant::now();
    let mut export = site.export(interval);
    for n in 1..=3 {
        export.due().await;
        assert_eq!(begin.elapsed().as_secs(), 60 * n);
    }
    // One that is being exported, one that waits, and the rest is left out: none of these waits.
    for n in 0..10 {
        export.give(metrics(n));
    }
}

/// Where the messages go.
struct Said(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
