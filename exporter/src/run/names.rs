//! Where names come from and go to: started with the sidecar, kept at its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::cgroup::{self, Paths};
use crate::clock;
use crate::config::{ScopeKind, Settings};
use crate::dns::snapshot::{self, Entry, Foreign, Here};
use crate::dns::{Dns, KnownName, NameSource, Scope, Scopes};
use crate::enrich::{Hosts, Reverse};
use crate::ledger::Ledger;
use crate::pipeline::Pipeline;
use crate::probe::{AttachState, Optional};

/// The folders attached to, as the scopes want them, and whether sockops tells of their connections.
pub(super) struct AttachedTargets {
    mount: PathBuf,
    folders: watch::Receiver<Vec<PathBuf>>,
    state: watch::Receiver<AttachState>,
    is_deaf: bool,
}

impl AttachedTargets {
    /// Nothing of them is told yet.
    pub(super) fn new(
        mount: PathBuf,
        mut folders: watch::Receiver<Vec<PathBuf>>,
        mut state: watch::Receiver<AttachState>,
    ) -> Self {
        folders.mark_changed();
        state.mark_changed();
        Self { mount, folders, state, is_deaf: false }
    }

    /// Tells the pipeline where they have changed. A folder that is gone since is left out.
    pub(super) fn tell_news(&mut self, pipeline: &mut Pipeline) {
        if self.state.has_changed().unwrap_or(false) {
            let is_deaf = self.state.borrow_and_update().lacks(Optional::Sockops);
            if is_deaf || self.is_deaf {
                pipeline.note_unheard(if is_deaf { u64::MAX } else { clock::boot_ns() });
            }
            self.is_deaf = is_deaf;
        }
        // With the sender gone, what it said last is all that will be.
        if !self.folders.has_changed().unwrap_or(false) {
            return;
        }
        let folders = self.folders.borrow_and_update().clone();
        let with_id = |folder: &PathBuf| {
            let path = cgroup::relative(&self.mount, folder);
            Some((cgroup::id_of(folder).ok()?, Arc::from(path)))
        };
        pipeline.attached(folders.iter().filter_map(with_id).collect());
    }
}

/// The cache of names, with what the file of before still says.
pub(super) fn start(settings: &Settings, snapshot: Option<&Path>) -> Dns {
    let mut dns = Dns::new(settings.dns);
    let Some(path) = snapshot.filter(|_| settings.names.enabled) else {
        return dns;
    };
    let offset = clock::boot_to_unix_ns();
    let now = clock::boot_ns().saturating_add(offset);
    let max_ttl = u64::try_from(settings.dns.max_ttl.as_nanos()).unwrap_or(u64::MAX);
    let restored = here(settings.names.scope)
        .map_err(|error| warn!("{}: {error}; names of before are not restored", path.display()))
        .ok()
        .and_then(|here| {
            let read = snapshot::read(path, &here, now, max_ttl);
            read.map_err(|error| warn!("{error}")).ok()
        })
        .unwrap_or_default();
    let (mut taken, mut refused) = (0, 0);
    for entry in restored.entries {
        let known = NameSource::from_name(&entry.source).map(|source| KnownName {
            names: entry.names.iter().map(|name| Arc::from(name.as_str())).collect(),
            source,
            // Before the machine was started: since always.
            from_ns: entry.from_ns.saturating_sub(offset),
            until_ns: entry.until_ns.saturating_sub(offset),
        });
        let fits = known.is_some_and(|known| dns.restore(Scope(entry.scope), entry.addr, known));
        *if fits { &mut taken } else { &mut refused } += 1;
    }
    let why = restored.why_foreign.map_or("", |why| match why {
        Foreign::Boot => " (the machine was started anew)",
        Foreign::Kind => " (dns.scope was another)",
    });
    info!(
        "{}: {taken} names restored, {} lapsed, {} for cgroups that are not known any more{why}, \
         {refused} refused",
        path.display(),
        restored.lapsed,
        restored.foreign,
    );
    dns
}

/// Writes what is known for the next start.
pub(super) fn keep(path: Option<&Path>, pipeline: &Pipeline, kind: ScopeKind) {
    let Some(path) = path else { return };
    let here = match here(kind) {
        Ok(here) => here,
        Err(error) => return warn!("{}: {error}; names are not kept", path.display()),
    };
    let offset = clock::boot_to_unix_ns();
    let mut entries = pipeline.dns().entries().flat_map(|(scope, addr, known)| {
        known.into_iter().map(move |known| Entry {
            scope: scope.0,
            addr,
            names: known.names.iter().map(ToString::to_string).collect(),
            source: known.source.as_str().into(),
            from_ns: known.from_ns.saturating_add(offset),
            until_ns: known.until_ns.saturating_add(offset),
        })
    });
    match snapshot::write(path, &mut entries, &here) {
        Ok(written) if written.left_out > 0 => warn!(
            "{}: {} names kept, and no room for {}",
            path.display(),
            written.entries,
            written.left_out
        ),
        Ok(written) => info!("{}: {} names kept", path.display(), written.entries),
        Err(error) => warn!("{error}"),
    }
}

fn here(kind: ScopeKind) -> std::io::Result<Here> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(Here { boot_id: boot_id.trim().into(), kind, host_scope: Scopes::HOST.0 })
}

/// Starts reading the workloads' hosts files, where they are asked for.
pub(super) fn start_hosts(
    settings: &Settings,
    mount: &Path,
    paths: &Paths,
) -> anyhow::Result<Option<Hosts>> {
    let start = || Hosts::start(mount.to_owned(), paths.clone());
    settings.names.hosts.then(start).transpose().context("the thread that reads hosts files")
}

/// Starts reverse lookups, where they are asked for and can be.
pub(super) fn start_reverse(settings: &Settings) -> Option<Reverse> {
    match Reverse::start(settings.names.reverse?) {
        Ok(reverse) => Some(reverse),
        Err(error) => {
            warn!("{error}; there are no reverse lookups");
            None
        }
    }
}

/// What was learnt of names, and what became of it, in words.
pub(super) fn lines(pipeline: &Pipeline, ledger: &Ledger) -> Vec<String> {
    let dns = pipeline.dns();
    let mut lines = vec![
        dns.stats().to_string(),
        dns.stream_stats().to_string(),
        dns.cache_stats().to_string(),
    ];
    let unplaced = pipeline.scopes().unplaced();
    if unplaced > 0 {
        lines.push(format!(
            "dns: {unplaced} messages of cgroups whose folder or target was not known; what they named \
             serves their own cgroup alone"
        ));
    }
    lines.extend(pipeline.hosts().map(|hosts| hosts.stats().to_string()));
    lines.extend(pipeline.reverse().map(|reverse| reverse.stats().to_string()));
    lines.push(ledger.names.to_string());
    lines
}
