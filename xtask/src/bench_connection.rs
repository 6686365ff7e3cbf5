//! What a connection pays for being watched, and what flowend pays for it.
//!
//! The same connections on one pinned core in three cgroups in turn: with no program, with programs that do
//! nothing, and with flowend's. flowend and the receiver of its records run on another core.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, SockOps, loaded_programs};
use aya::sys::{Stats, enable_stats};

use crate::bench::{self, Flowend, Folder, median};
use crate::bench_load::{Load, pin};
use crate::sink::Sink;

const ROUNDS: usize = 21;
/// Of one round, in each of the cgroups.
const CONNECTIONS: usize = 2_000;
/// Of one round in which flowend's own CPU is measured.
const BUSY: usize = 20_000;
const BUSY_ROUNDS: usize = 5;

const LOAD_CORE: usize = 0;
const FLOWEND_CORE: usize = 1;

pub(crate) fn run() -> anyhow::Result<()> {
    let program = bench::build()?.join("flowend");
    let folders = [Folder::new("none")?, Folder::new("noop")?, Folder::new("flowend")?];
    let [none, noop, watched] = &folders;
    let _attached = attach_noop(&noop.path)?;
    pin(LOAD_CORE)?;
    let mut load = Load::start()?;
    pin(FLOWEND_CORE)?;
    let sink = Sink::start()?;
    let flowend = Flowend::start(
        &program,
        &[
            format!("targets=[\"{}\"]", watched.name),
            "outputs=[\"otlp\"]".into(),
            format!("otlp.endpoint={}", sink.endpoint()),
            "otlp.protocol=http/protobuf".into(),
        ],
    )?;
    let mut made = 0;
    for (threads, name) in [(1, "both ends in one thread"), (2, "a client and a server that wait")]
    {
        let mut ns = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (folder, ns) in [none, noop, watched].into_iter().zip(&mut ns) {
                ns.push(load.connect(&folder.path, threads, CONNECTIONS)?);
            }
        }
        made += ROUNDS * CONNECTIONS;
        print_path(name, ns.map(median));
    }
    print_own(&flowend, &sink, &mut load, &watched.path)?;
    made += BUSY_ROUNDS * BUSY;
    print_programs(&mut load, &noop.path, &watched.path)?;
    made += BUSY;
    drop(load);
    let (_, said) = flowend.stop()?;
    let ends = 2 * made;
    for output in ["otlp.logs", "otlp.traces"] {
        let whole = format!("{output}: seen {ends} = exported {ends} ");
        ensure!(
            said.iter().any(|line| line.contains(&whole)),
            "not every end was exported, so the figures are of less work:\n{}",
            said.join("\n")
        );
    }
    Ok(())
}

/// CPU of the core on which the connections are made, by what is attached.
fn print_path(name: &str, [none, noop, watched]: [f64; 3]) {
    println!("{name}: CPU of a connection, medians of {ROUNDS} rounds of {CONNECTIONS}");
    println!("{:28} {:>8} {:>8} {:>8}", "programs", "ns", "ratio", "points");
    let rows = [("none", none), ("no-op (baseline)", noop), ("flowend", watched)];
    for (name, ns) in rows {
        let points = 100.0 * (ns / noop - 1.0);
        println!("{name:28} {ns:8.0} {:8.3} {points:+8.1}", ns / noop);
    }
    println!("target: at most 5 points\n");
}

/// CPU of flowend's process, while connections are made as fast as one core can.
fn print_own(flowend: &Flowend, sink: &Sink, load: &mut Load, folder: &Path) -> anyhow::Result<()> {
    let (mut own, mut base) = (Vec::new(), Vec::new());
    for _ in 0..BUSY_ROUNDS {
        sink.wait_until_quiet();
        let before = flowend.cpu()?;
        base.push(load.connect(folder, 1, BUSY)? / 1000.0);
        sink.wait_until_quiet();
        own.push((flowend.cpu()? - before).as_secs_f64() * 1e6 / BUSY as f64);
    }
    let (own, base) = (median(own), median(base));
    println!(
        "flowend's own CPU: both ends, log and span to a receiver that looks at nothing (HTTP);"
    );
    println!("medians of {BUSY_ROUNDS} rounds of {BUSY} connections");
    println!("{:52} {:>8} {:>8}", "", "us", "ratio");
    println!("{:52} {base:8.2} {:8.2}", "connection of one thread, watched (baseline)", 1.0);
    println!("{:52} {own:8.2} {:8.2}", "flowend, user and system (target: 3)", own / base);
    Ok(())
}

