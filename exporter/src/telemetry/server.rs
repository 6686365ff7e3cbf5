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

/// Asks for the counts of this moment.
pub type Scrape = oneshot::Sender<Vec<Metric>>;

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct Telemetry {
    scrapes: mpsc::Receiver<Scrape>,
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
        let (asks, scrapes) = mpsc::channel(MAX_CONNECTIONS);
        let task = tokio::spawn(accept(listener, asks, own));
        Ok(Self { scrapes, address, task })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next scrape, to be answered. Cancel safe.
    pub async fn next(&mut self) -> Option<Scrape> {
        self.scrapes.recv().await
    }
}

async fn accept(listener: TcpListener, asks: mpsc::Sender<Scrape>, own: OwnSockets) {
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

async fn serve(stream: TcpStream, asks: mpsc::Sender<Scrape>) -> Result<(), hyper::Error> {
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

async fn answer(request: &Request<Incoming>, asks: &mpsc::Sender<Scrape>) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return text(StatusCode::NOT_FOUND, "the metrics are at /metrics\n".into());
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET\n".into());
    }
    let (reply, counts) = oneshot::channel();
    if asks.send(reply).await.is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "flowend is stopping\n".into());
    }
    match counts.await {
        Ok(metrics) => {
            let mut response = text(StatusCode::OK, encode(metrics));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
            response
        }
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "flowend is stopping\n".into()),
    }
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

    async fn ask(address: SocketAddr, request: &str) -> String {
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
            while let Some(scrape) = telemetry.next().await {
                moment += 1;
                let metric = Metric::gauge("flowend_moment", "Moment").with([], moment);
                scrape.send(vec![metric]).unwrap();
            }
        });
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        for moment in 1..=20 {
            let answer = ask(address, &get("/metrics")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains(CONTENT_TYPE), "{answer}");
            assert!(answer.ends_with(&format!("\nflowend_moment {moment}\n# EOF\n")), "{answer}");
        }
        assert!(ask(address, &get("/")).await.starts_with("HTTP/1.1 404"));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
        counting.abort();
        let _ = counting.await;
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
            let scrape = telemetry.next().await.unwrap();
            scrape.send(vec![Metric::gauge("flowend_moment", "Moment").with([], 1)]).unwrap();
        });
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.contains("flowend_moment 1"), "{answer}");
        counting.await.unwrap();
    }
}
