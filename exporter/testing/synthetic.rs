//! Ends of connections that nobody made, told apart by a number.

use std::sync::Arc;

use flowend::enrich::{Process, Workload};
use flowend::flow::{ConnectionEnd, Counters, Direction, Endpoint, Reason, Rtt, Side};
use flowend::ids::ConnectionIds;
use flowend::record::{Record, RecordKind};
use flowend::sample::Kept;
use flowend_probe_types::Addr;
use opentelemetry::{SpanId, TraceId};

/// Whose connections they are.
pub(crate) fn workload() -> Arc<Workload> {
    let resource =
        opentelemetry_sdk::Resource::builder_empty().with_service_name("synthetic").build();
    Arc::new(Workload::with_resource("synthetic".into(), None, resource))
}

/// Trace and span of the end with this number. All zeros would be no id.
pub(crate) fn ids(number: u64) -> (TraceId, SpanId) {
    let own = number + 1;
    (TraceId::from(u128::from(u64::MAX) << 64 | u128::from(own)), SpanId::from(own))
}

/// The end with this number, of an outgoing connection with a name and a process.
pub(crate) fn end(number: u64, workload: &Arc<Workload>) -> Arc<Record> {
    let v4 = |last, port| Endpoint { addr: Addr::v4(u32::from_ne_bytes([192, 0, 2, last])), port };
    let start_unix_ns = 1_700_000_000_000_000_000 + number;
    let (trace_id, span_id) = ids(number);
    Arc::new(Record {
        kind: RecordKind::End,
        end: ConnectionEnd {
            cookie: number,
            listener: None,
            cgroup_id: Some(1),
            direction: Direction::Outgoing,
            local: v4(1, 40_000),
            remote: v4(7, 443),
            start_ns: 0,
            start_known: true,
            end_known: true,
            end_ns: 61_000_000,
            by: Some(Side::Local),
            reason: Reason::Fin,
            reset_by: None,
            conn_state: "SF",
            history: "ShADadFf".into(),
            half_close_ns: None,
            counters: Counters {
                bytes_sent: Some(100),
                bytes_received: Some(20_000),
                segments_sent: Some(12),
                segments_received: Some(11),
                retransmits: Some(0),
            },
            rtt: Rtt { handshake_us: Some(310), smoothed_us: Some(420), min_us: Some(300) },
            isns: None,
        },
        ids: ConnectionIds { trace_id, span_id, client_span_id: None },
        parent_span_id: None,
        workload: Arc::clone(workload),
        process: Some(Process { pid: 77, executable: Some("curl".into()) }),
        local_names: Vec::new(),
        remote_names: vec!["db.example.com".into()],
        local_ptr: None,
        remote_ptr: None,
        community_id: None,
        sampling: Kept::UNSAMPLED,
        start_unix_ns,
        end_unix_ns: start_unix_ns + 61_000_000,
    })
}
