//! What the receiver remembers: how often each record came, and what became of its answer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use super::mode::Mode;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    Logs,
    Traces,
}

impl Signal {
    pub(crate) const ALL: [Self; 2] = [Self::Logs, Self::Traces];
}

/// What tells records apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) signal: Signal,
    pub(crate) trace_id: Vec<u8>,
    pub(crate) span_id: Vec<u8>,
    /// The log record's event name, or the span's name.
    pub(crate) event: String,
}

/// How often a record came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// With an answer that said that it was taken. Whether the client still waited for it is the client's
    /// matter: a test of timeouts must leave room between the client's and the receiver's.
    pub(crate) acknowledged: u32,
    /// Taken, but the answer was not given.
    pub(crate) maybe: u32,
    /// Refused by a partial success.
    pub(crate) rejected: u32,
}

/// What came so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received {
    pub(crate) items: BTreeMap<Key, Times>,
    /// Whose head was read, whatever became of them.
    pub(crate) requests: u64,
}

impl Received {
    /// How many of a signal's records are so.
    pub(crate) fn count(&self, signal: Signal, is_so: impl Fn(&Times) -> bool) -> u64 {
        let items = self.items.iter().filter(|(key, times)| key.signal == signal && is_so(times));
        items.count() as u64
    }

    /// Records whose taking was acknowledged, each counted once.
    pub(crate) fn acknowledged(&self, signal: Signal) -> u64 {
        self.count(signal, |times| times.acknowledged > 0)
    }
}

/// A request, decoded.
#[derive(Debug)]
pub(crate) enum Decoded {
    Logs(ExportLogsServiceRequest),
    Traces(ExportTraceServiceRequest),
}

impl Decoded {
    pub(crate) fn keys(self) -> Vec<Key> {
        match self {
            Self::Logs(request) => {
                let scopes = request.resource_logs.into_iter().flat_map(|it| it.scope_logs);
                let of = |it: opentelemetry_proto::tonic::logs::v1::LogRecord| Key {
                    signal: Signal::Logs,
                    trace_id: it.trace_id,
                    span_id: it.span_id,
                    event: it.event_name,
                };
                scopes.flat_map(|it| it.log_records).map(of).collect()
            }
            Self::Traces(request) => {
                let scopes = request.resource_spans.into_iter().flat_map(|it| it.scope_spans);
                let of = |it: opentelemetry_proto::tonic::trace::v1::Span| Key {
                    signal: Signal::Traces,
                    trace_id: it.trace_id,
                    span_id: it.span_id,
                    event: it.name,
                };
                scopes.flat_map(|it| it.spans).map(of).collect()
            }
        }
    }
}

/// Shared between the injector's tasks and the test.
#[derive(Debug)]
pub(crate) struct Store {
    received: Mutex<Received>,
    steady: Mutex<(VecDeque<Mode>, Mode)>,
    /// Counts changes.
    pub(crate) changed: tokio::sync::watch::Sender<u64>,
}

/// Records that were taken and whose answer is still to be given. Dropped without that, they stay "maybe".
#[derive(Debug)]
#[must_use]
pub(crate) struct Taken(Vec<Key>);

impl Store {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            received: Mutex::default(),
            steady: Mutex::new((VecDeque::new(), Mode::Healthy)),
            changed: tokio::sync::watch::Sender::new(0),
        })
    }

    pub(crate) fn received(&self) -> Received {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap()
    }

    /// For all requests from now on; returns the one before.
    pub(crate) fn set(&self, mode: Mode) -> Mode {
        let mut modes = self.steady.lock().unwrap();
        modes.0.clear();
        std::mem::replace(&mut modes.1, mode)
    }

    /// For the next requests, each its own, before the steady one again.
    pub(crate) fn script(&self, modes: impl IntoIterator<Item = Mode>) {
        self.steady.lock().unwrap().0.extend(modes);
    }

    pub(crate) fn steady(&self) -> Mode {
        self.steady.lock().unwrap().1.clone()
    }

    /// Counts a request, and says what is to be done with it.
    pub(crate) fn begin(&self) -> Mode {
        self.lock().requests += 1;
        let mut modes = self.steady.lock().unwrap();
        let mode = modes.0.pop_front().unwrap_or_else(|| modes.1.clone());
        drop(modes);
        self.changed.send_modify(|n| *n += 1);
        mode
    }

    /// Takes records, except the last so many.
    pub(crate) fn take(&self, mut keys: Vec<Key>, reject: usize) -> Taken {
        let mut received = self.lock();
        for key in keys.split_off(keys.len().saturating_sub(reject)) {
            received.items.entry(key).or_default().rejected += 1;
        }
        for key in &keys {
            received.items.entry(key.clone()).or_default().maybe += 1;
        }
        drop(received);
        self.changed.send_modify(|n| *n += 1);
        Taken(keys)
    }

    /// The answer is given.
    pub(crate) fn acknowledge(&self, taken: Taken) {
        let mut received = self.lock();
        for key in taken.0 {
            let times = received.items.entry(key).or_default();
            times.maybe -= 1;
            times.acknowledged += 1;
        }
        drop(received);
        self.changed.send_modify(|n| *n += 1);
    }
}
