//! What flowend costs while nothing happens: CPU and memory, with one target and with a thousand.

use std::time::{Duration, Instant};

use crate::bench::{self, Flowend, Folder, median, own_cpu};

/// How long each is watched. The sockets are looked at once in it, at least.
const WHILE: Duration = Duration::from_secs(60);
const ROUNDS: usize = 3;

/// By then a thousand cgroups are attached to, and the ring has been empty for a while.
const SETTLE: Duration = Duration::from_secs(15);

/// The baseline: how often a program that does nothing else wakes up.
const WAKE: Duration = Duration::from_millis(20);

pub(crate) fn run() -> anyhow::Result<()> {
    let flowend = bench::build()?.join("flowend");
    let mut floor = Vec::new();
    let mut rows = [1, 1000].map(|targets| (targets, Vec::new(), Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        floor.push(wakes()?);
        for (targets, cpu, resident, share) in &mut rows {
            let folder = Folder::new("idle")?;
            for n in 0..*targets {
                folder.child(&n.to_string())?;
            }
            let settings = [
                format!("targets=[\"{}/*\"]", folder.name),
                "outputs=[\"otlp\"]".into(),
                // Nobody listens there, and there is nothing to send.
                "otlp.endpoint=http://127.0.0.1:9".into(),
            ];
            let running = Flowend::start(&flowend, &settings)?;
            std::thread::sleep(SETTLE);
            let (begun, before) = (Instant::now(), running.cpu()?);
            std::thread::sleep(WHILE);
            let used = running.cpu()? - before;
            cpu.push(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64());
            resident.push(running.memory("Rss")? as f64 / 1024.0);
            share.push(running.memory("Pss")? as f64 / 1024.0);
            running.stop()?;
        }
    }
    let floor = median(floor);
    println!("medians of {ROUNDS} rounds of {} s", WHILE.as_secs());
    println!("{:36} {:>10} {:>8} {:>10} {:>10}", "", "% of core", "ratio", "Rss, MB", "Pss, MB");
    let name = format!("wakes up every {} ms (baseline)", WAKE.as_millis());
    println!("{name:36} {floor:10.3} {:8.2}", 1.0);
    for (targets, cpu, resident, share) in rows {
        let (cpu, resident, share) = (median(cpu), median(resident), median(share));
        let name = format!("flowend, {targets} target(s)");
        println!("{name:36} {cpu:10.3} {:8.2} {resident:10.1} {share:10.1}", cpu / floor);
    }
    println!("target: less than 0.1 % of a core and 25 MB");
    Ok(())
}

/// The share of a core that waking up takes by itself, in percent.
fn wakes() -> anyhow::Result<f64> {
    let (begun, before) = (Instant::now(), own_cpu()?);
    while begun.elapsed() < WHILE {
        std::thread::sleep(WAKE);
    }
    Ok(100.0 * (own_cpu()? - before).as_secs_f64() / begun.elapsed().as_secs_f64())
}
