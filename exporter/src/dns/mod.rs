//! Names of addresses, learnt from the DNS answers that the watched workloads get.
//!
//! A name is a hint: an answer counts only if it matches a query that the same socket of the same
//! cgroup sent (id, question, server) within [`QUERY_NS`], and it names addresses for that cgroup only, so one
//! tenant cannot name another's. Pure but for the cache's memory: time comes with the messages; an
//! entry carries its own deadline, and moka only frees memory.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flowend_probe_types::{Addr, DnsEvent, EventKind};
use hashlink::LruCache;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Name, RData};
use moka::policy::EvictionPolicy;

/// An answer later than this after its query does not count, ns.
pub const QUERY_NS: u64 = 30_000_000_000;

/// Queries that may wait for their answer.
const MAX_QUERIES: usize = 16_384;

/// Names of one answer at most: the one asked for and its aliases. Longer chains name nothing.
const MAX_CHAIN: usize = 8;

/// Names told of one address: those learnt last.
const MAX_NAMES: usize = 8;

/// What an address with its names takes, about, bytes.
const ADDRESS_BYTES: u64 = 512;

/// Length of a DNS header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// The longest name in text (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

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

/// What became of the messages seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsStats {
    /// Queries.
    pub queries: u64,
    /// Answers that named addresses.
    pub learnt: u64,
    /// Answers without an address: another type, an error, or cut by their server.
    pub empty: u64,
    /// Answers to no query that was seen, or not from the server asked.
    pub unmatched: u64,
    /// Messages that are no DNS, or longer than what is copied of them.
    pub malformed: u64,
}

/// The names of one address, the one asked for first, then those it was an alias for.
pub type Names = Arc<[Arc<str>]>;

type Key = (Scope, Addr);
type CacheBuilder =
    moka::sync::CacheBuilder<Key, Arc<[Learnt]>, moka::sync::Cache<Key, Arc<[Learnt]>>>;

/// The cache and the queries on their way.
#[derive(Debug)]
pub struct Dns {
    queries: LruCache<QueryKey, Query>,
    cache: moka::sync::Cache<Key, Arc<[Learnt]>>,
    min_ttl: u64,
    max_ttl: u64,
    stats: DnsStats,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct QueryKey {
    cgroup_id: u64,
    cookie: u64,
    id: u16,
    /// Some resolvers (musl) ask all servers at once, with one id from one socket.
    server: (Addr, u16),
}

#[derive(Debug)]
struct Query {
    name: Name,
    kind: u16,
    time_ns: u64,
}

/// Frees what no lookup can find any more: time from insertion to the last deadline.
struct Lifetime;

impl moka::Expiry<Key, Arc<[Learnt]>> for Lifetime {
    fn expire_after_create(
        &self,
        _: &Key,
        learnt: &Arc<[Learnt]>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        let newest = learnt.iter().map(|l| l.from_ns).max()?;
        let last = learnt.iter().map(|l| l.until_ns).max()?;
        Some(Duration::from_nanos(last.saturating_sub(newest)))
    }

    fn expire_after_update(
        &self,
        key: &Key,
        learnt: &Arc<[Learnt]>,
        now: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, learnt, now)
    }
}

/// One answer's names for an address.
#[derive(Clone, Debug)]
struct Learnt {
    names: Names,
    from_ns: u64,
    until_ns: u64,
}

impl Dns {
    /// An empty cache.
    pub fn new(settings: DnsSettings) -> Self {
        Self::with(settings, |cache| cache.expire_after(Lifetime))
    }

    /// For messages of another time than now: memory is freed by number alone, since moka's clock is not
    /// theirs.
    pub fn of_the_past(settings: DnsSettings) -> Self {
        Self::with(settings, |cache| cache)
    }

    fn with(settings: DnsSettings, lifetime: impl FnOnce(CacheBuilder) -> CacheBuilder) -> Self {
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let cache = moka::sync::Cache::builder()
            .max_capacity(settings.cache_bytes / ADDRESS_BYTES)
            // The newest answer is always taken in; the default policy would refuse it.
            .eviction_policy(EvictionPolicy::lru());
        Self {
            queries: LruCache::new(MAX_QUERIES),
            cache: lifetime(cache).build(),
            min_ttl: ns(settings.min_ttl),
            max_ttl: ns(settings.max_ttl),
            stats: DnsStats::default(),
        }
    }

