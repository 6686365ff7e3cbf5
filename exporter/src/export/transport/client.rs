//! One request body to one receiver, and its answer.

use std::error::Error;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::buf::Chain;
use bytes::{Buf as _, Bytes};
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Collected, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::answer::{Answer, words};
use super::headers::HeadersFile;
use super::own::{OwnConnector, OwnSockets};
use super::{ClientError, compress, grpc, http as otlp_http, tls};
use crate::config::{Compression, Protocol, Receiver};
use crate::errors::error_chain;
use crate::export::Signal;

/// An answer is a few bytes; more than this is not read.
pub(super) const MAX_ANSWER: usize = 4 << 20;

/// What the receiver is told about who sends.
pub(super) const AGENT: &str = concat!("flowend/", env!("CARGO_PKG_VERSION"));

/// Larger bodies are compressed on a thread of their own kind, so that others are not kept waiting.
const COMPRESS_INLINE: usize = 16 << 10;

/// HTTP/1 connections kept open for further requests, and how long: less than servers keep them.
const MAX_IDLE: usize = 16;
const IDLE: Duration = Duration::from_secs(30);

/// The least time between two HTTP/2 pings: servers take more for an attack.
const MIN_PING: Duration = Duration::from_secs(10);

/// Over TCP or TLS, each socket written down.
pub(super) type Connector = HttpsConnector<OwnConnector>;

/// gRPC's prefix, if any, and the body, without a copy.
type RequestBody = Full<Chain<Bytes, Bytes>>;

type HttpClient = legacy::Client<Connector, RequestBody>;

/// Sends request bodies of one signal to one receiver. Clones share their connections: with gRPC, and
/// where HTTP/2 was agreed on, one that all requests go through at once; with HTTP/1 one for each.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    signal: Signal,
    protocol: Protocol,
    compression: Option<Compression>,
    timeout: Duration,
    uri: Uri,
    /// Those that say what the body is, which nobody can overrule, and the user's.
    headers: HeaderMap,
    headers_file: Option<HeadersFile>,
    connector: Connector,
    connections: Mutex<Connections>,
}

/// The open connections; with each request that got no answer a new generation.
#[derive(Clone, Debug)]
struct Connections {
    generation: u64,
    http: HttpClient,
}

impl Client {
    /// Reads the files for TLS; connects to nobody yet.
    ///
    /// # Errors
    /// A file that cannot be used: its key, its name and the remedy.
    pub fn new(signal: Signal, receiver: &Receiver, own: OwnSockets) -> Result<Self, ClientError> {
        let is_grpc = receiver.protocol == Protocol::Grpc;
        let (uri, mut headers) = if is_grpc {
            let uri = grpc::uri(&receiver.endpoint, signal)
                .map_err(|_| ClientError::Endpoint(receiver.endpoint.clone()))?;
            (uri, grpc::headers(receiver))
        } else {
            (receiver.endpoint.clone(), otlp_http::headers(receiver))
        };
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        // As a map, which replaces; pairs would be added.
        headers.extend(receiver.headers.iter().cloned().collect::<HeaderMap>());
        let connector = connector(receiver, own)?;
        let http = http_client(is_grpc, receiver.timeout, connector.clone());
        Ok(Self(Arc::new(Inner {
            signal,
            protocol: receiver.protocol,
            compression: receiver.compression,
            timeout: receiver.timeout,
            uri,
            headers,
            headers_file: receiver.headers_file.clone().map(HeadersFile::new),
            connector,
            connections: Mutex::new(Connections { generation: 0, http }),
        })))
    }

    /// Sends an uncompressed Export*ServiceRequest, once, and says what became of it. Any number of
    /// requests may be on their way at once; each takes the receiver's timeout at most. Dropped before it
    /// is ready, it is unknown whether the receiver has the request.
    pub async fn send(&self, body: Bytes) -> Answer {
        self.send_unless(body, std::future::pending()).await
    }

    /// As [`Self::send`]; but once `hopeless` is ready, a request that has no connection does not wait for one
    /// any more.
    pub async fn send_unless(&self, body: Bytes, hopeless: impl Future<Output = ()>) -> Answer {
        let Connections { generation, http } = self.0.connections().clone();
        let mut connection = None;
        let exchange = self.0.exchange(&http, body, hopeless, &mut connection);
        match timeout(self.0.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                self.0.abandon(generation);
                let why = format!("no answer within {:?}", self.0.timeout);
                match connection {
                    Some(connection) if !is_made(&connection) => Answer::Unreached { why },
                    _ => Answer::again(why),
                }
            }
        }
    }
}

