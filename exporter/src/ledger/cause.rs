//! Why a record was dropped.

/// Why a record was not exported though nobody asked for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropCause {
    /// The output's queue was full, by records or by bytes.
    QueueFull,
    /// The queue was full, and so was the spool behind it.
    SpoolFull,
    /// The queue was full, and the spool behind it could not be written.
    SpoolFailed,
    /// What lay in the spool could not be read back.
    SpoolDamaged,
    /// Retries went on for longer than `export.retry_for`.
    RetryExhausted,
    /// The receiver refused the request for good.
    Refused,
    /// The receiver took the request, and said that it did not keep this many of its records (OTLP's
    /// partial success).
    Rejected,
    /// The receiver does not take a request of even this one record.
    TooLarge,
    /// Still unsent when flowend stopped: `shutdown.timeout` was over, or the receiver could not be reached.
    Shutdown,
    /// The output was taken out of the configuration while flowend ran, and did not take these in time.
    Removed,
    /// stdout is closed.
    OutputClosed,
}

impl DropCause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::QueueFull,
        Self::SpoolFull,
        Self::SpoolFailed,
        Self::SpoolDamaged,
        Self::RetryExhausted,
        Self::Refused,
        Self::Rejected,
        Self::TooLarge,
        Self::Shutdown,
        Self::Removed,
        Self::OutputClosed,
    ];

    /// As in the ledger's lines and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::SpoolFull => "spool_full",
            Self::SpoolFailed => "spool_failed",
            Self::SpoolDamaged => "spool_damaged",
            Self::RetryExhausted => "retry_exhausted",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::TooLarge => "too_large",
            Self::Shutdown => "shutdown",
            Self::Removed => "removed",
            Self::OutputClosed => "output_closed",
        }
    }

    /// What the operator can do about it.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::QueueFull => {
                "the receiver takes less than there is: raise export.queue_records and \
                 export.queue_bytes, set spool.directory, or sample"
            }
            Self::SpoolFull => "raise spool.max_bytes, or mend the receiver",
            Self::SpoolFailed => "see to the disk under spool.directory",
            Self::SpoolDamaged => "see to the disk under spool.directory; the records are gone",
            Self::RetryExhausted => {
                "the receiver did not answer for export.retry_for: mend it, raise that, or set \
                 spool.directory"
            }
            Self::Refused => "the receiver's answer is in the message of the output",
            Self::Rejected => {
                "the receiver kept only a part: its words are in the message of the output"
            }
            Self::TooLarge => "raise the receiver's limit for the size of a request",
            Self::Shutdown => {
                "set spool.directory; or raise shutdown.timeout, where the receiver is slow"
            }
            Self::Removed => "they belonged to an output that is not configured any more",
            Self::OutputClosed => "whoever read stdout is gone",
        }
    }
}
