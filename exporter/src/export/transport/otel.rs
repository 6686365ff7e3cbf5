//! The same connections for opentelemetry-otlp's exporters, which send flowend's own metrics.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::ClientError;
use super::client::{AGENT, Connector, MAX_ANSWER, connector, failure, ping};
use super::headers::HeadersFile;
use super::own::OwnSockets;
use crate::config::Receiver;

/// A gRPC channel that connects when it is first used, and again when it broke. It sends no headers:
/// those are [`Headers`]'.
///
/// # Errors
/// As [`super::Client::new`].
pub fn channel(receiver: &Receiver, own: OwnSockets) -> Result<Channel, ClientError> {
    let wrong = || ClientError::Endpoint(receiver.endpoint.clone());
    let authority = receiver.endpoint.authority().ok_or_else(wrong)?;
    // tonic would secure an https:// endpoint itself; the connector has done that already.
    let plain = Uri::builder().scheme("http").authority(authority.as_str()).path_and_query("/");
    let endpoint = Endpoint::from(plain.build().map_err(|_| wrong())?)
        .origin(receiver.endpoint.clone())
        .timeout(receiver.timeout)
        .http2_keep_alive_interval(ping(receiver.timeout))
        .keep_alive_timeout(ping(receiver.timeout))
        .user_agent(AGENT)
        .map_err(|_| wrong())?;
    let connector = connector(receiver, own)?;
    Ok(endpoint.connect_with_connector_lazy(To { connector, endpoint: receiver.endpoint.clone() }))
}

/// Connects to its own endpoint, whatever it is asked for.
#[derive(Clone)]
struct To {
    connector: Connector,
    endpoint: Uri,
}

impl Service<Uri> for To {
    type Response = <Connector as Service<Uri>>::Response;
    type Error = <Connector as Service<Uri>>::Error;
    type Future = <Connector as Service<Uri>>::Future;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        self.connector.call(self.endpoint.clone())
    }
}

/// The configured headers, those of the file included.
#[derive(Clone, Debug)]
pub struct Headers {
    fixed: HeaderMap,
    file: Option<Arc<HeadersFile>>,
}

impl Headers {
    /// Of this receiver.
    pub fn new(receiver: &Receiver) -> Self {
        Self {
            fixed: receiver.headers.iter().cloned().collect(),
            file: receiver.headers_file.clone().map(HeadersFile::new).map(Arc::new),
        }
    }
}

/// On each gRPC request. They replace what opentelemetry-otlp reads from the environment by itself: the
/// layers of the configuration have decided already.
impl Interceptor for Headers {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        let mut headers = self.fixed.clone();
        if let Some(file) = &self.file {
            let further = file.headers_now().map_err(tonic::Status::unavailable)?;
            headers.extend(further.as_ref().clone());
        }
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        Ok(request)
    }
}

/// The HTTP client under opentelemetry-otlp.
#[derive(Debug)]
pub struct OwnHttpClient {
    client: legacy::Client<Connector, Full<Bytes>>,
    headers: Headers,
    timeout: std::time::Duration,
    /// Why the last request got no answer; opentelemetry-otlp keeps it to itself.
    pub last_error: Arc<Mutex<Option<String>>>,
}

impl OwnHttpClient {
    /// # Errors
    /// As [`super::Client::new`].
    pub fn new(receiver: &Receiver, own: OwnSockets) -> Result<Self, ClientError> {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
        Ok(Self {
            client: builder.build(connector(receiver, own)?),
            headers: Headers::new(receiver),
            timeout: receiver.timeout,
            last_error: Arc::default(),
        })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = request.map(Full::new);
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.extend(self.headers.fixed.clone());
        if let Some(file) = &self.headers.file {
            headers.extend(file.headers().await?.as_ref().clone());
        }
        let (parts, body) = self.client.request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }
}

#[async_trait]
impl HttpClient for OwnHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let result = match tokio::time::timeout(self.timeout, self.send(request)).await {
            Ok(result) => result,
            Err(_) => Err("no answer in time".into()),
        };
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        *last = result.as_ref().err().map(|error| failure(error.as_ref()));
        result
    }
}
