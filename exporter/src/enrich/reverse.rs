//! Names that the owners of addresses give them: PTR records (RFC 1035, section 3.5), asked for by flowend itself.
//!
//! The data path says which addresses it meets ([`Reverse::want`]) and takes what is known when a record is
//! made ([`Reverse::get`]); it waits for neither. A task asks the system's DNS servers, for a bounded
//! number of addresses at a time. Answers are remembered, and so is that there is none; each carries
//! its own deadline by the kernel's clock, and the cache only bounds their number.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flowend_probe_types::Addr;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::parse_resolv_conf;
use moka::policy::EvictionPolicy;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tracing::debug;

use super::escape::escaped;
use crate::clock;
use crate::config::ReverseSettings;
use crate::errors::error_chain;
use crate::ledger::Count;

/// Where the system's DNS servers are named: resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What failed, or was answered without saying for how long, is not asked for again within this time
/// (RFC 9520, section 3.2: a second at least, five minutes at most).
const FAILURE: Duration = Duration::from_secs(30);

/// Aliases that are followed from an address to its name; RFC 2317 needs one.
const MAX_ALIASES: usize = 8;

/// Why there are no reverse lookups.
#[derive(Debug, thiserror::Error)]
pub enum ReverseError {
    /// It cannot be read.
    #[error(
        "{RESOLV_CONF}: {0}; the lookups of dns.reverse need the DNS servers that it names (nameserver ADDRESS)"
    )]
    Read(std::io::Error),
    /// It says nothing.
    #[error(
        "{RESOLV_CONF}: {0}; the lookups of dns.reverse need a line of it that names a DNS server (nameserver ADDRESS)"
    )]
    Content(String),
    /// The resolver refuses its settings.
    #[error("the resolver for dns.reverse: {0}")]
    Resolver(String),
}

/// The names of addresses as far as they are known, and the task that asks for more. The task ends with this.
#[derive(Debug)]
pub struct Reverse {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Addr>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    settings: ReverseSettings,
    cache: moka::sync::Cache<Addr, Known>,
    /// Asked for, and neither answered nor given up yet.
    pending: Mutex<HashSet<Addr>>,
    counts: Counts,
    clock: fn() -> u64,
}

/// What is known of an address.
#[derive(Clone, Debug)]
struct Known {
    /// `None`: it has no name.
    name: Option<Arc<str>>,
    /// Until when that holds, ns.
    until_ns: u64,
    /// From when on it may be asked for again, ns.
    ask_again_ns: u64,
}

#[derive(Debug, Default)]
struct Counts {
    wanted: Count,
    known: Count,
    waiting: Count,
    refused: Count,
    asked: Count,
    named: Count,
    negative: Count,
    failed: Count,
    timed_out: Count,
}

/// What became of the addresses. At every moment
/// `wanted = known + waiting + asked + refused` and `asked = named + negative + failed + timed_out + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReverseStats {
    /// Times that an address was wanted.
    pub wanted: u64,
    /// The answer was remembered, whatever it was: a hit of the cache.
    pub known: u64,
    /// It had been asked for, and the answer was not there yet.
    pub waiting: u64,
    /// As many as `dns.reverse.concurrency` were on their way.
    pub refused: u64,
    /// It was asked for.
    pub asked: u64,
    /// Answered with a name.
    pub named: u64,
    /// Answered: there is none, or none that can be told.
    pub negative: u64,
    /// The servers refused, failed, or could not be reached.
    pub failed: u64,
    /// Not answered within `dns.reverse.timeout`.
    pub timed_out: u64,
    /// On their way now.
    pub pending: u64,
}

/// How a lookup ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Named(Arc<str>, Duration),
    /// How long that holds, where the answer says so.
    Negative(Option<Duration>),
    Failed,
    TimedOut,
}

