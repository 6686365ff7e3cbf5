//! One message at a time: held against what was asked, learnt from, counted.

use flowend_probe_types::DnsEvent;

use super::cache::{Cache, KnownName, NameSource};
use super::chain::{self, Reached};
use super::ledger::{AnswerFate, DnsStats, QueryFate};
use super::message::{Flaw, Header, Message, NameId};
use super::multicast::{self, Asked, LLMNR_PORT, MDNS_PORT, is_group};
use super::query::{Match, Queries, QueryKey};
use super::{DnsSettings, Scope};

/// Response code of a name that does not exist (RFC 1035, section 4.1.1).
const NXDOMAIN: u16 = 3;

/// What was asked, and what became of the messages.
#[derive(Debug)]
pub(super) struct Learner {
    queries: Queries,
    asked: Asked,
    min_ttl_ns: u64,
    max_ttl_ns: u64,
    stats: DnsStats,
}

/// An answer, and what it teaches whom.
struct Lesson<'a> {
    facts: &'a DnsEvent,
    scope: Scope,
    source: NameSource,
    cache: &'a Cache,
}

/// What an answer may be the answer to.
enum Expected {
    Query(QueryKey, NameSource),
    Multicast,
}

impl Learner {
    pub(super) fn new(settings: &DnsSettings) -> Self {
        Self {
            queries: Queries::new(),
            asked: Asked::new(),
            min_ttl_ns: super::nanos(settings.min_ttl),
            max_ttl_ns: super::nanos(settings.max_ttl),
            stats: DnsStats::default(),
        }
    }

    /// Takes in a query.
    pub(super) fn query(&mut self, facts: &DnsEvent, bytes: &[u8]) {
        self.stats.seen += 1;
        let fate = self.take_query(facts, bytes);
        self.stats.count_query(fate);
    }

    /// Takes in an answer, and what it says into the cache.
    pub(super) fn answer(&mut self, facts: &DnsEvent, bytes: &[u8], scope: Scope, cache: &Cache) {
        self.stats.seen += 1;
        let lesson = Lesson { facts, scope, source: NameSource::Dns, cache };
        let fate = self.take_answer(lesson, bytes);
        self.stats.count_answer(fate);
    }

    pub(super) const fn stats(&self) -> DnsStats {
        let mut stats = self.stats;
        stats.displaced = self.queries.displaced();
        stats
    }

    pub(super) fn waiting(&self) -> usize {
        self.queries.len()
    }

    fn take_query(&mut self, facts: &DnsEvent, bytes: &[u8]) -> QueryFate {
        let Some(header) = Header::read(bytes) else { return QueryFate::Malformed };
        if header.is_answer() {
            return QueryFate::WrongWay;
        }
        if !header.is_standard() {
            return QueryFate::OtherOpcode;
        }
        if facts.cut != 0 {
            return QueryFate::Cut;
        }
        let Ok(message) = Message::query(bytes, &header) else { return QueryFate::Malformed };
        let to_group = is_group(facts.remote);
        if to_group && facts.remote_port == MDNS_PORT {
            // It may hold answers that its sender knows already (RFC 6762, section 7.1).
            return match self.asked.ask(facts, header.id, &message) {
                true => QueryFate::Taken,
                false => QueryFate::NotLocal,
            };
        }
        let [question] = *message.questions else { return QueryFate::Malformed };
        if header.has_answers() {
            return QueryFate::Malformed;
        }
        let key = match to_group && facts.remote_port == LLMNR_PORT {
            true => QueryKey::of_group(facts, header.id),
            false => QueryKey::new(facts, header.id),
        };
        self.queries.ask(key, &message, question, facts.time_ns);
        QueryFate::Taken
    }

    fn take_answer(&mut self, lesson: Lesson<'_>, bytes: &[u8]) -> AnswerFate {
        let facts = lesson.facts;
        let Some(header) = Header::read(bytes) else { return AnswerFate::Malformed };
        if !header.is_answer() {
            return AnswerFate::WrongWay;
        }
        if !header.is_standard() {
            return AnswerFate::OtherOpcode;
        }
        // Before it is parsed: anybody may send to a socket, and parsing a crafted message is dear.
        let expected = match self.expected(facts, header.id) {
            Ok(expected) => expected,
            Err(fate) => return fate,
        };
        if facts.cut != 0 {
            return AnswerFate::Cut;
        }
        let message = match Message::answer(bytes, &header) {
            Ok(message) => message,
            Err(Flaw::Malformed) => return AnswerFate::Malformed,
            Err(Flaw::TooManyRecords) => return AnswerFate::TooManyRecords,
        };
        match expected {
            Expected::Query(key, source) => {
                self.unicast(&key, &header, &message, Lesson { source, ..lesson })
            }
            Expected::Multicast => {
                self.multicast(&header, &message, Lesson { source: NameSource::Mdns, ..lesson })
            }
        }
    }