impl Inner {
    fn connections(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever does not answer may have lost the connection: the next request opens a new one. Requests
    /// that are on their way keep the old one.
    fn abandon(&self, generation: u64) {
        let mut connections = self.connections();
        if connections.generation == generation {
            let is_grpc = self.protocol == Protocol::Grpc;
            let http = http_client(is_grpc, self.timeout, self.connector.clone());
            *connections = Connections { generation: generation + 1, http };
        }
    }

    async fn exchange(
        &self,
        http: &HttpClient,
        body: Bytes,
        hopeless: impl Future<Output = ()>,
        connection: &mut Option<CaptureConnection>,
    ) -> Answer {
        let mut request = match self.request(body).await {
            Ok(request) => request,
            Err(why) => return Answer::again(why),
        };
        let connection = connection.insert(capture_connection(&mut request));
        let answer = async {
            match http.request(request).await {
                Ok(response) => self.interpret(response).await,
                // Its own connection, or that of another request which it waited for.
                Err(error) if error.is_connect() => Answer::Unreached { why: failure(&error) },
                Err(error) => Answer::again(failure(&error)),
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = unconnected(hopeless, connection) => {
                Answer::Unreached { why: "no connection to it in time".into() }
            }
        }
    }

    async fn request(&self, body: Bytes) -> Result<Request<RequestBody>, String> {
        let mut headers = self.headers.clone();
        if let Some(file) = &self.headers_file {
            headers.extend(file.headers().await?.as_ref().clone());
        }
        let body = self.compress(body).await.map_err(|error| format!("compression: {error}"))?;
        let prefix = match self.protocol {
            Protocol::Http => Bytes::new(),
            Protocol::Grpc => grpc::prefix(&body, self.compression.is_some())
                .ok_or("the request is larger than gRPC can tell")?,
        };
        let mut request = Request::new(Full::new(prefix.chain(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn compress(&self, body: Bytes) -> std::io::Result<Bytes> {
        let compression = self.compression;
        if compression.is_none() || body.len() <= COMPRESS_INLINE {
            return compress::compress(body, compression);
        }
        tokio::task::spawn_blocking(move || compress::compress(body, compression)).await?
    }

    async fn interpret(&self, response: Response<Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        let (status, headers) = (head.status, head.headers);
        let is_grpc = self.protocol == Protocol::Grpc;
        let (body, trailers) = match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(collected) => {
                let trailers = collected.trailers().cloned();
                (Collected::to_bytes(collected), trailers)
            }
            // What went wrong is known without the words.
            Err(_) if !status.is_success() => (Bytes::new(), None),
            Err(_) if is_grpc && headers.contains_key("grpc-status") => (Bytes::new(), None),
            Err(error) if error.is::<LengthLimitError>() => {
                return Answer::again(format!(
                    "HTTP {status}, but its body is larger than {MAX_ANSWER} bytes, which no OTLP answer is; \
                     is there another server at the endpoint?"
                ));
            }
            Err(error) => {
                return Answer::again(format!("the answer was cut: {}", failure(error.as_ref())));
            }
        };
        if is_grpc {
            grpc::interpret(self.signal, status, &headers, body, trailers.as_ref())
        } else {
            otlp_http::interpret(self.signal, status, &headers, body, SystemTime::now())
        }
    }
}

/// Ready once there is no hope, where the request has no connection by then.
async fn unconnected(hopeless: impl Future<Output = ()>, connection: &CaptureConnection) {
    hopeless.await;
    if is_made(connection) {
        std::future::pending::<()>().await;
    }
}

/// Whether a request has a connection, secured where it must be.
fn is_made(connection: &CaptureConnection) -> bool {
    connection.connection_metadata().is_some()
}

/// Why there was no answer, with what to do about it where that is known.
pub(super) fn failure(error: &(dyn Error + 'static)) -> String {
    let why = words(&error_chain(error));
    match tls::remedy(error) {
        Some(remedy) => format!("{why} ({remedy})"),
        None => why,
    }
}

/// Connections to a receiver, secured where its endpoint says so.
pub(super) fn connector(receiver: &Receiver, own: OwnSockets) -> Result<Connector, ClientError> {
    let config =
        if receiver.is_secure() { tls::client_config(&receiver.tls)? } else { tls::none()? };
    // Connecting leaves some time for the request; and its own error says more than that time is up.
    let tcp = OwnConnector { own, timeout: receiver.timeout.mul_f64(0.75) };
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
    Ok(match receiver.protocol {
        Protocol::Grpc => builder.enable_http2().wrap_connector(tcp),
        Protocol::Http => builder.enable_all_versions().wrap_connector(tcp),
    })
}

/// The time between two HTTP/2 pings, and how long to wait for the answer to one: a dead connection is
/// noticed before a request's time is up. grpc-go's servers take a third ping without an answer of
/// their own in between for an attack (keepalive.EnforcementPolicy); more than two do not fit in here.
pub(super) fn ping(timeout: Duration) -> Duration {
    (timeout / 3).max(MIN_PING)
}

fn http_client(is_grpc: bool, timeout: Duration, connector: Connector) -> HttpClient {
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .http2_only(is_grpc)
        .http2_keep_alive_interval(ping(timeout))
        .http2_keep_alive_timeout(ping(timeout))
        .build(connector)
}
