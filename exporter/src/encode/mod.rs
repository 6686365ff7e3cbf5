//! Records in the forms that leave the program. Conversions only: nothing here sends anything.

mod attributes;
mod body;
mod json;
mod keys;
mod mapping;
mod otlp;
mod text;
mod trace_state;
pub mod wire;

pub use attributes::{Put, Value, attributes, severity_is_warning};
pub use body::body;
pub use json::json_line;
pub use keys::Key;
pub use mapping::{Changes, Mapping, MappingError};
pub use otlp::{LogEncoder, scope, span};
pub use text::{HEADER, text_line};

/// The instrumentation scope: flowend itself.
const SCOPE_NAME: &str = "flowend";
const SCOPE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The trace flags of each log record and span (W3C Trace Context level 2): sampled, and random-trace-id,
/// since a trace id is a keyed hash, from whose last 56 bits samplers choose.
const TRACE_FLAGS: u8 = 0x01 | 0x02;

#[cfg(test)]
pub(crate) mod tests;
