//! What each kind of record looks like in each output, attribute by attribute.

use std::collections::BTreeMap;
use std::sync::Arc;

use flowend_probe_types::Addr;
use jiff::tz::TimeZone;
use opentelemetry::logs::AnyValue;
use opentelemetry::{SpanId, TraceId};

use super::*;
use crate::config::Profile;
use crate::enrich::{Process, Workload};
use crate::flow::{ConnectionEnd, Counters, Direction, Endpoint, Reason, Rtt, Side};
use crate::ids::ConnectionIds;
use crate::record::{Record, RecordKind};
use crate::sample::Kept;

/// An outgoing connection that was looked up by name, as it stood after 61 s; its peer ended it.
pub(crate) fn record(kind: RecordKind) -> Record {
    let v4 = |last, port| Endpoint { addr: Addr::v4(u32::from_ne_bytes([192, 0, 2, last])), port };
    let (by, reason) = match kind {
        RecordKind::Begin | RecordKind::Progress => (None, Reason::Open),
        RecordKind::End => (Some(Side::Remote), Reason::Reset),
    };
    Record {
        kind,
        end: ConnectionEnd {
            cookie: 1,
            listener: None,
            cgroup_id: Some(1),
            direction: Direction::Outgoing,
            local: v4(1, 40_000),
            remote: v4(7, 443),
            start_ns: 0,
            start_known: true,
            end_known: true,
            end_ns: 61_000_000_000,
            by,
            reason,
            reset_by: by,
            conn_state: "RSTR",
            history: "ShADadr".into(),
            half_close_ns: Some(5_000_000),
            counters: Counters {
                bytes_sent: Some(100),
                bytes_received: Some(20_000),
                segments_sent: Some(12),
                segments_received: Some(11),
                retransmits: Some(2),
            },
            rtt: Rtt { handshake_us: Some(310), smoothed_us: Some(420), min_us: Some(300) },
            isns: None,
        },
        ids: ConnectionIds {
            trace_id: TraceId::from(0xa),
            span_id: SpanId::from(0xb),
            client_span_id: None,
        },
        parent_span_id: None,
        workload: Arc::new(Workload::with_resource(
            "api".into(),
            None,
            opentelemetry_sdk::Resource::builder_empty().with_service_name("api").build(),
        )),
        process: Some(Process { pid: 77, executable: Some("curl".into()) }),
        local_names: Vec::new(),
        remote_names: vec!["db.test".into(), "db.cdn.test".into()],
        local_ptr: None,
        remote_ptr: None,
        community_id: None,
        sampling: Kept { probability: 0.5, threshold: Some(1 << 55) },
        start_unix_ns: 1_700_000_000_000_000_000,
        end_unix_ns: 1_700_000_061_000_000_000,
    }
}

/// Each attribute as `key = value`, in order.
fn shown(record: &Record, profile: Profile) -> Vec<String> {
    let line: serde_json::Value =
        serde_json::from_str(&json_line(record, &Mapping::new(profile))).unwrap();
    let attributes = line["attributes"].as_object().unwrap();
    attributes.iter().map(|(key, value)| format!("{key} = {value}")).collect()
}

const ROLES_AND_NETWORK: [&str; 10] = [
    r#"client.address = "192.0.2.1""#,
    "client.port = 40000",
    r#"server.address = "db.test""#,
    "server.port = 443",
    r#"network.local.address = "192.0.2.1""#,
    "network.local.port = 40000",
    r#"network.peer.address = "192.0.2.7""#,
    "network.peer.port = 443",
    r#"network.transport = "tcp""#,
    r#"network.type = "ipv4""#,
];

const COUNTERS: [&str; 8] = [
    "flowend.bytes.sent = 100",
    "flowend.bytes.received = 20000",
    "flowend.segments.sent = 12",
    "flowend.segments.received = 11",
    "flowend.retransmits = 2",
    "flowend.rtt.handshake_us = 310",
    "flowend.rtt.smoothed_us = 420",
    "flowend.rtt.min_us = 300",
];

