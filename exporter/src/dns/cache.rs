//! The cache: who knew which names of an address, and when.
//!
//! An entry carries its own deadlines, in the time of the messages; what a lookup tells rests on them
//! alone. moka frees memory: by weight, and by its own clock some time after the last deadline, so that a
//! lookup for a moment just past still finds what held then.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flowend_probe_types::Addr;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use smallvec::SmallVec;

use super::{DnsSettings, Scope};

/// Names told of one address: those answered last. A whole chain fits.
pub(super) const MAX_NAMES: usize = 16;

/// Answers kept of one address: those that came last.
pub(super) const MAX_ANSWERS: usize = 8;

/// What is kept beyond its deadline, ns: events reach a lookup within a second of their time, ends of
/// connections that were found gone a few seconds later.
const GRACE_NS: u64 = 10_000_000_000;

/// What moka and the allocator take for an entry without a name, bytes: key, value, their counts, the nodes
/// of its queues and of its timer, and its place in the hash table (`cargo bench --bench dns` holds
/// the sum against the process's memory).
const ENTRY_BYTES: usize = 576;

/// What the allocator and the counts take for a name, or for a list of names, bytes.
const COUNTED_BYTES: usize = 32;

/// Names of an address by one answer: the one asked for first, then those that it leads to.
pub type Names = Arc<[Arc<str>]>;

/// Where names come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameSource {
    /// An answer of a DNS server.
    Dns,
    /// An answer of multicast DNS.
    Mdns,
    /// An answer of LLMNR.
    Llmnr,
    /// The file /etc/hosts.
    Hosts,
}

impl NameSource {
    /// All.
    pub const ALL: [Self; 4] = [Self::Dns, Self::Mdns, Self::Llmnr, Self::Hosts];

    /// As in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Mdns => "mdns",
            Self::Llmnr => "llmnr",
            Self::Hosts => "hosts",
        }
    }

    /// The one that [`NameSource::as_str`] calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == name)
    }
}

/// What one answer said of an address. Answered again while it held, it is still one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownName {
    /// The whole chain.
    pub names: Names,
    /// Where they come from.
    pub source: NameSource,
    /// When it was answered first, in the time of the messages, ns.
    pub from_ns: u64,
    /// Until when it holds, in the time of the messages, ns.
    pub until_ns: u64,
}

/// A [`KnownName`] in the cache: answered again, it lasts longer, and moka need not be told.
#[derive(Debug)]
struct Held {
    names: Names,
    source: NameSource,
    from_ns: u64,
    until_ns: AtomicU64,
}

impl Held {
    fn until_ns(&self) -> u64 {
        self.until_ns.load(Ordering::Relaxed)
    }

    fn holds(&self, at_ns: u64) -> bool {
        self.from_ns <= at_ns && at_ns < self.until_ns()
    }

    fn known(&self) -> KnownName {
        KnownName {
            names: Arc::clone(&self.names),
            source: self.source,
            from_ns: self.from_ns,
            until_ns: self.until_ns(),
        }
    }
}

impl From<KnownName> for Held {
    fn from(known: KnownName) -> Self {
        let KnownName { names, source, from_ns, until_ns } = known;
        Self { names, source, from_ns, until_ns: until_ns.into() }
    }
}

/// An address as a scope knows it.
pub(super) type Key = (Scope, Addr);

/// What the cache holds, and what it was good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Lookups that found a name.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Addresses with names.
    pub entries: u64,
    /// What they take, about, bytes.
    pub bytes: u64,
    /// Addresses that had to give way to newer ones.
    pub evictions: u64,
    /// Addresses whose names all lapsed.
    pub expiries: u64,
    /// Answers that held still, and had to give way to newer ones for the same address.
    pub displaced: u64,
}

impl fmt::Display for CacheStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hits, misses, entries, bytes, evictions, expiries, displaced } = self;
        write!(
            f,
            "dns cache: lookups: {hits} hits, {misses} misses; {entries} addresses in {bytes} bytes; \
             {evictions} evicted, {expiries} expired; {displaced} answers displaced"
        )
    }
}

/// Counted where moka calls back, and in lookups.
#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
    expiries: AtomicU64,
    displaced: AtomicU64,
}

/// The answers for one address, the newest first.
#[derive(Debug)]
struct Entry {
    /// When the last one was taken in, in the time of the messages.
    taken_ns: u64,
    /// Until when moka keeps it, in the time of the messages, at least.
    kept_ns: u64,
    known: SmallVec<[Held; 1]>,
}

impl Entry {
    /// Kept twice as long as it holds: most names are asked for again before they lapse, and then nothing has
    /// to be moved.
    fn new(taken_ns: u64, known: SmallVec<[Held; 1]>, max_ttl_ns: u64) -> Self {
        let last = known.iter().map(Held::until_ns).max().unwrap_or(taken_ns);
        let left = last.saturating_sub(taken_ns).min(max_ttl_ns);
        Self { taken_ns, kept_ns: taken_ns.saturating_add(left.saturating_mul(2)), known }
    }
}

/// Frees what no lookup can find any more.
struct Lifetime;

