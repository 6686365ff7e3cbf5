//! Connections to the receivers: flowend's own, and known as such.
//!
//! flowend's own connections must never be reported: with a receiver that refuses, every retry would
//! end a connection, and so make a record to export. Each socket's cookie is therefore written down
//! before it connects. Cookies need no pid and no permission, so this works in any container.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hashlink::LruCache;
use http::{HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tower_service::Service;

use crate::config::Receiver;
use crate::errors::error_chain;

/// An answer of a receiver is a few bytes; more than this is not read.
const MAX_ANSWER: usize = 4 << 20;

/// Failed attempts whose ends are still to be seen; the end follows within milliseconds.
const MAX_FAILED: usize = 4096;

/// Connections that came about, and whose ends are still to be seen: never, where flowend itself is
/// outside of its targets.
const MAX_OPEN: usize = 65_536;

/// The cookies of flowend's own sockets. Bounded, and attempts that failed apart from connections that
/// are open: some never were a TCP connection, and none may push out one that lives.
#[derive(Clone, Debug, Default)]
pub struct OwnSockets(Arc<Mutex<Cookies>>);

#[derive(Debug)]
struct Cookies {
    open: LruCache<u64, ()>,
    failed: LruCache<u64, ()>,
}

impl Default for Cookies {
    fn default() -> Self {
        Self { open: LruCache::new(MAX_OPEN), failed: LruCache::new(MAX_FAILED) }
    }
}

impl OwnSockets {
    /// Before the socket connects.
    pub(crate) fn add(&self, cookie: u64) {
        self.lock().open.insert(cookie, ());
    }

    /// The socket did not connect.
    fn fail(&self, cookie: u64) {
        let mut cookies = self.lock();
        if cookies.open.remove(&cookie).is_some() {
            cookies.failed.insert(cookie, ());
        }
    }

    /// Whether this is an own socket; it stays known as one.
    pub fn contains(&self, cookie: u64) -> bool {
        let cookies = self.lock();
        cookies.open.contains_key(&cookie) || cookies.failed.contains_key(&cookie)
    }

    /// Whether this was an own socket; it has ended, and is forgotten.
    pub fn take(&self, cookie: u64) -> bool {
        let mut cookies = self.lock();
        cookies.open.remove(&cookie).is_some() || cookies.failed.remove(&cookie).is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cookies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens TCP connections whose cookies are written down.
#[derive(Clone, Debug)]
pub(super) struct OwnConnector {
    own: OwnSockets,
    timeout: Duration,
}

impl Service<Uri> for OwnConnector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { own, timeout } = self.clone();
        Box::pin(async move {
            tokio::time::timeout(timeout, connect(&uri, &own))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))?
                .map(TokioIo::new)
        })
    }
}

async fn connect(uri: &Uri, own: &OwnSockets) -> io::Result<TcpStream> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host((host, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let attempt = Attempt { own, cookie: socket2::SockRef::from(&socket).cookie()? };
        own.add(attempt.cookie);
        match socket.connect(address).await {
            Ok(stream) => {
                attempt.succeeded();
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A socket that has not connected yet. Dropped before it has, by an error or by the timeout, it counts
/// as failed.
struct Attempt<'a> {
    own: &'a OwnSockets,
    cookie: u64,
}

impl Attempt<'_> {
    fn succeeded(self) {
        std::mem::forget(self);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.own.fail(self.cookie);
    }
}

/// A gRPC channel that connects when it is first used, and again when it broke.
pub(super) fn channel(
    receiver: &Receiver,
    own: OwnSockets,
) -> Result<Channel, tonic::transport::Error> {
    let mut endpoint = Endpoint::from(receiver.endpoint.clone())
        .timeout(receiver.timeout)
        .user_agent(USER_AGENT)?;
    if receiver.endpoint.scheme_str() == Some("https") {
        endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots())?;
    }
    Ok(endpoint.connect_with_connector_lazy(OwnConnector { own, timeout: receiver.timeout }))
}

/// What the receiver is told about who sends.
const USER_AGENT: &str = concat!("flowend/", env!("CARGO_PKG_VERSION"));

/// The HTTP client under opentelemetry-otlp.
#[derive(Debug)]
pub(super) struct OwnHttpClient {
    client: Client<HttpsConnector<OwnConnector>, Full<Bytes>>,
    headers: Vec<(HeaderName, HeaderValue)>,
    timeout: Duration,
    /// Why the last request got no answer; opentelemetry-otlp keeps it to itself.
    pub(super) last_error: Arc<Mutex<Option<String>>>,
}

impl OwnHttpClient {
    pub(super) fn new(receiver: &Receiver, own: OwnSockets) -> io::Result<Self> {
        let connector = OwnConnector { own, timeout: receiver.timeout };
        // Reading the system's roots is only worth it where they are needed.
        let builder = hyper_rustls::HttpsConnectorBuilder::new();
        let https = if receiver.endpoint.scheme_str() == Some("https") {
            builder
                .with_native_roots()?
                .https_or_http()
                .enable_all_versions()
                .wrap_connector(connector)
        } else {
            let none = rustls_without_roots()?;
            builder
                .with_tls_config(none)
                .https_or_http()
                .enable_all_versions()
                .wrap_connector(connector)
        };
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(https),
            headers: receiver.headers.clone(),
            timeout: receiver.timeout,
            last_error: Arc::default(),
        })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        let own = request.headers_mut();
        own.insert(http::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        for (name, value) in &self.headers {
            own.insert(name.clone(), value.clone());
        }
        let (parts, body) = self.client.request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }
}

fn rustls_without_roots() -> io::Result<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth())
}

#[async_trait]
impl HttpClient for OwnHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(result) => result,
            Err(_) => Err("no answer in time".into()),
        };
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        *last = result.as_ref().err().map(|error| error_chain(error.as_ref()));
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sockets_are_known_until_they_end_and_failures_are_bounded() {
        let own = OwnSockets::default();
        own.add(1);
        for cookie in 10..10 + 2 * MAX_FAILED as u64 {
            own.add(cookie);
            own.fail(cookie);
        }
        let last = 9 + 2 * MAX_FAILED as u64;
        assert!(own.take(last), "a failed attempt is an own socket, too");
        assert!(!own.take(last), "and is forgotten when its end was seen");
        assert!(own.contains(1) && own.contains(1), "asking forgets nothing");
        assert!(own.take(1), "an open connection outlives any number of failures");
        assert!(!own.contains(1));
        let cookies = own.lock();
        assert_eq!((cookies.open.len(), cookies.failed.len()), (0, MAX_FAILED - 1));
    }
}
