//! Settings of names: the table `dns`.

use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::raw::{RawDns, RawReverse};
use super::settings::{Origin, bad, count, duration, non_empty, one_of, patterns, positive};
use crate::dns::DnsSettings;
use crate::targets::Pattern;

/// What is learnt from DNS messages, and for whom.
#[derive(Clone, Debug)]
pub struct NameSettings {
    /// Whether DNS messages are copied and learnt from.
    pub enabled: bool,
    /// Multicast DNS, too.
    pub mdns: bool,
    /// LLMNR, too.
    pub llmnr: bool,
    /// Whom a name serves that a workload looked up.
    pub scope: ScopeKind,
    /// Cgroups that look names up for others.
    pub resolvers: Vec<ResolverCgroup>,
    /// Whether /etc/hosts of the workloads is read.
    pub hosts: bool,
    /// Keeps the names over a restart.
    pub snapshot: Option<PathBuf>,
    /// Of the lookups of flowend's own, if there are any.
    pub reverse: Option<ReverseSettings>,
}

/// Whom a name serves that a workload looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeKind {
    /// Its cgroup.
    Cgroup,
    /// All below the same target.
    Target,
    /// Everybody who is watched.
    Host,
}

/// A cgroup that looks names up for others.
#[derive(Clone, Debug)]
pub struct ResolverCgroup {
    /// The cgroup.
    pub resolver: Pattern,
    /// Those whose lookups it does.
    pub serves: Vec<Pattern>,
}

/// Of reverse lookups.
#[derive(Clone, Copy, Debug)]
pub struct ReverseSettings {
    /// The longest that one may take.
    pub timeout: Duration,
    /// Lookups on their way at the same time.
    pub concurrency: usize,
    /// Answers remembered at most.
    pub max_addresses: u64,
    /// Bounds of an answer's life.
    pub min_ttl: Duration,
    /// And at most.
    pub max_ttl: Duration,
}

impl NameSettings {
    /// The cgroups to attach to for their DNS alone: none where DNS is not read.
    pub fn resolver_patterns(&self) -> Vec<Pattern> {
        let read = if self.enabled { self.resolvers.as_slice() } else { &[] };
        read.iter().map(|r| r.resolver.clone()).collect()
    }

    pub(super) fn resolve(raw: RawDns, origin: Origin<'_>) -> Result<Self, ConfigError> {
        let scopes = [
            ("cgroup", ScopeKind::Cgroup),
            ("target", ScopeKind::Target),
            ("host", ScopeKind::Host),
        ];
        Ok(Self {
            enabled: raw.enabled,
            mdns: raw.mdns,
            llmnr: raw.llmnr,
            scope: one_of("dns.scope", &raw.scope, &scopes, origin)?,
            resolvers: raw
                .resolver_cgroups
                .iter()
                .map(|(resolver, serves)| resolver_cgroup(resolver, serves, origin))
                .collect::<Result<_, _>>()?,
            hosts: raw.hosts,
            reverse: reverse(&raw, origin)?,
            snapshot: non_empty(raw.snapshot).map(PathBuf::from),
        })
    }
}

/// Of the cache.
pub(super) fn cache(raw: &RawDns, origin: Origin<'_>) -> Result<DnsSettings, ConfigError> {
    let (min_ttl, max_ttl) = ttls(raw, origin)?;
    let bytes = count("dns.cache_bytes", raw.cache_bytes, 65_536, 1 << 40, origin)?;
    Ok(DnsSettings { cache_bytes: bytes as u64, min_ttl, max_ttl })
}

fn resolver_cgroup(
    resolver: &str,
    serves: &str,
    origin: Origin<'_>,
) -> Result<ResolverCgroup, ConfigError> {
    let key = format!("dns.resolver_cgroups.{resolver}");
    let pattern = Pattern::parse(resolver).map_err(|problem| bad(&key, origin, problem))?;
    let serves: Vec<String> =
        serves.split(',').map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    if serves.is_empty() {
        let problem = r#"serves nobody; name the cgroups that its names are for, "/" for all"#;
        return Err(bad(&key, origin, problem.into()));
    }
    Ok(ResolverCgroup { resolver: pattern, serves: patterns(&key, &serves, origin)? })
}

fn reverse(raw: &RawDns, origin: Origin<'_>) -> Result<Option<ReverseSettings>, ConfigError> {
    let (min_ttl, max_ttl) = ttls(raw, origin)?;
    let RawReverse { enabled, timeout, concurrency, max_addresses } = &raw.reverse;
    let settings = ReverseSettings {
        timeout: positive("dns.reverse.timeout", timeout, origin)?,
        concurrency: count("dns.reverse.concurrency", *concurrency, 1, 10_000, origin)?,
        max_addresses: count("dns.reverse.max_addresses", *max_addresses, 1, 1 << 30, origin)?
            as u64,
        min_ttl,
        max_ttl,
    };
    Ok(enabled.then_some(settings))
}

fn ttls(dns: &RawDns, origin: Origin<'_>) -> Result<(Duration, Duration), ConfigError> {
    let min = duration("dns.min_ttl", &dns.min_ttl, origin)?;
    let max = positive("dns.max_ttl", &dns.max_ttl, origin)?;
    if max < min {
        let problem = format!("\"{}\" is less than dns.min_ttl, \"{}\"", dns.max_ttl, dns.min_ttl);
        return Err(bad("dns.max_ttl", origin, problem));
    }
    Ok((min, max))
}
