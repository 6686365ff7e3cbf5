//! How memory and time grow with size: connections by the million, ends by the ten million, cgroups by the thousand.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::bench::{self, Flowend, Folder, PATIENCE, median, own_cpu};

const ROUNDS: usize = 5;
const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];

/// A day of 580 ends a second.
const ENDS: u64 = 50_000_000;

const CGROUPS: [u32; 3] = [100, 1_000, 10_000];
const MINUTE: Duration = Duration::from_secs(60);
/// There at a time.
const ALIVE: u32 = 100;

pub(crate) fn run() -> anyhow::Result<()> {
    let built = bench::build()?;
    table(&built.join("examples/scale"))?;
    cgroups_by_size(&built.join("flowend"))?;
    ends(&built.join("examples/scale"))
}

/// What connections take while they are followed.
fn table(scale: &Path) -> anyhow::Result<()> {
    println!("connections followed at the same time, one side of each; medians of {ROUNDS} rounds");
    println!(
        "{:>12} {:>10} {:>8} {:>14} {:>8} {:>14} {:>8}",
        "connections", "bytes each", "ratio", "ns an event", "ratio", "ns an event", "ratio"
    );
    println!(
        "{:>12} {:>10} {:>8} {:>14} {:>8} {:>14} {:>8}",
        "", "", "", "opening", "", "ending", ""
    );
    let mut baseline = None;
    for size in SIZES {
        let mut rounds = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let line = output(scale, &["table", &size.to_string()])?;
            for (field, figures) in line.split_whitespace().zip(&mut rounds) {
                figures.push(field.parse()?);
            }
        }
        let now = rounds.map(median);
        let base = *baseline.get_or_insert(now);
        let [bytes, opening, ending] = now;
        println!(
            "{size:12} {bytes:10.0} {:8.2} {opening:14.0} {:8.2} {ending:14.0} {:8.2}",
            bytes / base[0],
            opening / base[1],
            ending / base[2]
        );
    }
    Ok(())
}

/// A day's ends, and the memory on the way.
fn ends(scale: &Path) -> anyhow::Result<()> {
    println!("\nends one after another through the whole data path: resident memory");
    println!("{:>12} {:>10} {:>8}", "ends", "MB", "ratio");
    let text = output(scale, &["ends", &ENDS.to_string()])?;
    let mut baseline = None;
    for line in text.lines() {
        let (ends, bytes) = line.split_once(' ').context("see scale.rs")?;
        let mb = bytes.parse::<f64>()? / 1e6;
        let base = *baseline.get_or_insert(mb);
        println!("{ends:>12} {mb:10.1} {:8.3}", mb / base);
    }
    Ok(())
}

/// What became of cgroups that came and went.
struct Churn {
    attached: usize,
    /// CPU of a core, percent: of who makes and removes them, and of flowend.
    own: f64,
    flowend: f64,
    /// Resident before, right after, and once the links are gone, MB.
    memory: [f64; 3],
    /// At the same moments.
    links: [usize; 3],
}

fn cgroups_by_size(flowend: &Path) -> anyhow::Result<()> {
    println!("\ncgroups that come and go in {} s, {ALIVE} there at a time", MINUTE.as_secs());
    println!(
        "{:>8} {:>9} {:>20} {:>17} {:>7} {:>24} {:>20}",
        "cgroups",
        "attached",
        "% of core, baseline",
        "% of core, flowend",
        "ratio",
        "MB: before after settled",
        "links"
    );
    for size in CGROUPS {
        let Churn { attached, own, flowend, memory: [before, after, settled], links } =
            cgroups(flowend, size)?;
        println!(
            "{size:8} {attached:9} {own:20.1} {flowend:18.1} {:7.2} {before:10.1} {after:6.1} {settled:6.1} {:>20}",
            flowend / own,
            format!("{} {} {}", links[0], links[1], links[2])
        );
        ensure!(links[2] <= links[0], "{} links were left over", links[2] - links[0]);
    }
    Ok(())
}

/// As many come and go in a minute while flowend watches the folder that they are in.
fn cgroups(flowend: &Path, size: u32) -> anyhow::Result<Churn> {
    let folder = Folder::new("scale")?;
    folder.child("stays")?;
    let settings = [
        format!("targets=[\"{}/*\"]", folder.name),
        "outputs=[\"otlp\"]".into(),
        "otlp.endpoint=http://127.0.0.1:9".into(),
    ];
    let running = Flowend::start(flowend, &settings)?;
    let mb = || anyhow::Ok(running.memory("Rss")? as f64 / 1024.0);
    let (links, memory) = (running.links()?, mb()?);
    let (cpu, own) = (running.cpu()?, own_cpu()?);
    let begun = Instant::now();
    for n in 0..size + ALIVE {
        let due = begun + MINUTE * n / (size + ALIVE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if n < size {
            folder.child(&n.to_string())?;
        }
        if let Some(old) = n.checked_sub(ALIVE) {
            std::fs::remove_dir(folder.path.join(old.to_string()))?;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let percent = |now: Duration, before: Duration| 100.0 * (now - before).as_secs_f64() / took;
    let (flowend, own) = (percent(running.cpu()?, cpu), percent(own_cpu()?, own));
    let (after, most) = (mb()?, running.links()?);
    let left = settled_links(&running, links)?;
    let settled = mb()?;
    let (_, said) = running.stop()?;
    Ok(Churn {
        attached: said.iter().filter(|line| line.ends_with(": attached")).count(),
        own,
        flowend,
        memory: [memory, after, settled],
        links: [links, most, left],
    })
}

/// The links that are left when there are no more than before, or nobody wants to wait any longer.
fn settled_links(running: &Flowend, before: usize) -> anyhow::Result<usize> {
    let begun = Instant::now();
    loop {
        let now = running.links()?;
        if now <= before || begun.elapsed() > PATIENCE {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn output(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{}: {}", program.display(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}
