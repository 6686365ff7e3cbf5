//! CPU time of an end on its way out, log record and span, to a receiver that does nothing:
//! `cargo bench --bench export`.
//!
//! The receiver is a process of its own, so that its work does not count. The baseline, in the same run, is the
//! OpenTelemetry SDK: its exporters by themselves, and behind its batch processors.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use flowend::config::{self, Profile, Settings, Sources};
use flowend::encode::{self, LogEncoder};
use flowend::enrich::Workload;
use flowend::export::{Outputs, OwnSockets};
use flowend::flow::{ConnectionEnd, Counters, Direction, Endpoint, Reason, Rtt, Side};
use flowend::ids::ConnectionIds;
use flowend::ledger::Ledger;
use flowend::record::{Record, RecordKind};
use flowend_probe_types::Addr;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use opentelemetry::{SpanId, TraceId};
use opentelemetry_otlp::{LogExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::logs::{LogBatch, LogExporter as _, LogProcessor as _};
use opentelemetry_sdk::trace::{SpanExporter as _, SpanProcessor as _};

const ROUNDS: usize = 5;
const BATCH: usize = 512;
/// Ends in a round of flowend's own path.
const ENDS: usize = 200_000;
/// And in one of the SDK's, which takes longer.
const SDK_ENDS: usize = 20_000;

fn main() {
    if std::env::args().any(|arg| arg == "--null-receiver") {
        return runtime().block_on(receive());
    }
    let receiver = Null::start();
    let records = records(ENDS);
    println!(
        "{ENDS} ends ({SDK_ENDS} for the SDK), log record and span; the SDK over gRPC; CPU time of"
    );
    println!("this process, user and system, median of {ROUNDS} rounds");
    println!("{:52} {:>8} {:>7} {:>18}", "path", "ns/end", "ratio", "ends/s on a core");
    let paths: [(&str, &dyn Fn() -> f64); 6] = [
        ("the SDK's exporters (baseline)", &|| {
            sdk_exporters(&records[..SDK_ENDS], &receiver.endpoint)
        }),
        ("the SDK's batch processors", &|| {
            sdk_processors(&records[..SDK_ENDS], &receiver.endpoint)
        }),
        ("flowend: encode only", &|| encode_only(&records)),
        ("flowend: queue, batch, gRPC", &|| flowend(&records, &receiver.endpoint, "grpc", "none")),
        ("flowend: queue, batch, HTTP", &|| {
            flowend(&records, &receiver.endpoint, "http/protobuf", "none")
        }),
        ("flowend: the same with zstd", &|| {
            flowend(&records, &receiver.endpoint, "http/protobuf", "zstd")
        }),
    ];
    let mut times = vec![Vec::new(); paths.len()];
    for _ in 0..ROUNDS {
        for ((_, path), times) in paths.iter().zip(&mut times) {
            times.push(path());
        }
    }
    let mut baseline = None;
    for ((name, _), times) in paths.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let ns = times[times.len() / 2];
        let ratio = *baseline.get_or_insert(ns) / ns;
        println!("{name:52} {ns:8.0} {ratio:6.1}x {:18.0}", 1e9 / ns);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// CPU time of this process so far, ns.
fn cpu_ns() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        .expect("getrusage");
    let ns =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e9 + time.tv_usec() as f64 * 1e3;
    ns(usage.user_time()) + ns(usage.system_time())
}

/// CPU time per end of what `run` does with `n` ends.
fn measure(n: usize, run: impl FnOnce()) -> f64 {
    let before = cpu_ns();
    run();
    (cpu_ns() - before) / n as f64
}

fn settings(endpoint: &str, protocol: &str, compression: &str) -> Settings {
    let set = [
        "outputs=[\"otlp\"]".to_owned(),
        format!("otlp.endpoint={endpoint}"),
        format!("otlp.protocol={protocol}"),
        format!("otlp.compression={compression}"),
        format!("export.batch_records={BATCH}"),
    ];
    let sources = Sources { set: set.into(), ..Sources::default() };
    config::load(&sources).expect("a configuration").settings
}

fn flowend(records: &[Arc<Record>], endpoint: &str, protocol: &str, compression: &str) -> f64 {
    let settings = settings(endpoint, protocol, compression);
    measure(records.len(), || {
        runtime().block_on(async {
            let ledger = Arc::new(Ledger::default());
            let outputs =
                Outputs::start(&settings, &OwnSockets::default(), &ledger).expect("outputs");
            let mut sinks = outputs.sinks(&settings);
            for record in records {
                sinks.room().await;
                ledger.of(RecordKind::End).seen.add(1);
                sinks.push(record);
            }
            sinks.close();
            for output in outputs.finish(std::future::pending()).await {
                assert_eq!(output.of(RecordKind::End).exported, records.len() as u64, "{output}");
            }
        });
    })
}

fn encode_only(records: &[Arc<Record>]) -> f64 {
    let settings = settings("http://localhost:4317", "grpc", "none");
    let mut encoder = encode::wire::RecordEncoder::new(settings.mapping);
    measure(records.len(), || {
        for record in records {
            std::hint::black_box(encoder.encode(record));
        }
    })
}

fn sdk_exporters(records: &[Arc<Record>], endpoint: &str) -> f64 {
    measure(records.len(), || {
        runtime().block_on(async {
            let (mut logs, mut spans) = exporters(endpoint);
            let encoder = LogEncoder::new(mapping());
            let (scope, mapping) = (encode::scope(), mapping());
            logs.set_resource(&records[0].workload.resource);
            spans.set_resource(&records[0].workload.resource);
            for batch in records.chunks(BATCH) {
                let made: Vec<_> = batch.iter().map(|record| encoder.encode(record)).collect();
                let with_scope: Vec<_> = made.iter().map(|log| (log, &encoder.scope)).collect();
                logs.export(LogBatch::new(&with_scope)).await.expect("taken");
                let made = batch.iter().map(|record| encode::span(record, &mapping, &scope));
                spans.export(made.collect()).await.expect("taken");
            }
        });
    })
}

fn sdk_processors(records: &[Arc<Record>], endpoint: &str) -> f64 {
    measure(records.len(), || {
        let runtime = runtime();
        let _inside = runtime.enter();
        let (logs, spans) = exporters(endpoint);
        let logs = opentelemetry_sdk::logs::BatchLogProcessor::builder(logs).build();
        let spans = opentelemetry_sdk::trace::BatchSpanProcessor::builder(spans).build();
        let encoder = LogEncoder::new(mapping());
        let (scope, mapping) = (encode::scope(), mapping());
        // Its queue holds 2,048, and drops past that: it is emptied before it is full.
        for batch in records.chunks(BATCH) {
            for record in batch {
                let mut log = encoder.encode(record);
                logs.emit(&mut log, &encoder.scope);
                spans.on_end(encode::span(record, &mapping, &scope));
            }
            logs.force_flush().expect("taken");
            spans.force_flush().expect("taken");
        }
        logs.shutdown().expect("stopped");
        spans.shutdown().expect("stopped");
    })
}

fn mapping() -> Arc<encode::Mapping> {
    Arc::new(encode::Mapping::new(Profile::Semconv))
}

fn exporters(endpoint: &str) -> (LogExporter, SpanExporter) {
    let logs = LogExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let spans = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    (logs.expect("an exporter"), spans.expect("an exporter"))
}

/// Ends of outgoing connections with names and a process.
fn records(n: usize) -> Vec<Arc<Record>> {
    let workload = Arc::new(workload());
    (0..n as u64).map(|n| Arc::new(record(n, &workload))).collect()
}

fn workload() -> Workload {
    let attributes = ["service.name", "service.instance.id", "host.name", "process.linux.cgroup"]
        .map(|key| (key.to_owned(), format!("value of {key}")));
    let attributes = attributes.map(|(key, value)| opentelemetry::KeyValue::new(key, value));
    let resource = opentelemetry_sdk::Resource::builder_empty().with_attributes(attributes).build();
    Workload::with_resource("api".into(), None, resource)
}

fn record(n: u64, workload: &Arc<Workload>) -> Record {
    let v4 = |last, port| Endpoint { addr: Addr::v4(u32::from_ne_bytes([192, 0, 2, last])), port };
    let start = 1_700_000_000_000_000_000 + n * 1_000_000;
    Record {
        kind: RecordKind::End,
        end: ConnectionEnd {
            cookie: n,
            listener: None,
            cgroup_id: Some(1),
            direction: Direction::Outgoing,
            local: v4(1, 10_000 + (n % 50_000) as u16),
            remote: v4(7, 443),
            start_ns: 0,
            start_known: true,
            end_known: true,
            end_ns: 61_000_000,
            by: Some(Side::Local),
            reason: Reason::Fin,
            reset_by: None,
            conn_state: "SF",
            history: "ShADadFf".into(),
            half_close_ns: Some(5_000_000),
            counters: Counters {
                bytes_sent: Some(100 + n),
                bytes_received: Some(20_000 + n),
                segments_sent: Some(12),
                segments_received: Some(11),
                retransmits: Some(0),
            },
            rtt: Rtt { handshake_us: Some(310), smoothed_us: Some(420), min_us: Some(300) },
            isns: None,
        },
        ids: ConnectionIds {
            trace_id: TraceId::from(u128::from(n) << 64 | 0xa),
            span_id: SpanId::from(n + 1),
            client_span_id: None,
        },
        parent_span_id: None,
        workload: Arc::clone(workload),
        process: Some(flowend::enrich::Process { pid: 77, executable: Some("curl".into()) }),
        local_names: Vec::new(),
        remote_names: vec!["db.example.com".into(), "db.cdn.example.net".into()],
        local_ptr: None,
        remote_ptr: None,
        community_id: None,
        sampling: flowend::sample::Kept::UNSAMPLED,
        start_unix_ns: start,
        end_unix_ns: start + 61_000_000,
    }
}

/// The receiver's process; it ends with the bench.
struct Null {
    child: Child,
    endpoint: String,
}

impl Null {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .arg("--null-receiver")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the receiver");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its address");
        BufReader::new(stdout).read_line(&mut line).expect("its address");
        Self { child, endpoint: format!("http://{}", line.trim()) }
    }
}

impl Drop for Null {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes whatever comes over HTTP/1.1 or HTTP/2, looks at nothing, and says that it is well.
async fn receive() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    println!("{}", listener.local_addr().expect("an address"));
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("nodelay");
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            // The sender may have gone.
            let _ = builder.serve_connection(TokioIo::new(stream), service_fn(take)).await;
        });
    }
}

/// The empty Export*ServiceResponse: over gRPC in a frame, with its status behind it.
async fn take(
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, hyper::Error> {
    let is_grpc = request.version() == Version::HTTP_2;
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        drop(frame?);
    }
    let (kind, answer): (_, &[u8]) =
        if is_grpc { ("application/grpc", &[0; 5]) } else { ("application/x-protobuf", &[]) };
    let status = || {
        let name = http::HeaderName::from_static("grpc-status");
        http::HeaderMap::from_iter([(name, http::HeaderValue::from_static("0"))])
    };
    let trailers = is_grpc.then(|| Ok(status()));
    let answer = Full::new(Bytes::from_static(answer)).with_trailers(async { trailers });
    let response = Response::builder().header("content-type", kind);
    Ok(response.body(answer).expect("a response"))
}
