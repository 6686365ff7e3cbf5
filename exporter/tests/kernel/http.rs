//! OTLP over HTTP/protobuf, with headers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use flowend::demo::Received;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use prost::Message as _;

use super::connections::{Role, make, of_socket};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};

type Seen = Arc<Mutex<(Received, Vec<(String, String, String)>)>>;

async fn serve(seen: Seen) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(move |request| answer(request, Arc::clone(&seen)));
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    port
}

async fn answer(
    request: Request<Incoming>,
    seen: Seen,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let header = |name: &str| {
        request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (content_type, tenant) = (header("content-type"), header("x-tenant"));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut seen = seen.lock().unwrap();
    match path.as_str() {
        "/v1/logs" => seen.0.add_logs(prost::Message::decode(body).unwrap()),
        "/v1/traces" => {
            let request =
                opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest::decode(
                    body,
                );
            seen.0.add_spans(request.unwrap());
        }
        other => panic!("{other}"),
    }
    seen.1.push((path, content_type, tenant));
    Ok(Response::new(Full::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn http_protobuf_arrives_as_configured_by_the_standard_variables() {
    if !can_run("http_protobuf_arrives_as_configured_by_the_standard_variables", &[]) {
        return;
    }
    let seen = Seen::default();
    let port = serve(Arc::clone(&seen)).await;
    let cgroup = Cgroup::new();
    let mut command = Flowend::command(&[
        "run",
        "--set",
        &format!("targets={}", cgroup.name),
        "--set=export.interval=10ms",
    ]);
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=from%20otel")
        .env("FLOWEND_OTLP__HEADERS__X-TENANT", "from flowend")
        .env("OTEL_SERVICE_NAME", "named");
    let flowend = Flowend::spawn(command);
    let made = tokio::task::block_in_place(|| {
        let (mut client, mut server) = (Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup));
        let made = make(&mut client, &mut server, "127.0.0.1:0", Role::Server, false);
        wait_until(
            || {
                let seen = seen.lock().unwrap();
                seen.0.logs.len() >= 2 && seen.0.spans.len() >= 2
            },
            || flowend.stderr(),
        );
        made
    });
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let seen = seen.lock().unwrap();
    let (logs, spans) = of_socket(&seen.0, made.client, made.server);
    assert_eq!((logs.len(), spans.len()), (1, 1));
    assert_eq!(logs[0].item.trace_id, spans[0].item.trace_id);
    let resource = super::support::flat(&logs[0].resource);
    assert_eq!(super::support::text(&resource, "service.name"), "named");
    for (path, content_type, tenant) in &seen.1 {
        // FLOWEND_* wins over OTEL_*, though opentelemetry-otlp reads the latter by itself.
        assert_eq!(
            (content_type.as_str(), tenant.as_str()),
            ("application/x-protobuf", "from flowend"),
            "{path}"
        );
    }
}
