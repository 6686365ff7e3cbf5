//! OTLP protobuf, written directly: one pass over a record for its log record and span, and one allocation for some 30 of them.
//!
//! The way through the SDK's types costs more than twenty times as much. Field numbers are those of
//! opentelemetry-proto v1 (common.proto, logs.proto, trace.proto); the tests compare what is written
//! here with what the SDK's way writes.

mod address;
mod attribute;
mod buffer;
mod read;
mod record;
mod request;

pub use read::{ReadError, halve, kinds};
pub use record::{Encoded, RecordEncoder};
pub use request::{item_bound, request, request_size};

#[cfg(test)]
mod tests;
