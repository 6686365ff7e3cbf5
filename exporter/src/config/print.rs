//! `flowend print-config`: the effective configuration as TOML, with where each value came from.

use std::fmt::Write;

use figment::value::{Num, Value};

use super::Layered;
use super::layers::{free_table, template};

/// Keys whose values are secrets, by prefix.
const SECRET_TABLES: [&str; 4] =
    ["otlp.headers.", "otlp.logs.headers.", "otlp.traces.headers.", "otlp.metrics.headers."];

/// The configuration as dotted TOML, a line for each key; secrets redacted.
pub fn print(layered: &Layered) -> String {
    // The line of a key, with the lines that follow it where its value takes several.
    let lines: Vec<(String, String, String)> = layered
        .entries()
        .into_iter()
        .map(|(key, value, origin)| {
            let tables = tables(&value);
            let shown = if is_secret(&key, &origin) {
                "\"<redacted>\"".into()
            } else if key.ends_with(".endpoint") {
                without_password(&show(&value))
            } else if tables.is_empty() {
                show(&value)
            } else {
                "[".into()
            };
            (format!("{} = {shown}", quote_key(&key)), tables, origin)
        })
        .collect();
    let width =
        lines.iter().map(|(line, ..)| line.chars().count()).filter(|w| *w < 60).max().unwrap_or(0);
    let mut text = String::new();
    for (line, more, origin) in lines {
        let _ = writeln!(text, "{line:width$}  # {}", one_line(&origin));
        text.push_str(&more);
    }
    text
}

/// The entries of a list of tables, a line for each, and the bracket that closes it.
fn tables(value: &Value) -> String {
    match value {
        Value::Array(_, items) if items.iter().any(|item| matches!(item, Value::Dict(..))) => {
            let lines: String = items.iter().map(|item| format!("    {},\n", show(item))).collect();
            lines + "]\n"
        }
        _ => String::new(),
    }
}

/// The default id key is public; one that somebody set is not.
fn is_secret(key: &str, origin: &str) -> bool {
    SECRET_TABLES.iter().any(|table| template(key).starts_with(table))
        || (key == "ids.key" && origin != "default")
}

/// A URL may hold `user:password@`.
pub(super) fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 < at => {
            format!("{}<redacted>{}", &url[..scheme + 3], &url[at..])
        }
        _ => url.to_owned(),
    }
}

/// Keys below a free table may hold dots: they are quoted.
fn quote_key(key: &str) -> String {
    if let Some((table, rest)) = free_table(key) {
        return format!("{table}.{}", quoted(rest));
    }
    key.to_owned()
}

/// A string or a key, on one line: a key may not take several. JSON's escapes are TOML's, where DEL is a control
/// character, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// In a comment, which ends with its line: an option's key may hold anything.
fn one_line(origin: &str) -> String {
    origin.chars().fold(String::new(), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default())
        } else {
            line.push(c)
        }
        line
    })
}

/// Of a table within a value: bare, where TOML lets it be.
fn inner_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { quoted(key) }
}

/// A value as TOML.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(_, s) => quoted(s),
        Value::Char(_, c) => quoted(&c.to_string()),
        Value::Bool(_, b) => b.to_string(),
        Value::Num(_, Num::F32(f)) => format!("{f:?}"),
        Value::Num(_, Num::F64(f)) => format!("{f:?}"),
        Value::Num(_, n) => n.to_i128().map_or_else(
            || n.to_u128().map_or_else(String::new, |n| n.to_string()),
            |n| n.to_string(),
        ),
        Value::Array(_, items) => {
            format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", "))
        }
        Value::Dict(_, dict) => {
            let inner: Vec<_> =
                dict.iter().map(|(k, v)| format!("{} = {}", inner_key(k), show(v))).collect();
            format!("{{ {} }}", inner.join(", "))
        }
        Value::Empty(..) => "\"\"".into(),
    }
}
