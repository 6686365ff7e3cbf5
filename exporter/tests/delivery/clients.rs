//! Plain clients, which send one request and say what came back.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic_types::StatusExt as _;

use super::mode::Protocol;
use super::offer::{logs, spans};
use super::store::Signal;

/// What a client makes of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Taken, except so many.
    Success { rejected: i64 },
    /// HTTP: neither 200 with protobuf, nor without it.
    Status { status: u16, retry_after: Option<String> },
    /// HTTP: 200 with something else.
    NotOtlp { content_type: String },
    /// gRPC.
    Code { code: Code, retry_info: Option<Duration> },
    /// No answer.
    Broken(String),
}

pub(crate) enum Sender {
    Grpc(Channel),
    Http { client: Box<HttpClient>, endpoint: String },
}

type HttpClient = Client<
    hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>,
    Full<Bytes>,
>;

impl Sender {
    /// Connects with the first request, and again when it must.
    pub(crate) fn new(protocol: Protocol, endpoint: &str, ca_pem: Option<&str>) -> Self {
        match protocol {
            Protocol::Grpc => {
                let mut channel = Channel::from_shared(endpoint.to_owned()).unwrap();
                if let Some(pem) = ca_pem {
                    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                    channel = channel.tls_config(tls).unwrap();
                }
                Self::Grpc(channel.connect_lazy())
            }
            Protocol::Http => {
                let mut roots = rustls::RootCertStore::empty();
                if let Some(pem) = ca_pem {
                    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
                }
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let tls = rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
                let connector = connector.https_or_http().enable_http1().build();
                let client = Client::builder(TokioExecutor::new()).build(connector);
                Self::Http { client: Box::new(client), endpoint: endpoint.to_owned() }
            }
        }
    }

    /// Sends the records with these numbers in one request.
    pub(crate) async fn send(&self, signal: Signal, numbers: Range<u64>) -> Outcome {
        self.send_compressed(signal, numbers, None).await
    }

    pub(crate) async fn send_compressed(
        &self,
        signal: Signal,
        numbers: Range<u64>,
        coding: Option<CompressionEncoding>,
    ) -> Outcome {
        match self {
            Self::Grpc(channel) => send_grpc(channel.clone(), signal, numbers, coding).await,
            Self::Http { client, endpoint } => {
                send_http(client, endpoint, signal, numbers, coding).await
            }
        }
    }
}

async fn send_grpc(
    channel: Channel,
    signal: Signal,
    numbers: Range<u64>,
    coding: Option<CompressionEncoding>,
) -> Outcome {
    let answer = match signal {
        Signal::Logs => {
            let mut client = LogsServiceClient::new(channel);
            if let Some(coding) = coding {
                client = client.send_compressed(coding);
            }
            let answer = client.export(logs(numbers)).await;
            answer.map(|it| rejected_logs(&it.into_inner()))
        }
        Signal::Traces => {
            let mut client = TraceServiceClient::new(channel);
            if let Some(coding) = coding {
                client = client.send_compressed(coding);
            }
            let answer = client.export(spans(numbers)).await;
            answer.map(|it| rejected_spans(&it.into_inner()))
        }
    };
    match answer {
        Ok(rejected) => Outcome::Success { rejected },
        // tonic makes one of everything; what broke has a cause of its own.
        Err(status) => match std::error::Error::source(&status) {
            Some(_) => Outcome::Broken(format!("{status:?}")),
            None => {
                let retry_info = status.get_details_retry_info().and_then(|info| info.retry_delay);
                Outcome::Code { code: status.code(), retry_info }
            }
        },
    }
}

async fn send_http(
    client: &HttpClient,
    endpoint: &str,
    signal: Signal,
    numbers: Range<u64>,
    coding: Option<CompressionEncoding>,
) -> Outcome {
    let (path, body) = match signal {
        Signal::Logs => ("/v1/logs", logs(numbers).encode_to_vec()),
        Signal::Traces => ("/v1/traces", spans(numbers).encode_to_vec()),
    };
    let mut request = Request::post(format!("{endpoint}{path}"))
        .version(Version::HTTP_11)
        .header(CONTENT_TYPE, "application/x-protobuf");
    let body = match coding {
        Some(CompressionEncoding::Gzip) => {
            request = request.header(CONTENT_ENCODING, "gzip");
            let mut gzip = flate2::read::GzEncoder::new(&*body, flate2::Compression::fast());
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut gzip, &mut bytes).unwrap();
            bytes
        }
        Some(_) => {
            request = request.header(CONTENT_ENCODING, "zstd");
            zstd::stream::encode_all(&*body, 1).unwrap()
        }
        None => body,
    };
    let request = request.body(Full::from(body)).unwrap();
    let answer = match client.request(request).await {
        Ok(answer) => answer,
        Err(error) => return Outcome::Broken(format!("{error:?}")),
    };
    let header = |name| {
        let value = answer.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let (status, content_type) = (answer.status().as_u16(), header(CONTENT_TYPE));
    let retry_after = header(RETRY_AFTER);
    let body = match answer.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Outcome::Broken(format!("{error:?}")),
    };
    match (status, content_type.as_deref(), signal) {
        (200, Some("application/x-protobuf"), Signal::Logs) => {
            Outcome::Success { rejected: rejected_logs(&prost::Message::decode(body).unwrap()) }
        }
        (200, Some("application/x-protobuf"), Signal::Traces) => {
            Outcome::Success { rejected: rejected_spans(&prost::Message::decode(body).unwrap()) }
        }
        (200, other, _) => Outcome::NotOtlp { content_type: other.unwrap_or_default().into() },
        _ => Outcome::Status { status, retry_after },
    }
}

fn rejected_logs(answer: &ExportLogsServiceResponse) -> i64 {
    answer.partial_success.as_ref().map_or(0, |partial| partial.rejected_log_records)
}

fn rejected_spans(answer: &ExportTraceServiceResponse) -> i64 {
    answer.partial_success.as_ref().map_or(0, |partial| partial.rejected_spans)
}