const PROCESS: [&str; 2] = ["process.pid = 77", r#"process.executable.name = "curl""#];

const PEER_DOMAINS: &str = r#"flowend.peer.domains = ["db.test","db.cdn.test"]"#;
const START_KNOWN: &str = "flowend.start_known = true";
const SAMPLING: &str = "flowend.sampling.probability = 0.5";

#[test]
fn a_begin_says_who_and_nothing_of_an_end() {
    for (profile, direction) in [
        (Profile::Semconv, r#"flowend.connection.direction = "outgoing""#),
        (Profile::Tracee, r#"connectionDirection = "outgoing""#),
    ] {
        let mut want = vec![direction, PEER_DOMAINS];
        want.extend(ROLES_AND_NETWORK);
        want.extend([START_KNOWN, "flowend.rtt.handshake_us = 310", SAMPLING]);
        want.extend(PROCESS);
        assert_eq!(shown(&record(RecordKind::Begin), profile), want);
    }
}

#[test]
fn a_progress_adds_the_duration_and_the_counters_so_far() {
    for (profile, direction) in [
        (Profile::Semconv, r#"flowend.connection.direction = "outgoing""#),
        (Profile::Tracee, r#"connectionDirection = "outgoing""#),
    ] {
        let mut want = vec![direction, PEER_DOMAINS];
        want.extend(ROLES_AND_NETWORK);
        want.extend(["flowend.duration_us = 61000000", START_KNOWN]);
        want.extend(COUNTERS);
        want.push(SAMPLING);
        want.extend(PROCESS);
        assert_eq!(shown(&record(RecordKind::Progress), profile), want);
    }
}

#[test]
fn an_end_says_which_side_terminated_it() {
    for (profile, sides) in [
        (
            Profile::Semconv,
            [
                r#"flowend.connection.direction = "outgoing""#,
                r#"source.address = "192.0.2.7""#,
                "source.port = 443",
                r#"destination.address = "192.0.2.1""#,
                "destination.port = 40000",
                r#"flowend.source.domains = ["db.test","db.cdn.test"]"#,
            ],
        ),
        (
            Profile::Tracee,
            [
                r#"connectionDirection = "outgoing""#,
                r#"srcIP = "192.0.2.7""#,
                "srcPort = 443",
                r#"dstIP = "192.0.2.1""#,
                "dstPort = 40000",
                r#"srcDomains = ["db.test","db.cdn.test"]"#,
            ],
        ),
    ] {
        let mut want = Vec::from(sides);
        want.extend(ROLES_AND_NETWORK);
        want.extend([
            r#"flowend.end.by = "remote""#,
            r#"flowend.end.reason = "reset""#,
            r#"flowend.end.reset_by = "remote""#,
            r#"flowend.conn_state = "RSTR""#,
            r#"flowend.history = "ShADadr""#,
            "flowend.half_close_us = 5000",
            "flowend.duration_us = 61000000",
            START_KNOWN,
        ]);
        want.extend(COUNTERS);
        want.extend([SAMPLING, r#"error.type = "connection_reset""#]);
        want.extend(PROCESS);
        assert_eq!(shown(&record(RecordKind::End), profile), want);
    }
}

#[test]
fn what_is_not_known_of_an_older_connection_is_left_out() {
    let mut progress = record(RecordKind::Progress);
    progress.end.direction = Direction::Unknown;
    progress.end.start_known = false;
    progress.end.counters.bytes_received = None;
    progress.end.rtt = Rtt::default();
    let got = shown(&progress, Profile::Semconv);
    for key in
        ["client.", "server.", "flowend.duration_us", "flowend.bytes.received", "flowend.rtt"]
    {
        assert!(!got.iter().any(|line| line.starts_with(key)), "{key}: {got:?}");
    }
    // Without a client and a server, the names are told all the same.
    assert!(got.contains(&PEER_DOMAINS.into()), "{got:?}");
    assert_eq!(body(&progress), "tcp connection with 192.0.2.7:443 is open, sent 100B");
    let line = text_line(&progress, &TimeZone::UTC);
    assert!(
        line.contains(" open            -             -       100B          - curl[77]"),
        "{line}"
    );
}

#[test]
fn bodies_are_one_line() {
    for (kind, want) in [
        (RecordKind::Begin, "tcp connection to 192.0.2.7:443 began"),
        (
            RecordKind::Progress,
            "tcp connection to 192.0.2.7:443 is open, since 1m01s, sent 100B, received 20.0kB",
        ),
        (RecordKind::End, "tcp connection to 192.0.2.7:443 ended: reset, by remote, after 1m01s"),
    ] {
        assert_eq!(body(&record(kind)), want);
    }
}

#[test]
fn text_lines_stand_under_the_heading() {
    let rows = [
        ("22:14:21.000 out 192.0.2.1:40000          db.test(192.0.2.7):443   ", RecordKind::Begin),
        (
            "22:14:21.000 out 192.0.2.1:40000          db.test(192.0.2.7):443   ",
            RecordKind::Progress,
        ),
        ("22:14:21.000 out 192.0.2.1:40000          db.test(192.0.2.7):443   ", RecordKind::End),
    ];
    let rest = [
        "begin           -             -          -          - curl[77]",
        "open            -         1m01s       100B     20.0kB curl[77]",
        "reset           remote    1m01s       100B     20.0kB curl[77]",
    ];
    for ((start, kind), rest) in rows.into_iter().zip(rest) {
        let line = text_line(&record(kind), &TimeZone::UTC);
        assert_eq!(line, format!("{start}{rest}"));
        let column = HEADER.find("END ").unwrap();
        assert_eq!(&line[column..column + 4], &rest[..4], "under END");
    }
}

#[test]
fn only_an_end_has_a_span_in_its_json() {
    for kind in RecordKind::ALL {
        let line: serde_json::Value =
            serde_json::from_str(&json_line(&record(kind), &Mapping::new(Profile::Semconv)))
                .unwrap();
        assert_eq!(line["event_name"], kind.event_name());
        assert_eq!(line["timestamp"], "2023-11-14T22:14:21.000000000Z");
        assert_eq!(line["trace_id"], "0000000000000000000000000000000a");
        assert_eq!(line["span_id"], "000000000000000b");
        let is_end = kind == RecordKind::End;
        assert_eq!(line["severity"], if is_end { "WARN" } else { "INFO" });
        assert_eq!(line.get("span").is_some(), is_end, "{line}");
    }
}

#[test]
fn the_span_in_json_says_its_trace_state_where_sampling_is_in_force() {
    let kept = |threshold| Kept { probability: 1.0, threshold };
    for (threshold, want) in
        [(Some(3 << 54), Some("ot=th:c")), (Some(0), Some("ot=th:0")), (None, None)]
    {
        let record = Record { sampling: kept(threshold), ..record(RecordKind::End) };
        let line: serde_json::Value =
            serde_json::from_str(&json_line(&record, &Mapping::new(Profile::Semconv))).unwrap();
        assert_eq!(line["span"].get("trace_state").and_then(|s| s.as_str()), want);
    }
}

#[test]
fn every_output_but_text_goes_through_the_mapping() {
    let omit = ["flowend.history".to_owned()];
    let table = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let (rename, add) = (table("client.port", "cp"), table("team", "a"));
    let changes = Changes { omit: &omit, rename: &rename, add: &add };
    let mapping = Arc::new(Mapping::with(Profile::Semconv, changes).unwrap());
    let record = record(RecordKind::End);
    let mut want: Vec<String> = Vec::new();
    attributes(&record, &mut |key: Key, _: Value<'_>| {
        want.push(key.name(Profile::Semconv).to_owned())
    });
    want.retain(|name| name != "flowend.history");
    want.iter_mut().filter(|name| *name == "client.port").for_each(|name| *name = "cp".into());
    want.push("team".into());

    let line: serde_json::Value = serde_json::from_str(&json_line(&record, &mapping)).unwrap();
    let json: Vec<_> = line["attributes"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(json, want);
    assert_eq!(
        (&line["attributes"]["cp"], &line["attributes"]["team"]),
        (&40_000.into(), &"a".into())
    );
    let log = LogEncoder::new(Arc::clone(&mapping)).encode(&record);
    let log: Vec<_> = log.attributes_iter().map(|(key, _)| key.as_str().to_owned()).collect();
    assert_eq!(log, want);
    let span = span(&record, &mapping, &scope());
    let span: Vec<_> = span.attributes.iter().map(|kv| kv.key.as_str().to_owned()).collect();
    assert_eq!(span, want);
}

#[test]
fn log_records_carry_kind_time_and_span() {
    let encoder = LogEncoder::new(Arc::new(Mapping::new(Profile::Semconv)));
    for kind in RecordKind::ALL {
        let record = record(kind);
        let log = encoder.encode(&record);
        assert_eq!(log.event_name(), Some(kind.event_name()));
        let unix = log.timestamp().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(unix.as_nanos(), u128::from(record.end_unix_ns));
        let severity = if kind == RecordKind::End { "WARN" } else { "INFO" };
        assert_eq!(log.severity_text(), Some(severity));
        assert_eq!(log.body(), Some(&AnyValue::from(body(&record))));
        let context = log.trace_context().unwrap();
        assert_eq!((context.trace_id, context.span_id), (record.ids.trace_id, record.ids.span_id));
        let keys: Vec<String> =
            log.attributes_iter().map(|(key, _)| key.as_str().to_owned()).collect();
        let want: Vec<String> = shown(&record, Profile::Semconv)
            .iter()
            .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
            .collect();
        assert_eq!(keys, want);
    }
}

#[test]
fn a_ptr_name_stands_apart_from_the_domains_in_each_kind_and_profile() {
    for profile in Profile::ALL {
        for kind in RecordKind::ALL {
            let plain = record(kind);
            let with = Record {
                local_ptr: Some("own.rev.test".into()),
                remote_ptr: Some("peer.rev.test".into()),
                ..record(kind)
            };
            // The peer ended it: it is the source.
            let keys = match kind {
                RecordKind::End => ["flowend.destination.ptr", "flowend.source.ptr"],
                RecordKind::Begin | RecordKind::Progress => {
                    ["flowend.local.ptr", "flowend.peer.ptr"]
                }
            };
            let added = [
                format!(r#"{} = "own.rev.test""#, keys[0]),
                format!(r#"{} = "peer.rev.test""#, keys[1]),
            ];
            let told = shown(&with, profile);
            let (ptrs, rest): (Vec<_>, Vec<_>) =
                told.into_iter().partition(|line| added.contains(line));
            assert_eq!(ptrs.len(), 2, "{kind:?}");
            assert_eq!(rest, shown(&plain, profile), "all else as without: {kind:?}");
            assert_eq!(text_line(&with, &TimeZone::UTC), text_line(&plain, &TimeZone::UTC));
            let log = LogEncoder::new(Arc::new(Mapping::new(profile))).encode(&with);
            let span = span(&with, &Mapping::new(profile), &scope());
            for (key, want) in keys.into_iter().zip(["own.rev.test", "peer.rev.test"]) {
                let told = log.attributes_iter().find(|(k, _)| k.as_str() == key);
                assert_eq!(told.map(|(_, value)| value), Some(&AnyValue::from(want)));
                let told = span.attributes.iter().find(|kv| kv.key.as_str() == key);
                assert_eq!(told.map(|kv| kv.value.as_str().into_owned()), Some(want.to_owned()));
            }
        }
    }
}

#[test]
fn an_address_without_a_name_is_not_called_by_its_ptr() {
    let nameless = Record {
        remote_names: Vec::new(),
        remote_ptr: Some("peer.rev.test".into()),
        ..record(RecordKind::End)
    };
    let told = shown(&nameless, Profile::Semconv);
    assert!(told.contains(&r#"server.address = "192.0.2.7""#.into()), "{told:?}");
    assert!(!told.iter().any(|line| line.contains("domains")), "{told:?}");
}

#[test]
fn a_community_id_is_told_in_each_kind_and_output() {
    const ID: &str = "1:LQU9qZlK+B5F3KDmev6m5PMibrg=";
    for kind in RecordKind::ALL {
        let with = Record { community_id: Some(ID.into()), ..record(kind) };
        let line = format!("flowend.community_id = {ID:?}");
        assert!(shown(&with, Profile::Semconv).contains(&line), "{kind:?}");
        assert!(text_line(&with, &TimeZone::UTC).ends_with(&format!(" curl[77] {ID}")));
        let key = "flowend.community_id";
        let log = LogEncoder::new(Arc::new(Mapping::new(Profile::Tracee))).encode(&with);
        let told = log.attributes_iter().find(|(k, _)| k.as_str() == key);
        assert_eq!(told.map(|(_, value)| value), Some(&AnyValue::from(ID)));
        let span = span(&with, &Mapping::new(Profile::Semconv), &scope());
        let told = span.attributes.iter().find(|kv| kv.key.as_str() == key);
        assert_eq!(told.map(|kv| kv.value.as_str().into_owned()), Some(ID.to_owned()));
    }
}
