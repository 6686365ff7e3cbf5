//! What became of the DNS messages: each is counted once as seen, and once under what became of it.

use std::fmt;

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryFate {
    /// It waits for its answer.
    Taken,
    /// It is an answer: the workload itself is a server.
    WrongWay,
    /// It is an update, a notification or the like.
    OtherOpcode,
    /// Multicast DNS for names that are not of the link (`.local`).
    NotLocal,
    /// Longer than what is copied of a message.
    Cut,
    /// No DNS, or not one question.
    Malformed,
}

impl QueryFate {
    /// All, in the order of their counts.
    pub const ALL: [Self; 6] = [
        Self::Taken,
        Self::WrongWay,
        Self::OtherOpcode,
        Self::NotLocal,
        Self::Cut,
        Self::Malformed,
    ];

    /// As in lines and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::WrongWay => "wrong_way",
            Self::OtherOpcode => "other_opcode",
            Self::NotLocal => "not_local",
            Self::Cut => "cut",
            Self::Malformed => "malformed",
        }
    }
}

/// What became of an answer. All but the first five are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFate {
    /// It named at least one address.
    Learnt,
    /// There is no such name (NXDOMAIN), or nothing of the type asked for (RFC 2308, section 2).
    Negative,
    /// The server answers with an error.
    Failed,
    /// Cut short by the server: the whole follows over TCP.
    Truncated,
    /// An answer that leads to no address: of another type, or its aliases lead nowhere.
    NoAddress,
    /// To no query that its socket sent to this server.
    Unmatched,
    /// [`super::QUERY_NS`] after its query, or later.
    Late,
    /// It repeats another question than the one that was asked under its id.
    WrongQuestion,
    /// Multicast DNS for names that its socket did not ask for lately.
    NotAsked,
    /// It is a query: the workload itself is a server.
    WrongWay,
    /// It is an update, a notification or the like.
    OtherOpcode,
    /// Longer than what is copied of a message.
    Cut,
    /// No DNS.
    Malformed,
    /// More records than are looked at.
    TooManyRecords,
    /// More aliases than are followed.
    ChainTooLong,
    /// A name that is longer than 255 bytes once it is escaped.
    Unprintable,
}

impl AnswerFate {
    /// All, in the order of their counts.
    pub const ALL: [Self; 16] = [
        Self::Learnt,
        Self::Negative,
        Self::Failed,
        Self::Truncated,
        Self::NoAddress,
        Self::Unmatched,
        Self::Late,
        Self::WrongQuestion,
        Self::NotAsked,
        Self::WrongWay,
        Self::OtherOpcode,
        Self::Cut,
        Self::Malformed,
        Self::TooManyRecords,
        Self::ChainTooLong,
        Self::Unprintable,
    ];

    /// As in lines and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Learnt => "learnt",
            Self::Negative => "negative",
            Self::Failed => "failed",
            Self::Truncated => "truncated",
            Self::NoAddress => "no_address",
            Self::Unmatched => "unmatched",
            Self::Late => "late",
            Self::WrongQuestion => "wrong_question",
            Self::NotAsked => "not_asked",
            Self::WrongWay => "wrong_way",
            Self::OtherOpcode => "other_opcode",
            Self::Cut => "cut",
            Self::Malformed => "malformed",
            Self::TooManyRecords => "too_many_records",
            Self::ChainTooLong => "chain_too_long",
            Self::Unprintable => "unprintable",
        }
    }
}

/// What became of the messages so far.
///
/// At every moment [`DnsStats::seen`] = [`DnsStats::accounted`]: the one is counted as messages come in,
/// the other as they are done with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsStats {
    /// Messages that came in.
    pub seen: u64,
    /// Queries taken that had to give way to newer ones before their answer; of the queries taken.
    pub displaced: u64,
    queries: [u64; QueryFate::ALL.len()],
    answers: [u64; AnswerFate::ALL.len()],
}

impl DnsStats {
    /// Queries that this became of.
    pub const fn queries(&self, fate: QueryFate) -> u64 {
        self.queries[fate as usize]
    }

    /// Answers that this became of.
    pub const fn answers(&self, fate: AnswerFate) -> u64 {
        self.answers[fate as usize]
    }

    /// Messages of which it is known what became of them.
    pub fn accounted(&self) -> u64 {
        self.queries.iter().sum::<u64>() + self.answers.iter().sum::<u64>()
    }

    pub(super) const fn count_query(&mut self, fate: QueryFate) {
        self.queries[fate as usize] += 1;
    }

    pub(super) const fn count_answer(&mut self, fate: AnswerFate) {
        self.answers[fate as usize] += 1;
    }
}

impl fmt::Display for DnsStats {
    /// The identity, in one line. Causes that did not occur are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dns messages: seen {}", self.seen)?;
        let queries = QueryFate::ALL.map(|fate| ("queries", fate.as_str(), self.queries(fate)));
        let answers = AnswerFate::ALL.map(|fate| ("answers", fate.as_str(), self.answers(fate)));
        let mut sign = '=';
        for (what, fate, n) in queries.into_iter().chain(answers) {
            if n > 0 || fate == "taken" || fate == "learnt" {
                write!(f, " {sign} {what}{{{fate}}} {n}")?;
                sign = '+';
            }
        }
        if self.displaced > 0 {
            write!(f, "; {} of the queries gave way to newer ones", self.displaced)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_identity() {
        let mut stats = DnsStats { seen: 4, ..DnsStats::default() };
        let none = "dns messages: seen 0 = queries{taken} 0 + answers{learnt} 0";
        assert_eq!(DnsStats::default().to_string(), none);
        stats.count_query(QueryFate::Taken);
        stats.count_query(QueryFate::Taken);
        stats.count_answer(AnswerFate::Learnt);
        stats.count_answer(AnswerFate::WrongQuestion);
        let line = "dns messages: seen 4 = queries{taken} 2 + answers{learnt} 1 + answers{wrong_question} 1";
        assert_eq!(stats.to_string(), line);
        assert_eq!(stats.accounted(), 4);
        stats.displaced = 1;
        assert!(stats.to_string().ends_with("; 1 of the queries gave way to newer ones"));
    }

    #[test]
    fn each_fate_has_its_own_count_and_word() {
        for (at, fate) in QueryFate::ALL.into_iter().enumerate() {
            assert_eq!(fate as usize, at);
        }
        for (at, fate) in AnswerFate::ALL.into_iter().enumerate() {
            assert_eq!(fate as usize, at);
            let same = AnswerFate::ALL.iter().filter(|other| other.as_str() == fate.as_str());
            assert_eq!(same.count(), 1, "{fate:?}");
        }
    }
}
