//! What is kept of a connection from its opening to its end: its names, so that a long connection keeps
//! the name it was opened by, and until then the address that its process asked for.

use std::sync::Arc;

use flowend_probe_types::{Addr, EventKind, ProcessEvent};
use hashlink::LruCache;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::fair::Table;
use crate::flow::{ConnectionEnd, Opened};

/// Sockets of which connect() was seen and no connection yet, at most: about 100 bytes each. A connection is
/// opened with the next events that are read, so more than that are attempts of which nothing came.
const MAX_ASKED: usize = 16_384;

/// Calls of connect() on one socket that are remembered: of a reconnect, the one before may still wait
/// for its connection to be opened.
const MAX_CALLS: usize = 4;

/// The names of both sides of a connection as they stood when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Of the own address.
    pub local: Vec<Arc<str>>,
    /// Of the peer's address: of the one asked for first, where a program rewrote it.
    pub remote: Vec<Arc<str>>,
}

impl Names {
    fn is_empty(&self) -> bool {
        self.local.is_empty() && self.remote.is_empty()
    }
}

/// The names of open connections, by the cookie of the socket: it is one connection's from its opening to
/// its end. Bounded; only connections with a name take room.
#[derive(Debug)]
pub struct OpenedNames {
    names: Table<u64, Kept>,
    asked: LruCache<u64, SmallVec<[Asked; 1]>>,
}

#[derive(Debug)]
struct Kept {
    remote: Addr,
    start_ns: u64,
    names: Names,
}

/// What connect() was given.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Asked {
    time_ns: u64,
    #[serde(with = "Words")]
    addr: Addr,
}

/// An address, as the crate of the events has no serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Addr")]
struct Words([u32; 4]);

/// The names of open connections, for the flowend that goes on.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct KeptNames {
    names: Vec<KeptName>,
    asked: Vec<(u64, Vec<Asked>)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptName {
    cgroup_id: u64,
    cookie: u64,
    #[serde(with = "Words")]
    remote: Addr,
    start_ns: u64,
    local_names: Vec<String>,
    remote_names: Vec<String>,
}

impl OpenedNames {
    /// For at most `limit` connections with names.
    pub fn new(limit: usize) -> Self {
        Self { names: Table::new(limit), asked: LruCache::new(MAX_ASKED) }
    }

    /// Hands over all that is kept, the oldest first.
    pub(super) fn hand_over(&mut self) -> KeptNames {
        let strings = |names: Vec<Arc<str>>| names.iter().map(ToString::to_string).collect();
        let name = |(cgroup_id, cookie, kept): (u64, u64, Kept)| KeptName {
            cgroup_id,
            cookie,
            remote: kept.remote,
            start_ns: kept.start_ns,
            local_names: strings(kept.names.local),
            remote_names: strings(kept.names.remote),
        };
        KeptNames {
            names: self.names.drain().into_iter().map(name).collect(),
            asked: self.asked.drain().map(|(cookie, calls)| (cookie, calls.into_vec())).collect(),
        }
    }

    /// Takes it in again.
    pub(super) fn take_in(&mut self, kept: KeptNames) {
        let shared = |names: Vec<String>| names.into_iter().map(Arc::from).collect();
        for kept in kept.names {
            let KeptName { cgroup_id, cookie, remote, start_ns, local_names, remote_names } = kept;
            let names = Names { local: shared(local_names), remote: shared(remote_names) };
            self.names.insert(cgroup_id, cookie, Kept { remote, start_ns, names });
        }
        for (cookie, calls) in kept.asked {
            self.asked.insert(cookie, calls.into());
        }
    }

    /// Takes in the address that connect() was given, before another program rewrites it.
    pub fn asked(&mut self, kind: EventKind, event: &ProcessEvent) {
        // Without a port, the probe did not tell.
        if kind != EventKind::Connect || event.remote_port == 0 {
            return;
        }
        let asked = Asked { time_ns: event.time_ns, addr: event.remote };
        let calls = self.asked.entry(event.cookie).or_insert_with(SmallVec::new);
        if calls.len() == MAX_CALLS {
            calls.remove(0);
        }
        calls.push(asked);
    }

    /// The address that a connection's process asked for, where the socket shows another one.
    pub(super) fn rewritten(&mut self, opened: &Opened) -> Option<Addr> {
        let calls = self.asked.get_mut(&opened.cookie)?;
        let latest = calls.iter().filter(|call| call.time_ns <= opened.start_ns);
        let asked = latest.max_by_key(|call| call.time_ns).map(|call| call.addr);
        // It is asked for again where the cgroup is only known later; what is left is of a reconnect.
        if opened.cgroup_id.is_some() {
            calls.retain(|call| call.time_ns > opened.start_ns);
            if calls.is_empty() {
                self.asked.remove(&opened.cookie);
            }
        }
        asked.filter(|addr| *addr != opened.remote.addr)
    }

    /// Keeps the names of a connection until its end.
    pub(super) fn keep(&mut self, opened: &Opened, names: Names) {
        // One that the flow table forgot and heard of again: it was opened by the names from before.
        let goes_on = |before: &Kept| {
            !opened.start_known
                && before.start_ns < opened.start_ns
                && before.remote == opened.remote.addr
        };
        if self.names.get(&opened.cookie).is_some_and(goes_on) {
            return;
        }
        if names.is_empty() {
            self.names.remove(&opened.cookie);
        } else {
            let (remote, start_ns) = (opened.remote.addr, opened.start_ns);
            let holder = opened.cgroup_id.unwrap_or(0);
            self.names.insert(holder, opened.cookie, Kept { remote, start_ns, names });
        }
    }

    /// The names of a connection that is still open.
    pub(super) fn get(&self, end: &ConnectionEnd) -> Names {
        self.names.get(&end.cookie).map(|kept| kept.names.clone()).unwrap_or_default()
    }

    /// The names of a connection that is over.
    pub(super) fn take(&mut self, end: &ConnectionEnd) -> Names {
        self.names.remove(&end.cookie).map(|kept| kept.names).unwrap_or_default()
    }

    /// Sockets that wait for their connection to be opened, and the most calls of one of them.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> (usize, usize) {
        let calls = self.asked.iter().map(|(_, calls)| calls.len()).max();
        (self.asked.len(), calls.unwrap_or(0))
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.asked.is_empty()
    }
}
