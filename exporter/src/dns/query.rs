//! Queries on their way to a server: an answer counts only if it is the answer to one of them.
//!
//! Bounded: of a cgroup that has more than its share waiting, the query that waited longest gives way. A query that is sent again is one query.

use flowend_probe_types::{Addr, DnsEvent};

use super::message::{Message, Question};
use crate::fair::Table;

/// An answer later than this after its query does not count, ns.
pub const QUERY_NS: u64 = 30_000_000_000;

/// Queries that may wait for their answer.
pub(super) const MAX_QUERIES: usize = 16_384;

/// Who asked whom, and under which id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct QueryKey {
    cgroup_id: u64,
    cookie: u64,
    id: u16,
    /// Some resolvers (musl) ask all servers at once, with one id from one socket.
    server: (Addr, u16),
}

impl QueryKey {
    /// The server is the one that the message went to, or came from.
    pub(super) const fn new(facts: &DnsEvent, id: u16) -> Self {
        Self::of_server(facts, id, (facts.remote, facts.remote_port))
    }

    /// The server is anybody who listens to a group.
    pub(super) const fn of_group(facts: &DnsEvent, id: u16) -> Self {
        // No server has this address.
        Self::of_server(facts, id, (Addr([0; 4]), facts.remote_port))
    }

    const fn of_server(facts: &DnsEvent, id: u16, server: (Addr, u16)) -> Self {
        Self { cgroup_id: facts.cgroup_id, cookie: facts.cookie, id, server }
    }
}

/// What was asked for, and when.
#[derive(Debug)]
struct Query {
    /// Labels in lower case: servers need not keep the case (RFC 4343, section 4.1).
    name: Box<[u8]>,
    kind: u16,
    class: u16,
    time_ns: u64,
}

/// How an answer and the query with its key go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// It is its answer.
    Answers,
    /// It answers another question.
    WrongQuestion,
    /// It comes [`QUERY_NS`] after it, or later.
    Late,
}

/// The queries on their way.
#[derive(Debug)]
pub(super) struct Queries {
    waiting: Table<QueryKey, Query>,
    displaced: u64,
}

impl Queries {
    pub(super) fn new() -> Self {
        Self { waiting: Table::new(MAX_QUERIES), displaced: 0 }
    }

    /// Takes in a query. Sent again, it waits from now on.
    pub(super) fn ask(
        &mut self,
        key: QueryKey,
        message: &Message,
        question: Question,
        time_ns: u64,
    ) {
        let Question { name, kind, class } = question;
        let query = Query { name: message.labels(name).into(), kind, class, time_ns };
        let displaced = self.waiting.insert(key.cgroup_id, key, query);
        let waited = displaced.map(|query| time_ns.saturating_sub(query.time_ns));
        self.displaced += u64::from(waited.is_some_and(|ns| ns < QUERY_NS));
    }

    /// Whether a query with this key waits: cheap, before its answer is parsed.
    pub(super) fn expects(&self, key: &QueryKey) -> bool {
        self.waiting.get(key).is_some()
    }

    /// Holds an answer against its query, which is answered then. A forged answer takes no query away
    /// from the real one.
    pub(super) fn answer(&mut self, key: &QueryKey, message: &Message, time_ns: u64) -> Match {
        let Some(query) = self.waiting.get(key) else { return Match::WrongQuestion };
        let matched = match message.questions.as_slice() {
            _ if time_ns.saturating_sub(query.time_ns) >= QUERY_NS => Match::Late,
            [question] if query.is(message, question) => Match::Answers,
            _ => return Match::WrongQuestion,
        };
        self.waiting.remove(key);
        matched
    }

    /// Queries that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Queries that had to give way before their time was over.
    pub(super) const fn displaced(&self) -> u64 {
        self.displaced
    }
}

impl Query {
    fn is(&self, message: &Message, question: &Question) -> bool {
        let Question { name, kind, class } = *question;
        self.kind == kind && self.class == class && *self.name == *message.labels(name)
    }
}
