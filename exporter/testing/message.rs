//! DNS messages as bytes (RFC 1035, section 4.1), for what no resolver would send.

use std::fmt::Write as _;

/// A query with one question, recursion desired.
pub(crate) fn query(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(name_bytes(name));
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

/// A name as labels, without compression.
pub(crate) fn name_bytes(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a label of at most 63 bytes"));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// Bytes as a word of a puppet's command.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
