//! An OTLP receiver over HTTP/protobuf that does with requests what a test wants, and the ids of what came.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use flowend::demo::Received;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// What becomes of requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answers {
    /// Each is taken.
    Taken,
    /// 503 to each, and none is taken.
    Unavailable,
    /// So many of each signal are taken; of those after them it is never said that they were.
    SilentAfter(usize),
}

/// What came so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Of all requests, but for those that were refused.
    pub(crate) received: Received,
    /// Path and headers of each request, in the order of arrival.
    pub(crate) heads: Vec<(String, HeaderMap)>,
}

/// Stops when dropped.
pub(crate) struct HttpReceiver {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    server: JoinHandle<()>,
}

impl HttpReceiver {
    /// On a free port of loopback.
    pub(crate) async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::default();
        let server = tokio::spawn(serve(listener, answers, Arc::clone(&seen)));
        Self { port, seen, server }
    }

    /// As `otlp.endpoint` takes it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    /// Of the log records and of the spans that came.
    pub(crate) fn ids(&self) -> [Vec<Id>; 2] {
        ids(&self.seen().received)
    }
}

impl Drop for HttpReceiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, answers: Answers, seen: Arc<Mutex<Seen>>) {
    // Ends with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let seen = Arc::clone(&seen);
        let service = hyper::service::service_fn(move |request| {
            let seen = Arc::clone(&seen);
            async move { Ok::<_, Infallible>(answer(request, answers, &seen).await) }
        });
        connections.spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn answer(
    request: Request<Incoming>,
    answers: Answers,
    seen: &Mutex<Seen>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    // A client that was killed does not send the rest.
    let Ok(body) = body.collect().await else { return Response::default() };
    let body = body.to_bytes();
    let is_silent = {
        let mut seen = seen.lock().unwrap();
        let before = seen.heads.iter().filter(|(other, _)| *other == path).count();
        seen.heads.push((path.clone(), head.headers));
        if matches!(answers, Answers::Unavailable) {
            let mut answer = Response::default();
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return answer;
        }
        match path.as_str() {
            "/v1/logs" => {
                seen.received.add_logs(ExportLogsServiceRequest::decode(body).unwrap());
            }
            "/v1/traces" => {
                seen.received.add_spans(ExportTraceServiceRequest::decode(body).unwrap());
            }
            other => panic!("{other}"),
        }
        matches!(answers, Answers::SilentAfter(n) if before >= n)
    };
    if is_silent {
        std::future::pending::<()>().await;
    }
    Response::default()
}

/// Trace id and span id, in hexadecimal.
pub(crate) type Id = (String, String);

pub(crate) fn id(trace_id: &[u8], span_id: &[u8]) -> Id {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    (hex(trace_id), hex(span_id))
}

/// Of the log records and of the spans, in the order of arrival.
pub(crate) fn ids(received: &Received) -> [Vec<Id>; 2] {
    let logs = received.logs.iter().map(|log| id(&log.item.trace_id, &log.item.span_id));
    let spans = received.spans.iter().map(|span| id(&span.item.trace_id, &span.item.span_id));
    [logs.collect(), spans.collect()]
}

/// Of the JSON lines.
pub(crate) fn ids_of_json(lines: &[serde_json::Value]) -> Vec<Id> {
    let text = |line: &serde_json::Value, key: &str| line[key].as_str().expect(key).to_owned();
    lines.iter().map(|line| (text(line, "trace_id"), text(line, "span_id"))).collect()
}

pub(crate) fn sorted(mut ids: Vec<Id>) -> Vec<Id> {
    ids.sort();
    ids
}

/// A port at which connections are refused: bound, so that nobody else gets it, and not listened on.
pub(crate) fn refusing() -> (socket2::Socket, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}
