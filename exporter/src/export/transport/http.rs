//! OTLP/HTTP: the headers of a request, and what an answer means.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use prost::Message as _;
use serde::Deserialize;
use tonic_types::pb;

use super::answer::{Answer, MAX_AFTER, acknowledged, taken, with_words, words};
use crate::config::{Compression, Receiver};
use crate::export::Signal;

/// The headers of each request.
pub(super) fn headers(receiver: &Receiver) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    if let Some(compression) = receiver.compression {
        let name = match compression {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    headers
}

/// What an answer that arrived at `now` means (OTLP specification, "OTLP/HTTP Response").
pub(super) fn interpret(
    signal: Signal,
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    now: SystemTime,
) -> Answer {
    if status.is_success() {
        return success(signal, status, headers, body);
    }
    let why = || with_words(format!("HTTP {}", status_words(status)), &failure(headers, &body));
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            Answer::Again { after: retry_after(headers, now), why: why() }
        }
        StatusCode::PAYLOAD_TOO_LARGE => Answer::TooLarge { why: why() },
        _ if status.is_redirection() => {
            let to = headers.get(LOCATION).map(HeaderValue::as_bytes).unwrap_or_default();
            let to = words(&String::from_utf8_lossy(to));
            let to = if to.is_empty() { "nowhere".into() } else { to };
            let status = status_words(status);
            Answer::Refused {
                why: format!(
                    "HTTP {status} to {to}: redirects are not followed, name the right endpoint"
                ),
            }
        }
        _ => Answer::Refused { why: why() },
    }
}

/// A success has the protobuf of an answer as its body, or nothing. What else says 200 is no receiver: a
/// proxy's login page, for example.
fn success(signal: Signal, status: StatusCode, headers: &HeaderMap, body: Bytes) -> Answer {
    if body.is_empty() {
        return taken(0, "");
    }
    let kind = media_type(headers);
    let answer = match kind.as_str() {
        "" | "application/x-protobuf" | "application/protobuf" | "application/octet-stream" => {
            acknowledged(signal, body)
        }
        "application/json" => acknowledged_in_json(signal, &body),
        _ => None,
    };
    answer.unwrap_or_else(|| {
        let kind = if kind.is_empty() { "no type".to_owned() } else { words(&kind) };
        Answer::again(format!(
            "HTTP {}, but its body ({kind}) is no OTLP answer; is there a proxy or another server at the endpoint?",
            status_words(status)
        ))
    })
}

/// The acknowledgement in the JSON form of protobuf: names in either spelling, a 64-bit number also as text.
/// Fields that OTLP does not know may be among them; but an object of nothing else is another server's.
fn acknowledged_in_json(signal: Signal, body: &[u8]) -> Option<Answer> {
    let answer: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    if answer.is_empty() {
        return Some(taken(0, ""));
    }
    let partial = answer.get("partialSuccess").or_else(|| answer.get("partial_success"))?;
    let partial = Option::<JsonPartial>::deserialize(partial).ok()?.unwrap_or_default();
    let rejected = match signal {
        Signal::Logs => partial.rejected_log_records,
        Signal::Traces => partial.rejected_spans,
    };
    Some(taken(rejected.0, &partial.error_message.unwrap_or_default()))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct JsonPartial {
    #[serde(alias = "rejected_log_records")]
    rejected_log_records: JsonCount,
    #[serde(alias = "rejected_spans")]
    rejected_spans: JsonCount,
    #[serde(alias = "error_message")]
    error_message: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(try_from = "serde_json::Value")]
struct JsonCount(i64);

impl TryFrom<serde_json::Value> for JsonCount {
    type Error = &'static str;

    fn try_from(value: serde_json::Value) -> Result<Self, Self::Error> {
        match &value {
            serde_json::Value::Null => Some(0),
            serde_json::Value::Number(number) => number.as_i64(),
            serde_json::Value::String(text) => text.parse().ok(),
            _ => None,
        }
        .map(Self)
        .ok_or("no whole number")
    }
}

/// Retry-After: seconds, or the date until which to wait (RFC 9110, section 10.2.3); at most an hour.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // More digits than fit are longer than the longest.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    (!after.is_zero()).then(|| after.min(MAX_AFTER))
}

/// The receiver's own words for a failure: the message of a google.rpc.Status, or else plain text.
fn failure(headers: &HeaderMap, body: &Bytes) -> String {
    #[derive(Deserialize)]
    struct JsonStatus {
        message: String,
    }
    match media_type(headers).as_str() {
        "application/x-protobuf" | "application/protobuf" => {
            pb::Status::decode(body.clone()).map(|status| status.message).unwrap_or_default()
        }
        "application/json" => serde_json::from_slice::<JsonStatus>(body)
            .map(|status| status.message)
            .unwrap_or_default(),
        "text/plain" => String::from_utf8_lossy(body).into_owned(),
        _ => String::new(),
    }
}

/// The body's type in lower case, without parameters; empty: it has none.
fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// `404 Not Found`.
pub(super) fn status_words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}
