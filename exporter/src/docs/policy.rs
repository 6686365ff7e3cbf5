//! What ARCHITECTURE.md promises of the whole tree: where `unsafe` is, and why each dependency is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use super::{repository, tables_below};

/// Files of tests that have `unsafe`: system calls that no library makes, which ARCHITECTURE.md does not name, for
/// none of it is shipped.
const TESTS_WITH_UNSAFE: [&str; 4] = [
    "exporter/testing/datagram.rs",
    "exporter/testing/puppet.rs",
    "exporter/tests/kernel/exclusive.rs",
    "exporter/tests/kernel/link.rs",
];

/// In two parts, so that this file has none.
const UNSAFE: &str = concat!("un", "safe");

fn architecture() -> String {
    std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap()
}

/// The files below the repository's top folder for which `wanted` holds, by their path from there. What is built,
/// downloaded or hidden does not count, nor what only a link leads to.
fn files(wanted: fn(&Path) -> bool) -> Vec<String> {
    const NOT_OURS: [&str; 3] = ["target", "node_modules", "work"];
    let top = repository();
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(top.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !name.starts_with('.') && !NOT_OURS.contains(&&*name) {
                folders.push(path);
            } else if kind.is_file() && wanted(&path) {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Whether a line that is no comment has the keyword. A name that contains it is another word.
fn has_unsafe(source: &str) -> bool {
    let is_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| line.split(|c| !is_of_a_name(c)).any(|word| word == UNSAFE))
}

/// The code in the item of a list that begins with this code.
fn codes_of_item(text: &str, first: &str) -> Vec<String> {
    let mut codes: Option<Vec<String>> = None;
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::Item) => codes = Some(Vec::new()),
            Event::Code(code) => codes.iter_mut().for_each(|codes| codes.push(code.to_string())),
            Event::End(TagEnd::Item) => match codes.take() {
                Some(codes) if codes.first().is_some_and(|code| code == first) => return codes,
                _ => {}
            },
            _ => {}
        }
    }
    panic!("no item that begins with `{first}`")
}

#[test]
fn unsafe_is_found_as_a_word_of_code() {
    let block = format!("    let n = {UNSAFE} {{ f() }};");
    let attribute = format!("#[{UNSAFE}(no_mangle)]");
    for (line, want) in [
        (block.as_str(), true),
        (&attribute, true),
        (&format!("/// {UNSAFE}"), false),
        (&format!("undocumented_{UNSAFE}_blocks"), false),
        (&format!("{UNSAFE}_code"), false),
        ("", false),
    ] {
        assert_eq!(has_unsafe(line), want, "{line}");
    }
}

/// The item of "Invariants" names files and folders with `/` at the end.
#[test]
fn unsafe_is_only_where_architecture_md_says() {
    let listed = codes_of_item(&architecture(), UNSAFE).split_off(1);
    let sources = files(|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(sources.len() > 250, "{} files", sources.len());
    let with = |path: &&String| {
        has_unsafe(&std::fs::read_to_string(repository().join(path.as_str())).unwrap())
    };
    let with: Vec<&String> = sources.iter().filter(with).collect();
    let covers = |listed: &str, path: &str| {
        listed == path || (listed.ends_with('/') && path.starts_with(listed))
    };
    let all = || listed.iter().map(String::as_str).chain(TESTS_WITH_UNSAFE);
    for path in &with {
        assert!(
            all().any(|listed| covers(listed, path)),
            "{path} has {UNSAFE} code: use a library that wraps it, or say in ARCHITECTURE.md, \"Invariants\", why not"
        );
    }
    for listed in all() {
        assert!(
            with.iter().any(|path| covers(listed, path)),
            "{listed} has no {UNSAFE} code, or is not there: take it from ARCHITECTURE.md (or from this test)"
        );
    }
}

/// What a dependency is for, as the table says it behind the names.
fn remark(manifest: &str, table: &str) -> &'static str {
    match (manifest, table) {
        ("fuzz/Cargo.toml", _) => " (fuzzing)",
        (_, "dev-dependencies") => " (tests)",
        _ => "",
    }
}

