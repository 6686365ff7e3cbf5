//! The real programs, each as the shipped files start it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::{Network, shipped};
use super::support::{Killed, can_run, collect, skip};

/// Longer than anything of these programs takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// What all of these tests need from Debian.
const TOOLS: &[&str] = &["ip", "nsenter", "unshare", "dnsmasq", "getent"];

/// The programs that were built, by the variable that names them.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) collector: PathBuf,
    pub(crate) tempo: PathBuf,
    pub(crate) loki: PathBuf,
    pub(crate) jaeger: PathBuf,
}

/// The Collector, where the test can run with it alone.
pub(crate) fn collector(test: &str) -> Option<PathBuf> {
    if !can_run(test, TOOLS) {
        return None;
    }
    built(test, "TEST_COLLECTOR", "collector/build")
}

impl Built {
    /// All of them, where the test can run.
    pub(crate) fn find(test: &str) -> Option<Self> {
        let collector = collector(test)?;
        if !can_run(test, &["prometheus"]) {
            return None;
        }
        Some(Self {
            collector,
            tempo: built(test, "TEST_TEMPO", "backends/build tempo")?,
            loki: built(test, "TEST_LOKI", "backends/build loki")?,
            jaeger: built(test, "TEST_JAEGER", "backends/build jaeger")?,
        })
    }
}

/// The program that a variable names and a script builds, where it is there.
pub(crate) fn built(test: &str, variable: &str, build: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).filter(|path| !path.is_empty());
    if path.is_none() {
        skip(test, &format!("{variable} (`export {variable}=$({build} | tail -n 1)`; needs Go)"));
    }
    path.map(PathBuf::from)
}

/// A program that runs.
pub(crate) struct Program {
    name: String,
    child: Killed,
    messages: Arc<Mutex<String>>,
}

impl Program {
    pub(crate) fn start(name: &str, mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let messages = collect(child.stderr.take().unwrap());
        Self { name: name.into(), child: Killed(child), messages }
    }

    pub(crate) fn messages(&self) -> String {
        self.messages.lock().unwrap().clone()
    }

    /// Waits until it says so.
    pub(crate) fn wait_for(&mut self, words: &str) {
        let deadline = Instant::now() + LONG;
        while !self.messages().contains(words) {
            assert!(
                self.child.0.try_wait().unwrap().is_none(),
                "{}: {}",
                self.name,
                self.messages()
            );
            assert!(
                Instant::now() < deadline,
                "{}: no \"{words}\": {}",
                self.name,
                self.messages()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, as an operator stops it; waits for the end.
    pub(crate) fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + LONG;
        while self.child.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{} does not stop: {}", self.name, self.messages());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.messages()
    }
}

/// A Collector on a host, with these files, reached from the other hosts. Ready when this returns.
pub(crate) fn start_collector(
    network: &Network,
    host: &str,
    program: &Path,
    files: &[&str],
    storage: &Path,
    settings: &[(&str, &str)],
) -> Program {
    let mut command = network.command(host, program);
    for file in files {
        command.arg(format!("--config={}", shipped(file).display()));
    }
    command
        .env("OTLP_GRPC_LISTEN", "0.0.0.0:4317")
        .env("OTLP_HTTP_LISTEN", "0.0.0.0:4318")
        .env("PROMETHEUS_LISTEN", "0.0.0.0:8889")
        .env("TELEMETRY_HOST", "0.0.0.0")
        .env("STORAGE_DIRECTORY", storage)
        .envs(settings.iter().copied());
    let mut program = Program::start(host, command);
    program.wait_for("Everything is ready");
    program
}

/// Tempo, Loki, Jaeger and Prometheus, with the files of the compose stack.
pub(crate) fn start_stores(network: &Network, built: &Built, storage: &Path) -> Vec<Program> {
    let file = |name: &str| shipped("deploy/compose").join(name);
    let mut tempo = network.command("tempo", &built.tempo);
    tempo
        .arg(format!("-config.file={}", file("tempo.yaml").display()))
        .arg("-config.expand-env=true")
        .env("TEMPO_STORAGE", storage.join("tempo"));
    let mut loki = network.command("loki", &built.loki);
    loki.arg(format!("-config.file={}", file("loki.yaml").display()))
        .arg("-config.expand-env=true")
        .env("LOKI_STORAGE", storage.join("loki"));
    let mut jaeger = network.command("jaeger", &built.jaeger);
    jaeger.arg(format!("--config={}", file("jaeger.yaml").display()));
    let mut prometheus = network.command("prometheus", "prometheus");
    prometheus
        .arg(format!("--config.file={}", file("prometheus.yaml").display()))
        .arg(format!("--storage.tsdb.path={}", storage.join("prometheus").display()))
        .args(["--web.enable-remote-write-receiver", "--enable-feature=exemplar-storage"]);
    [("tempo", tempo), ("loki", loki), ("jaeger", jaeger), ("prometheus", prometheus)]
        .into_iter()
        .map(|(name, command)| Program::start(name, command))
        .collect()
}
