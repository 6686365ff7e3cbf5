//! `flowend replay`: the connections of a capture file, through the same parser, state machine and
//! outputs as those of this machine. No privilege, no kernel.
//!
//! `capture` reads packets, `link` and `ip` find the segment in each, `table` knows whose it is,
//! `conversation`, `stream` and `history` what it says, `verdict` asks the state machine. Nothing is
//! dropped: the reader waits for the outputs.

mod capture;
mod clock;
mod conversation;
mod engine;
mod fragments;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod history;
mod ip;
mod link;
mod names;
mod progress;
mod recorder;
mod stop;
mod stream;
mod summary;
mod table;
mod verdict;

use std::future::Future;
use std::io::Write as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::fs::File;

use crate::config::{Output, Settings};
use crate::dns::{DnsStats, StreamStats};
use crate::export::{Outputs, OwnSockets, Sinks};
use crate::ledger::{DropCause, Ledger, Line, OutputLedger};
use crate::record::RecordKind;
use capture::Capture;
pub use capture::CaptureError;
use engine::Engine;
use fragments::FragmentStats;
use names::NameSources;
use progress::Progress;
use recorder::Recorder;
use stop::Stop;
use table::Full;

/// Packets read between two looks at whether to stop.
const TURN: usize = 256;

/// Why a replay did not come to the end of its file.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// No packet of the file could be understood.
    #[error(
        "{path}: all packets are of link types that are not understood: {links} (see \
         https://www.tcpdump.org/linktypes.html); capture on an Ethernet, IP or loopback interface, \
         or on \"any\""
    )]
    LinkType {
        /// As given.
        path: String,
        /// By number.
        links: String,
    },
    /// `flows.max` was reached.
    #[error(
        "{path}: packet {packet}, at byte {offset}: {limit} connections are open at the same time; \
         raise flows.max: --set flows.max={}", limit.saturating_mul(4)
    )]
    Full {
        /// As given.
        path: String,
        /// Counted from 1.
        packet: u64,
        /// From the beginning of the file.
        offset: u64,
        /// `flows.max`.
        limit: usize,
    },
    /// The user stopped it.
    #[error("{path}: stopped after packet {packet}, at byte {offset}; the rest was not read")]
    Stopped {
        /// As given.
        path: String,
        /// Counted from 1.
        packet: u64,
        /// From the beginning of the file.
        offset: u64,
    },
    /// An output did not take all records.
    #[error("{output}: {lost} records were not delivered: {line}")]
    Undelivered {
        /// Of the ledger.
        output: String,
        /// How many.
        lost: u64,
        /// The ledger's line, with the causes.
        line: String,
    },
}

/// Reads a capture, reports the end of each of its connections, and says what became of its packets.
/// Stops early when `stop` is ready.
///
/// # Errors
/// When the file could not be read to its end, or an output failed; what was read is reported.
pub async fn replay(
    settings: &Settings,
    file: &Path,
    local: Vec<IpNet>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let path = file.display().to_string();
    let stop = Stop::new(stop, settings.shutdown_timeout);
    // Before the outputs: what is no capture is said without a heading.
    let (capture, size) = tokio::select! {
        opened = open(&path, file) => opened?,
        () = stop.asked() => return Err(ReplayError::Stopped { path, packet: 0, offset: 0 }.into()),
    };
    let recorder = Recorder::new(settings);
    let outputs = Outputs::start(settings, &OwnSockets::default(), &recorder.ledger)?;
    let mut replay = Replay {
        path,
        capture,
        engine: Engine::new(settings.max_flows, NameSources::of(settings), local),
        recorder,
        sinks: outputs.sinks(settings),
        outputs,
        progress: Progress::new(size, writes_to_stdout(settings)),
        handed: 0,
        max_flows: settings.max_flows,
        stop: stop.clone(),
    };
    let read = replay.read().await;
    replay.progress.end();
    let rest = match &read {
        // An output that is gone takes nothing more.
        Err(error) if error.downcast_ref::<ReplayError>().is_none() => Ok(()),
        _ => replay.finish().await,
    };
    let Replay { engine, recorder, sinks, outputs, path, .. } = replay;
    sinks.close();
    let ledgers = outputs.finish(stop.is_late()).await;
    summarise(&path, &engine, &recorder.ledger, &ledgers);
    read.and(rest)?;
    if let Some(links) = engine.summary().only_unknown_links() {
        return Err(ReplayError::LinkType { path, links }.into());
    }
    all_delivered(&recorder.ledger, &ledgers)
}