    /// What became of the messages so far.
    pub const fn stats(&self) -> DnsStats {
        self.stats
    }

    /// Takes in one message. What it teaches goes to `scope`: that of its cgroup.
    pub fn observe(&mut self, kind: EventKind, facts: &DnsEvent, bytes: &[u8], scope: Scope) {
        let Some(header) = bytes.first_chunk::<HEADER>().filter(|_| facts.cut == 0) else {
            self.stats.malformed += 1;
            return;
        };
        let id = u16::from_be_bytes([header[0], header[1]]);
        // Before it is parsed: anybody may send to a socket, and parsing a crafted message is dear.
        if kind == EventKind::DnsAnswer && !self.queries.contains_key(&key(facts, id)) {
            self.stats.unmatched += 1;
            return;
        }
        // A query has no answers in it.
        let answers = u16::from_be_bytes([header[6], header[7]]);
        let message = Message::from_vec(bytes).ok();
        match message {
            Some(message) if is_query(&message, kind) && answers == 0 => {
                self.query(facts, &message)
            }
            Some(message) if is_answer(&message, kind) => self.answer(facts, &message, scope),
            _ => self.stats.malformed += 1,
        }
    }

    /// The names of an address as these scopes knew them at `at_ns`: of the first scope first, in each the
    /// latest answer first.
    pub fn names(&self, scopes: &[Scope], addr: Addr, at_ns: u64) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        let known = scopes.iter().filter_map(|scope| self.cache.get(&(*scope, addr)));
        let known: Vec<_> = known.collect();
        let answers = known.iter().flat_map(|learnt| learnt.iter());
        for answer in answers.filter(|l| l.from_ns <= at_ns && at_ns < l.until_ns) {
            for name in answer.names.iter() {
                if names.len() < MAX_NAMES && !names.contains(name) {
                    names.push(Arc::clone(name));
                }
            }
        }
        names
    }

    fn query(&mut self, facts: &DnsEvent, message: &Message) {
        self.stats.queries += 1;
        let [question] = message.queries.as_slice() else { return };
        let query = Query {
            name: question.name.clone(),
            kind: question.query_type.into(),
            time_ns: facts.time_ns,
        };
        self.queries.insert(key(facts, message.metadata.id), query);
    }

    fn answer(&mut self, facts: &DnsEvent, message: &Message, scope: Scope) {
        let key = key(facts, message.metadata.id);
        let matches = self.queries.get(&key).is_some_and(|query| {
            let [question] = message.queries.as_slice() else { return false };
            query.name == question.name
                && query.kind == u16::from(question.query_type)
                && facts.time_ns.saturating_sub(query.time_ns) < QUERY_NS
        });
        if !matches {
            self.stats.unmatched += 1;
            return;
        }
        // Only now: a forged answer must not take the query away from the real one.
        self.queries.remove(&key);
        let usable =
            message.metadata.response_code == ResponseCode::NoError && !message.metadata.truncation;
        if usable && self.learn(facts, message, scope) {
            self.stats.learnt += 1;
        } else {
            self.stats.empty += 1;
        }
    }

    /// Follows the aliases from the name asked for, and names the addresses at their end.
    fn learn(&self, facts: &DnsEvent, message: &Message, scope: Scope) -> bool {
        let Some(question) = message.queries.first() else { return false };
        let mut chain = vec![&question.name];
        let mut ttl = u32::MAX;
        loop {
            let last = chain[chain.len() - 1];
            let alias = message.answers.iter().find_map(|record| match &record.data {
                RData::CNAME(target) if record.name == *last => Some((&target.0, record.ttl)),
                _ => None,
            });
            let Some((target, alias_ttl)) = alias else { break };
            if chain.contains(&target) || chain.len() == MAX_CHAIN {
                return false;
            }
            chain.push(target);
            ttl = ttl.min(alias_ttl);
        }
        let names: Option<Vec<Arc<str>>> = chain.iter().map(|name| printable(name)).collect();
        let Some(names) = names else { return false };
        let names: Names = names.into();
        let owner = chain[chain.len() - 1];
        let mut any = false;
        for record in message.answers.iter().filter(|record| record.name == *owner) {
            let ip: IpAddr = match &record.data {
                RData::A(a) => a.0.into(),
                RData::AAAA(aaaa) => aaaa.0.into(),
                _ => continue,
            };
            any = true;
            let life = u64::from(ttl.min(record.ttl)) * 1_000_000_000;
            let until_ns = facts.time_ns.saturating_add(life.clamp(self.min_ttl, self.max_ttl));
            let new = Learnt { names: Arc::clone(&names), from_ns: facts.time_ns, until_ns };
            self.remember((scope, Addr::from(ip)), new);
        }
        any
    }

    /// The latest answer first; an older one of the same name is replaced.
    fn remember(&self, key: Key, new: Learnt) {
        let old = self.cache.get(&key);
        let now = new.from_ns;
        let others = old
            .iter()
            .flat_map(|learnt| learnt.iter())
            .filter(|l| l.until_ns > now && l.names.first() != new.names.first())
            .take(MAX_NAMES - 1)
            .cloned();
        let all: Vec<Learnt> = std::iter::once(new.clone()).chain(others).collect();
        self.cache.insert(key, all.into());
    }
}

