//! What became of one export request: the four ways that the OTLP specification tells apart, and that nobody was there.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;

use crate::export::Signal;

/// The longest pause that a receiver may ask for: past it, a wrong Retry-After would stop the export for days.
pub(super) const MAX_AFTER: Duration = Duration::from_secs(3600);

/// Of a receiver's own words so many characters are shown.
const MAX_WORDS: usize = 300;

/// What became of one export request (OTLP specification, "Failures"). The words in it are bounded, and
/// without control characters: they may stand in a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The receiver acknowledged the request. It is not sent again, not even the part that was rejected.
    Taken {
        /// Records that the receiver did not take, and never will (partial success).
        rejected: u64,
        /// Why, or a warning; empty: nothing was said.
        message: String,
    },
    /// The same request may succeed later, or it is unknown what became of it.
    Again {
        /// The pause that the receiver asks for, at most an hour. None: as the sender thinks fit.
        after: Option<Duration>,
        /// Status and message of the receiver, or what kept it from answering.
        why: String,
    },
    /// No connection came about, TLS included, so the receiver has nothing of the request; the same may succeed later.
    Unreached {
        /// What was in the way.
        why: String,
    },
    /// The request is larger than the receiver takes: smaller ones may succeed.
    TooLarge {
        /// Status and message of the receiver.
        why: String,
    },
    /// The receiver will not take this request, however often it is sent.
    Refused {
        /// Status and message of the receiver.
        why: String,
    },
}

impl Answer {
    /// To be tried again, when the sender thinks fit.
    pub(super) fn again(why: impl Into<String>) -> Self {
        Self::Again { after: None, why: why.into() }
    }
}

/// The acknowledgement in the protobuf of an Export*ServiceResponse; `None` when it is none.
pub(super) fn acknowledged(signal: Signal, body: Bytes) -> Option<Answer> {
    let partial = match signal {
        Signal::Logs => ExportLogsServiceResponse::decode(body)
            .ok()?
            .partial_success
            .map(|partial| (partial.rejected_log_records, partial.error_message)),
        Signal::Traces => ExportTraceServiceResponse::decode(body)
            .ok()?
            .partial_success
            .map(|partial| (partial.rejected_spans, partial.error_message)),
    };
    let (rejected, message) = partial.unwrap_or_default();
    Some(taken(rejected, &message))
}

/// An acknowledgement; a count below zero means none.
pub(super) fn taken(rejected: i64, message: &str) -> Answer {
    Answer::Taken { rejected: u64::try_from(rejected).unwrap_or(0), message: words(message) }
}

/// A receiver's words, bounded and with everything escaped that could hurt a terminal or a log line.
pub(super) fn words(text: &str) -> String {
    let mut shown = String::new();
    let mut characters = text.trim().chars();
    for c in characters.by_ref().take(MAX_WORDS) {
        match c {
            '"' | '\'' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if characters.next().is_some() {
        shown.push_str("...");
    }
    shown
}

/// `head: words`, or `head` alone where nothing was said.
pub(super) fn with_words(head: String, text: &str) -> String {
    match words(text) {
        said if said.is_empty() => head,
        said => format!("{head}: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_bounded_and_harmless() {
        for (text, want) in [
            (" plain \"text\" of 'a' server\n", "plain \"text\" of 'a' server"),
            ("a\nb\x1b[31mc\u{202e}d", "a\\nb\\u{1b}[31mc\\u{202e}d"),
            ("", ""),
        ] {
            assert_eq!(words(text), want);
        }
        let long = words(&"x".repeat(MAX_WORDS + 1));
        assert_eq!(long.len(), MAX_WORDS + 3);
        assert!(long.ends_with("x..."));
    }

    #[test]
    fn a_count_of_rejected_records_is_never_negative() {
        for (rejected, want) in [(-1, 0), (0, 0), (7, 7), (i64::MAX, i64::MAX as u64)] {
            assert_eq!(taken(rejected, ""), Answer::Taken { rejected: want, message: "".into() });
        }
    }
}
