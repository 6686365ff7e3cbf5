//! What the benches of cost and scale share: the release build, cgroups of their own, the process that is measured.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;

/// Longer than anything here takes; a bench that reaches it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What flowend says once its programs are attached.
const READY: &str = "cgroup(s) attached; reporting";

/// Where the release build puts its programs. All benches build the same two, so that there is one build.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this bench attaches programs to cgroups: run it as root");
    }
    // cargo put this program into TARGET/debug.
    let own = std::env::current_exe().context("own path")?;
    let target = own.ancestors().nth(2).context("no target folder above xtask")?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--release", "--locked", "--package", "flowend"]);
    command.args(["--bin", "flowend", "--example", "scale"]).env("CARGO_TARGET_DIR", target);
    // What cargo says of xtask's own package would make crates that look at it build anew.
    for (name, _) in std::env::vars_os() {
        let of_package =
            |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].map(|p| name.starts_with(p));
        if name.to_str().is_some_and(|name| of_package(name).contains(&true)) {
            command.env_remove(name);
        }
    }
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(target.join("release"))
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A cgroup of the bench's own, removed with all below it when dropped.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    /// As a target is written.
    pub(crate) name: String,
}

impl Folder {
    pub(crate) fn new(purpose: &str) -> anyhow::Result<Self> {
        let name = format!("flowend-bench-{}-{purpose}", std::process::id());
        let path = mount()?.join(&name);
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path, name })
    }

    /// A cgroup in this one.
    pub(crate) fn child(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = std::fs::remove_dir(entry.path());
            }
        }
        let begun = Instant::now();
        // A process that was just ended may be in it for a moment.
        while let Err(error) = std::fs::remove_dir(&self.path) {
            if begun.elapsed() > PATIENCE {
                eprintln!("{}: {error}; remove it by hand", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The cgroup2 mount that shows most: flowend's own choice is told by `flowend check`.
pub(crate) fn mount() -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let mounts = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let is_whole = before.split(' ').nth(3) == Some("/");
        (after.starts_with("cgroup2 ") && is_whole).then(|| before.split(' ').nth(4)).flatten()
    });
    mounts.map(PathBuf::from).next().context("no cgroup2 mount in /proc/self/mountinfo")
}

/// A flowend that runs; killed when dropped.
pub(crate) struct Flowend {
    child: Child,
    messages: Receiver<String>,
    said: Vec<String>,
}

impl Flowend {
    /// Starts it with these settings, and waits until its programs are attached.
    pub(crate) fn start(program: &Path, settings: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg("run").args(settings.iter().flat_map(|setting| ["--set", setting]));
        // What the environment says of OTLP is not what is measured.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("OTEL_") || n.starts_with("FLOWEND_")) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let stderr = child.stderr.take().context("no stderr")?;
        let (send, messages) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut flowend = Self { child, messages, said: Vec::new() };
        flowend.wait_for(READY)?;
        Ok(flowend)
    }

    fn wait_for(&mut self, words: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.messages.recv_timeout(left) else {
                bail!("flowend did not say \"{words}\":\n{}", self.said.join("\n"));
            };
            let is_it = line.contains(words);
            self.said.push(line);
            if is_it {
                return Ok(());
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has used of all cores, user and system, threads that are gone included.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let clock = clock_getcpuclockid(self.pid()).context("flowend is gone")?;
        Ok(clock.now()?.into())
    }

    /// A line of its /proc/PID/smaps_rollup, kB.
    pub(crate) fn memory(&self, line: &str) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.child.id());
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let value = text.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let value = value.with_context(|| format!("{path}: no {line}"))?;
        Ok(value.trim().trim_end_matches(" kB").parse()?)
    }

    /// The links to cgroups that it holds.
    pub(crate) fn links(&self) -> anyhow::Result<usize> {
        let folder = format!("/proc/{}/fd", self.child.id());
        let entries = std::fs::read_dir(&folder).with_context(|| folder.clone())?;
        let targets = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        Ok(targets.filter(|target| target.to_string_lossy().contains("bpf_link")).count())
    }

    /// SIGTERM; how long it took to end, and all that it said.
    pub(crate) fn stop(mut self) -> anyhow::Result<(Duration, Vec<String>)> {
        let begun = Instant::now();
        kill(self.pid(), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        let took = begun.elapsed();
        while let Ok(line) = self.messages.recv_timeout(PATIENCE) {
            self.said.push(line);
        }
        let said = std::mem::take(&mut self.said);
        if !status.success() {
            bail!("flowend: {status}:\n{}", said.join("\n"));
        }
        Ok((took, said))
    }
}

impl Drop for Flowend {
    fn drop(&mut self) {
        // It may have been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The clock of the CPU time of this process.
pub(crate) fn own_cpu() -> anyhow::Result<Duration> {
    Ok(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?.into())
}
