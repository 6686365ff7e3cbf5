//! OTLP/gRPC: one unary call as HTTP/2, and what its answer means.
//!
//! The call is a message with a 5-byte prefix (gRPC over HTTP2, "Length-Prefixed-Message"). It is framed
//! here, around a body that is encoded and compressed already, so that nothing is copied; and the status
//! is read here, since a status of the server has to be told from one that only a library made up.

use base64::Engine as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use prost::Message as _;
use tonic::Code;
use tonic_types::{RpcStatusExt as _, pb};

use super::answer::{Answer, MAX_AFTER, acknowledged, with_words};
use super::client::MAX_ANSWER;
use super::compress::decompress;
use super::http::status_words;
use crate::config::{Compression, Receiver};
use crate::export::Signal;

/// The prefix of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Where a signal's requests go. A path of the endpoint does not count for gRPC.
pub(super) fn uri(endpoint: &Uri, signal: Signal) -> Result<Uri, http::uri::InvalidUriParts> {
    let mut parts = endpoint.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(match signal {
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    }));
    Uri::from_parts(parts)
}

/// The headers of each call.
pub(super) fn headers(receiver: &Receiver) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    // In ms, of at most eight digits (gRPC over HTTP2, "TimeoutValue").
    let ms = receiver.timeout.as_millis().clamp(1, 99_999_999) as u64;
    let mut timeout = HeaderValue::from(ms).as_bytes().to_vec();
    timeout.push(b'm');
    if let Ok(timeout) = HeaderValue::from_bytes(&timeout) {
        headers.insert("grpc-timeout", timeout);
    }
    if let Some(compression) = receiver.compression {
        let name = match compression {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        headers.insert("grpc-encoding", HeaderValue::from_static(name));
    }
    headers
}

/// What stands before a body in the request.
pub(super) fn prefix(body: &Bytes, is_compressed: bool) -> Option<Bytes> {
    let mut prefix = BytesMut::with_capacity(PREFIX);
    prefix.put_u8(u8::from(is_compressed));
    prefix.put_u32(u32::try_from(body.len()).ok()?);
    Some(prefix.freeze())
}

/// What an answer means. A call that failed has its status in the headers; else it is in the trailers.
pub(super) fn interpret(
    signal: Signal,
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    trailers: Option<&HeaderMap>,
) -> Answer {
    let said = trailers.and_then(Said::of).or_else(|| Said::of(headers));
    match said {
        Some(said) if said.code == Code::Ok => match message(&body, headers) {
            Some(message) => acknowledged(signal, message).unwrap_or_else(|| {
                Answer::again(
                    "gRPC OK, but its message is no OTLP answer; is this an OTLP receiver?",
                )
            }),
            None => Answer::again("gRPC OK, but without a whole message that can be read"),
        },
        Some(said) => said.interpret(),
        None => no_status(status, headers),
    }
}

/// The one message of a body. It may be compressed though nothing was offered in grpc-accept-encoding: grpc-go
/// answers in the encoding of the request.
fn message(body: &Bytes, headers: &HeaderMap) -> Option<Bytes> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if message.len() != length as usize {
        return None;
    }
    match prefix[0] {
        0 => Some(body.slice(PREFIX..)),
        1 => decompress(message, headers.get("grpc-encoding")?.as_bytes(), MAX_ANSWER),
        _ => None,
    }
}

/// An answer that no gRPC server gave: a proxy, or a server of something else. Its HTTP status stands for
/// a gRPC code (gRPC, "HTTP to gRPC Status Code Mapping"): those that mean UNAVAILABLE may be tried again.
fn no_status(status: StatusCode, headers: &HeaderMap) -> Answer {
    let why = format!("HTTP {} without a gRPC status", status_words(status));
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = super::http::retry_after(headers, std::time::SystemTime::now());
            Answer::Again { after, why }
        }
        StatusCode::PAYLOAD_TOO_LARGE => Answer::TooLarge { why },
        // The call was cut short, or something in between answered: nothing is known of the request.
        StatusCode::OK => {
            Answer::again(format!("{why}; is this an OTLP/gRPC receiver, or `protocol` wrong?"))
        }
        _ => Answer::Refused { why: format!("{why}; is this an OTLP/gRPC receiver?") },
    }
}