/// Opens the file, and says how long it is. A pipe waits for its writer.
async fn open(path: &str, file: &Path) -> Result<(Capture<File>, u64), CaptureError> {
    let failed = |cause| CaptureError::Open { path: path.to_owned(), cause };
    let input = File::open(file).await.map_err(failed)?;
    let metadata = input.metadata().await.map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    Ok((Capture::new(path, input).await?, metadata.len()))
}

/// What became of packets, names and records, on stderr. It is what the user asked for, and not a
/// message of the program about itself: `log.level` does not silence it.
fn summarise(path: &str, engine: &Engine, all: &Ledger, outputs: &[Arc<OutputLedger>]) {
    let (dns, streams, fragments) = engine.dns_stats().unwrap_or_default();
    let names = [
        (dns != DnsStats::default()).then(|| dns.to_string()),
        (streams != StreamStats::default()).then(|| streams.to_string()),
        (fragments != FragmentStats::default()).then(|| fragments.to_string()),
    ];
    let lines = std::iter::once(format!("{path}: {}", engine.summary()))
        .chain(names.into_iter().flatten())
        .chain(outputs.iter().flat_map(|o| Line::all(all, o).map(|line| line.to_string())));
    for line in lines {
        // Where stderr is gone there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A capture on its way to the outputs.
struct Replay {
    path: String,
    capture: Capture<File>,
    engine: Engine,
    recorder: Recorder,
    sinks: Sinks,
    outputs: Outputs,
    progress: Progress,
    /// Records given to each output.
    handed: u64,
    max_flows: usize,
    stop: Stop,
}

impl Replay {
    /// Reads the file.
    async fn read(&mut self) -> anyhow::Result<()> {
        let stop = self.stop.clone();
        let mut asked = pin!(stop.asked());
        loop {
            for _ in 0..TURN {
                let next = tokio::select! {
                    // Only where the file keeps it waiting is anything else looked at.
                    biased;
                    next = self.capture.next() => next,
                    () = &mut asked => return Err(self.stopped().into()),
                };
                let Some(packet) = next.map_err(ReplayError::from)? else { return Ok(()) };
                let taken = self.engine.packet(&packet);
                if let Err(Full) = taken {
                    return Err(self.full().into());
                }
                self.deliver().await?;
            }
            self.progress.at(self.capture.offset(), self.is_all_written());
            tokio::task::yield_now().await;
            if self.stop.is_asked() {
                return Err(self.stopped().into());
            }
        }
    }

    /// Reports what the end of the file leaves.
    async fn finish(&mut self) -> anyhow::Result<()> {
        while self.engine.finish_one() {
            self.deliver().await?;
        }
        Ok(())
    }

    /// Hands what has ended to the outputs, and waits for them: when it is to stop, as
    /// long as `shutdown.timeout` lets it.
    async fn deliver(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.engine.next_end() {
            let Some(record) = self.recorder.record(ended) else { continue };
            self.progress.make_way();
            self.handed += 1;
            tokio::select! {
                () = self.sinks.room() => {}
                () = self.stop.is_late() => {}
            }
            self.sinks.push(&record);
            if let Some(error) = self.outputs.failed().await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether no output is about to write. Counters are compared that only grow.
    fn is_all_written(&self) -> bool {
        self.sinks.all().iter().all(|sink| {
            let ends = sink.ledger().of(RecordKind::End);
            ends.exported + ends.dropped_in_all() >= self.handed
        })
    }

    fn stopped(&self) -> ReplayError {
        ReplayError::Stopped {
            path: self.path.clone(),
            packet: self.capture.packets(),
            offset: self.capture.offset(),
        }
    }

    fn full(&self) -> ReplayError {
        ReplayError::Full {
            path: self.path.clone(),
            packet: self.capture.packets(),
            offset: self.capture.offset(),
            limit: self.max_flows,
        }
    }
}

fn writes_to_stdout(settings: &Settings) -> bool {
    settings.outputs.iter().any(|output| matches!(output, Output::Text | Output::Json))
}

fn all_delivered(all: &Ledger, outputs: &[Arc<OutputLedger>]) -> anyhow::Result<()> {
    for output in outputs {
        let lost = DropCause::ALL.iter().map(|cause| output.dropped(*cause)).sum();
        if lost > 0 {
            let line =
                Line::all(all, output).map(|line| line.to_string()).collect::<Vec<_>>().join("; ");
            return Err(ReplayError::Undelivered { output: output.to_string(), lost, line }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
