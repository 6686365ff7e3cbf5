//! The counts of names: DNS messages and segments, the cache, hosts files, reverse lookups.

use super::Metric;
use crate::dns::{AnswerFate, CacheStats, Dns, DnsStats, QueryFate, StreamStats};
use crate::enrich::{HostsStats, ReverseStats};
use crate::ledger::NameCounts;

/// Of everything that DNS messages teach.
pub(super) fn dns(dns: &Dns) -> Vec<Metric> {
    let mut metrics = messages(&dns.stats());
    metrics.extend(segments(&dns.stream_stats()));
    metrics.extend(cache(&dns.cache_stats()));
    metrics
}

/// Of the connections reported.
pub(super) fn connections(names: &NameCounts) -> Metric {
    Metric::counter(
        "flowend.connections.reported",
        "Ends of connections reported, by whether the peer's address has a name",
    )
    .with([("peer_named", "true")], names.with.get())
    .with([("peer_named", "false")], names.without.get())
}

fn messages(stats: &DnsStats) -> Vec<Metric> {
    let seen = Metric::counter("flowend.dns.messages.seen", "DNS messages read from the ring")
        .with([], stats.seen);
    let mut became = Metric::counter(
        "flowend.dns.messages",
        "What became of each DNS message; the outcomes add up to what was seen",
    );
    for fate in QueryFate::ALL {
        let labels = [("kind", "query"), ("outcome", fate.as_str())];
        became = became.with(labels, stats.queries(fate));
    }
    for fate in AnswerFate::ALL {
        let labels = [("kind", "answer"), ("outcome", fate.as_str())];
        became = became.with(labels, stats.answers(fate));
    }
    let displaced = Metric::counter(
        "flowend.dns.queries.displaced",
        "Queries taken that gave way to newer ones before their answer",
    )
    .with([], stats.displaced);
    vec![seen, became, displaced]
}

fn segments(stats: &StreamStats) -> Vec<Metric> {
    let seen = Metric::counter("flowend.dns.segments.seen", "Segments of DNS over TCP")
        .with([], stats.seen);
    let mut became = Metric::counter(
        "flowend.dns.segments",
        "What became of each segment; with those waiting they add up to what was seen",
    );
    for (outcome, n) in [
        ("control", stats.control),
        ("taken", stats.taken),
        ("duplicate", stats.duplicate),
        ("no_start", stats.no_start),
        ("gap", stats.gap),
        ("far", stats.far),
        ("cut", stats.cut),
        ("limit", stats.limit),
    ] {
        became = became.with([("outcome", outcome)], n);
    }
    let waiting = Metric::gauge("flowend.dns.segments.in_flight", "Segments that wait for another")
        .with([], stats.waiting);
    vec![seen, became, waiting]
}

fn cache(stats: &CacheStats) -> Vec<Metric> {
    vec![
        Metric::counter("flowend.dns.cache.lookups", "Lookups of an address in the cache of names")
            .with([("result", "hit")], stats.hits)
            .with([("result", "miss")], stats.misses),
        Metric::gauge("flowend.dns.cache.entries", "Addresses with names").with([], stats.entries),
        Metric::gauge("flowend.dns.cache.bytes", "Memory that the names take, about")
            .with([], stats.bytes),
        Metric::counter("flowend.dns.cache.removed", "Addresses, and answers, that left the cache")
            .with([("cause", "expired")], stats.expiries)
            .with([("cause", "evicted")], stats.evictions)
            .with([("cause", "displaced")], stats.displaced),
    ]
}

/// Of the workloads' hosts files.
pub(super) fn hosts(stats: &HostsStats) -> Vec<Metric> {
    vec![
        Metric::counter("flowend.hosts.lookups", "Lookups of an address in a hosts file")
            .with([("result", "hit")], stats.named)
            .with([("result", "miss")], stats.unnamed),
        Metric::gauge("flowend.hosts.cgroups", "Cgroups whose hosts file is known")
            .with([], stats.cgroups),
        Metric::gauge("flowend.hosts.bytes", "Memory that hosts files take, about")
            .with([], stats.bytes),
        Metric::counter("flowend.hosts.failures", "Hosts files that were not read, by cause")
            .with([("cause", "unreadable")], stats.unreadable)
            .with([("cause", "refused")], stats.refused)
            .with([("cause", "no_room")], stats.no_room),
    ]
}

/// Of reverse lookups.
pub(super) fn reverse(stats: &ReverseStats) -> Vec<Metric> {
    vec![
        Metric::counter("flowend.reverse.wanted", "Addresses whose PTR name was wanted")
            .with([("outcome", "known")], stats.known)
            .with([("outcome", "waiting")], stats.waiting)
            .with([("outcome", "refused")], stats.refused)
            .with([("outcome", "asked")], stats.asked),
        Metric::counter("flowend.reverse.lookups", "Reverse lookups by their answer")
            .with([("outcome", "named")], stats.named)
            .with([("outcome", "negative")], stats.negative)
            .with([("outcome", "failed")], stats.failed)
            .with([("outcome", "timed_out")], stats.timed_out),
        Metric::gauge("flowend.reverse.in_flight", "Reverse lookups on their way")
            .with([], stats.pending),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flowend_probe_types::{DnsEvent, EventKind};

    use super::*;
    use crate::dns::{DnsSettings, Scope};

    #[test]
    fn the_outcomes_add_up_to_what_was_seen() {
        let ttl = Duration::from_secs(5);
        let settings = DnsSettings { cache_bytes: 1 << 20, min_ttl: ttl, max_ttl: ttl };
        let mut cache = Dns::new(settings);
        for kind in [EventKind::DnsQuery, EventKind::DnsAnswer, EventKind::DnsStreamIn] {
            cache.observe(kind, &DnsEvent::default(), &[0; 20], Scope(1));
        }
        let metrics = dns(&cache);
        let sum = |name: &str| {
            let metric = metrics.iter().find(|m| m.name == name).unwrap();
            metric.samples.iter().map(|s| s.value).sum::<u64>()
        };
        assert_eq!((sum("flowend.dns.messages.seen"), sum("flowend.dns.messages")), (2, 2));
        assert_eq!(sum("flowend.dns.segments.seen"), 1);
        assert_eq!(sum("flowend.dns.segments") + sum("flowend.dns.segments.in_flight"), 1);
    }
}
