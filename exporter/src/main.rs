//! The program `flowend`: reads the command line and the configuration, and hands over.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use flowend::cli::{Cli, Command, ConfigArgs};
use flowend::config::{self, ConfigError, Layered, Output, Settings, Sources};
use flowend::notify::ServiceManager;
use flowend::reload::{Reloader, SetLogLevel};
use flowend::run::{Loaded, Sidecar};
use flowend::{check, confine, demo, replay, restart};
use ipnet::IpNet;
use nix::sys::signal::{SigSet, Signal as UnixSignal};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::filter::Targets;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { outputs, config } => run(&config, &outputs),
        Command::Replay { file, local, outputs, config } => {
            with_config(&config, &outputs, |layered| {
                in_runtime(replay_until_signal(&layered.settings, &file, local))
            })
        }
        Command::Check { config } => with_config(&config, &[], |layered| check::check(&layered)),
        Command::PrintConfig { config } => with_config(&config, &[], |layered| {
            // Not print!: a reader that went away is no reason to panic.
            Ok(std::io::stdout().write_all(config::print(&layered).as_bytes())?)
        }),
        Command::Demo { config } => {
            with_config(&config, &[], |layered| in_runtime(demo::demo(layered.settings)))
        }
        Command::Unpin { config } => {
            with_config(&config, &[], |layered| restart::unpin(&layered.settings))
        }
        Command::DemoTraffic { cgroup, nameserver } => demo::traffic(&cgroup, nameserver),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flowend: {error:#}");
            let usage = matches!(error.downcast_ref(), Some(ConfigError::Set { .. }));
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The sidecar, until it is told to stop.
fn run(args: &ConfigArgs, outputs: &[Output]) -> anyhow::Result<()> {
    let sources = args.sources(outputs);
    let (layered, set_log_level) = load(&sources)?;
    // They wait until somebody listens for them; then the thread that does takes them.
    let early = SigSet::from_iter([UnixSignal::SIGHUP, UnixSignal::SIGTERM, UnixSignal::SIGINT]);
    early.thread_block()?;
    let programs = Loaded::load_pinned(&layered.settings)?;
    // Before the runtime starts its threads, which inherit it.
    confine::confine(&layered.settings)?;
    let sidecar = async move {
        let mut signals = StopSignals::new()?;
        // From now on it does not end the process.
        let hangups = signal(SignalKind::hangup())?;
        early.thread_unblock()?;
        let sidecar = Sidecar::start_with(programs, &layered.settings)?;
        let manager = ServiceManager;
        let (reloader, reloads) = Reloader::new(sources, layered, set_log_level, manager);
        tokio::spawn(reloader.run(hangups));
        let stop = async move { signals.next().await };
        sidecar.controlled_by(manager, reloads).run(stop).await?;
        Ok(())
    };
    // By a worker, which waits for timers and descriptors itself: the thread that called would have to be woken by one
    // each time, and at rest waking up is nearly all that there is to do.
    in_runtime(async {
        match tokio::spawn(sidecar).await {
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            result => result?,
        }
    })
}

/// The first signal ends the reading, and what there is is sent; the second ends that, too.
async fn replay_until_signal(
    settings: &Settings,
    file: &Path,
    local: Vec<IpNet>,
) -> anyhow::Result<()> {
    let mut signals = StopSignals::new()?;
    let (ask, asked) = tokio::sync::oneshot::channel::<()>();
    let insist = async {
        signals.next().await;
        drop(ask);
        signals.next().await;
    };
    tokio::select! {
        result = replay::replay(settings, file, local, async { drop(asked.await) }) => result,
        () = insist => Err(anyhow::anyhow!(
            "{}: stopped at once by a second signal; what had not been sent is lost",
            file.display()
        )),
    }
}

/// Loads the configuration and sets up the program's own messages, on stderr.
fn with_config(
    args: &ConfigArgs,
    outputs: &[Output],
    then: impl FnOnce(Layered) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (layered, _) = load(&args.sources(outputs))?;
    then(layered)
}

fn load(sources: &Sources) -> anyhow::Result<(Layered, SetLogLevel)> {
    let layered = config::load(sources)?;
    let set_log_level = start_log(layered.settings.log_level);
    for warning in &layered.warnings {
        warn!("{warning}");
    }
    Ok((layered, set_log_level))
}

/// Which messages are written.
fn log_filter(level: LevelFilter) -> Targets {
    // Libraries speak up only when something is wrong.
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        // Its resolver warns of each packet that is no answer, and anybody may send some. What failed is
        // counted.
        .with_target("hickory", LevelFilter::OFF)
        .with_target("flowend", level)
}

/// Returns what sets another level.
fn start_log(level: LevelFilter) -> SetLogLevel {
    use std::io::IsTerminal as _;
    use tracing_subscriber::prelude::*;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(log_filter(level));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter);
    tracing_subscriber::registry().with(layer).init();
    Box::new(move |level| {
        // It fails only where the subscriber is gone, which lives as long as the process.
        let _ = handle.reload(log_filter(level));
    })
}

fn in_runtime(task: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(task);
    // A write to a pipe that nobody reads, or a lookup without an answer, must not hold up the end.
    runtime.shutdown_background();
    result
}

/// SIGTERM and SIGINT.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Ready at the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
