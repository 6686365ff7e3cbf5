//! Answers of any bytes, as a receiver over gRPC or HTTP could give them.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::answer::{Answer, MAX_AFTER};
use super::{grpc, http as otlp_http};
use crate::export::Signal;

/// Headers and trailers that mean something.
const NAMES: [&str; 7] = [
    "content-type",
    "retry-after",
    "location",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "grpc-encoding",
];

/// The longest that is said of an answer: 300 characters of the receiver, each as `\u{10ffff}`, twice (its
/// words, and the type of its body), and what flowend says itself.
const MAX_WHY: usize = 2 * 300 * 10 + 500;

/// An answer, with the parts that a receiver chooses.
#[derive(Debug)]
pub(crate) struct Given<'a> {
    pub(crate) is_grpc: bool,
    pub(crate) signal: Signal,
    pub(crate) status: u16,
    /// Each as a number of a name, and a value.
    pub(crate) headers: Vec<(u8, &'a [u8])>,
    pub(crate) trailers: Vec<(u8, &'a [u8])>,
    pub(crate) body: &'a [u8],
}

/// Reads the answer, and checks that what it comes to is bounded, harmless to a log line and nothing that was not
/// said.
pub(crate) fn check(given: &Given<'_>) {
    let Ok(status) = StatusCode::from_u16(given.status) else { return };
    let (headers, trailers) = (map(&given.headers), map(&given.trailers));
    let body = Bytes::copy_from_slice(given.body);
    let answer = if given.is_grpc {
        grpc::interpret(given.signal, status, &headers, body, Some(&trailers))
    } else {
        otlp_http::interpret(given.signal, status, &headers, body, noon())
    };
    let words = match &answer {
        Answer::Taken { message, .. } => {
            assert!(says_taken(given, status, &headers, &trailers), "{given:?}: {answer:?}");
            message
        }
        Answer::Again { after, why } => {
            let is_pause = |after: &Duration| !after.is_zero() && *after <= MAX_AFTER;
            assert!(after.as_ref().is_none_or(is_pause), "{given:?}: {answer:?}");
            why
        }
        Answer::TooLarge { why } | Answer::Refused { why } => why,
        Answer::Unreached { .. } => panic!("{given:?}: somebody answered"),
    };
    let is_taken = matches!(answer, Answer::Taken { .. });
    assert!(is_taken || !words.is_empty(), "{given:?}");
    assert!(words.len() <= MAX_WHY && !words.contains(char::is_control), "{given:?}: {answer:?}");
}

/// Whether the receiver said that it took the request: HTTP 2xx, or gRPC OK, which trailers say before headers.
fn says_taken(
    given: &Given<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    trailers: &HeaderMap,
) -> bool {
    if !given.is_grpc {
        return status.is_success();
    }
    let said = trailers.get("grpc-status").or_else(|| headers.get("grpc-status"));
    // An i32 in any spelling, as Rust reads it: "00" and "+0" are 0, too.
    said.and_then(|said| said.to_str().ok()?.parse::<i32>().ok()) == Some(0)
}

fn map(given: &[(u8, &[u8])]) -> HeaderMap {
    let pairs = given.iter().filter_map(|(name, value)| {
        let name = NAMES[usize::from(*name) % NAMES.len()];
        Some((HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?))
    });
    pairs.collect()
}

/// 2026-01-01T12:00:00Z: Retry-After may name a date.
fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_268_800)
}
