//! docs/configuration.md: the keys, made of the comments of config/flowend.toml and of the code.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use figment::value::{Num, Value};

use super::super::changes::{Effect, effect_of};
use super::super::env::{self, SIGNALS, STANDARD};
use super::super::layers::{FREE_TABLES, Schema, TABLE_LISTS, flatten};
use super::super::{DEFAULT, print, settings};
use super::BTreeMap;
use crate::docs;

const BEGIN: &str = "<!-- From here on written by: UPDATE_DOCS=1 cargo test -p flowend --lib configuration_md -->\n";

/// A table of the file: `[name]`, with the comment above it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Section {
    name: String,
    comment: Vec<String>,
    groups: Vec<Group>,
}

/// Keys without a blank line or a comment between them, and the comment above them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    comment: Vec<String>,
    keys: Vec<String>,
}

/// The parts of the default file. The comment at its top belongs to no key.
fn sections(text: &str) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    let (mut comment, mut in_value) = (Vec::new(), false);
    for line in text.lines() {
        let section = sections.last_mut().expect("the top level");
        if in_value {
            in_value = !line.starts_with(']');
        } else if let Some(words) = line.strip_prefix('#') {
            comment.push(words.strip_prefix(' ').unwrap_or(words).to_owned());
        } else if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let comment = std::mem::take(&mut comment);
            sections.push(Section { name: name.to_owned(), comment, groups: Vec::new() });
        } else if let Some((key, value)) = line.split_once(" = ") {
            let prefix = if section.name.is_empty() { "" } else { "." };
            let key = format!("{}{prefix}{key}", section.name);
            in_value = value == "[";
            match section.groups.last_mut() {
                Some(group) if comment.is_empty() => group.keys.push(key),
                _ => section
                    .groups
                    .push(Group { comment: std::mem::take(&mut comment), keys: vec![key] }),
            }
        } else {
            assert!(line.is_empty(), "config/flowend.toml: what is `{line}`?");
            comment.clear();
        }
    }
    sections
}

/// The sections' keys; the tables of the user's own keys as `TABLE.NAME`.
fn keys_of(section: &Section) -> Vec<String> {
    let own = FREE_TABLES.contains(&section.name.as_str()).then(|| section.name.clone());
    let given = section.groups.iter().flat_map(|group| &group.keys).cloned();
    own.into_iter()
        .chain(given)
        .map(|key| if FREE_TABLES.contains(&key.as_str()) { format!("{key}.NAME") } else { key })
        .collect()
}

fn kind(key: &str, default: Option<&Value>) -> &'static str {
    let like = key.rsplit('.').next().unwrap_or_default();
    match default {
        None => "text",
        Some(Value::Bool(..)) => "true or false",
        Some(Value::Num(_, Num::F64(_) | Num::F32(_))) => "number",
        Some(Value::Num(..)) if like.ends_with("bytes") => "whole number, bytes",
        Some(Value::Num(..)) => "whole number",
        Some(Value::Array(..)) if TABLE_LISTS.iter().any(|(list, _)| *list == key) => {
            "list of tables"
        }
        Some(Value::Array(..)) => "list of text",
        // Where it may be empty, the default is that of another key.
        Some(Value::String(_, text)) => {
            let is_duration = settings::duration(key, text, &|_| String::new()).is_ok();
            if is_duration || like == "timeout" { "duration" } else { "text" }
        }
        Some(other) => panic!("{key}: what kind of value is {other:?}?"),
    }
}

/// The standard variables, by the key that each sets: as the code takes them in.
fn standard_variables() -> BTreeMap<String, String> {
    let exporter = SIGNALS.iter().flat_map(|(signal, _)| {
        STANDARD.iter().map(move |(setting, _)| format!("OTEL_EXPORTER_OTLP_{signal}{setting}"))
    });
    let others = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"].map(str::to_owned);
    let key_of = |name: String| {
        // As a pair for those that take pairs, else a number, which each takes.
        let takes_pairs = name.ends_with("HEADERS") || name.ends_with("ATTRIBUTES");
        let text = if takes_pairs { "NAME=1" } else { "1" };
        let given = BTreeMap::from([(name.clone(), text.to_owned())]);
        let layers = env::standard(&given).expect("a good value");
        let [layer] = layers.as_slice() else { panic!("{name} sets {} keys", layers.len()) };
        let mut leaves = Vec::new();
        flatten("", &layer.dict, &mut leaves);
        (leaves.remove(0).0, name)
    };
    exporter.chain(others).map(key_of).collect()
}