impl moka::Expiry<Key, Arc<Entry>> for Lifetime {
    fn expire_after_create(&self, _: &Key, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        let kept = entry.kept_ns.saturating_sub(entry.taken_ns);
        Some(Duration::from_nanos(kept.saturating_add(GRACE_NS)))
    }

    fn expire_after_update(
        &self,
        key: &Key,
        entry: &Arc<Entry>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, now)
    }
}

/// Names by address and scope.
#[derive(Debug)]
pub(super) struct Cache {
    entries: moka::sync::Cache<Key, Arc<Entry>, foldhash::fast::RandomState>,
    front: RefCell<Front>,
    max_ttl_ns: u64,
    counts: Arc<Counts>,
}

/// What was looked up lately, by a few bits of its hash. An entry tells by itself what holds, so one that
/// moka has given up is not wrong.
struct Front {
    slots: Box<[Slot]>,
    lookups: u32,
}

/// An address and what is known of it.
type Slot = Option<(Key, Arc<Entry>)>;

/// Addresses in front of the cache: a power of two.
const FRONT: usize = 1024;

/// One lookup in so many is moka's, too, so that it knows what is in use.
const TOLD: u32 = 16;

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front").finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache. `of_now`: whether time passes for its messages as it does for moka.
    pub(super) fn new(settings: &DnsSettings, of_now: bool) -> Self {
        let counts = Arc::new(Counts::default());
        let removed = Arc::clone(&counts);
        let builder = moka::sync::Cache::builder()
            .max_capacity(settings.cache_bytes)
            .weigher(|_: &Key, entry: &Arc<Entry>| weight(entry))
            // The newest answer is always taken in; the default policy would refuse it.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, _, cause| {
                let count = match cause {
                    RemovalCause::Size => &removed.evictions,
                    RemovalCause::Expired => &removed.expiries,
                    RemovalCause::Explicit | RemovalCause::Replaced => return,
                };
                count.fetch_add(1, Ordering::Relaxed);
            });
        let builder = if of_now { builder.expire_after(Lifetime) } else { builder };
        let hasher = foldhash::fast::RandomState::default();
        let front = Front { slots: vec![None; FRONT].into(), lookups: 0 };
        Self {
            entries: builder.build_with_hasher(hasher),
            front: front.into(),
            max_ttl_ns: super::nanos(settings.max_ttl),
            counts,
        }
    }

    /// Calls `tell` with what is known of an address, if anything is.
    fn look_up(&self, key: &Key, tell: impl FnOnce(&Entry)) {
        let mut front = self.front.borrow_mut();
        front.lookups = front.lookups.wrapping_add(1);
        let is_told = front.lookups.is_multiple_of(TOLD);
        let slot = &mut front.slots[slot_of(key)];
        if let Some((_, entry)) = slot.as_ref().filter(|(known, _)| known == key && !is_told) {
            return tell(entry);
        }
        // Most addresses have no name, and this question is the cheaper one.
        if !self.entries.contains_key(key) {
            return;
        }
        let Some(entry) = self.entries.get(key) else { return };
        tell(&entry);
        *slot = Some((*key, entry));
    }

    fn insert(&self, key: Key, entry: Entry) {
        let entry = Arc::new(entry);
        if let Some((known, before)) = &mut self.front.borrow_mut().slots[slot_of(&key)]
            && *known == key
        {
            *before = Arc::clone(&entry);
        }
        self.entries.insert(key, entry);
    }

    /// Takes in what an answer says, now: at `new.from_ns`. Answered again while it holds, it began
    /// when it was answered first. Other answers stay beside it until they lapse.
    pub(super) fn remember(&self, key: Key, mut new: KnownName) {
        let now = new.from_ns;
        let old = self.entries.get(&key);
        let mut known = SmallVec::new();
        if let Some(old) = &old {
            let same = old
                .known
                .iter()
                .position(|k| k.until_ns() > now && k.source == new.source && k.names == new.names);
            if let Some(same) = same {
                let again = &old.known[same];
                if same == 0 && old.kept_ns >= new.until_ns && again.from_ns <= now {
                    again.until_ns.fetch_max(new.until_ns, Ordering::Relaxed);
                    return;
                }
                new = KnownName {
                    names: Arc::clone(&again.names),
                    from_ns: again.from_ns.min(now),
                    until_ns: again.until_ns().max(new.until_ns),
                    ..new
                };
            }
            known.push(new.into());
            let others = old.known.iter().enumerate().filter(|(at, _)| Some(*at) != same);
            for (_, other) in others {
                if known.len() < MAX_ANSWERS && other.until_ns().saturating_add(GRACE_NS) > now {
                    known.push(other.known().into());
                } else if other.until_ns() > now {
                    self.counts.displaced.fetch_add(1, Ordering::Relaxed);
                }
            }
        } else {
            known.push(new.into());
        }
        self.insert(key, Entry::new(now, known, self.max_ttl_ns));
    }

    /// Takes in what was known before, behind what is known already.
    pub(super) fn restore(&self, key: Key, known: KnownName) {
        let old = self.entries.get(&key);
        let mut taken_ns = known.from_ns;
        let mut all: SmallVec<[Held; 1]> = SmallVec::new();
        if let Some(old) = &old {
            taken_ns = old.taken_ns.max(taken_ns);
            all.extend(old.known.iter().map(|held| held.known().into()));
        }
        if all.iter().any(|held| held.known() == known) {
            return;
        }
        if all.len() == MAX_ANSWERS {
            self.counts.displaced.fetch_add(1, Ordering::Relaxed);
            return;
        }
        all.push(known.into());
        self.insert(key, Entry::new(taken_ns, all, self.max_ttl_ns));
    }

    /// The names of an address as these scopes knew them at `at_ns`: those of the first scope first, in
    /// each those answered last first.
    pub(super) fn names(&self, scopes: &[Scope], addr: Addr, at_ns: u64) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for scope in scopes {
            self.look_up(&(*scope, addr), |entry| {
                for held in entry.known.iter().filter(|held| held.holds(at_ns)) {
                    for name in held.names.iter() {
                        if names.len() < MAX_NAMES && !names.contains(name) {
                            names.push(Arc::clone(name));
                        }
                    }
                }
            });
        }
        let count = if names.is_empty() { &self.counts.misses } else { &self.counts.hits };
        count.fetch_add(1, Ordering::Relaxed);
        names
    }

    /// All there is, in no order; of each address the answer that came last first.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Scope, Addr, Vec<KnownName>)> {
        self.entries
            .iter()
            .map(|(key, entry)| (key.0, key.1, entry.known.iter().map(Held::known).collect()))
    }

    pub(super) fn stats(&self) -> CacheStats {
        // moka counts what it has got round to.
        self.entries.run_pending_tasks();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CacheStats {
            hits: count(&self.counts.hits),
            misses: count(&self.counts.misses),
            entries: self.entries.entry_count(),
            bytes: self.entries.weighted_size(),
            evictions: count(&self.counts.evictions),
            expiries: count(&self.counts.expiries),
            displaced: count(&self.counts.displaced),
        }
    }

    /// Frees what is due now; else it is freed as lookups and answers come.
    pub(super) fn free(&self) {
        self.entries.run_pending_tasks();
    }
}

