//! One request and its answer, in both protocols, by hand: what no server library would answer is wanted.
//!
//! gRPC: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>. HTTP: the OTLP specification,
//! section "OTLP/HTTP".

use std::convert::Infallible;
use std::io::Read as _;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::injector::Line;
use super::mode::{Mode, Protocol};
use super::store::{Decoded, Signal, Store};

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// `None`: the connection is to be cut.
pub(crate) async fn answer(
    protocol: Protocol,
    request: Request<Incoming>,
    store: &Store,
    line: &Line,
) -> Option<Answer> {
    let mode = store.begin();
    match mode {
        Mode::CutBefore | Mode::Refused | Mode::BlackHole | Mode::ExpiredCertificate => {
            return None;
        }
        _ => {}
    }
    let (head, body) = request.into_parts();
    let signal = match head.uri.path() {
        "/v1/logs" | "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => Signal::Logs,
        "/v1/traces" | "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => {
            Signal::Traces
        }
        _ => return Some(refusal(protocol, StatusCode::NOT_FOUND, Code::Unimplemented)),
    };
    // A client that is gone gets no answer.
    let body = body.collect().await.ok()?.to_bytes();
    match mode {
        Mode::Lie => return Some(page()),
        Mode::Status { status, retry_after } => {
            let mut answer = plain(StatusCode::from_u16(status).unwrap(), Bytes::new());
            if let Some(after) = retry_after {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
            }
            return Some(answer);
        }
        Mode::Code { code, retry_info } => return Some(status(code, retry_info)),
        _ => {}
    }
    let message = match protocol {
        Protocol::Grpc => of_grpc(&head.headers, &body),
        Protocol::Http => of_http(&head.headers, &body),
    };
    let Some(message) = message else {
        return Some(refusal(protocol, StatusCode::BAD_REQUEST, Code::InvalidArgument));
    };
    if let Mode::LargerThan(bytes) = mode
        && message.len() > bytes
    {
        // Only its words tell it from the other kind: these are grpc-go's, and so the collector's.
        let words =
            format!("grpc: received message larger than max ({} vs. {bytes})", message.len());
        return Some(match protocol {
            Protocol::Grpc => bare(&Status::new(Code::ResourceExhausted, words)),
            Protocol::Http => plain(StatusCode::PAYLOAD_TOO_LARGE, Bytes::new()),
        });
    }
    let decoded = match signal {
        Signal::Logs => prost::Message::decode(&*message).map(Decoded::Logs),
        Signal::Traces => prost::Message::decode(&*message).map(Decoded::Traces),
    };
    let Ok(decoded) = decoded else {
        return Some(refusal(protocol, StatusCode::BAD_REQUEST, Code::InvalidArgument));
    };
    let keys = decoded.keys();
    let reject = if let Mode::Rejecting(n) = mode { n.min(keys.len()) } else { 0 };
    let taken = store.take(keys, reject);
    match mode {
        Mode::CutAfter => return None,
        Mode::Slow(pause) => tokio::time::sleep(pause).await,
        _ => {}
    }
    if line.is_cut() {
        return None;
    }
    // From here on nothing is waited for: the answer goes out.
    store.acknowledge(taken);
    let message = success(signal, reject as i64);
    Some(match protocol {
        Protocol::Grpc => grpc(&message),
        Protocol::Http => {
            let mut answer = plain(StatusCode::OK, message.into());
            let kind = HeaderValue::from_static("application/x-protobuf");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
    })
}

fn success(signal: Signal, rejected: i64) -> Vec<u8> {
    let error_message = "rejected by the injector".to_owned();
    match signal {
        Signal::Logs => {
            let partial =
                ExportLogsPartialSuccess { rejected_log_records: rejected, error_message };
            let partial_success = (rejected > 0).then_some(partial);
            ExportLogsServiceResponse { partial_success }.encode_to_vec()
        }
        Signal::Traces => {
            let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message };
            let partial_success = (rejected > 0).then_some(partial);
            ExportTraceServiceResponse { partial_success }.encode_to_vec()
        }
    }
}

/// The one message of a unary call: a byte that says whether it is compressed, its length, itself.
fn of_grpc(headers: &HeaderMap, body: &[u8]) -> Option<Vec<u8>> {
    let (head, message) = body.split_first_chunk::<5>()?;
    let [is_compressed, length @ ..] = *head;
    if u32::from_be_bytes(length) as usize != message.len() {
        return None;
    }
    let coding = if is_compressed == 1 { headers.get("grpc-encoding")?.to_str().ok()? } else { "" };
    decompress(coding, message)
}

fn of_http(headers: &HeaderMap, body: &[u8]) -> Option<Vec<u8>> {
    if headers.get(CONTENT_TYPE)? != "application/x-protobuf" {
        return None;
    }
    let coding = headers.get("content-encoding").map_or(Ok(""), |value| value.to_str()).ok()?;
    decompress(coding, body)
}

fn decompress(coding: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    match coding {
        "" | "identity" => plain.extend(bytes),
        "gzip" => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).ok()?),
        "zstd" => plain = zstd::stream::decode_all(bytes).ok()?,
        _ => return None,
    }
    Some(plain)
}

fn plain(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).boxed());
    *answer.status_mut() = status;
    answer
}

fn refusal(protocol: Protocol, http: StatusCode, grpc: Code) -> Answer {
    match protocol {
        Protocol::Grpc => status(grpc, None),
        Protocol::Http => plain(http, Bytes::new()),
    }
}

fn status(code: Code, retry_info: Option<Duration>) -> Answer {
    let status = match retry_info {
        Some(_) => {
            let details = ErrorDetails::with_retry_info(retry_info);
            Status::with_error_details(code, "injected", details)
        }
        None => Status::new(code, "injected"),
    };
    bare(&status)
}

/// Only a head: the status stands in it.
fn bare(status: &Status) -> Answer {
    status.clone().into_http::<()>().map(|()| Full::default().boxed())
}

fn grpc(message: &[u8]) -> Answer {
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::from(body).with_trailers(async { Some(Ok(trailers)) });
    let mut answer = Response::new(body.boxed());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

fn page() -> Answer {
    let mut answer = plain(StatusCode::OK, "<html><body>Please log in</body></html>".into());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    answer
}