fn is_query(message: &Message, kind: EventKind) -> bool {
    kind == EventKind::DnsQuery && message.metadata.message_type == MessageType::Query
}

fn is_answer(message: &Message, kind: EventKind) -> bool {
    kind == EventKind::DnsAnswer && message.metadata.message_type == MessageType::Response
}

const fn key(facts: &DnsEvent, id: u16) -> QueryKey {
    QueryKey {
        cgroup_id: facts.cgroup_id,
        cookie: facts.cookie,
        id,
        server: (facts.remote, facts.remote_port),
    }
}

/// A name as text without the last dot, in lower case; `None` where it could not stand in a log as
/// it is: hickory writes other bytes with a backslash, and those are no host's name (RFC 1123).
fn printable(name: &Name) -> Option<Arc<str>> {
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let fits = !text.is_empty()
        && text.len() <= MAX_NAME
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    fits.then(|| Arc::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query as Question};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_proto::rr::{Record, RecordType};

    const SCOPE: Scope = Scope(1);
    const SECOND: u64 = 1_000_000_000;

    fn dns() -> Dns {
        let (min_ttl, max_ttl) = (Duration::from_secs(5), Duration::from_secs(3600));
        Dns::new(DnsSettings { cache_bytes: 100 * ADDRESS_BYTES, min_ttl, max_ttl })
    }

    fn facts(time_ns: u64) -> DnsEvent {
        DnsEvent {
            remote: addr("10.0.0.53"),
            remote_port: 53,
            cookie: 5,
            cgroup_id: 1,
            time_ns,
            ..DnsEvent::default()
        }
    }

    fn addr(ip: &str) -> Addr {
        ip.parse::<IpAddr>().unwrap().into()
    }

    fn name(text: &str) -> Name {
        let labels = text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
        let mut name = Name::from_labels(labels).unwrap();
        name.set_fqdn(true);
        name
    }

    fn query(asked: &str) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Question::query(name(asked), RecordType::A));
        message.to_vec().unwrap()
    }

    fn answer(asked: &str, records: &[(&str, u32, RData)]) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Question::query(name(asked), RecordType::A));
        for (owner, ttl, data) in records {
            message.add_answer(Record::from_rdata(name(owner), *ttl, data.clone()));
        }
        message.to_vec().unwrap()
    }

    fn a(ip: &str) -> RData {
        RData::A(A(ip.parse().unwrap()))
    }

    fn cname(target: &str) -> RData {
        RData::CNAME(CNAME(name(target)))
    }

    fn ask_and_answer(dns: &mut Dns, at: u64, asked: &str, records: &[(&str, u32, RData)]) {
        dns.observe(EventKind::DnsQuery, &facts(at), &query(asked), SCOPE);
        dns.observe(EventKind::DnsAnswer, &facts(at + 1), &answer(asked, records), SCOPE);
    }

    fn known(dns: &Dns, ip: &str, at: u64) -> Vec<String> {
        dns.names(&[Scope(1)], addr(ip), at).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_name_asked_for_comes_first_then_its_aliases() {
        let mut dns = dns();
        let records = [
            ("www.example.com.", 60, cname("edge.example.net.")),
            ("edge.example.net.", 60, cname("e7.cdn.test.")),
            ("e7.cdn.test.", 60, a("192.0.2.7")),
            ("e7.cdn.test.", 60, a("192.0.2.8")),
            ("e7.cdn.test.", 60, RData::AAAA(AAAA("2001:db8::7".parse().unwrap()))),
            ("elsewhere.test.", 60, a("192.0.2.9")),
        ];
        ask_and_answer(&mut dns, SECOND, "WWW.example.com.", &records);
        let chain = ["www.example.com", "edge.example.net", "e7.cdn.test"];
        for ip in ["192.0.2.7", "192.0.2.8", "2001:db8::7"] {
            assert_eq!(known(&dns, ip, 2 * SECOND), chain, "{ip}");
        }
        assert!(known(&dns, "192.0.2.9", 2 * SECOND).is_empty(), "not an answer to the question");
        assert_eq!(dns.stats(), DnsStats { queries: 1, learnt: 1, ..DnsStats::default() });
    }

    #[test]
    fn a_name_holds_from_its_answer_to_its_deadline() {
        let mut dns = dns();
        ask_and_answer(&mut dns, 10 * SECOND, "a.test.", &[("a.test.", 60, a("192.0.2.1"))]);
        for (at, want) in [(10, false), (11, true), (69, true), (71, false)] {
            assert_eq!(!known(&dns, "192.0.2.1", at * SECOND).is_empty(), want, "{at}");
        }
        // TTL 0 means: for this lookup. The connection that follows it still has its name.
        ask_and_answer(&mut dns, 100 * SECOND, "z.test.", &[("z.test.", 0, a("192.0.2.2"))]);
        assert_eq!(known(&dns, "192.0.2.2", 104 * SECOND), ["z.test"]);
        assert!(known(&dns, "192.0.2.2", 106 * SECOND).is_empty());
    }

    #[test]
    fn several_names_of_one_address_stand_side_by_side() {
        let mut dns = dns();
        for (n, asked) in ["a.test.", "b.test.", "a.test."].into_iter().enumerate() {
            let at = (n as u64 + 1) * SECOND;
            ask_and_answer(&mut dns, at, asked, &[(asked, 60, a("192.0.2.1"))]);
        }
        assert_eq!(known(&dns, "192.0.2.1", 5 * SECOND), ["a.test", "b.test"]);
        for n in 0..50 {
            let asked = format!("n{n}.test.");
            ask_and_answer(&mut dns, 5 * SECOND, &asked, &[(&asked, 60, a("192.0.2.1"))]);
        }
        assert_eq!(known(&dns, "192.0.2.1", 6 * SECOND).len(), MAX_NAMES);
    }

    #[test]
    fn what_answers_no_query_names_nothing() {
        let good = answer("a.test.", &[("a.test.", 60, a("192.0.2.1"))]);
        let cases: [(&str, DnsEvent, Vec<u8>); 6] = [
            ("another cgroup", DnsEvent { cgroup_id: 2, ..facts(SECOND) }, good.clone()),
            ("another socket", DnsEvent { cookie: 6, ..facts(SECOND) }, good.clone()),
            (
                "another server",
                DnsEvent { remote: addr("10.0.0.66"), ..facts(SECOND) },
                good.clone(),
            ),
            ("another port", DnsEvent { remote_port: 5353, ..facts(SECOND) }, good.clone()),
            ("too late", facts(SECOND + QUERY_NS), good.clone()),
            (
                "another question",
                facts(SECOND),
                answer("b.test.", &[("b.test.", 60, a("192.0.2.1"))]),
            ),
        ];
        for (what, facts_of_answer, bytes) in cases {
            let mut dns = dns();
            dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test."), SCOPE);
            dns.observe(EventKind::DnsAnswer, &facts_of_answer, &bytes, SCOPE);
            assert_eq!(dns.stats().unmatched, 1, "{what}");
            for cgroup in [1, 2] {
                assert!(
                    dns.names(&[Scope(cgroup)], addr("192.0.2.1"), 2 * SECOND).is_empty(),
                    "{what}"
                );
            }
            if what != "too late" {
                // The forged one took nothing away from the real one.
                dns.observe(EventKind::DnsAnswer, &facts(SECOND), &good, SCOPE);
                assert_eq!(known(&dns, "192.0.2.1", 2 * SECOND), ["a.test"], "{what}");
            }
        }
        let mut twice = dns();
        ask_and_answer(&mut twice, 0, "a.test.", &[("a.test.", 60, a("192.0.2.1"))]);
        twice.observe(EventKind::DnsAnswer, &facts(2), &good, SCOPE);
        assert_eq!(twice.stats().unmatched, 1, "one query, one answer");
    }

    #[test]
    fn hostile_and_broken_messages_name_nothing() {
        let mut dns = dns();
        dns.observe(EventKind::DnsQuery, &facts(0), &query("loop.test."), SCOPE);
        let ring = [
            ("loop.test.", 9, cname("b.test.")),
            ("b.test.", 9, cname("loop.test.")),
            ("b.test.", 9, a("192.0.2.1")),
        ];
        dns.observe(EventKind::DnsAnswer, &facts(1), &answer("loop.test.", &ring), SCOPE);
        // A label with ESC, and one with a quote.
        for bad in ["\x1b[31m.test.", "a\"b.test."] {
            ask_and_answer(&mut dns, SECOND, bad, &[(bad, 60, a("192.0.2.1"))]);
        }
        assert!(known(&dns, "192.0.2.1", 2 * SECOND).is_empty());
        assert_eq!((dns.stats().empty, dns.stats().learnt), (3, 0));
        for len in 0..60 {
            let mut bytes = vec![0xc0; len];
            // The id of a query on its way, so that it is parsed at all.
            dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test."), SCOPE);
            bytes.iter_mut().zip([0, 7]).for_each(|(byte, id)| *byte = id);
            dns.observe(EventKind::DnsAnswer, &facts(1), &bytes, SCOPE);
        }
        dns.observe(
            EventKind::DnsAnswer,
            &DnsEvent { cut: 1, ..facts(1) },
            &query("x.test."),
            SCOPE,
        );
        assert!(dns.stats().malformed > 30, "{:?}", dns.stats());
    }

    #[test]
    fn one_query_may_go_to_two_servers() {
        let mut dns = dns();
        let other = DnsEvent { remote: addr("10.0.0.54"), ..facts(0) };
        dns.observe(EventKind::DnsQuery, &facts(0), &query("a.test."), SCOPE);
        dns.observe(EventKind::DnsQuery, &other, &query("a.test."), SCOPE);
        let bytes = answer("a.test.", &[("a.test.", 60, a("192.0.2.1"))]);
        dns.observe(EventKind::DnsAnswer, &facts(1), &bytes, SCOPE);
        assert_eq!(known(&dns, "192.0.2.1", SECOND), ["a.test"]);
    }

    #[test]
    fn a_chain_too_long_names_nothing() {
        for (aliases, want) in [(MAX_CHAIN - 1, MAX_CHAIN), (MAX_CHAIN, 0)] {
            let mut dns = dns();
            let names: Vec<String> = (0..=aliases).map(|n| format!("n{n}.test.")).collect();
            let mut records: Vec<(&str, u32, RData)> =
                names.windows(2).map(|w| (w[0].as_str(), 60, cname(&w[1]))).collect();
            records.push((names[aliases].as_str(), 60, a("192.0.2.1")));
            ask_and_answer(&mut dns, 0, &names[0], &records);
            assert_eq!(known(&dns, "192.0.2.1", SECOND).len(), want, "{aliases} aliases");
        }
    }

    #[test]
    fn a_full_cache_takes_the_newest_in() {
        let mut dns = dns();
        for n in 0..1000_u32 {
            let [_, _, c, d] = n.to_be_bytes();
            let (asked, ip) = (format!("n{n}.test."), format!("10.9.{c}.{d}"));
            for _ in 0..2 {
                ask_and_answer(&mut dns, 0, &asked, &[(&asked, 600, a(&ip))]);
            }
            dns.cache.run_pending_tasks();
            assert_eq!(known(&dns, &ip, SECOND), [format!("n{n}.test")]);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut dns = dns();
        for n in 0..5_000_u32 {
            let [_, _, c, d] = n.to_be_bytes();
            let (asked, ip) = (format!("n{n}.test."), format!("10.9.{c}.{d}"));
            ask_and_answer(&mut dns, u64::from(n), &asked, &[(&asked, 600, a(&ip))]);
        }
        for n in 0..2 * MAX_QUERIES as u64 {
            dns.observe(
                EventKind::DnsQuery,
                &DnsEvent { cookie: n, ..facts(0) },
                &query("q.test."),
                SCOPE,
            );
        }
        dns.cache.run_pending_tasks();
        assert!(dns.cache.entry_count() <= 100, "{}", dns.cache.entry_count());
        assert_eq!(dns.queries.len(), MAX_QUERIES);
    }
}