/// The place of an address in front of the cache: a few bits of a product (Fibonacci hashing).
const fn slot_of(key: &Key) -> usize {
    let (Scope(scope), Addr([a, b, c, d])) = *key;
    let halves = (a as u64) << 32 ^ b as u64 ^ (c as u64) << 16 ^ (d as u64) << 24;
    let product = (scope ^ halves).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (product >> 40) as usize % FRONT
}

/// What an entry takes, about, bytes. Names that several addresses share count for each.
fn weight(entry: &Entry) -> u32 {
    let more = entry.known.len().saturating_sub(1) * size_of::<Held>();
    let name = |name: &Arc<str>| size_of::<Arc<str>>() + COUNTED_BYTES + name.len();
    let chain = |known: &Held| COUNTED_BYTES + known.names.iter().map(name).sum::<usize>();
    let names: usize = entry.known.iter().map(chain).sum();
    u32::try_from(ENTRY_BYTES + more + names).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use moka::Expiry as _;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn memory_is_kept_until_the_last_deadline_and_some_time_more() {
        let known = |until_ns| KnownName {
            names: Arc::from([Arc::from("a.test")]),
            source: NameSource::Dns,
            from_ns: 0,
            until_ns,
        };
        let key = (Scope(1), Addr([0; 4]));
        // Deadlines of an entry that was taken in at 10 s, and what it has left, s: kept for twice that.
        for (deadlines, left) in
            [(&[70][..], 60), (&[20, 70, 30], 60), (&[10], 0), (&[5], 0), (&[1_000_000], 3600)]
        {
            let known = deadlines.iter().map(|s| known(s * SECOND).into()).collect();
            let entry = Arc::new(Entry::new(10 * SECOND, known, 3600 * SECOND));
            let told = Lifetime.expire_after_create(&key, &entry, Instant::now());
            let want = Duration::from_nanos(2 * left * SECOND + GRACE_NS);
            assert_eq!(told, Some(want), "{deadlines:?}");
        }
    }

    #[test]
    fn an_entry_weighs_more_with_each_answer_and_each_name() {
        let known = |names: &[&str]| KnownName {
            names: names.iter().map(|name| Arc::from(*name)).collect(),
            source: NameSource::Dns,
            from_ns: 0,
            until_ns: 1,
        };
        let of = |known: &[KnownName]| {
            weight(&Entry::new(0, known.iter().map(|k| k.clone().into()).collect(), 1))
        };
        let (short, long, two) = (known(&["a"]), known(&["aa"]), known(&["a", "b"]));
        assert_eq!(of(&[long]) - of(std::slice::from_ref(&short)), 1);
        let name = of(std::slice::from_ref(&two)) - of(std::slice::from_ref(&short));
        assert!(name as usize > size_of::<Arc<str>>() + 1, "{name}");
        let answer = of(&[short.clone(), two]) - of(std::slice::from_ref(&short));
        assert!(answer as usize > size_of::<KnownName>(), "{answer}");
    }
}
