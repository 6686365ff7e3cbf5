//! User-space cost of an end, stage by stage: `cargo bench --bench end`.
//!
//! Synthetic connections with both ends watched, as the probe reports them: 13 events for two ends.
//! Each stage includes those before it; the last two are two ways to the same requests. The baseline, in the
//! same run, is reading the events out of their bytes and doing nothing with them.
//!
//! `-- WORD` runs the stages whose names have the words, once: for a profiler, which all rounds would keep busy for long.

#[path = "../testing/data_path.rs"]
mod data_path;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data_path::data_path;
use flowend::config::Profile;
use flowend::encode::wire::{self, RecordEncoder};
use flowend::encode::{self, LogEncoder, Mapping};
use flowend::export::{Limits, Queue, Signal};
use flowend::flow::{FlowEvent, FlowSettings, FlowTable};
use flowend::record::{Record, RecordKind};
use flowend_probe_types::{
    ACK, Addr, Event, EventKind, FIN, ProcessEvent, SYN, TcpEvent, TcpState,
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::logs::tonic::group_logs_by_resource_and_scope;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::logs::LogBatch;
use prost::Message as _;

const CONNECTIONS: u64 = 50_000;
const ENDS: u64 = 2 * CONNECTIONS;
const ROUNDS: usize = 7;
const BATCH: usize = 512;

fn main() {
    // `cargo bench` adds an option of its own.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let rounds = if only.is_some() { 1 } else { ROUNDS };
    let events = events();
    println!(
        "{ENDS} ends, {} events; ns of CPU time per end, median of {rounds} round(s)",
        events.len()
    );
    println!(
        "{:44} {:>8} {:>8} {:>14}",
        "stage (each with those before it)", "ns/end", "ratio", "ends/s on a core"
    );
    let stages: [(&str, Stage); 5] = [
        ("read the events (baseline)", read),
        ("flow state machine", flow),
        ("enrich, ids, sample, queue", pipeline),
        ("... and log and span as OTLP requests", encoded),
        ("... the same by way of the SDK's types", encoded_by_sdk),
    ];
    let stages: Vec<_> = stages
        .into_iter()
        .filter(|stage| only.as_ref().is_none_or(|word| stage.0.contains(word)))
        .collect();
    let mut times = vec![Vec::new(); stages.len()];
    for _ in 0..rounds {
        for (stage, times) in stages.iter().zip(&mut times) {
            let start = Instant::now();
            let ends = (stage.1)(&events);
            times.push(start.elapsed());
            assert!(ends == 0 || ends == ENDS, "{}: {ends} ends", stage.0);
        }
    }
    let mut baseline = 0.0;
    for ((name, _), times) in stages.iter().zip(&mut times) {
        times.sort();
        let ns = times[times.len() / 2].as_nanos() as f64 / ENDS as f64;
        if baseline == 0.0 {
            baseline = ns;
        }
        println!("{name:44} {ns:8.0} {:8.1} {:14.0}", ns / baseline, 1e9 / ns);
    }
}

/// Takes all events; the number of ends it got out of them.
type Stage = fn(&[Step]) -> u64;

/// One event as it lies in the ring, or one that the bench gives ready-made.
enum Step {
    Ring(TcpEvent),
    Process(ProcessEvent),
}

fn decode(step: &Step) -> Event {
    match step {
        Step::Ring(event) => Event::decode(black_box(event.as_bytes())).expect("an event"),
        Step::Process(event) => Event::Process(EventKind::Connect, *event),
    }
}

fn read(steps: &[Step]) -> u64 {
    for step in steps {
        black_box(decode(step));
    }
    0
}

fn flow(steps: &[Step]) -> u64 {
    let mut table = FlowTable::new(FlowSettings::default());
    let mut ends = 0;
    let mut count = |event| {
        ends += u64::from(matches!(black_box(event), FlowEvent::End(_)));
    };
    for step in steps {
        table.apply(&decode(step), &mut count);
    }
    table.finish(&mut count);
    ends
}

fn run_pipeline(steps: &[Step]) -> Arc<Queue<Arc<Record>>> {
    let (mut pipeline, queue) = data_path(ENDS as usize);
    for step in steps {
        pipeline.event(&decode(step), 0);
    }
    pipeline.finish(0);
    queue
}

fn pipeline(steps: &[Step]) -> u64 {
    run_pipeline(steps).ledger().of(RecordKind::End).in_flight()
}

/// Runs the pipeline and hands each batch of its queue to `encode`, which says how many bytes it made of it.
fn batches(steps: &[Step], mut encode: impl FnMut(&[Arc<Record>]) -> usize) -> u64 {
    let queue = run_pipeline(steps);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut ends = 0;
    let batch = Limits { records: BATCH, bytes: usize::MAX };
    while let Some(taken) = runtime.block_on(queue.take(batch, Duration::ZERO)) {
        black_box(encode(&taken.items));
        ends += taken.items.len() as u64;
        taken.held.settle(Ok(()));
    }
    ends
}

fn encoded(steps: &[Step]) -> u64 {
    let mut encoder = RecordEncoder::new(Arc::new(Mapping::new(Profile::Semconv)));
    batches(steps, |batch| {
        let items: Vec<_> = batch.iter().map(|r| Arc::new(encoder.encode(r))).collect();
        let bodies = [Signal::Logs, Signal::Traces].map(|signal| wire::request(signal, &items));
        black_box(&bodies).iter().map(Bytes::len).sum()
    })
}

fn encoded_by_sdk(steps: &[Step]) -> u64 {
    let mapping = Arc::new(Mapping::new(Profile::Semconv));
    let logs = LogEncoder::new(Arc::clone(&mapping));
    let scope = encode::scope();
    let mut body = Vec::new();
    batches(steps, |batch| {
        let resource = (&batch[0].workload.resource).into();
        let records: Vec<_> = batch.iter().map(|r| logs.encode(r)).collect();
        let with_scope: Vec<_> = records.iter().map(|r| (r, &logs.scope)).collect();
        let resource_logs =
            group_logs_by_resource_and_scope(&LogBatch::new(&with_scope), &resource);
        body.clear();
        ExportLogsServiceRequest { resource_logs }.encode(&mut body).expect("memory");
        let size = black_box(&body).len();
        let spans = batch.iter().map(|r| encode::span(r, &mapping, &scope)).collect();
        let resource_spans = group_spans_by_resource_and_scope(spans, &resource);
        body.clear();
        ExportTraceServiceRequest { resource_spans }.encode(&mut body).expect("memory");
        size + black_box(&body).len()
    })
}

/// Both ends of each connection, closed by the client, interleaved as the kernel would.
fn events() -> Vec<Step> {
    let mut steps = Vec::new();
    for n in 0..CONNECTIONS {
        let (client, server, listener) = (2 * n + 10, 2 * n + 11, 1);
        let port = 10_000 + (n % 50_000) as u16;
        let isn = (n as u32).wrapping_mul(2_654_435_761);
        let mut time = n * 20_000;
        let mut push =
            |kind: EventKind, cookie: u64, flags: u8, state: TcpState, seq: u32, ack: u32| {
                time += 1_000;
                let of_client = cookie == client;
                let (a, b) = (
                    Addr::v4(u32::from_ne_bytes([10, 0, 0, 1])),
                    Addr::v4(u32::from_ne_bytes([10, 0, 0, 2])),
                );
                let of_socket = matches!(
                    kind,
                    EventKind::ActiveEstablished
                        | EventKind::PassiveEstablished
                        | EventKind::Closed
                );
                steps.push(Step::Ring(TcpEvent {
                    kind: kind as u8,
                    flags,
                    state: state as u8,
                    local_port: if of_client { port } else { 80 },
                    remote_port: if of_client { 80 } else { port },
                    local: if of_client { a } else { b },
                    remote: if of_client { b } else { a },
                    time_ns: time,
                    cookie,
                    cgroup_id: if of_socket { 0 } else { 1 },
                    bytes_acked: 1000,
                    bytes_received: 1000,
                    seq,
                    ack,
                    snd_nxt: if of_client { isn.wrapping_add(1) } else { 2 },
                    rcv_nxt: if of_client { 2 } else { isn.wrapping_add(1) },
                    srtt_8us: 800,
                    rtt_min_us: 90,
                    segs_out: 5,
                    segs_in: 5,
                    data_segs_out: 1,
                    data_segs_in: 1,
                    ..TcpEvent::default()
                }));
            };
        use EventKind::{ActiveEstablished, Closed, PassiveEstablished, SegmentIn, SegmentOut};
        push(SegmentOut, client, SYN, TcpState::SynSent, isn, 0);
        push(SegmentIn, listener, SYN, TcpState::Listen, isn, 0);
        push(SegmentOut, listener, SYN | ACK, TcpState::Listen, 1, isn.wrapping_add(1));
        push(SegmentIn, client, SYN | ACK, TcpState::SynSent, 1, isn.wrapping_add(1));
        push(ActiveEstablished, client, 0, TcpState::SynSent, 0, 0);
        push(PassiveEstablished, server, 0, TcpState::SynRecv, 0, 0);
        push(SegmentOut, client, FIN | ACK, TcpState::FinWait1, 9, 9);
        push(SegmentIn, server, FIN | ACK, TcpState::Established, 9, 9);
        push(SegmentOut, server, FIN | ACK, TcpState::LastAck, 9, 9);
        push(SegmentIn, client, FIN | ACK, TcpState::FinWait2, 9, 9);
        push(Closed, client, 0, TcpState::FinWait2, 0, 0);
        push(Closed, server, 0, TcpState::LastAck, 0, 0);
        let pid = std::process::id();
        steps.push(Step::Process(ProcessEvent {
            cookie: client,
            pid: pid + 1,
            ..ProcessEvent::default()
        }));
    }
    steps
}
