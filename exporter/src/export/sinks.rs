//! Where the data path hands its records over.

use std::sync::Arc;

use super::Signal;
use super::queue::{Item, Queue};
use crate::encode::Mapping;
use crate::encode::wire::{Encoded, RecordEncoder};
use crate::fair::{Holder, Losses};
use crate::ledger::{DropCause, OutputLedger};
use crate::record::{EventSet, Record, RecordKind};

/// One signal of an encoded record, in the queue of a destination.
#[derive(Clone, Debug)]
pub struct Part {
    pub(super) encoded: Arc<Encoded>,
    pub(super) signal: Signal,
}

impl Item for Part {
    fn kind(&self) -> RecordKind {
        self.encoded.kind
    }

    /// All of the record: another queue may hold it as well, and counts it, too.
    fn memory(&self) -> usize {
        self.encoded.size() + size_of::<Encoded>()
    }

    fn holder(&self) -> Holder {
        self.encoded.cgroup_id
    }

    fn size(&self) -> usize {
        self.encoded.of(self.signal).len()
    }
}

/// The data path's end of one output.
#[derive(Clone, Debug)]
pub enum Sink {
    /// Records as they are.
    Lines(Arc<Queue<Arc<Record>>>),
    /// Encoded records.
    Otlp(Signal, Arc<Queue<Part>>),
}

impl Sink {
    /// What became of the output's records.
    pub fn ledger(&self) -> &Arc<OutputLedger> {
        match self {
            Self::Lines(queue) => queue.ledger(),
            Self::Otlp(_, queue) => queue.ledger(),
        }
    }

    /// What each cgroup lost because the queue was full.
    pub fn dropped(&self) -> Losses {
        match self {
            Self::Lines(queue) => queue.dropped(),
            Self::Otlp(_, queue) => queue.dropped(),
        }
    }

    /// Nothing more is taken in.
    pub fn close(&self) {
        match self {
            Self::Lines(queue) => queue.close(),
            Self::Otlp(_, queue) => queue.close(),
        }
    }

    /// What is left in the queue is dropped.
    pub(super) fn abandon(&self, cause: DropCause) {
        match self {
            Self::Lines(queue) => queue.abandon(cause),
            Self::Otlp(_, queue) => queue.abandon(cause),
        }
    }

    /// Waits until there is room.
    async fn room(&self) {
        match self {
            Self::Lines(queue) => queue.room().await,
            Self::Otlp(_, queue) => queue.room().await,
        }
    }

    fn events(&self) -> EventSet {
        self.ledger().events()
    }
}

/// The data path's end of all outputs. Handing over never waits.
#[derive(Debug)]
pub struct Sinks {
    sinks: Vec<Sink>,
    encoder: RecordEncoder,
}

impl Sinks {
    /// With the attributes' names in OTLP.
    pub fn new(mapping: Arc<Mapping>, sinks: Vec<Sink>) -> Self {
        Self { sinks, encoder: RecordEncoder::new(mapping) }
    }

    /// Each output's.
    pub fn all(&self) -> &[Sink] {
        &self.sinks
    }

    /// Hands a record to each output that gets its kind. It is encoded once for all destinations.
    pub fn push(&mut self, record: &Arc<Record>) {
        let mut encoded = None;
        for sink in self.sinks.iter().filter(|sink| sink.events().contains(record.kind)) {
            match sink {
                Sink::Lines(queue) => queue.push(Arc::clone(record)),
                // Encoded it would take room in a chunk that others keep alive.
                Sink::Otlp(_, queue) if queue.refuses(record.kind, record.holder()) => {}
                Sink::Otlp(signal, queue) => {
                    let encoded =
                        encoded.get_or_insert_with(|| Arc::new(self.encoder.encode(record)));
                    queue.push(Part { encoded: Arc::clone(encoded), signal: *signal });
                }
            }
        }
    }

    /// Waits until each output has room for one more; for a source that can wait.
    pub async fn room(&self) {
        for sink in &self.sinks {
            sink.room().await;
        }
    }

    /// Nothing more is taken in.
    pub fn close(&self) {
        self.sinks.iter().for_each(Sink::close);
    }
}
