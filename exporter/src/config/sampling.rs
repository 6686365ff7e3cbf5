//! Settings of sampling: the table `sampling`, and its rules.

use super::ConfigError;
use super::raw::{RawRule, RawSampling};
use super::settings::{Origin, bad, cidrs, count, duration, one_of, patterns, ratio};
use crate::flow::{Direction, Reason};
use crate::sample::{Action, Condition, Globs, PortRange, Rule, SamplingSettings, Share};

/// Every key of an entry of `sampling.rules`, with an example of its value.
pub(super) const RULE: &str = r#"
reasons = ["reset"]
direction = "outgoing"
cidrs = ["10.0.0.0/8"]
local_cidrs = ["10.0.0.0/8"]
ports = ["443", "8000-8999"]
domains = ["*.example.com"]
cgroups = ["nginx.service"]
processes = ["curl"]
min_duration = "1s"
min_bytes = 1000
action = "drop"
ratio = 0.1
"#;

/// Connections of this many bytes do not exist.
const MOST_BYTES: usize = 1 << 60;

pub(super) fn resolve(
    raw: RawSampling,
    origin: Origin<'_>,
) -> Result<SamplingSettings, ConfigError> {
    let rules = raw.rules.into_iter().enumerate();
    Ok(SamplingSettings {
        ratio: ratio("sampling.ratio", raw.ratio, origin)?,
        keep_errors: raw.keep_errors,
        rules: rules
            .map(|(n, rule)| resolve_rule(&format!("sampling.rules[{n}]"), rule, origin))
            .collect::<Result<_, _>>()?,
    })
}

fn resolve_rule(key: &str, raw: RawRule, origin: Origin<'_>) -> Result<Rule, ConfigError> {
    let RawRule {
        reasons,
        direction,
        cidrs: peer_cidrs,
        local_cidrs,
        ports,
        domains,
        cgroups,
        processes,
        min_duration,
        min_bytes,
        action,
        ratio,
    } = raw;
    let rule = At { key, origin };
    // The cheap ones first: they are asked in this order.
    let conditions = [
        rule.list("reasons", reasons, |key, given| {
            given.iter().map(|text| one_of(key, text, &REASONS, origin)).collect::<Result<_, _>>()
        })?
        .map(Condition::Reasons),
        rule.value("direction", direction, |key, text| one_of(key, &text, &DIRECTIONS, origin))?
            .map(Condition::Direction),
        rule.list("ports", ports, |key, given| {
            let parse = |text: &String| PortRange::parse(text).map_err(|p| bad(key, origin, p));
            given.iter().map(parse).collect::<Result<_, _>>()
        })?
        .map(Condition::Ports),
        rule.value("min_duration", min_duration, |key, text| duration(key, &text, origin))?
            .map(|d| Condition::MinDuration(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))),
        rule.value("min_bytes", min_bytes, |key, n| count(key, n, 0, MOST_BYTES, origin))?
            .map(|n| Condition::MinBytes(n as u64)),
        rule.list("cidrs", peer_cidrs, |key, given| cidrs(key, given, origin))?
            .map(Condition::Cidrs),
        rule.list("local_cidrs", local_cidrs, |key, given| cidrs(key, given, origin))?
            .map(Condition::LocalCidrs),
        rule.list("processes", processes, |key, given| {
            Globs::of_processes(given).map_err(|problem| bad(key, origin, problem))
        })?
        .map(Condition::Processes),
        rule.list("cgroups", cgroups, |key, given| patterns(key, given, origin))?
            .map(Condition::Cgroups),
        rule.list("domains", domains, |key, given| {
            Globs::of_domains(given).map_err(|problem| bad(key, origin, problem))
        })?
        .map(Condition::Domains),
    ];
    let action = rule.action(action.as_deref(), ratio)?;
    Ok(Rule { conditions: conditions.into_iter().flatten().collect(), action })
}

const REASONS: [(&str, Reason); Reason::ALL.len()] = {
    let mut named = [("", Reason::Fin); Reason::ALL.len()];
    let mut n = 0;
    while n < named.len() {
        named[n] = (Reason::ALL[n].as_str(), Reason::ALL[n]);
        n += 1;
    }
    named
};

const DIRECTIONS: [(&str, Direction); 3] = [
    (Direction::Incoming.as_str(), Direction::Incoming),
    (Direction::Outgoing.as_str(), Direction::Outgoing),
    (Direction::Unknown.as_str(), Direction::Unknown),
];

/// A rule, for messages.
struct At<'a> {
    key: &'a str,
    origin: Origin<'a>,
}

impl At<'_> {
    fn value<T, U>(
        &self,
        name: &str,
        given: Option<T>,
        parse: impl FnOnce(&str, T) -> Result<U, ConfigError>,
    ) -> Result<Option<U>, ConfigError> {
        given.map(|given| parse(&format!("{}.{name}", self.key), given)).transpose()
    }

    fn list<U>(
        &self,
        name: &str,
        given: Option<Vec<String>>,
        parse: impl FnOnce(&str, &[String]) -> Result<U, ConfigError>,
    ) -> Result<Option<U>, ConfigError> {
        self.value(name, given, |key, given| {
            if given.is_empty() {
                let problem = "empty: nothing would match; leave the key out to match anything";
                return Err(bad(key, self.origin, problem.into()));
            }
            parse(key, &given)
        })
    }

    /// Exactly one of the two.
    fn action(&self, action: Option<&str>, share: Option<f64>) -> Result<Action, ConfigError> {
        match (action, share) {
            (Some(text), None) => {
                let key = format!("{}.action", self.key);
                let choices = [("keep", Action::Keep), ("drop", Action::Drop)];
                one_of(&key, text, &choices, self.origin)
            }
            (None, Some(share)) => {
                let share = ratio(&format!("{}.ratio", self.key), share, self.origin)?;
                Ok(Action::Ratio(Share::new(share)))
            }
            (None, None) => {
                let problem = "does not say what to do; add action = \"keep\", action = \"drop\" or \
                               ratio = 0.1, for example";
                Err(bad(self.key, self.origin, problem.into()))
            }
            (Some(_), Some(_)) => {
                let problem = "has both action and ratio; leave one of the two out";
                Err(bad(self.key, self.origin, problem.into()))
            }
        }
    }
}
