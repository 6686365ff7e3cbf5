//! Cost of the spool beside a plain write of the same bytes: `cargo bench --bench spool`.
//!
//! For requests of 512 records and of one, in the page cache of the temporary folder: time per record, and
//! how many times that of the plain write, or read. Appending includes `fdatasync` at the end of each
//! segment, which is told apart by the CPU time.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flowend::export::spool::{Frame, Spool};

const ROUNDS: usize = 5;
/// Bytes of a record in a request, roughly.
const RECORD: usize = 1200;
/// Bytes of a round.
const BYTES: usize = 96 << 20;

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    println!(
        "{:44} {:>12} {:>12} {:>12} {:>12}",
        "median of 5", "CPU ns/record", "x plain", "ns/record", "x plain"
    );
    for records in [512, 1] {
        // Not all alike, so that nobody below can be clever.
        let body: Bytes = (0..RECORD * records).map(|i| ((i * i) >> 5) as u8).collect();
        let frames = if records == 1 { 20_000 } else { BYTES / body.len() };
        let per = (frames * records) as f64;
        let frame = Frame { counts: [0, 0, records as u32], body };
        let mut costs: [Vec<(f64, f64)>; 4] = Default::default();
        for round in 0..ROUNDS {
            let file = folder.path().join("plain");
            costs[0].push(cost(per, || plain_write(&file, &frame.body, frames)));
            costs[1].push(cost(per, || plain_read(&file, frame.body.len(), frames)));
            std::fs::remove_file(file).expect("removed");
            let folder = folder.path().join(format!("{records}-{round}"));
            let (mut spool, _) = Spool::open(&folder, 1 << 30).expect("a spool");
            costs[2].push(cost(per, || {
                (0..frames).for_each(|_| spool.append(&frame).expect("room"));
            }));
            costs[3].push(cost(per, || {
                for _ in 0..frames {
                    let (id, read) = spool.next().expect("a disk").expect("a frame");
                    assert_eq!(read.body.len(), frame.body.len());
                    spool.settle(id).expect("settled");
                }
            }));
            assert_eq!((spool.bytes(), spool.frames()), (0, 0));
        }
        let [write, read, append, next] = costs.map(median);
        let of = format!("{records} record{}", if records == 1 { "" } else { "s" });
        print(&format!("plain write of {of}"), write, write);
        print(&format!("append of {of}"), append, write);
        print(&format!("plain read of {of}"), read, read);
        print(&format!("next and settle of {of}"), next, read);
    }
}

fn plain_write(path: &std::path::Path, body: &[u8], times: usize) {
    let mut file = File::create(path).expect("a file");
    (0..times).for_each(|_| file.write_all(body).expect("room"));
}

fn plain_read(path: &std::path::Path, bytes: usize, times: usize) {
    let mut file = File::open(path).expect("a file");
    file.rewind().expect("the start");
    for _ in 0..times {
        let mut body = vec![0; bytes];
        file.read_exact(&mut body).expect("all of it");
        std::hint::black_box(body);
    }
}

/// CPU time of this thread and time by the clock, ns each.
fn cost(per: f64, work: impl FnOnce()) -> (f64, f64) {
    let cpu = || {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
        Duration::from(time.expect("the clock of this thread"))
    };
    let (start, cpu_start) = (Instant::now(), cpu());
    work();
    ((cpu() - cpu_start).as_nanos() as f64 / per, start.elapsed().as_nanos() as f64 / per)
}

fn median(costs: Vec<(f64, f64)>) -> (f64, f64) {
    let of = |pick: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (of(|cost| cost.0), of(|cost| cost.1))
}

fn print(what: &str, (cpu, wall): (f64, f64), (plain_cpu, plain_wall): (f64, f64)) {
    println!(
        "{what:44} {cpu:12.1} {:12.2} {wall:12.1} {:12.2}",
        cpu / plain_cpu,
        wall / plain_wall
    );
}
