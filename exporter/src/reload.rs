//! Reload: on SIGHUP, and when the configuration file changes.
//!
//! All layers are loaded anew. What is good takes effect at once, except for the keys that need a restart; what
//! is bad is said, and leaves in force what was. The task that owns the data path takes the new settings in
//! between two events, so no connection's state is lost.

mod file;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};

use crate::config::{self, Changes, Layered, Settings, Sources, changes};
use crate::ledger::Count;
use crate::notify::ServiceManager;
use file::FileWatch;

/// New settings for the running sidecar.
#[derive(Debug)]
pub struct Reload {
    /// All of them. Those that need a restart are as they were at the start.
    pub settings: Box<Settings>,
    /// To be told whether they are in force. After an error those from before are.
    pub done: oneshot::Sender<anyhow::Result<()>>,
}

/// How reloads went.
#[derive(Debug, Default)]
pub struct ReloadCounts {
    /// Changes took effect, or some of them did and the others wait for a restart.
    pub applied: Count,
    /// Nothing had changed.
    pub unchanged: Count,
    /// What was written could not be used.
    pub refused: Count,
    last_failed: AtomicBool,
}

impl ReloadCounts {
    /// Whether what is written is in force, as far as it does not wait for a restart. True before the first
    /// reload: flowend does not start with a bad configuration.
    pub fn last_succeeded(&self) -> bool {
        !self.last_failed.load(Ordering::Relaxed)
    }

    fn note<E>(&self, outcome: Result<bool, E>) {
        match &outcome {
            Ok(true) => self.applied.add(1),
            Ok(false) => self.unchanged.add(1),
            Err(_) => self.refused.add(1),
        }
        self.last_failed.store(outcome.is_err(), Ordering::Relaxed);
    }
}

/// The sidecar's end: what it is asked to take in.
#[derive(Debug)]
pub struct Reloads {
    requests: mpsc::Receiver<Reload>,
    counts: Arc<ReloadCounts>,
}

impl Reloads {
    /// The next one, to be taken in. Cancel safe. `None` when there will be no more.
    pub async fn next(&mut self) -> Option<Reload> {
        self.requests.recv().await
    }

    /// No other settings are taken in any more.
    pub fn stop(&mut self) {
        self.requests.close();
    }

    /// How they went.
    pub fn counts(&self) -> &ReloadCounts {
        &self.counts
    }
}

/// Sets the level of the program's own messages.
pub type SetLogLevel = Box<dyn Fn(LevelFilter) + Send>;

/// Loads the configuration whenever there may be another one.
pub struct Reloader {
    sources: Sources,
    started: Layered,
    current: Layered,
    set_log_level: SetLogLevel,
    manager: ServiceManager,
    counts: Arc<ReloadCounts>,
    requests: mpsc::Sender<Reload>,
}

/// Why the configuration is loaded again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The file may have changed after it was loaded, and before it was watched.
    Start,
    Signal,
    File,
}

impl Reloader {
    /// For a process that was started with `started`, as loaded from `sources`.
    pub fn new(
        sources: Sources,
        started: Layered,
        set_log_level: SetLogLevel,
        manager: ServiceManager,
    ) -> (Self, Reloads) {
        let (requests, receiver) = mpsc::channel(1);
        let counts = Arc::<ReloadCounts>::default();
        let reloads = Reloads { requests: receiver, counts: Arc::clone(&counts) };
        let current = started.clone();
        (Self { sources, started, current, set_log_level, manager, counts, requests }, reloads)
    }

    /// Runs until the sidecar takes in nothing any more.
    pub async fn run(mut self, mut hangups: Signal) {
        let mut file = match &self.sources.file {
            Some(path) => match FileWatch::start(path.clone()).await {
                Ok(file) => Some(file),
                Err(error) => {
                    warn!(
                        "configuration file {}: {error}; a change of it is not noticed, only SIGHUP is",
                        path.display()
                    );
                    None
                }
            },
            None => None,
        };
        self.handle(Cause::Start).await;
        loop {
            let cause = tokio::select! {
                Some(()) = hangups.recv() => Cause::Signal,
                () = changed(&mut file) => Cause::File,
                () = self.requests.closed() => return,
            };
            self.manager.reloading();
            self.handle(cause).await;
            self.manager.ready();
        }
    }

    /// Loads, and says and counts how it went.
    async fn handle(&mut self, cause: Cause) {
        let outcome = self.reload(cause).await;
        match &outcome {
            // It is what was loaded.
            Ok(changes) if cause == Cause::Start && changes.is_empty() => return,
            Ok(changes) => say(changes),
            // No fault of the configuration.
            Err(_) if self.requests.is_closed() => return,
            Err(error) => error!(
                "the configuration is not reloaded: {error:#}; the one from before stays in force"
            ),
        }
        self.counts.note(outcome.map(|changes| !changes.is_empty()));
    }

