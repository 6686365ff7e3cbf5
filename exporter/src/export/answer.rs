//! What a receiver says to a request, and the way that it is asked.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;

/// What a receiver's answer means, by the OTLP specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has the records, without `rejected` of them (partial success), and may have a warning.
    Taken {
        /// Records that it did not keep.
        rejected: u64,
        /// Its words; empty where it had none.
        message: String,
    },
    /// Not now, or no answer at all.
    Again {
        /// The pause that it asks for.
        after: Option<Duration>,
        /// Code and words.
        why: String,
    },
    /// It does not take a request of this size.
    TooLarge {
        /// Code and words.
        why: String,
    },
    /// Never.
    Refused {
        /// Code and words.
        why: String,
    },
}

/// Sends requests; several at once.
pub trait Wire: Send + Sync + 'static {
    /// Sends the protobuf of an export request, and waits for the answer.
    fn send(&self, body: Bytes) -> impl Future<Output = Answer> + Send;
}
