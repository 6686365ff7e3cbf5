//! A DNS name as text: what is shown, sent and written, whoever chose its bytes.
//!
//! Lower case, without the last dot, IDNA as it was sent (`xn--` stays). Whatever could hurt a
//! terminal, a log line or an attribute is written as `\DDD`, its value in decimal (RFC 4343, section
//! 2.1): control bytes, quotes, backslash, space, a dot inside a label, bytes that are no UTF-8. Letters and
//! digits of other scripts stay (mDNS sends UTF-8, RFC 6762, section 16); all else beyond ASCII
//! is written as `\DDD`, too: marks that turn the direction of the text, or that have no width.

use std::fmt::Write as _;
use std::sync::Arc;

/// The longest name, bytes of its text (RFC 1035, section 2.3.4).
pub const MAX_TEXT: usize = 255;

/// Of a name as [`super::message`] keeps it: labels, each behind its length, without the root. `None`
/// where its text would be too long, and for the root.
pub(super) fn of_labels(labels: &[u8]) -> Option<Arc<str>> {
    let mut text = String::with_capacity(labels.len());
    let mut rest = labels;
    while let Some((len, tail)) = rest.split_first() {
        let (label, tail) = tail.split_at_checked(usize::from(*len))?;
        if !text.is_empty() {
            text.push('.');
        }
        escape(label, &mut text);
        rest = tail;
    }
    bounded(&text)
}

/// Of a name as a person writes it, in a file: labels between dots, the last dot is optional. `None`
/// where a label is empty, or the text would be too long.
pub fn of_text(name: &[u8]) -> Option<Arc<str>> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.len() > MAX_TEXT {
        return None;
    }
    let mut text = String::with_capacity(name.len());
    for label in name.split(|byte| *byte == b'.') {
        if label.is_empty() {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        escape(&label.to_ascii_lowercase(), &mut text);
    }
    bounded(&text)
}

/// Whether a text is one that this module makes.
pub fn is_escaped(text: &str) -> bool {
    if text.is_empty() || text.len() > MAX_TEXT {
        return false;
    }
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            '\\' => {
                let digits = rest.get(1..4).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
                if digits.and_then(|d| d.parse::<u8>().ok()).is_none() {
                    return false;
                }
                4
            }
            '.' => 1,
            c if stays(c) && !c.is_ascii_uppercase() => c.len_utf8(),
            _ => return false,
        };
        rest = &rest[len..];
    }
    true
}

fn bounded(text: &str) -> Option<Arc<str>> {
    (1..=MAX_TEXT).contains(&text.len()).then(|| Arc::from(text))
}

/// Adds a label, with whatever could hurt in decimal. Letters stay as they are.
pub(crate) fn escape(label: &[u8], text: &mut String) {
    for chunk in label.utf8_chunks() {
        for c in chunk.valid().chars() {
            if stays(c) {
                text.push(c);
            } else {
                decimal(c.encode_utf8(&mut [0; 4]).as_bytes(), text);
            }
        }
        decimal(chunk.invalid(), text);
    }
}

fn decimal(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\{byte:03}");
    }
}

fn stays(c: char) -> bool {
    match c {
        '"' | '\'' | '`' | '\\' | '.' => false,
        c if c.is_ascii() => c.is_ascii_graphic(),
        c => c.is_alphanumeric(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(labels: &[&[u8]]) -> Vec<u8> {
        let with_len = |l: &&[u8]| [&[u8::try_from(l.len()).unwrap()], *l].concat();
        labels.iter().flat_map(with_len).collect()
    }

    #[test]
    fn what_could_hurt_is_written_in_decimal() {
        let cases: [(&[&[u8]], &str); 10] = [
            (&[b"www", b"example", b"test"], "www.example.test"),
            (&[b"_http", b"_tcp", b"x-1"], "_http._tcp.x-1"),
            (&[b"xn--bcher-kva", b"test"], "xn--bcher-kva.test"),
            (&[b"\x1b[31m", b"a\nb"], "\\027[31m.a\\010b"),
            (&[b"a\"b'c`d\\e f"], "a\\034b\\039c\\096d\\092e\\032f"),
            (&[b"a.b", b"test"], "a\\046b.test"),
            (&[b"\xff\xc3", b"test"], "\\255\\195.test"),
            (&["b\u{fc}cher".as_bytes(), b"local"], "b\u{fc}cher.local"),
            // Right-to-left override, zero width space, C1 control.
            (&["a\u{202e}\u{200b}\u{85}".as_bytes()], "a\\226\\128\\174\\226\\128\\139\\194\\133"),
            (&[b"\0\x7f"], "\\000\\127"),
        ];
        for (name, want) in cases {
            assert_eq!(of_labels(&labels(name)).as_deref(), Some(want), "{name:?}");
            assert!(is_escaped(want), "{want}");
        }
    }

    #[test]
    fn no_name_is_longer_than_255() {
        let label = [b'a'; 63];
        let most = labels(&[&label, &label, &label, &label[..61]]);
        assert_eq!(of_labels(&most).unwrap().len(), 253, "the longest there is on the wire");
        // 64 bytes that take four each.
        assert_eq!(of_labels(&labels(&[&[1; 63]])).unwrap().len(), 252);
        assert_eq!(of_labels(&labels(&[&[1; 63], b"test"])), None);
        assert_eq!(of_labels(&[]), None, "the root");
        assert_eq!(of_text(&[b'a'; 256]), None);
    }

    #[test]
    fn names_as_people_write_them() {
        let cases: [(&str, Option<&str>); 6] = [
            ("Db.Example.", Some("db.example")),
            ("localhost", Some("localhost")),
            ("a\x1bb", Some("a\\027b")),
            ("", None),
            (".", None),
            ("a..b", None),
        ];
        for (name, want) in cases {
            assert_eq!(of_text(name.as_bytes()).as_deref(), want, "{name:?}");
        }
    }

    #[test]
    fn other_text_is_told_apart() {
        for bad in ["", "A.test", "a b", "a\\27", "a\\999", "a\\", "a\u{202e}", "a\"", "a\n"] {
            assert!(!is_escaped(bad), "{bad:?}");
        }
        assert!(!is_escaped(&"a".repeat(256)));
    }
}