/// The variable of a key, which the code must take for that key.
fn own_variable(key: &str, schema: &Schema) -> String {
    let name = format!("FLOWEND_{}", key.to_ascii_uppercase().replace('.', "__"));
    let given = BTreeMap::from([(name.clone(), "1".to_owned())]);
    let layers = env::own(&given, schema).expect("a variable");
    let mut leaves = Vec::new();
    flatten("", &layers[0].dict, &mut leaves);
    assert_eq!(leaves[0].0, key.to_ascii_lowercase(), "{name}");
    name
}

/// The table of a section's keys.
fn rows(section: &Section, schema: &Schema, standard: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let keys = keys_of(section);
    if keys.is_empty() {
        return text;
    }
    text.push_str("| key | type | default | variables | takes effect |\n|---|---|---|---|---|\n");
    for key in keys {
        let default = schema.get(&key);
        let shown = default.map_or_else(|| "none".into(), |v| format!("`{}`", print::show(v)));
        let mut variables = format!("`{}`", own_variable(&key, schema));
        if let Some(name) = standard.get(&key) {
            let _ = write!(variables, ", `{name}`");
        }
        let effect = match effect_of(&key) {
            Effect::Live => "at a reload",
            Effect::Restart => "after a restart",
        };
        let kind = kind(&key, default);
        let _ = writeln!(text, "| `{key}` | {kind} | {shown} | {variables} | {effect} |");
    }
    text.push('\n');
    text
}

/// A comment as Markdown: what is indented is code, what is quoted too, and so are the names of keys.
fn markdown(comment: &[String], is_name: &dyn Fn(&str) -> bool) -> String {
    let mut blocks = Vec::new();
    for part in comment.chunk_by(|a, b| a.starts_with("  ") == b.starts_with("  ")) {
        if part[0].starts_with("  ") {
            let lines = part.iter().map(|line| line.strip_prefix("  ").unwrap_or(line));
            blocks.push(format!("```\n{}\n```", lines.collect::<Vec<_>>().join("\n")));
        } else {
            blocks.push(prose(&part.join(" "), is_name));
        }
    }
    blocks.join("\n\n")
}

fn prose(text: &str, is_name: &dyn Fn(&str) -> bool) -> String {
    let (mut out, mut rest) = (String::new(), text);
    // Marks of code stay as they are, quotes become code; between them are words.
    while let Some(start) = rest.find(['"', '`']) {
        let mark = &rest[start..=start];
        let end = rest[start + 1..].find(mark).unwrap_or_else(|| panic!("one {mark} in: {text}"));
        let inner = &rest[start + 1..start + 1 + end];
        words(&rest[..start], is_name, &mut out);
        let quote = if mark == "`" { "" } else { mark };
        let _ = write!(out, "`{quote}{inner}{quote}`");
        rest = &rest[start + end + 2..];
    }
    words(rest, is_name, &mut out);
    out
}

fn words(text: &str, is_name: &dyn Fn(&str) -> bool, out: &mut String) {
    let is_end = |c: char| ".,:;()".contains(c);
    for part in text.split_inclusive(' ') {
        let bare = part.trim_end_matches(' ');
        let core = bare.trim_start_matches('(').trim_end_matches(is_end);
        if !core.is_empty() && is_name(core) {
            let at = part.find(core).expect("a part of it");
            let _ = write!(out, "{}`{core}`{}", &part[..at], &part[at + core.len()..]);
        } else {
            out.push_str(&part.replace('*', "\\*").replace('<', "\\<"));
        }
    }
}

fn is_variable(word: &str) -> bool {
    ["OTEL_", "FLOWEND_"].iter().any(|prefix| word.len() > prefix.len() && word.starts_with(prefix))
}

/// All that follows the marker.
fn reference() -> String {
    let schema = schema();
    let sections = sections(DEFAULT);
    let standard = standard_variables();
    let keys: BTreeSet<String> = sections
        .iter()
        .flat_map(|section| section.groups.iter().flat_map(|g| &g.keys))
        .cloned()
        .collect();
    let is_name = |word: &str| {
        let table = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
        let is_table = |name: &str| sections.iter().any(|section| section.name == name);
        // One word alone may be a word of the sentence.
        let is_key = word.contains('.') && (keys.contains(word) || is_table(word));
        table.is_some_and(is_table) || is_key || is_variable(word)
    };
    let mut text = String::new();
    for section in &sections {
        let title = if section.name.is_empty() {
            "Top level".into()
        } else {
            format!("`[{}]`", section.name)
        };
        let _ = write!(text, "## {title}\n\n");
        if !section.comment.is_empty() {
            let _ = write!(text, "{}\n\n", markdown(&section.comment, &is_name));
        }
        text.push_str(&rows(section, &schema, &standard));
        for group in section.groups.iter().filter(|group| !group.comment.is_empty()) {
            let names: Vec<_> = group.keys.iter().map(|key| format!("**`{key}`**")).collect();
            let words = markdown(&group.comment, &is_name);
            let _ = write!(text, "{}: {words}\n\n", names.join(", "));
        }
    }
    format!("\n{}\n", text.trim_end())
}