/// A status that the server gave.
struct Said {
    code: Code,
    message: String,
    details: Option<pb::Status>,
}

impl Said {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok());
        let message = headers.get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
        Some(Self {
            code: code.map_or(Code::Unknown, Code::from_i32),
            message: percent_encoding::percent_decode(message).decode_utf8_lossy().into_owned(),
            details: headers.get("grpc-status-details-bin").and_then(details),
        })
    }

    /// OTLP specification, "OTLP/gRPC Response": which codes may be tried again.
    fn interpret(&self) -> Answer {
        let why = with_words(format!("gRPC {}", name(self.code)), &self.message);
        if self.is_too_large() {
            return Answer::TooLarge { why };
        }
        let retry = self.details.as_ref().and_then(pb::Status::get_details_retry_info);
        let after = retry
            .as_ref()
            .and_then(|info| info.retry_delay)
            .filter(|delay| !delay.is_zero())
            .map(|delay| delay.min(MAX_AFTER));
        match self.code {
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => Answer::Again { after, why },
            // Only a server that tells when to come back will have recovered by then.
            Code::ResourceExhausted if retry.is_some() => Answer::Again { after, why },
            _ => Answer::Refused { why },
        }
    }

    /// A message that is too large has no code of its own: grpc-go, C++ and Java answer
    /// RESOURCE_EXHAUSTED, tonic OUT_OF_RANGE, and only their words tell.
    fn is_too_large(&self) -> bool {
        const WORDS: [&str; 4] =
            ["larger than max", "length too large", "exceeds maximum size", "exceeds the maximum"];
        let said = self.message.to_ascii_lowercase();
        matches!(self.code, Code::ResourceExhausted | Code::OutOfRange)
            && said.contains("message")
            && WORDS.iter().any(|words| said.contains(words))
    }
}

/// google.rpc.Status in base64, with or without padding.
fn details(header: &HeaderValue) -> Option<pb::Status> {
    const BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    pb::Status::decode(BASE64.decode(header.as_bytes()).ok()?.as_slice()).ok()
}

/// As the specification of gRPC spells it.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceResponse,
    };

    use super::super::compress::compress;
    use super::*;

    /// An answer of gRPC OK with this message, which says that it is compressed in this way.
    fn answered(message: &Bytes, flag: u8, encoding: Option<&'static str>) -> Answer {
        let mut body = BytesMut::from(&[flag][..]);
        body.put_u32(message.len() as u32);
        body.extend_from_slice(message);
        let mut headers = HeaderMap::new();
        if let Some(encoding) = encoding {
            headers.insert("grpc-encoding", HeaderValue::from_static(encoding));
        }
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        interpret(Signal::Logs, StatusCode::OK, &headers, body.freeze(), Some(&trailers))
    }

    #[test]
    fn an_answer_may_come_compressed_and_is_read_within_bounds() {
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, ..Default::default() };
        let plain: Bytes =
            ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec().into();
        let taken = Answer::Taken { rejected: 3, message: String::new() };
        assert_eq!(answered(&plain, 0, Some("gzip")), taken, "the flag decides");
        // Empty, as most answers are, and one that becomes too much.
        let (empty, bomb) = (Bytes::new(), Bytes::from(vec![0; MAX_ANSWER + 1]));
        for (compression, name) in [(Compression::Gzip, "gzip"), (Compression::Zstd, "zstd")] {
            let compressed = |body: &Bytes| compress(body.clone(), Some(compression)).unwrap();
            assert_eq!(answered(&compressed(&plain), 1, Some(name)), taken, "{name}");
            let all = Answer::Taken { rejected: 0, message: String::new() };
            assert_eq!(answered(&compressed(&empty), 1, Some(name)), all, "{name}");
            for (message, flag, encoding) in [
                (compressed(&bomb), 1, Some(name)),
                (compressed(&plain), 1, None),
                (compressed(&plain), 1, Some("snappy")),
                (compressed(&plain), 2, Some(name)),
                (plain.clone(), 1, Some(name)),
            ] {
                let answer = answered(&message, flag, encoding);
                assert!(matches!(answer, Answer::Again { .. }), "{answer:?}");
            }
        }
    }
}
