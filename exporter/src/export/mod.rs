//! From the data path to stdout or to OTLP receivers.
//!
//! `sinks` is where the data path hands a record over, and never waits. Behind it each output has its bounded
//! `queue`; `stream` empties it to stdout, `exporter` into requests, which `transport` sends. `spooled` is the
//! disk behind the queue.

mod exporter;
mod health;
mod held;
mod metrics;
mod outputs;
mod queue;
mod reach;
mod retry;
mod sinks;
pub mod spool;
mod spooled;
mod stream;
pub(crate) mod transport;

pub use exporter::Wire;
pub use held::Held;
pub use metrics::MetricsClient;
pub use outputs::Outputs;
pub use queue::{Item, Limits, Queue, Taken};
pub use sinks::{Part, Sink, Sinks};
pub use stream::{SharedFormat, StreamFormat, spawn as spawn_stream};
pub use transport::{Answer, Client, ClientError, Headers, OwnHttpClient, OwnSockets, channel};

/// Which of the two OTLP signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Log records.
    Logs,
    /// Spans.
    Traces,
}

impl Signal {
    /// As in the ledger and in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logs => "logs",
            Self::Traces => "traces",
        }
    }
}
