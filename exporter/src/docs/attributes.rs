//! docs/attributes.md has each attribute that there is, and no other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Table, page, tables_below};
use crate::cgroup::Paths;
use crate::config::Profile;
use crate::encode::tests::record;
use crate::encode::{Key, Value, attributes};
use crate::enrich::{Labels, Process, WorkloadSettings, Workloads};
use crate::record::RecordKind;

const PAGE: &str = "attributes.md";

/// What the page says of an attribute of a record: its name in the profile tracee if that is another, its type,
/// and the kinds of record that have it.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    tracee: Option<String>,
    kind: String,
    records: BTreeSet<String>,
}

fn type_of(value: Value<'_>) -> &'static str {
    match value {
        Value::Str(_) | Value::Ip(_) => "string",
        Value::Int(_) => "int",
        Value::Double(_) => "double",
        Value::Bool(_) => "bool",
        Value::List(_) => "string[]",
    }
}

/// From records that have all that a record of their kind can have.
fn of_the_code() -> BTreeMap<String, Said> {
    let mut all = BTreeMap::<String, Said>::new();
    for kind in RecordKind::ALL {
        let mut record = record(kind);
        record.local_names = vec!["own.test".into()];
        record.local_ptr = Some("own.ptr.test".into());
        record.remote_ptr = Some("peer.ptr.test".into());
        record.community_id = Some("1:x".into());
        attributes(&record, &mut |key: Key, value: Value<'_>| {
            let name = key.name(Profile::Semconv);
            let tracee = key.name(Profile::Tracee);
            let said = all.entry(name.into()).or_insert_with(|| Said {
                tracee: (tracee != name).then(|| tracee.into()),
                kind: type_of(value).into(),
                records: BTreeSet::new(),
            });
            assert_eq!(said.kind, type_of(value), "{name} has one type in all records");
            said.records.insert(kind.as_str().into());
        });
    }
    let known: BTreeSet<_> = all.keys().map(String::as_str).collect();
    let every = Key::ALL.iter().map(|key| key.name(Profile::Semconv)).collect();
    assert_eq!(known, every, "the records above have every attribute");
    all
}

fn said(table: &Table, row: &[super::Cell]) -> (String, Said) {
    let [name] = table.cell(row, "attribute").codes.as_slice() else {
        panic!("one attribute in each row: {row:?}")
    };
    let records = table.cell(row, "in").text.split(", ").map(str::to_owned).collect();
    let tracee = table.cell(row, "tracee").codes.first().cloned();
    // `int, us`: with the unit.
    let kind = table.cell(row, "type").text.split(',').next().unwrap_or_default().to_owned();
    for column in ["meaning", "example"] {
        assert!(!table.cell(row, column).text.is_empty(), "{name}: {column} is empty");
    }
    (name.clone(), Said { tracee, kind, records })
}

#[test]
fn attributes_md_has_every_attribute_of_a_record() {
    let text = page(PAGE);
    let mut page = BTreeMap::new();
    for title in ["Who and how", "Both sides", "Counts and times", "What else is known"] {
        for table in tables_below(&text, title) {
            for row in &table.rows {
                let (name, said) = said(&table, row);
                assert!(page.insert(name.clone(), said).is_none(), "{name} is there twice");
            }
        }
    }
    let code = of_the_code();
    for (name, said) in &code {
        assert_eq!(page.get(name), Some(said), "docs/{PAGE} on {name} (left), the code (right)");
    }
    let unknown: Vec<_> = page.keys().filter(|name| !code.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "docs/{PAGE} has attributes that no record has: {unknown:?}");
}

#[test]
fn attributes_md_has_every_attribute_of_a_resource() {
    let labels = Labels::from([("KEY".to_owned(), "value".to_owned())]);
    let (_keep, labels) = watch::channel(Arc::new(labels));
    let paths = Paths::new(1);
    let id = "0123456789abcdef".repeat(4);
    paths.learn(7, || {
        format!("/kubepods/pod6b6e5a9c-5b0e-4f0e-8a53-2f3d1c9a7e10/cri-containerd-{id}.scope")
    });
    let settings = WorkloadSettings { host_name: "host".into(), ..WorkloadSettings::default() };
    let mut workloads = Workloads::new(PathBuf::from("/"), paths, settings).with_labels(labels);
    let process = Process { pid: 1, executable: Some("curl".into()) };
    let workload = workloads.of(Some(7), Some(&process));
    let code: BTreeSet<String> = workload.resource.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(code.len(), 7, "a container of a pod has them all: {code:?}");
    let mut page_has = BTreeSet::new();
    for table in tables_below(&page(PAGE), "The resource") {
        for row in &table.rows {
            let name = table.cell(row, "attribute").codes.first().expect("a name").clone();
            assert!(page_has.insert(name.clone()), "{name} is there twice");
        }
    }
    assert_eq!(page_has, code, "docs/{PAGE} (left), the code (right)");
}