    /// What this may be the answer to, by what it costs nothing to know.
    fn expected(&self, facts: &DnsEvent, id: u16) -> Result<Expected, AnswerFate> {
        let key = QueryKey::new(facts, id);
        if self.queries.expects(&key) {
            // LLMNR may go to one responder alone (RFC 4795, section 2.4).
            let source = match facts.remote_port {
                LLMNR_PORT => NameSource::Llmnr,
                _ => NameSource::Dns,
            };
            return Ok(Expected::Query(key, source));
        }
        match facts.remote_port {
            LLMNR_PORT => {
                let key = QueryKey::of_group(facts, id);
                let expected = self.queries.expects(&key);
                expected.then_some(Expected::Query(key, NameSource::Llmnr))
            }
            MDNS_PORT if self.asked.expects(facts) => Some(Expected::Multicast),
            MDNS_PORT => return Err(AnswerFate::NotAsked),
            _ => None,
        }
        .ok_or(AnswerFate::Unmatched)
    }

    fn unicast(
        &mut self,
        key: &QueryKey,
        header: &Header,
        message: &Message,
        lesson: Lesson<'_>,
    ) -> AnswerFate {
        // Its responder may yet find that the name is another's: no answer (RFC 4795, section 2.1.1).
        if lesson.source == NameSource::Llmnr && header.is_tentative() {
            return AnswerFate::Failed;
        }
        match self.queries.answer(key, message, lesson.facts.time_ns) {
            Match::Answers => {}
            Match::WrongQuestion => return AnswerFate::WrongQuestion,
            Match::Late => return AnswerFate::Late,
        }
        if header.is_truncated() {
            return AnswerFate::Truncated;
        }
        let [question] = *message.questions else { return AnswerFate::WrongQuestion };
        match message.rcode {
            0 => self.learn(message, &[question.name], &lesson),
            NXDOMAIN => AnswerFate::Negative,
            _ => AnswerFate::Failed,
        }
    }

    fn multicast(&self, header: &Header, message: &Message, lesson: Lesson<'_>) -> AnswerFate {
        // Others are ignored (RFC 6762, section 18.11).
        if message.rcode != 0 {
            return AnswerFate::Failed;
        }
        let names = self.asked.answered(lesson.facts, header.id, message);
        match names.is_empty() {
            true => AnswerFate::NotAsked,
            false => self.learn(message, &names, &lesson),
        }
    }

    /// What these names of the message lead to, into the cache.
    fn learn(&self, message: &Message, names: &[NameId], lesson: &Lesson<'_>) -> AnswerFate {
        let &Lesson { facts, scope, source, cache } = lesson;
        // In mDNS the sections mean little (RFC 6762, section 6).
        let additional = source == NameSource::Mdns;
        let mut all = Reached::default();
        for name in names {
            let reached = chain::follow(message, *name, additional, |chain, addr, ttl| {
                if source == NameSource::Mdns && !multicast::may_say(chain, ttl) {
                    return false;
                }
                let life = u64::from(ttl) * 1_000_000_000;
                let life = life.clamp(self.min_ttl_ns, self.max_ttl_ns);
                let known = KnownName {
                    names: chain.clone(),
                    source,
                    from_ns: facts.time_ns,
                    until_ns: facts.time_ns.saturating_add(life),
                };
                cache.remember((scope, addr), known);
                true
            });
            all.any |= reached.any;
            all.too_long |= reached.too_long;
            all.unprintable |= reached.unprintable;
        }
        match all {
            Reached { any: true, .. } => AnswerFate::Learnt,
            Reached { unprintable: true, .. } => AnswerFate::Unprintable,
            Reached { too_long: true, .. } => AnswerFate::ChainTooLong,
            _ if message.has_type || source == NameSource::Mdns => AnswerFate::NoAddress,
            _ => AnswerFate::Negative,
        }
    }
}
