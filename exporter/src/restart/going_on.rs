//! From the stop of one flowend to the start of the next on the same ring.

use std::path::PathBuf;

use tracing::{info, warn};

use super::state::{self, State, StateError};
use crate::cgroup::Paths;
use crate::clock;
use crate::export::OwnSockets;
use crate::flow::LostOf;
use crate::ids::Ids;
use crate::pipeline::Pipeline;
use crate::probe::Pinned;
use crate::source::RingSource;

/// The ring that outlives this process, and what is said of it to the next one.
#[derive(Debug)]
pub struct GoingOn {
    file: PathBuf,
    /// Held until the file is written for good: the next one must not start without it.
    pinned: Pinned,
    /// From which ids of connections follow whose ISNs were not seen.
    seed: u128,
    paths: Paths,
}

impl GoingOn {
    /// On this ring.
    pub const fn on(file: PathBuf, pinned: Pinned, seed: u128, paths: Paths) -> Self {
        Self { file, pinned, seed, paths }
    }

    /// Goes on where the flowend before was, as far as it says where that is. Before the ring is read.
    pub fn start(&mut self, ids_key: &str, pipeline: &mut Pipeline, source: &mut RingSource) {
        let state = match state::take(&self.file, self.pinned.ring) {
            Ok(Some(state)) => state,
            Ok(None) if self.pinned.is_new => return,
            Ok(None) => {
                warn!(
                    "{}: the flowend before this one left no state, so it was killed: connections that it knew are taken \
                     for older ones (flowend.start_known = false)",
                    self.file.display()
                );
                return Self::without(pipeline);
            }
            // Of before the machine was started anew, as a rule.
            Err(error) if self.pinned.is_new => return info!("{error}"),
            Err(error) => {
                warn!("{error}");
                return Self::without(pipeline);
            }
        };
        let State { lost, skipped, seed, kept, paths } = state;
        info!("{}: {} open connections taken over", self.file.display(), kept.flows.opened().len());
        self.seed = seed;
        source.go_on(&lost, &skipped);
        for (id, path) in paths {
            self.paths.learn(id, || path);
        }
        pipeline.take_in(kept, Ids::new(ids_key, seed));
    }

    /// What somebody read who is dead may be missing of any connection so far.
    fn without(pipeline: &mut Pipeline) {
        pipeline.note_loss(LostOf::Anybody, clock::boot_ns());
    }

    /// Keeps all that is known for the next one. From here on nothing is read from the ring.
    ///
    /// # Errors
    /// Where it cannot be written; then the pipeline knows everything still.
    pub fn stop(
        &self,
        pipeline: &mut Pipeline,
        source: &RingSource,
        ids_key: &str,
    ) -> Result<Stopped, StateError> {
        let state = State {
            lost: source.judged().to_vec(),
            skipped: source.skipped().to_vec(),
            seed: self.seed,
            kept: pipeline.hand_over(),
            paths: self.paths.all(),
        };
        match state::write(&self.file, self.pinned.ring, &state) {
            Ok(()) => {
                info!(
                    "{}: {} open connections kept for the next start; programs and ring stay",
                    self.file.display(),
                    state.kept.flows.opened().len()
                );
                Ok(Stopped { file: self.file.clone(), ring: self.pinned.ring, state })
            }
            Err(error) => {
                pipeline.take_in(state.kept, Ids::new(ids_key, self.seed));
                Err(error)
            }
        }
    }
}

/// What was kept.
#[derive(Debug)]
pub struct Stopped {
    file: PathBuf,
    ring: u32,
    state: State,
}

impl Stopped {
    /// Adds the connections that flowend's own outputs made since; their ends are for the next one to see, and to
    /// leave out.
    pub fn add_own(mut self, own: &OwnSockets) {
        let all = own.all();
        if all == self.state.kept.own {
            return;
        }
        self.state.kept.own = all;
        if let Err(error) = state::write(&self.file, self.ring, &self.state) {
            warn!("{error}; what was kept at first stays");
        }
    }
}
