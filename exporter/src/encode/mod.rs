//! Records in the forms that leave the program. Conversions only: nothing here sends anything.

mod attributes;
mod json;
mod otlp;
mod text;

pub use attributes::{Value, attributes, body, severity_is_warning};
pub use json::json_line;
pub use otlp::{LogEncoder, scope, span};
pub use text::{HEADER, text_line};

#[cfg(test)]
mod tests;