impl Reverse {
    /// Starts the task, with the system's DNS servers as they are now.
    ///
    /// # Errors
    /// [`ReverseError`], where it names none.
    pub fn start(settings: ReverseSettings) -> Result<Self, ReverseError> {
        let text = std::fs::read(RESOLV_CONF).map_err(ReverseError::Read)?;
        let (config, options) =
            parse_resolv_conf(text).map_err(|error| ReverseError::Content(error_chain(&error)))?;
        Self::with(config, options, settings, clock::boot_ns)
    }

    fn with(
        config: ResolverConfig,
        options: ResolverOpts,
        settings: ReverseSettings,
        clock: fn() -> u64,
    ) -> Result<Self, ReverseError> {
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider)
            .with_options(of_reverse_lookups(options, &settings));
        // Here it would be asked for a second time.
        builder.options_mut().cache_size = 0;
        let resolver =
            builder.build().map_err(|error| ReverseError::Resolver(error_chain(&error)))?;
        let shared = Arc::new(Shared {
            settings,
            cache: moka::sync::Cache::builder()
                .max_capacity(settings.max_addresses)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            pending: Mutex::default(),
            counts: Counts::default(),
            clock,
        });
        let (queue, wanted) = mpsc::channel(settings.concurrency);
        let task = tokio::spawn(run(Arc::clone(&shared), resolver, wanted));
        Ok(Self { shared, queue, task })
    }

    /// Says that an address was met at `now_ns`, so that its name may be known later. Never waits.
    pub fn want(&self, addr: Addr, now_ns: u64) {
        if !can_have_a_name(addr) {
            return;
        }
        let counts = &self.shared.counts;
        let mut pending = self.shared.pending();
        counts.wanted.add(1);
        if self.shared.cache.get(&addr).is_some_and(|known| now_ns < known.ask_again_ns) {
            counts.known.add(1);
        } else if pending.contains(&addr) {
            counts.waiting.add(1);
        } else if pending.len() < self.shared.settings.concurrency
            && self.queue.try_send(addr).is_ok()
        {
            pending.insert(addr);
            counts.asked.add(1);
        } else {
            counts.refused.add(1);
        }
    }

    /// The name of an address, as it was at `since_ns` or later: that of a connection which began then.
    pub fn get(&self, addr: Addr, since_ns: u64) -> Option<Arc<str>> {
        self.shared.cache.get(&addr).filter(|known| since_ns < known.until_ns)?.name
    }

    /// What became of the addresses so far.
    pub fn stats(&self) -> ReverseStats {
        // Held, so that the sums are of one moment.
        let pending = self.shared.pending();
        let counts = &self.shared.counts;
        ReverseStats {
            wanted: counts.wanted.get(),
            known: counts.known.get(),
            waiting: counts.waiting.get(),
            refused: counts.refused.get(),
            asked: counts.asked.get(),
            named: counts.named.get(),
            negative: counts.negative.get(),
            failed: counts.failed.get(),
            timed_out: counts.timed_out.get(),
            pending: pending.len() as u64,
        }
    }
}

impl Drop for Reverse {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Display for ReverseStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, known, waiting, refused, asked, .. } = self;
        let Self { named, negative, failed, timed_out, pending, .. } = self;
        write!(
            f,
            "reverse lookups: wanted {wanted} = known {known} + waiting {waiting} + asked {asked} + refused \
             {refused}; asked {asked} = named {named} + negative {negative} + failed {failed} + timed_out \
             {timed_out} + in_flight {pending}"
        )
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, HashSet<Addr>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers how a lookup ended.
    fn take(&self, addr: Addr, outcome: Outcome) {
        let now_ns = (self.clock)();
        let (count, known) = self.known(addr, outcome, now_ns);
        self.cache.insert(addr, known);
        let mut pending = self.pending();
        pending.remove(&addr);
        count.add(1);
    }

    fn known(&self, addr: Addr, outcome: Outcome, now_ns: u64) -> (&Count, Known) {
        let ReverseSettings { min_ttl, max_ttl, .. } = self.settings;
        let after = |life: Duration| {
            now_ns.saturating_add(u64::try_from(life.as_nanos()).unwrap_or(u64::MAX))
        };
        let answered = |name, ttl: Duration| {
            let until_ns = after(ttl.clamp(min_ttl, max_ttl));
            Known { name, until_ns, ask_again_ns: until_ns }
        };
        match outcome {
            Outcome::Named(name, ttl) => (&self.counts.named, answered(Some(name), ttl)),
            Outcome::Negative(ttl) => {
                (&self.counts.negative, answered(None, ttl.unwrap_or(FAILURE)))
            }
            Outcome::Failed | Outcome::TimedOut => {
                let count = if outcome == Outcome::Failed {
                    &self.counts.failed
                } else {
                    &self.counts.timed_out
                };
                // What was known stays known for the connections of its time.
                let before = self.cache.get(&addr);
                let (name, until_ns) = before.map_or((None, 0), |k| (k.name, k.until_ns));
                (count, Known { name, until_ns, ask_again_ns: after(FAILURE.min(max_ttl)) })
            }
        }
    }
}

