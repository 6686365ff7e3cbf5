//! How long flowend takes until its programs are attached, and to stop where no collector answers.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::bench::{self, Flowend, Folder, median};

const ROUNDS: usize = 11;

/// The connections whose ends nobody takes.
const CONNECTIONS: usize = 10;

/// A port of loopback where nobody listens; one that asks for it is refused.
const NOBODY: &str = "http://127.0.0.1:9";

pub(crate) fn run() -> anyhow::Result<()> {
    let flowend = bench::build()?.join("flowend");
    let folder = Folder::new("start")?;
    // So that there are ends to be sent.
    let inside = Inside::enter(&folder)?;
    let spool = Spool::new();
    let plain = [
        format!("targets=[\"{}\"]", folder.name),
        "outputs=[\"otlp\"]".into(),
        format!("otlp.endpoint={NOBODY}"),
    ];
    let spooling: Vec<String> =
        plain.iter().cloned().chain([format!("spool.directory={}", spool.0.display())]).collect();
    let (mut base, mut started) = (Vec::new(), Vec::new());
    let (mut stopped, mut spooled) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        base.push(ms(print_config(&flowend)?));
        let (start, stop) = start_and_stop(&flowend, &plain)?;
        started.push(start);
        stopped.push(stop);
        spooled.push(start_and_stop(&flowend, &spooling)?.1);
    }
    drop(inside);
    let base = median(base);
    println!("ms, medians of {ROUNDS} rounds; the collector's port is closed");
    println!("{:52} {:>8} {:>8}", "", "ms", "ratio");
    let rows = [
        ("flowend print-config: begins and ends (baseline)", base),
        ("start until attached (target: 200)", median(started)),
        ("SIGTERM until ended, ends unsent (target: 1000)", median(stopped)),
        ("... with a spool, which keeps them", median(spooled)),
    ];
    for (name, value) in rows {
        println!("{name:52} {value:8.0} {:8.1}", value / base);
    }
    Ok(())
}

/// Milliseconds until it is attached, and, with ends that nobody takes, until it has ended.
fn start_and_stop(flowend: &Path, settings: &[String]) -> anyhow::Result<(f64, f64)> {
    let begun = Instant::now();
    let running = Flowend::start(flowend, settings)?;
    let started = ms(begun.elapsed());
    for _ in 0..CONNECTIONS {
        connect_and_close()?;
    }
    let (took, said) = running.stop()?;
    let ends = 2 * CONNECTIONS;
    // flowend's own attempts to connect end as well.
    let number = |line: &str, before: &str| -> Option<usize> {
        line.split_once(before)?.1.split_ascii_whitespace().next()?.parse().ok()
    };
    let others = |line: &String| {
        number(line, "otlp.logs: seen ")?.checked_sub(number(line, "filtered{self} ")?)
    };
    ensure!(said.iter().filter_map(others).eq([ends]), "not {ends} ends:\n{}", said.join("\n"));
    Ok((started, ms(took)))
}

/// A folder for the spool, removed when dropped.
struct Spool(std::path::PathBuf);

impl Spool {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("flowend-bench-{}-spool", std::process::id())))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // flowend may not have come to make it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A start that touches no kernel: the program is loaded, and the configuration read.
fn print_config(flowend: &Path) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let status = Command::new(flowend).arg("print-config").stdout(Stdio::null()).status()?;
    ensure!(status.success(), "flowend print-config: {status}");
    Ok(begun.elapsed())
}

fn connect_and_close() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"?")?;
    server.read_exact(&mut [0])?;
    drop(client);
    Ok(())
}

/// This process, in a cgroup for a while.
struct Inside {
    back: std::path::PathBuf,
}

impl Inside {
    fn enter(folder: &Folder) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/self/cgroup")?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.ok_or_else(|| anyhow::anyhow!("/proc/self/cgroup: not in a cgroup v2"))?;
        let back = bench::mount()?.join(path).join("cgroup.procs");
        std::fs::write(folder.path.join("cgroup.procs"), "0")?;
        Ok(Self { back })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.back, "0") {
            eprintln!("{}: {error}", self.back.display());
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