    /// Loads, and has taken in what is new.
    async fn reload(&mut self, cause: Cause) -> anyhow::Result<Changes> {
        let sources = self.sources.clone();
        // Files may be on a disk that does not answer.
        let loaded = tokio::task::spawn_blocking(move || config::load(&sources)).await??;
        for warning in loaded.warnings.iter().filter(|w| !self.current.warnings.contains(w)) {
            warn!("{warning}");
        }
        let new = loaded.in_force(&self.started)?;
        let live = changes(&self.current, &new).live;
        let restart = changes(&self.started, &loaded).restart;
        // Where a person asks, also the files that the configuration names are to be read anew.
        if cause == Cause::Signal || !live.is_empty() {
            let (done, answer) = oneshot::channel();
            let settings = Box::new(new.settings.clone());
            self.requests.send(Reload { settings, done }).await.context("flowend is stopping")?;
            answer.await.context("flowend is stopping")??;
        }
        (self.set_log_level)(new.settings.log_level);
        self.current = new;
        Ok(Changes { live, restart })
    }
}

/// The next change of the file; never where there is none to watch.
async fn changed(file: &mut Option<FileWatch>) {
    match file {
        Some(file) => file.changed().await,
        None => std::future::pending().await,
    }
}

fn say(changes: &Changes) {
    if changes.is_empty() {
        info!("configuration reloaded: nothing has changed");
    }
    if !changes.live.is_empty() {
        info!("configuration reloaded: {}", changes.live.join(", "));
    }
    if !changes.restart.is_empty() {
        warn!(
            "configuration reloaded, but without {}: changed since the start, and in force after the next one",
            changes.restart.join(", ")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::signal::unix::{SignalKind, signal};

    /// A reloader of a file, the sidecar's end of it, and the level that was set last.
    struct Bench {
        path: std::path::PathBuf,
        reloads: Reloads,
        level: Arc<std::sync::Mutex<Option<LevelFilter>>>,
        task: tokio::task::JoinHandle<()>,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        fn start(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("flowend.toml");
            std::fs::write(&path, text).unwrap();
            let sources = Sources { file: Some(path.clone()), ..Sources::default() };
            let level = Arc::<std::sync::Mutex<_>>::default();
            let shared = Arc::clone(&level);
            let (reloader, reloads) = Reloader::new(
                sources.clone(),
                config::load(&sources).unwrap(),
                Box::new(move |level| *shared.lock().unwrap() = Some(level)),
                ServiceManager,
            );
            // A signal that nobody sends: the tests share a process.
            let hangups = signal(SignalKind::user_defined2()).unwrap();
            let task = tokio::spawn(reloader.run(hangups));
            Self { path, reloads, level, task, _folder: folder }
        }

        /// Replaces the file as an editor does.
        fn write(&self, text: &str) {
            let new = self.path.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, &self.path).unwrap();
        }

        async fn until(&self, condition: impl Fn(&ReloadCounts) -> bool) {
            let wait = async {
                while !condition(self.reloads.counts()) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_good_file_takes_effect_and_a_bad_one_does_not() {
        let mut bench = Bench::start("");
        assert!(bench.reloads.counts().last_succeeded());

        bench.write("[sampling]\nratio = 0.5\n[log]\nlevel = \"debug\"\n[flows]\nmax = 5\n");
        let reload = bench.reloads.next().await.unwrap();
        assert!((reload.settings.sampling.ratio - 0.5).abs() < f64::EPSILON);
        assert_eq!(reload.settings.max_flows, 262_144, "needs a restart");
        assert_eq!(*bench.level.lock().unwrap(), None, "not before it is in force");
        reload.done.send(Ok(())).unwrap();
        bench.until(|counts| counts.applied.get() == 1).await;
        assert_eq!(*bench.level.lock().unwrap(), Some(LevelFilter::DEBUG));

        bench.write("[sampling]\nratio = 5\n");
        bench.until(|counts| counts.refused.get() == 1).await;
        assert!(!bench.reloads.counts().last_succeeded());
        assert_eq!(*bench.level.lock().unwrap(), Some(LevelFilter::DEBUG));

        // What the data path cannot take in is no more in force than what cannot be read, and is tried again.
        for refused in [2, 3] {
            bench.write(&format!("[sampling]\nratio = 0.25\n# {refused}\n"));
            let reload = bench.reloads.next().await.unwrap();
            reload.done.send(Err(anyhow::anyhow!("no"))).unwrap();
            bench.until(|counts| counts.refused.get() == refused).await;
        }

        // As it was at the start, but for a remark.
        bench.write("# nothing\n");
        let reload = bench.reloads.next().await.unwrap();
        assert!((reload.settings.sampling.ratio - 1.0).abs() < f64::EPSILON);
        reload.done.send(Ok(())).unwrap();
        bench.until(|counts| counts.applied.get() == 2).await;
        bench.write("# still nothing\n");
        bench.until(|counts| counts.unchanged.get() == 1).await;
        assert!(bench.reloads.counts().last_succeeded());

        drop(bench.reloads);
        bench.task.await.unwrap();
    }
}
