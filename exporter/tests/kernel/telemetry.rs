//! flowend's own counts, as Prometheus and an OTLP receiver get them, and how it is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use prost::Message as _;

use super::connections::{Role, make};
use super::receiver::refusing;
use super::support::{Cgroup, Flowend, Puppet, can_run, flat, text, wait_until};

const JSON: &str = r#"signal="json",destination="stdout""#;

/// The answer with its head.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: flowend\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Where flowend listens.
pub(crate) fn port(flowend: &Flowend) -> u16 {
    let words = "metrics at http://127.0.0.1:";
    flowend.wait_for_message(words);
    let messages = flowend.stderr();
    let port = messages.split(words).nth(1).and_then(|rest| rest.split('/').next()?.parse().ok());
    port.expect("a port")
}

/// Metrics by name and labels.
pub(crate) fn scrape(port: u16) -> BTreeMap<String, u64> {
    let answer = get(port, "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (metric, value) = line.rsplit_once(' ').unwrap();
            (metric.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// All values of a metric that have this label, added up.
pub(crate) fn sum(metrics: &BTreeMap<String, u64>, name: &str, label: &str) -> u64 {
    let of = |key: &&String| key.split('{').next() == Some(name) && key.contains(label);
    assert!(metrics.keys().any(|key| of(&key)), "no {name} with {label} in {metrics:?}");
    metrics.iter().filter(|(key, _)| of(key)).map(|(_, value)| value).sum()
}

#[test]
fn the_counts_add_up_at_each_scrape_and_scrapes_are_not_reported() {
    if !can_run("the_counts_add_up_at_each_scrape_and_scrapes_are_not_reported", &[]) {
        return;
    }
    // The whole machine: the scrapes themselves are seen, and whatever other tests do.
    let flowend = Flowend::run(&[
        "--output=json",
        "--set=telemetry.listen=127.0.0.1:0",
        "--set=dns.scope=host",
    ]);
    let port = port(&flowend);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..5 {
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        drop(listener.accept().unwrap());
    }
    wait_until(
        || {
            let now = scrape(port);
            let seen = sum(&now, "flowend_ends_seen_total", "");
            let became = sum(&now, "flowend_ends_total", JSON);
            assert_eq!(seen, became + sum(&now, "flowend_ends_in_flight", JSON), "{now:?}");
            let messages = sum(&now, "flowend_dns_messages_seen_total", "");
            assert_eq!(messages, sum(&now, "flowend_dns_messages_total", ""), "{now:?}");
            let segments = sum(&now, "flowend_dns_segments_total", "");
            let waiting = sum(&now, "flowend_dns_segments_in_flight", "");
            assert_eq!(sum(&now, "flowend_dns_segments_seen_total", ""), segments + waiting);
            // Both ends of the five, and scrapes enough.
            sum(&now, "flowend_connections_reported_total", "") >= 10
                && sum(&now, "flowend_ends_total", r#"cause="self""#) >= 5
        },
        || flowend.stderr(),
    );
    let pid = flowend.pid();
    for record in flowend.json() {
        assert_ne!(record["attributes"]["process.pid"], pid, "{record}");
        assert_ne!(record["attributes"]["network.local.port"], port, "{record}");
    }
    assert_eq!(flowend.stop().0, Some(0));
}

#[test]
fn a_port_in_use_is_said_and_nothing_starts() {
    if !can_run("a_port_in_use_is_said_and_nothing_starts", &[]) {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--set=telemetry.listen={}", taken.local_addr().unwrap());
    let output = Flowend::command(&["run", &listen]).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    assert!(messages.contains("key `telemetry.listen`: 127.0.0.1:"), "{messages}");
    assert!(messages.contains("choose another address or port"), "{messages}");
}

#[test]
fn ready_is_who_is_attached_and_whose_destination_works() {
    if !can_run("ready_is_who_is_attached_and_whose_destination_works", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let (_bound, refusing) = refusing();
    let flowend = Flowend::run(&[
        &format!("--set=targets={},flowend-no-such-cgroup", cgroup.name),
        "--set=telemetry.listen=127.0.0.1:0",
        "--set=telemetry.ready_after=0s",
        "--set=export.interval=10ms",
        "--set=shutdown.timeout=100ms",
        "--output=otlp",
        &format!("--set=otlp.endpoint=http://127.0.0.1:{refusing}"),
    ]);
    let port = port(&flowend);
    for (path, word) in [("/livez", "alive"), ("/readyz", "ready")] {
        let answer = get(port, path);
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("{word}\n")),
            "{answer}"
        );
    }
    let (mut client, mut server) = (Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup));
    make(&mut client, &mut server, "127.0.0.1:0", Role::Client, false);
    wait_until(
        || {
            let answer = get(port, "/readyz");
            answer.starts_with("HTTP/1.1 503 ")
                && answer.contains("\ndestination otlp, logs: failing for 0 s: ")
                && answer.contains("\ndestination otlp, traces: failing for 0 s: ")
        },
        || format!("{} {}", get(port, "/readyz"), flowend.stderr()),
    );
    assert!(get(port, "/livez").starts_with("HTTP/1.1 200 "), "no reason to start it again");
    assert_eq!(flowend.stop().0, Some(0));
}

/// The last export comes with the end, and tells what the ledger tells.
#[tokio::test(flavor = "multi_thread")]
async fn the_counts_arrive_over_http_and_the_exports_are_not_reported() {
    if !can_run("the_counts_arrive_over_http_and_the_exports_are_not_reported", &[]) {
        return;
    }
    let received = Received::default();
    let port = serve(Arc::clone(&received)).await;
    tokio::task::block_in_place(|| {
        // The whole machine: the exports are seen, too.
        let flowend = Flowend::run(&[
            "--output=json",
            "--set=telemetry.otlp=true",
            "--set=telemetry.otlp_interval=50ms",
            &format!("--set=otlp.endpoint=http://127.0.0.1:{port}"),
            "--set=otlp.protocol=http/protobuf",
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..5 {
            drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            drop(listener.accept().unwrap());
        }
        let last = || received.lock().unwrap().last().cloned();
        wait_until(
            || last().is_some_and(|request| value(&request, "flowend.ends.seen") >= 10),
            || flowend.stderr(),
        );
        for record in flowend.json() {
            assert_ne!(record["attributes"]["network.peer.port"], port, "{record}");
        }
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        let seen = value(&last().unwrap(), "flowend.ends.seen");
        assert!(messages.contains(&format!("json: seen {seen} = ")), "{seen}: {messages}");
    });
    let received = received.lock().unwrap();
    let resource = received[0].resource_metrics[0].resource.as_ref().unwrap();
    let resource = flat(&resource.attributes);
    assert_eq!(text(&resource, "service.name"), "flowend");
    for key in ["service.version", "service.instance.id", "host.name"] {
        assert!(!text(&resource, key).is_empty(), "{key}");
    }
}

type Received = Arc<Mutex<Vec<ExportMetricsServiceRequest>>>;

/// The one value of a sum.
fn value(request: &ExportMetricsServiceRequest, name: &str) -> i64 {
    let scopes = request.resource_metrics.iter().flat_map(|r| &r.scope_metrics);
    let metric = scopes.flat_map(|s| &s.metrics).find(|m| m.name == name);
    let Some(Data::Sum(sum)) = metric.and_then(|m| m.data.as_ref()) else { panic!("no {name}") };
    match sum.data_points.as_slice() {
        [NumberDataPoint { value: Some(Number::AsInt(value)), .. }] => *value,
        other => panic!("{name}: {other:?}"),
    }
}

/// An OTLP/HTTP receiver of metrics.
async fn serve(received: Received) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let received = Arc::clone(&received);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let received = Arc::clone(&received);
                async move {
                    assert_eq!(request.uri().path(), "/v1/metrics");
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let request = ExportMetricsServiceRequest::decode(body).unwrap();
                    received.lock().unwrap().push(request);
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    port
}
