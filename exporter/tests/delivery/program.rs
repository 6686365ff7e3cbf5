//! The delivery as a process: `testing/deliver.rs`, and what it says.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal as Unix, kill};
use nix::unistd::Pid;

use super::injector::PATIENCE;
use super::offer::Totals;
use super::site::word;
use super::store::Signal;

/// What a process offers.
pub(crate) struct Plan {
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Per second; 0: as fast as they go.
    pub(crate) rate: u64,
}

/// It is killed when dropped.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    log: PathBuf,
}

/// What a process said until it ended.
#[derive(Debug)]
pub(crate) struct Life {
    /// Before the first end was offered. A process that was killed early has not got so far.
    pub(crate) start: Option<[Totals; 2]>,
    /// The last that it said, of each signal.
    pub(crate) last: Option<[Totals; 2]>,
    /// kB. None: it was killed.
    pub(crate) peak: Option<u64>,
}

impl Program {
    /// `log`: a file for its messages.
    pub(crate) fn start(plan: &Plan, set: &[String], log: &Path) -> Self {
        let numbers = [plan.first, plan.count, plan.rate].map(|n| n.to_string());
        let mut child = Command::new(path())
            .args(numbers)
            .args(set)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(log).unwrap())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; a plain `cargo test` builds it, and so does `cargo build --examples`", path().display()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (to, lines) = channel();
        // Read all along: a full pipe would stop it.
        std::thread::spawn(move || {
            // Ends with the process; a kill may tear the last line.
            for line in stdout.lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, said: Vec::new(), log: log.to_owned() }
    }

    /// Waits until it has said this line.
    pub(crate) fn wait_for(&mut self, line: &str) {
        while self.said.last().is_none_or(|last| last != line) {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(said) => self.said.push(said),
                Err(error) => panic!("no {line}: {error}: {}", self.log()),
            }
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Life {
        self.child.kill().unwrap();
        let _ = self.child.wait().unwrap();
        self.life()
    }

    /// SIGTERM, and an end in order.
    pub(crate) fn terminate(self) -> Life {
        kill(Pid::from_raw(self.child.id() as i32), Unix::SIGTERM).unwrap();
        self.wait()
    }

    /// Its own end, in order.
    pub(crate) fn wait(mut self) -> Life {
        let status = self.status();
        assert!(status.success(), "{status}: {}", self.log());
        let life = self.life();
        assert!(life.peak.is_some(), "{life:?}");
        life
    }

    fn status(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < 5 * PATIENCE, "it does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that it has said. Each line of the ledger must add up, whenever it was said.
    fn life(&mut self) -> Life {
        // Until the pipe is closed.
        self.said.extend(self.lines.iter());
        let mut now: [Option<Totals>; 2] = [None; 2];
        let mut life = Life { start: None, last: None, peak: None };
        for line in &self.said {
            if let Some(kb) = line.strip_prefix("peak ") {
                life.peak = Some(kb.parse().unwrap());
            } else if let Some((signal, totals)) = parse(line) {
                totals.add_up().unwrap_or_else(|problem| panic!("{line}: {problem}"));
                now[signal as usize] = Some(totals);
                if let [Some(logs), Some(traces)] = now {
                    life.last = Some([logs, traces]);
                    life.start = life.start.or(life.last);
                }
            } else {
                assert!(line == "ready" || line == "end", "{line}");
            }
        }
        life
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `otlp.logs: seen 5 + recovered 2 = exported 1 + ... + dropped{queue_full} 2 + in_flight 4`.
fn parse(line: &str) -> Option<(Signal, Totals)> {
    let (output, sums) = line.split_once(": ")?;
    let signal =
        Signal::ALL.into_iter().find(|signal| output == format!("otlp.{}", word(*signal)))?;
    let (offered, became) = sums.split_once(" = ")?;
    let mut totals = Totals::default();
    for term in offered.split(" + ").chain(became.split(" + ")) {
        let (name, n) = term.rsplit_once(' ')?;
        let n: u64 = n.parse().ok()?;
        match name {
            "seen" => totals.seen = n,
            "recovered" => totals.recovered = n,
            "exported" => totals.exported = n,
            "in_flight" => totals.in_flight = n,
            _ if name.starts_with("dropped{") => totals.dropped += n,
            // Nothing is sampled or filtered here.
            _ => assert_eq!(n, 0, "{line}"),
        }
    }
    Some((signal, totals))
}

/// Beside this test's folder.
fn path() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("examples/deliver")
}

#[test]
fn a_line_of_the_ledger_is_read_as_it_is_written() {
    let line = "otlp.traces: seen 9 + recovered 2 = exported 1 + sampled_out 0 + filtered{self} 0 \
                + dropped{queue_full} 2 + dropped{refused} 3 + in_flight 5";
    let totals = Totals { seen: 9, recovered: 2, exported: 1, dropped: 5, in_flight: 5 };
    assert_eq!(parse(line), Some((Signal::Traces, totals)));
    totals.add_up().unwrap();
    assert!(Totals { in_flight: 4, ..totals }.add_up().is_err());
}