/// The resolver's options as the system has them, but for what is flowend's.
fn of_reverse_lookups(mut options: ResolverOpts, settings: &ReverseSettings) -> ResolverOpts {
    // A name from a file is no PTR record.
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = options.timeout.min(settings.timeout);
    // For one server each, over TCP.
    options.max_active_requests = settings.concurrency;
    options
}

/// All that may stand at an end of a connection. Private addresses too: whoever uses them has zones for them.
fn can_have_a_name(addr: Addr) -> bool {
    let ip = IpAddr::from(addr);
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

/// Asks for one address after the other, without waiting for the answers. [`Reverse::want`] sees to it that
/// they are not too many.
async fn run(shared: Arc<Shared>, resolver: TokioResolver, mut wanted: mpsc::Receiver<Addr>) {
    let mut lookups = JoinSet::new();
    loop {
        tokio::select! {
            addr = wanted.recv() => {
                let Some(addr) = addr else { return };
                let (resolver, timeout) = (resolver.clone(), shared.settings.timeout);
                let shared = Arc::clone(&shared);
                lookups.spawn(async move {
                    shared.take(addr, look_up(&resolver, addr, timeout).await);
                });
            }
            Some(done) = lookups.join_next() => if let Err(error) = done && error.is_panic() {
                std::panic::resume_unwind(error.into_panic());
            },
        }
    }
}

async fn look_up(resolver: &TokioResolver, addr: Addr, timeout: Duration) -> Outcome {
    let mut asked = Name::from(IpAddr::from(addr));
    // Whole: none of resolv.conf's search domains is added.
    asked.set_fqdn(true);
    let lookup = resolver.lookup(asked.clone(), RecordType::PTR);
    match tokio::time::timeout(timeout, lookup).await {
        Ok(Ok(lookup)) => named(&asked, &lookup),
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
            Outcome::Negative(none.negative_ttl.map(|s| Duration::from_secs(s.into())))
        }
        Err(_) | Ok(Err(NetError::Timeout)) => Outcome::TimedOut,
        Ok(Err(error)) => {
            debug!("{asked}: {}", error_chain(&error));
            Outcome::Failed
        }
    }
}

/// The name of an answer. Of several the first as sorted: servers give them in any order, and an address
/// should have the same name each time.
fn named(asked: &Name, lookup: &Lookup) -> Outcome {
    let (mut owner, mut alias_ttl) = (asked, u32::MAX);
    for _ in 0..MAX_ALIASES {
        let alias = lookup.answers().iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *owner => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        (owner, alias_ttl) = (target, alias_ttl.min(ttl));
    }
    let names =
        lookup.answers().iter().filter(|record| record.name == *owner).filter_map(|record| {
            match &record.data {
                RData::PTR(name) => Some((escaped(name.0.iter())?, record.ttl)),
                _ => None,
            }
        });
    match names.min() {
        Some((name, ttl)) => Outcome::Named(name, Duration::from_secs(ttl.min(alias_ttl).into())),
        None => Outcome::Negative(None),
    }
}

#[cfg(test)]
mod tests;
