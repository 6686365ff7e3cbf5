//! Records as no connection makes them: any value of each field.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flowend_probe_types::Addr;
use opentelemetry::{KeyValue, SpanId, TraceId};
use opentelemetry_sdk::Resource;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::config::Profile;
use crate::encode::{Changes, Key, Mapping};
use crate::enrich::{Process, Workload};
use crate::flow::{ConnectionEnd, Counters, Direction, Endpoint, Reason, Rtt, Side};
use crate::ids::ConnectionIds;
use crate::record::{Record, RecordKind};
use crate::sample::Kept;

pub(super) const REASONS: [Reason; 10] = [
    Reason::Fin,
    Reason::Reset,
    Reason::Refused,
    Reason::ConnectTimeout,
    Reason::Timeout,
    Reason::Aborted,
    Reason::Unreachable,
    Reason::HandshakeFailed,
    Reason::Vanished,
    Reason::Open,
];

pub(super) const DIRECTIONS: [Direction; 3] =
    [Direction::Incoming, Direction::Outgoing, Direction::Unknown];

/// Text of any kind, and of a length that takes one byte or more.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z.]{0,20}", 2 => ".{0,40}", 1 => "\\PC{60,200}"]
}

/// Numbers of each size, with the edges.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), (any::<u64>(), 0..64_u32).prop_map(|(n, bits)| n >> bits)]
}

fn addr() -> impl Strategy<Value = Addr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|v4| IpAddr::from(v4).into()),
        any::<[u8; 16]>().prop_map(Addr::from_octets),
        any::<[u8; 4]>().prop_map(|[a, b, c, d]| {
            Addr::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
        }),
        prop_oneof![Just("::"), Just("::1"), Just("fe80::1:0:0:1"), Just("::192.0.2.1")]
            .prop_map(|text| text.parse::<IpAddr>().unwrap().into()),
    ]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (addr(), any::<u16>()).prop_map(|(addr, port)| Endpoint { addr, port })
}

fn side() -> impl Strategy<Value = Option<Side>> {
    prop_oneof![Just(None), Just(Some(Side::Local)), Just(Some(Side::Remote))]
}

fn names() -> impl Strategy<Value = Vec<Arc<str>>> {
    vec(text().prop_map(Arc::from), 0..5)
}

prop_compose! {
    fn counted()(
        bytes in [option::of(number()), option::of(number()), option::of(number())],
        segments in [option::of(any::<u32>()), option::of(any::<u32>()), option::of(any::<u32>())],
        rtt in [option::of(any::<u32>()), option::of(any::<u32>())],
    ) -> (Counters, Rtt) {
        let counters = Counters {
            bytes_sent: bytes[0],
            bytes_received: bytes[1],
            segments_sent: segments[0],
            segments_received: segments[1],
            retransmits: segments[2],
        };
        (counters, Rtt { handshake_us: bytes[2], smoothed_us: rtt[0], min_us: rtt[1] })
    }
}

prop_compose! {
    fn end()(
        direction in prop::sample::select(&DIRECTIONS[..]),
        reason in prop::sample::select(&REASONS[..]),
        (local, remote) in (endpoint(), endpoint()),
        (start_ns, end_ns, half_close_ns) in (number(), number(), option::of(number())),
        (start_known, end_known) in any::<(bool, bool)>(),
        (by, reset_by) in (side(), side()),
        conn_state in prop::sample::select(&["SF", "RSTO", "S0", ""][..]),
        history in text(),
        (counters, rtt) in counted(),
    ) -> ConnectionEnd {
        ConnectionEnd {
            cookie: 1,
            listener: None,
            cgroup_id: None,
            direction,
            local,
            remote,
            start_ns,
            start_known,
            end_ns,
            end_known,
            by,
            reason,
            reset_by,
            conn_state,
            history,
            half_close_ns,
            counters,
            rtt,
            isns: None,
        }
    }
}

fn sampling() -> impl Strategy<Value = Kept> {
    (prop_oneof![Just(0.0), Just(1.0), 0.0..1.0], option::of((0..1_u64 << 56, 0..56_u32))).prop_map(
        |(probability, t)| Kept { probability, threshold: t.map(|(t, bits)| t >> bits << bits) },
    )
}

prop_compose! {
    /// A record of one of these workloads.
    pub(super) fn record(workloads: Vec<Arc<Workload>>)(
        kind in prop::sample::select(&RecordKind::ALL[..]),
        end in end(),
        (trace_id, span_id) in any::<(u128, u64)>(),
        parent in option::of(1..=u64::MAX),
        workload in prop::sample::select(workloads),
        process in option::of((any::<u32>(), option::of(text().prop_map(Arc::from)))),
        (local_names, remote_names) in (names(), names()),
        (local_ptr, remote_ptr) in (
            option::of(text().prop_map(Arc::from)),
            option::of(text().prop_map(Arc::from)),
        ),
        community_id in option::of(text()),
        sampling in sampling(),
        (start_unix_ns, end_unix_ns) in (number(), number()),
    ) -> Record {
        Record {
            kind,
            end,
            ids: ConnectionIds {
                trace_id: TraceId::from(trace_id),
                span_id: SpanId::from(span_id),
                client_span_id: None,
            },
            parent_span_id: parent.map(SpanId::from),
            workload,
            process: process.map(|(pid, executable)| Process { pid, executable }),
            local_names,
            remote_names,
            local_ptr,
            remote_ptr,
            community_id,
            sampling,
            start_unix_ns,
            end_unix_ns,
        }
    }
}

/// A workload with these attributes.
pub(super) fn workload(attributes: &[(&str, &str)]) -> Arc<Workload> {
    let attributes =
        attributes.iter().map(|(k, v)| KeyValue::new((*k).to_owned(), (*v).to_owned()));
    let resource = Resource::builder_empty().with_attributes(attributes).build();
    Arc::new(Workload::with_resource(String::new(), None, resource))
}

/// Names of any length, some attributes left out, some added.
pub(super) fn mapping() -> impl Strategy<Value = Arc<Mapping>> {
    let change = prop_oneof![
        4 => Just(None),
        1 => Just(Some(None)),
        1 => "\\PC{1,150}".prop_map(Some).prop_map(Some),
    ];
    let changes = vec(change, Key::ALL.len());
    let profile = prop::sample::select(&Profile::ALL[..]);
    (profile, changes, btree_map("[a-z]{1,60}", text(), 0..3)).prop_map(
        |(profile, changes, add)| {
            let (mut omit, mut rename) = (Vec::new(), BTreeMap::new());
            for ((index, key), change) in Key::ALL.iter().enumerate().zip(changes) {
                let name = key.name(profile).to_owned();
                match change {
                    None => {}
                    Some(None) => omit.push(name),
                    // The number keeps it from colliding with another.
                    Some(Some(new)) => drop(rename.insert(name, format!("{new}{index}"))),
                }
            }
            Arc::new(
                Mapping::with(profile, Changes { omit: &omit, rename: &rename, add: &add })
                    .unwrap(),
            )
        },
    )
}
