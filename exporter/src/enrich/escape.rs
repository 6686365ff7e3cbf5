//! A host's name as text that cannot hurt a terminal, JSON or an attribute.
//!
//! The rules are those of names from DNS messages, so that one name looks alike from wherever it comes:
//! lower case, without the last dot, IDNA as it was sent, at most 255 bytes (RFC 1035, section 2.3.4),
//! and what could be taken for something else as `\DDD`, byte by byte (RFC 4343, section 2.1).

use std::sync::Arc;

use crate::dns::name::{MAX_TEXT, escape};

/// A name of these labels; `None` when there are none, or when it is too long.
pub(super) fn escaped<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Option<Arc<str>> {
    let mut text = String::new();
    for label in labels {
        if !text.is_empty() {
            text.push('.');
        }
        escape(&label.to_ascii_lowercase(), &mut text);
        if text.len() > MAX_TEXT {
            return None;
        }
    }
    (!text.is_empty()).then(|| Arc::from(text))
}

/// As [`escaped`], of a name as it is written, with dots between the labels.
pub(super) fn escaped_text(name: &[u8]) -> Option<Arc<str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    escaped(name.split(|byte| *byte == b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_harmless() {
        let long = "a".repeat(255);
        let too_long = "a".repeat(256);
        for (name, want) in [
            (&b"DB.Example.test."[..], Some("db.example.test")),
            (b"_ldap._tcp.example", Some("_ldap._tcp.example")),
            (b"xn--mnchen-3ya.test", Some("xn--mnchen-3ya.test")),
            ("m\u{fc}nchen.local".as_bytes(), Some("m\u{fc}nchen.local")),
            (b"esc\x1b[31m", Some("esc\\027[31m")),
            (b"a\nb", Some("a\\010b")),
            (br#"q"'`\"#, Some("q\\034\\039\\096\\092")),
            (b"\xff\xc3", Some("\\255\\195")),
            // Right-to-left override.
            ("a\u{202e}b".as_bytes(), Some("a\\226\\128\\174b")),
            (b"", None),
            (b".", None),
            (long.as_bytes(), Some(long.as_str())),
            (too_long.as_bytes(), None),
        ] {
            assert_eq!(escaped_text(name).as_deref(), want, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a_dot_inside_a_label_is_none_between_two() {
        assert_eq!(escaped([&b"a.b"[..], b"c"]).as_deref(), Some("a\\046b.c"));
        assert_eq!(escaped([]), None);
    }
}