/// The dependencies in a manifest that are not in this repository, each with its table.
fn dependencies(text: &str) -> Vec<(String, String)> {
    let manifest: toml::Table = text.parse().unwrap();
    let of_targets = manifest.get("target").and_then(toml::Value::as_table);
    let tables = std::iter::once(&manifest)
        .chain(of_targets.into_iter().flatten().filter_map(|(_, target)| target.as_table()))
        .chain(manifest.get("workspace").and_then(toml::Value::as_table));
    let mut found = Vec::new();
    for table in tables {
        for name in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let entries = table.get(name).and_then(toml::Value::as_table);
            for (dependency, value) in entries.into_iter().flatten() {
                if value.get("path").is_none() {
                    let package = value.get("package").and_then(toml::Value::as_str);
                    found.push((package.unwrap_or(dependency).to_owned(), name.to_owned()));
                }
            }
        }
    }
    found
}

#[test]
fn dependencies_are_found_in_each_table_of_a_manifest() {
    let text = "[dependencies]\na = \"1\"\nb = { path = \"b\" }\nc = { package = \"d\", version = \"1\" }\n\
                [dev-dependencies]\ne = \"1\"\n[build-dependencies]\nf = \"1\"\n\
                [target.'cfg(unix)'.dependencies]\ng = \"1\"\n[workspace.dependencies]\nh = \"1\"\n";
    let mut names: Vec<_> = dependencies(text).into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["a", "d", "e", "f", "g", "h"]);
}

/// One row for some crates: their names, "(tests)" or "(fuzzing)" where they are for nothing else, and what for.
#[test]
fn each_dependency_has_its_reason() {
    let mut wanted: BTreeMap<String, &str> = BTreeMap::new();
    let manifests = files(|path| path.ends_with("Cargo.toml"));
    assert!(manifests.len() >= 5, "{manifests:?}");
    for path in manifests {
        let text = std::fs::read_to_string(repository().join(&path)).unwrap();
        for (name, table) in dependencies(&text) {
            let remark = remark(&path, &table);
            // What is shipped is the stronger reason.
            let known = wanted.entry(name).or_insert(remark);
            *known = if remark.is_empty() { remark } else { known };
        }
    }
    let mut given = BTreeSet::new();
    for table in tables_below(&architecture(), "Dependencies, and why") {
        for row in &table.rows {
            let (crates, reason) = (&table.cell(row, "crate").text, &table.cell(row, "for").text);
            assert!(!reason.trim().is_empty(), "ARCHITECTURE.md: no reason for {crates}");
            let (names, remark) = crates
                .split_once(" (")
                .map_or((&**crates, ""), |(names, _)| (names, &crates[names.len()..]));
            for name in names.split(", ") {
                assert!(given.insert(format!("{name}{remark}")), "ARCHITECTURE.md: {name} twice");
            }
        }
    }
    let wanted: BTreeSet<String> =
        wanted.into_iter().map(|(name, remark)| format!("{name}{remark}")).collect();
    let missing: Vec<_> = wanted.difference(&given).collect();
    assert!(
        missing.is_empty(),
        "no line in ARCHITECTURE.md, \"Dependencies, and why\": {missing:?}"
    );
    let left: Vec<_> = given.difference(&wanted).collect();
    assert!(
        left.is_empty(),
        "in ARCHITECTURE.md, \"Dependencies, and why\", and in no Cargo.toml: {left:?}"
    );
}

/// `deploy/sbom/build --check` compares the lists with the build; this says without a tool that they are old.
#[test]
fn the_lists_of_what_is_shipped_are_of_this_lock_file() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let text = |value: Option<&toml::Value>| value.and_then(toml::Value::as_str).map(str::to_owned);
    let locked: BTreeSet<_> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| ["name", "version", "checksum"].map(|key| text(package.get(key))))
        .collect();
    for processor in ["x86_64", "aarch64"] {
        let path = format!("deploy/sbom/{processor}.cdx.json");
        let list: serde_json::Value = serde_json::from_str(&read(&path)).unwrap();
        let components = list["components"].as_array().unwrap();
        assert!(components.len() > 150, "{path}: {} crates", components.len());
        for component in components {
            let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
            let hash = text(&component["hashes"][0]["content"]);
            let entry = [text(&component["name"]), text(&component["version"]), hash];
            assert!(
                locked.contains(&entry),
                "{path}: {entry:?} is not in Cargo.lock: run deploy/sbom/build and commit"
            );
        }
    }
}
