//! What connections cost in memory and time as they become many, in process and with made-up events.
//!
//! `scale table CONNECTIONS`: opens them all, then ends them all; one line of figures.
//! `scale ends ENDS`: so many ends through the whole data path, and the memory at each tenth of them.
//!
//! A process for each measurement: what the allocator keeps of one would hide what the next one takes.

#[path = "data_path.rs"]
mod data_path;

use std::error::Error;
use std::time::{Duration, Instant};

use data_path::data_path;
use flowend::export::Limits;
use flowend::flow::{FlowEvent, FlowSettings, FlowTable};
use flowend::record::RecordKind;
use flowend_probe_types::{ACK, Addr, Event, EventKind, FIN, SYN, TcpEvent, TcpState};

/// From one event to the next, by the kernel's clock.
const STEP_NS: u64 = 1_000;

/// And from one crowd of connections to the next.
const PAUSE_NS: u64 = 1_000_000_000;

/// Connections that the data path has open at a time in `ends`.
const AT_A_TIME: u64 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["table", connections] => table(connections.parse()?),
        ["ends", ends] => ends_in_a_row(ends.parse()?),
        _ => Err("see scale.rs".into()),
    }
}

/// Opens and ends them, and prints: bytes for each connection, ns for each event that opens, and that ends.
fn table(connections: u64) -> Result<(), Box<dyn Error>> {
    let settings = FlowSettings { max: usize::try_from(connections)?, ..FlowSettings::default() };
    let mut table = FlowTable::new(settings);
    let mut ends = 0;
    let mut count = |event| ends += u64::from(matches!(event, FlowEvent::End(_)));
    let before = resident()?;
    let mut clock = 0;
    let mut apply = |steps: &[Step], first: u64, count: &mut dyn FnMut(FlowEvent)| {
        let start = Instant::now();
        for n in first..first + connections {
            for step in steps {
                clock += STEP_NS;
                table.apply(&step.event(n, clock), &mut |event| count(event));
            }
        }
        start.elapsed().as_nanos() as f64 / (connections * steps.len() as u64) as f64
    };
    let opening = apply(&OPENING, 0, &mut count);
    let bytes = resident()?.saturating_sub(before);
    let ending = apply(&ENDING, 0, &mut count);
    table.finish(&mut count);
    if ends != connections {
        return Err(format!("{ends} ends of {connections} connections").into());
    }
    println!("{} {opening:.0} {ending:.0}", bytes / connections);
    Ok(())
}

/// Prints ends and resident bytes, after each tenth; all have been taken from the queue by then.
fn ends_in_a_row(ends: u64) -> Result<(), Box<dyn Error>> {
    let (mut pipeline, queue) = data_path(2 * AT_A_TIME as usize);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (mut clock, mut taken, mut said) = (0, 0, 0);
    let mut next = 0;
    while next < ends {
        for steps in [OPENING.as_slice(), ENDING.as_slice()] {
            for n in next..(next + AT_A_TIME).min(ends) {
                for step in steps {
                    clock += STEP_NS;
                    pipeline.event(&step.event(n, clock), 0);
                }
            }
        }
        next += AT_A_TIME;
        // What is held back until its order and its end are sure comes out.
        clock += PAUSE_NS;
        pipeline.note_checked(clock);
        pipeline.tick(clock, 0);
        while queue.ledger().of(RecordKind::End).in_flight() > 0 {
            let batch = Limits { records: 512, bytes: usize::MAX };
            let Some(batch) = runtime.block_on(queue.take(batch, Duration::ZERO)) else { break };
            taken += batch.items.len() as u64;
            batch.held.settle(Ok(()));
        }
        if taken * 10 / ends > said {
            said = taken * 10 / ends;
            println!("{taken} {}", resident()?);
        }
    }
    pipeline.finish(0);
    let left = queue.ledger().of(RecordKind::End).in_flight();
    if taken + left != ends {
        return Err(format!("{} ends of {ends} connections", taken + left).into());
    }
    Ok(())
}

/// An event of a client's socket: its kind, the flags of the segment, the state of the socket.
struct Step(EventKind, u8, TcpState);

const OPENING: [Step; 3] = [
    Step(EventKind::SegmentOut, SYN, TcpState::SynSent),
    Step(EventKind::SegmentIn, SYN | ACK, TcpState::SynSent),
    Step(EventKind::ActiveEstablished, 0, TcpState::SynSent),
];

const ENDING: [Step; 3] = [
    Step(EventKind::SegmentOut, FIN | ACK, TcpState::FinWait1),
    Step(EventKind::SegmentIn, FIN | ACK, TcpState::FinWait2),
    Step(EventKind::Closed, 0, TcpState::FinWait2),
];

impl Step {
    /// Of the connection with this number.
    fn event(&self, n: u64, time_ns: u64) -> Event {
        let Self(kind, flags, state) = *self;
        let of_segment = matches!(kind, EventKind::SegmentOut | EventKind::SegmentIn);
        let is_syn = flags & SYN != 0;
        let isn = (n as u32).wrapping_mul(2_654_435_761);
        let (seq, ack) = match (kind, is_syn) {
            (EventKind::SegmentOut, true) => (isn, 0),
            (EventKind::SegmentIn, true) => (1, isn.wrapping_add(1)),
            _ => (9, 9),
        };
        let network = u32::try_from(n / 50_000 % (1 << 24)).unwrap_or(0).to_be_bytes();
        let event = TcpEvent {
            kind: kind as u8,
            flags,
            state: state as u8,
            local_port: 10_000 + (n % 50_000) as u16,
            remote_port: 443,
            local: Addr::v4(u32::from_ne_bytes([10, network[1], network[2], network[3]])),
            remote: Addr::v4(u32::from_ne_bytes([192, 0, 2, 1])),
            time_ns,
            cookie: n + 10,
            cgroup_id: u64::from(of_segment),
            bytes_acked: 1000,
            bytes_received: 1000,
            seq,
            ack,
            snd_nxt: isn.wrapping_add(1),
            rcv_nxt: 2,
            srtt_8us: 800,
            rtt_min_us: 90,
            segs_out: 5,
            segs_in: 5,
            data_segs_out: 1,
            data_segs_in: 1,
            ..TcpEvent::default()
        };
        // As they come out of the ring.
        Event::decode(event.as_bytes()).unwrap_or_else(|error| unreachable!("{error:?}"))
    }
}

/// The memory that this process has, bytes.
fn resident() -> Result<u64, Box<dyn Error>> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    let kb = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kb = kb.ok_or("no Rss in /proc/self/smaps_rollup")?.trim().trim_end_matches(" kB");
    Ok(kb.parse::<u64>()? * 1024)
}
