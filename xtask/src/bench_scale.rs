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

const CGROUPS: u32 = 10_000;
const MINUTE: Duration = Duration::from_secs(60);
/// There at a time.
const ALIVE: u32 = 100;

pub(crate) fn run() -> anyhow::Result<()> {
    let built = bench::build()?;
    table(&built.join("examples/scale"))?;
    cgroups(&built.join("flowend"))?;
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

/// Cgroups that come and go while flowend watches the folder that they are in.
fn cgroups(flowend: &Path) -> anyhow::Result<()> {
    let folder = Folder::new("scale")?;
    folder.child("stays")?;
    let settings = [
        format!("targets=[\"{}/*\"]", folder.name),
        "outputs=[\"otlp\"]".into(),
        "otlp.endpoint=http://127.0.0.1:9".into(),
    ];
    let running = Flowend::start(flowend, &settings)?;
    let (links, memory) = (running.links()?, running.memory("Rss")?);
    let (cpu, own) = (running.cpu()?, own_cpu()?);
    let begun = Instant::now();
    for n in 0..CGROUPS + ALIVE {
        let due = begun + MINUTE * n / (CGROUPS + ALIVE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if n < CGROUPS {
            folder.child(&n.to_string())?;
        }
        if let Some(old) = n.checked_sub(ALIVE) {
            std::fs::remove_dir(folder.path.join(old.to_string()))?;
        }
    }
    let took = begun.elapsed();
    let (cpu, own) = ((running.cpu()? - cpu).as_secs_f64(), (own_cpu()? - own).as_secs_f64());
    let after = running.memory("Rss")?;
    let most = running.links()?;
    let left = settled_links(&running, links)?;
    let settled = running.memory("Rss")?;
    let (_, said) = running.stop()?;
    let attached = said.iter().filter(|line| line.ends_with(": attached")).count();
    let percent = |seconds: f64| 100.0 * seconds / took.as_secs_f64();
    println!(
        "\n{CGROUPS} cgroups come and go in {:.0} s, {ALIVE} there at a time; attached to: {attached}",
        took.as_secs_f64()
    );
    println!("{:52} {:>10} {:>8}", "", "% of core", "ratio");
    println!("{:52} {:10.1} {:8.2}", "who makes and removes them (baseline)", percent(own), 1.0);
    println!("{:52} {:10.1} {:8.2}", "flowend", percent(cpu), cpu / own);
    println!("{:52} {:>10} {:>8}", "", "before", "after");
    let mb = |kb: u64| kb as f64 / 1024.0;
    println!("{:52} {:10.1} {:8.1}", "resident memory, MB", mb(memory), mb(after));
    println!("{:52} {:10.1} {:8.1}", "... once the links are gone", mb(memory), mb(settled));
    println!("{:52} {links:10} {most:8}", "links, right after");
    println!("{:52} {links:10} {left:8}", "links, in the end");
    ensure!(left <= links, "{} links were left over", left - links);
    Ok(())
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
