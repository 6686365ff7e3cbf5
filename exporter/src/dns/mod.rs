//! Names of addresses, learnt from the DNS answers that the watched workloads get.
//!
//! A name is a hint: an answer counts only if it matches a query that the same socket of the same
//! cgroup sent (id, question, server) within [`QUERY_NS`], and it names addresses for one scope only, so one
//! tenant cannot name another's. Pure but for the cache's memory: time comes with the messages; an
//! entry carries its own deadline, and moka only frees memory.
//!
//! A message passes [`message`] (bytes to a bounded struct), [`query`] or [`multicast`] (does it answer what
//! was asked?), [`chain`] (from the question to addresses) and [`cache`]; [`learn`] leads it through, and
//! [`ledger`] counts what became of it.

mod cache;
mod chain;
mod learn;
mod ledger;
mod message;
mod multicast;
pub mod name;
mod query;
mod scope;
pub mod snapshot;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use flowend_probe_types::{Addr, DnsEvent, EventKind};

pub use self::cache::{CacheStats, KnownName, NameSource, Names};
pub use self::ledger::{AnswerFate, DnsStats, QueryFate};
pub use self::query::QUERY_NS;
pub use self::scope::{CgroupScopes, Scopes};
pub use self::stream::StreamStats;

use self::cache::Cache;
use self::learn::Learner;
use self::stream::Streams;

/// What of the configuration shapes the cache.
#[derive(Clone, Copy, Debug)]
pub struct DnsSettings {
    /// Bytes that the cache may take, about.
    pub cache_bytes: u64,
    /// An answer counts at least for this long, whatever its TTL.
    pub min_ttl: Duration,
    /// And at most for this long.
    pub max_ttl: Duration,
}

/// A set of cgroups that share their names: what one of them looked up names the address for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(pub u64);

/// The cache and the queries on their way.
#[derive(Debug)]
pub struct Dns {
    learner: Learner,
    streams: Streams,
    cache: Cache,
}

impl Dns {
    /// An empty cache.
    pub fn new(settings: DnsSettings) -> Self {
        Self::with(settings, true)
    }

    /// For messages of another time than now: memory is freed by weight alone, since moka's clock is not
    /// theirs.
    pub fn of_the_past(settings: DnsSettings) -> Self {
        Self::with(settings, false)
    }

    fn with(settings: DnsSettings, is_now: bool) -> Self {
        Self {
            learner: Learner::new(&settings),
            streams: Streams::default(),
            cache: Cache::new(&settings, is_now),
        }
    }

    /// Takes in one message, or one segment of a DNS connection with the messages that it completes. What
    /// they teach goes to `scope`: that of its cgroup. Other kinds are none of this.
    pub fn observe(&mut self, kind: EventKind, facts: &DnsEvent, bytes: &[u8], scope: Scope) {
        let Self { learner, streams, cache } = self;
        let mut message = |kind, facts: &DnsEvent, bytes: &[u8]| match kind {
            EventKind::DnsQuery => learner.query(facts, bytes),
            EventKind::DnsAnswer => learner.answer(facts, bytes, scope, cache),
            _ => {}
        };
        match kind {
            EventKind::DnsStreamOut | EventKind::DnsStreamIn => {
                streams.take(kind, facts, bytes, &mut message);
            }
            _ => message(kind, facts, bytes),
        }
    }

    /// The names of an address as these scopes knew them at `at_ns`, at most 16: those of the first scope
    /// first, in each those answered last first; of one answer the name asked for first, then
    /// those that it leads to.
    pub fn names(&self, scopes: &[Scope], addr: Addr, at_ns: u64) -> Vec<Arc<str>> {
        self.cache.names(scopes, addr, at_ns)
    }

    /// What became of the messages so far.
    pub const fn stats(&self) -> DnsStats {
        self.learner.stats()
    }

    /// What became of the segments of DNS over TCP so far.
    pub fn stream_stats(&self) -> StreamStats {
        self.streams.stats()
    }

    /// What the cache holds, and what it was good for.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// Queries that wait for their answer.
    pub fn waiting(&self) -> usize {
        self.learner.waiting()
    }

    /// Frees what is due now; else memory is freed as lookups and answers come.
    pub fn free(&self) {
        self.cache.free();
    }

    /// All addresses with what is known of them, in no order; of each the answer that came last first.
    pub fn entries(&self) -> impl Iterator<Item = (Scope, Addr, Vec<KnownName>)> {
        self.cache.entries()
    }

    /// Takes in what was known before, such as [`Dns::entries`] told it, behind what is known already.
    /// `false`: a name is none that this cache would hold, or there are too many.
    pub fn restore(&mut self, scope: Scope, addr: Addr, known: KnownName) -> bool {
        let lengths = 1..=chain::MAX_CHAIN;
        let fits = lengths.contains(&known.names.len())
            && known.from_ns < known.until_ns
            && known.names.iter().all(|name| name::is_escaped(name));
        if fits {
            self.cache.restore((scope, addr), known);
        }
        fits
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