fn schema() -> Schema {
    Schema::of(&toml::from_str(DEFAULT).expect("valid")).expect("valid")
}

#[test]
fn configuration_md_has_every_key() {
    let path = docs::repository().join("docs/configuration.md");
    let text = docs::page("configuration.md");
    let (before, _) = text.split_once(BEGIN).expect("the marker before the keys");
    let expected = format!("{before}{BEGIN}{}", reference());
    if std::env::var("UPDATE_DOCS").is_ok_and(|v| v == "1") {
        std::fs::write(&path, expected).expect("docs/configuration.md");
        return;
    }
    assert_eq!(
        text, expected,
        "docs/configuration.md is not what config/flowend.toml and the code say: run this test with UPDATE_DOCS=1"
    );
}

/// What the page is made of has no other keys than the program, and no fewer.
#[test]
fn the_sections_have_the_keys_that_there_are() {
    let sections = sections(DEFAULT);
    let mut listed: Vec<_> = sections.iter().flat_map(keys_of).collect();
    let mut known: Vec<_> = schema().keys().map(str::to_owned).collect();
    known.extend(FREE_TABLES.map(|table| format!("{table}.NAME")));
    listed.sort();
    known.sort();
    assert_eq!(listed, known);
    let without_words: Vec<_> = sections
        .iter()
        .filter(|section| section.comment.is_empty())
        .flat_map(|section| &section.groups)
        .filter(|group| group.comment.is_empty())
        .collect();
    assert!(without_words.is_empty(), "keys without a comment: {without_words:?}");
}

/// The keys of a rule are in a comment, so nothing else would miss one.
#[test]
fn each_key_of_an_entry_is_explained() {
    for (list, example) in TABLE_LISTS {
        let sections = sections(DEFAULT);
        let mut groups = sections.iter().flat_map(|section| &section.groups);
        let group =
            groups.find(|group| group.keys.iter().any(|key| key == list)).expect("the list");
        let entry: toml::Table = toml::from_str(example).expect("valid");
        let explained: BTreeSet<_> = group
            .comment
            .iter()
            .filter_map(|line| line.strip_prefix("  "))
            .filter(|line| {
                !line.starts_with(' ') && !line.contains(" = ") && !line.starts_with('[')
            })
            .filter_map(|line| line.split_once("  "))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(explained, entry.keys().map(String::as_str).collect(), "{list}");
    }
}

#[test]
fn sections_and_prose_are_read_as_a_reader_would() {
    let text = "# A head.\n\n# One\n# line.\na = 1\nb = 2\n# Two\nc = [\n  \"x\",\n]\n\n# About t.\n[t]\nd = \"\"\n";
    let group = |comment: &[&str], keys: &[&str]| Group {
        comment: comment.iter().map(ToString::to_string).collect(),
        keys: keys.iter().map(ToString::to_string).collect(),
    };
    let want = [
        Section {
            groups: vec![group(&["One", "line."], &["a", "b"]), group(&["Two"], &["c"])],
            ..Section::default()
        },
        Section {
            name: "t".into(),
            comment: vec!["About t.".into()],
            groups: vec![group(&[], &["t.d"])],
        },
    ];
    assert_eq!(sections(text), want);
    let is_name = |word: &str| ["a.b", "[a.b]"].contains(&word);
    for (from, to) in [
        ("Any of \"*\", \"x\".", "Any of `\"*\"`, `\"x\"`."),
        ("As a.b, (a.b) and [a.b]: `as it is`.", "As `a.b`, (`a.b`) and `[a.b]`: `as it is`."),
        ("a * b < c", "a \\* b \\< c"),
    ] {
        assert_eq!(prose(from, &is_name), to);
    }
    let lines = ["For example", "  [x]", "    y", "so."].map(str::to_owned);
    assert_eq!(markdown(&lines, &is_name), "For example\n\n```\n[x]\n  y\n```\n\nso.");
}
