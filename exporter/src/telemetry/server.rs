//! The HTTP server of `telemetry.listen`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{CONTENT_TYPE, Metric, encode};
use crate::export::OwnSockets;

/// Scrapes at the same time, at most: further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 8;

/// The longest that one may take, so that an idle client does not keep the others out.
const PATIENCE: Duration = Duration::from_secs(10);

/// A task that does not answer within this time is not alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);

/// What the task that owns the data path is asked. Whoever asked may be gone when it answers.
#[derive(Debug)]
pub enum Question {
    /// The counts of this moment.
    Metrics(oneshot::Sender<Vec<Metric>>),
    /// Are you there?
    Alive(oneshot::Sender<()>),
    /// What is in the way of being ready, a line for each reason.
    Ready(oneshot::Sender<Vec<String>>),
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct Telemetry {
    questions: mpsc::Receiver<Question>,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Telemetry {
    /// Listens. Connections to it are flowend's own, and are not reported.
    ///
    /// # Errors
    /// As bind(); within a Tokio runtime only.
    pub fn listen(address: SocketAddr, own: OwnSockets) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let (asks, questions) = mpsc::channel(MAX_CONNECTIONS);
        let task = tokio::spawn(accept(listener, asks, own));
        Ok(Self { questions, address, task })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next question, to be answered. Cancel safe.
    pub async fn next(&mut self) -> Option<Question> {
        self.questions.recv().await
    }

    /// No question is taken any more: whoever asks learns that flowend is stopping.
    pub fn stop(&mut self) {
        self.questions.close();
        while self.questions.try_recv().is_ok() {}
    }
}

async fn accept(listener: TcpListener, asks: mpsc::Sender<Question>, own: OwnSockets) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Ok(cookie) = socket2::SockRef::from(&stream).cookie() {
                    own.add(cookie);
                }
                let asks = asks.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(PATIENCE, serve(stream, asks)).await;
                    drop(place);
                });
            }
            // No descriptor left, or a client that left at once: others may follow.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: TcpStream, asks: mpsc::Sender<Question>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let asks = asks.clone();
        async move { Ok::<_, Infallible>(answer(&request, &asks).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        // One scrape each, so that an open connection holds no place.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(
    request: &Request<Incoming>,
    asks: &mpsc::Sender<Question>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !["/metrics", "/livez", "/readyz"].contains(&path) {
        let words = "the metrics are at /metrics, flowend's health at /livez and /readyz\n";
        return text(StatusCode::NOT_FOUND, words.into());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET\n".into());
    }
    match path {
        "/metrics" => ask(asks, Question::Metrics).await.map_or_else(stopping, metrics),
        "/livez" => in_time(ask(asks, Question::Alive)).await.map_or_else(hanging, |answer| {
            answer.map_or_else(stopping, |()| text(StatusCode::OK, "alive\n".into()))
        }),
        _ => in_time(ask(asks, Question::Ready))
            .await
            .map_or_else(hanging, |answer| answer.map_or_else(stopping, |reasons| ready(&reasons))),
    }
}

/// `None` where nobody takes questions any more.
async fn ask<T>(
    asks: &mpsc::Sender<Question>,
    question: fn(oneshot::Sender<T>) -> Question,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    asks.send(question(reply)).await.ok()?;
    answer.await.ok()
}

async fn in_time<T>(answer: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(ALIVE_WITHIN, answer).await.ok()
}

fn metrics(metrics: Vec<Metric>) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, encode(metrics));
    let content_type = header::HeaderValue::from_static(CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn ready(reasons: &[String]) -> Response<Full<Bytes>> {
    if reasons.is_empty() {
        return text(StatusCode::OK, "ready\n".into());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}

fn stopping() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "flowend is stopping\n".into())
}

fn hanging() -> Response<Full<Bytes>> {
    let words = format!("the data path has not answered for {} s\n", ALIVE_WITHIN.as_secs());
    text(StatusCode::SERVICE_UNAVAILABLE, words)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn send(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn each_scrape_gets_the_counts_of_its_moment() {
        let own = OwnSockets::default();
        let mut telemetry = Telemetry::listen("127.0.0.1:0".parse().unwrap(), own.clone()).unwrap();
        let address = telemetry.address();
        let counting = tokio::spawn(async move {
            let mut moment = 0;
            while let Some(Question::Metrics(scrape)) = telemetry.next().await {
                moment += 1;
                let metric = Metric::gauge("flowend.moment", "Moment").with([], moment);
                scrape.send(vec![metric]).unwrap();
            }
        });
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        for moment in 1..=20 {
            let answer = send(address, &get("/metrics")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains(CONTENT_TYPE), "{answer}");
            assert!(answer.ends_with(&format!("\nflowend_moment {moment}\n# EOF\n")), "{answer}");
        }
        assert!(send(address, &get("/")).await.starts_with("HTTP/1.1 404"));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        assert!(send(address, post).await.starts_with("HTTP/1.1 405"));
        counting.abort();
        let _ = counting.await;
    }

    #[tokio::test]
    async fn health_is_what_the_data_path_says_in_time() {
        tokio::time::pause();
        let mut telemetry =
            Telemetry::listen("127.0.0.1:0".parse().unwrap(), OwnSockets::default()).unwrap();
        let address = telemetry.address();
        let get = |path: &str| {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            tokio::spawn(async move { send(address, &request).await })
        };
        let check = |answer: &str, status: &str, body: &str| {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}\n")), "{answer}");
        };

        let answer = get("/livez");
        let Some(Question::Alive(reply)) = telemetry.next().await else { panic!("another") };
        reply.send(()).unwrap();
        check(&answer.await.unwrap(), "200", "alive");

        for (reasons, status, body) in
            [(vec![], "200", "ready"), (vec!["one".into(), "two".into()], "503", "one\ntwo")]
        {
            let answer = get("/readyz");
            let Some(Question::Ready(reply)) = telemetry.next().await else { panic!("another") };
            reply.send(reasons).unwrap();
            check(&answer.await.unwrap(), status, body);
        }

        // Nobody takes the question.
        for path in ["/livez", "/readyz"] {
            let answer = get(path).await.unwrap();
            check(&answer, "503", "the data path has not answered for 2 s");
        }
        // Nor is it answered when it comes to an end.
        let answer = get("/metrics");
        tokio::task::yield_now().await;
        telemetry.stop();
        check(&answer.await.unwrap(), "503", "flowend is stopping");
        for path in ["/livez", "/readyz", "/metrics"] {
            check(&get(path).await.unwrap(), "503", "flowend is stopping");
        }
    }

    #[tokio::test]
    async fn idle_clients_do_not_keep_a_scrape_out() {
        tokio::time::pause();
        let mut telemetry =
            Telemetry::listen("127.0.0.1:0".parse().unwrap(), OwnSockets::default()).unwrap();
        let address = telemetry.address();
        let mut idle = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let counting = tokio::spawn(async move {
            let Some(Question::Metrics(scrape)) = telemetry.next().await else {
                panic!("no scrape")
            };
            scrape.send(vec![Metric::gauge("flowend.moment", "Moment").with([], 1)]).unwrap();
        });
        let answer = send(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.contains("flowend_moment 1"), "{answer}");
        counting.await.unwrap();
    }
}