/// What the kernel counts of each program: how often it runs for a connection, and for how long. Taking the time
/// takes time, which is most of what a program that does nothing shows.
fn print_programs(load: &mut Load, noop: &Path, watched: &Path) -> anyhow::Result<()> {
    let _counting = enable_stats(Stats::RunTime)?;
    let mut runs_of = |folder: &Path, prefix: &str| -> anyhow::Result<BTreeMap<String, Runs>> {
        let before = runs(prefix)?;
        load.connect(folder, 1, BUSY)?;
        let mut during = runs(prefix)?;
        for (name, runs) in &mut during {
            let before = before.get(name).copied().unwrap_or_default();
            runs.count -= before.count;
            runs.ns -= before.ns;
        }
        during.retain(|_, runs| runs.count > 0);
        Ok(during)
    };
    let (nothing, ours) = (runs_of(noop, "noop_")?, runs_of(watched, "flowend_")?);
    let mean = |runs: &Runs| runs.ns as f64 / runs.count as f64;
    let all = nothing.values().fold(Runs::default(), |sum, runs| Runs {
        count: sum.count + runs.count,
        ns: sum.ns + runs.ns,
    });
    ensure!(all.count > 0 && !ours.is_empty(), "the kernel counts no runs of programs");
    let base = mean(&all);
    println!("\nin the kernel (kernel.bpf_stats_enabled), of {BUSY} connections of one thread");
    println!(
        "{:20} {:>10} {:>10} {:>8} {:>22}",
        "program", "runs/conn.", "ns a run", "ratio", "ns/conn. over a no-op"
    );
    let no_op = BTreeMap::from([("no-op (baseline)".to_owned(), all)]);
    let mut sum = 0.0;
    for (name, runs) in no_op.iter().chain(&ours) {
        let (each, often) = (mean(runs), runs.count as f64 / BUSY as f64);
        let over = (each - base) * often;
        sum += over;
        println!("{name:20} {often:10.2} {each:10.0} {:8.1} {over:22.0}", each / base);
    }
    println!("{:20} {:>10} {:>10} {:>8} {sum:22.0}", "together", "", "", "");
    Ok(())
}

/// Of a program since it was loaded.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    count: u64,
    ns: u64,
}

/// Of the programs whose names begin so; the kernel cuts names off at 15 bytes, and those that are alike then are one here.
fn runs(prefix: &str) -> anyhow::Result<BTreeMap<String, Runs>> {
    let mut found = BTreeMap::<String, Runs>::new();
    for program in loaded_programs() {
        let program = program?;
        let Some(name) = program.name_as_str().filter(|name| name.starts_with(prefix)) else {
            continue;
        };
        let fd = program.fd()?;
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
        let value = |key: &str| -> anyhow::Result<u64> {
            let line = info.lines().find_map(|line| line.strip_prefix(key)).with_context(|| {
                format!("{key} is not in /proc/self/fdinfo: Linux 5.1 or newer has it")
            })?;
            Ok(line.trim().parse()?)
        };
        let runs = found.entry(name.to_owned()).or_default();
        runs.count += value("run_cnt:")?;
        runs.ns += value("run_time_ns:")?;
    }
    Ok(found)
}

/// Programs that do nothing, for as long as what is returned lives.
fn attach_noop(folder: &Path) -> anyhow::Result<Ebpf> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../bpf-probes/noop.bpf.o");
    let object = std::fs::read(path).context("bpf-probes/noop.bpf.o")?;
    let mut ebpf = Ebpf::load(&object)?;
    let cgroup = std::fs::File::open(folder)?;
    // No flag: a link allows others beside it whatever the mode.
    let mode = CgroupAttachMode::Single;
    let hooks = [
        ("noop_ingress", CgroupSkbAttachType::Ingress),
        ("noop_egress", CgroupSkbAttachType::Egress),
    ];
    for (name, hook) in hooks {
        let program: &mut CgroupSkb = ebpf.program_mut(name).context("no program")?.try_into()?;
        program.load()?;
        program.attach(&cgroup, hook, mode)?;
    }
    let program: &mut SockOps =
        ebpf.program_mut("noop_sockops").context("no program")?.try_into()?;
    program.load()?;
    program.attach(&cgroup, mode)?;
    Ok(ebpf)
}
