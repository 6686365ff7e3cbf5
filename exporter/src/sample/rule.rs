//! Rules: conditions of a connection, and what becomes of those that meet them.

use std::ops::RangeInclusive;

use globset::{GlobBuilder, GlobSet};
use ipnet::IpNet;

use super::{Facts, Share};
use crate::flow::{ConnectionEnd, Direction, Reason};
use crate::record::RecordKind;
use crate::targets::Pattern;

/// What becomes of the records that meet all conditions. Without any condition: of all.
#[derive(Clone, Debug)]
pub struct Rule {
    /// All must hold. They are asked in this order.
    pub conditions: Vec<Condition>,
    /// What to do then.
    pub action: Action,
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// Kept for certain.
    Keep,
    /// Dropped, an error too.
    Drop,
    /// A share of them is kept.
    Ratio(Share),
}

/// What a rule asks of a connection. Of several choices one must hold. What is not known does not hold.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Ended in one of these ways. Only an end has one.
    Reasons(Vec<Reason>),
    /// Opened by this side.
    Direction(Direction),
    /// The server's port; where it is not known who opened the connection, the port of either side.
    Ports(Vec<PortRange>),
    /// The connection is known to have lived at least so long, ns: an older one than flowend for as long as
    /// it was seen. Only an end tells.
    MinDuration(u64),
    /// The payload, both directions together, is at least so large, bytes. Only an end tells.
    MinBytes(u64),
    /// The peer's address.
    Cidrs(Vec<IpNet>),
    /// The own socket's address.
    LocalCidrs(Vec<IpNet>),
    /// The own side's executable.
    Processes(Globs),
    /// The cgroup, or one above it.
    Cgroups(Vec<Pattern>),
    /// A name of the peer.
    Domains(Globs),
}

impl Rule {
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(facts))
    }

    /// Whether it is about certain reasons, errors by their name.
    pub(super) fn names_reasons(&self) -> bool {
        self.conditions.iter().any(|c| matches!(c, Condition::Reasons(_)))
    }

    pub(super) fn looks_at_names(&self) -> bool {
        self.conditions.iter().any(|c| matches!(c, Condition::Domains(_)))
    }
}

impl Condition {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let end = facts.end;
        let is_end = facts.kind == RecordKind::End;
        match self {
            Self::Reasons(reasons) => is_end && reasons.contains(&end.reason),
            Self::Direction(direction) => end.direction == *direction,
            Self::Ports(ranges) => ports(end).any(|port| ranges.iter().any(|r| r.contains(port))),
            Self::MinDuration(ns) => is_end && seen_for_ns(end) >= *ns,
            Self::MinBytes(bytes) => is_end && payload(end) >= *bytes,
            Self::Cidrs(ranges) => ranges.iter().any(|range| range.contains(&end.remote.ip())),
            Self::LocalCidrs(ranges) => ranges.iter().any(|range| range.contains(&end.local.ip())),
            Self::Processes(globs) => facts.executable.is_some_and(|name| globs.match_any(name)),
            Self::Cgroups(patterns) => {
                facts.cgroup_path.is_some_and(|path| patterns.iter().any(|p| p.covers(path)))
            }
            Self::Domains(globs) => facts.remote_names.iter().any(|name| globs.match_any(name)),
        }
    }
}

/// The ports that may be the server's.
fn ports(end: &ConnectionEnd) -> impl Iterator<Item = u16> {
    let [first, second] = match end.server() {
        Some(server) => [Some(server.port), None],
        None => [Some(end.local.port), Some(end.remote.port)],
    };
    first.into_iter().chain(second)
}

/// How long the connection is known to have lived: less than it did where its beginning was not seen,
/// nothing where its end was not.
fn seen_for_ns(end: &ConnectionEnd) -> u64 {
    if end.end_known { end.end_ns.saturating_sub(end.start_ns) } else { 0 }
}

/// The payload that is known, bytes.
fn payload(end: &ConnectionEnd) -> u64 {
    let count = |bytes: Option<u64>| bytes.unwrap_or(0);
    count(end.counters.bytes_sent).saturating_add(count(end.counters.bytes_received))
}

/// Ports from one to another, both included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(RangeInclusive<u16>);

impl PortRange {
    /// Parses `443` or `8000-8999`.
    ///
    /// # Errors
    /// What is wrong with it, as text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.trim().parse::<u16>().ok();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            (Some(first), Some(last)) => {
                Err(format!("\"{text}\" ends before it begins; write \"{last}-{first}\""))
            }
            _ => Err(format!(
                "\"{text}\" is no port and no range of ports from 0 to 65535; write one like \
                 \"443\" or \"8000-8999\""
            )),
        }
    }

    fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

/// Patterns of names: `*`, `?`, `[...]` and `{a,b}`.
#[derive(Clone, Debug)]
pub struct Globs(GlobSet);

impl Globs {
    /// Patterns of domain names, in any case. `*` matches dots as well: `*.example.com` is every name below
    /// example.com, at any depth, and not example.com itself.
    ///
    /// # Errors
    /// What is wrong with the first bad one, as text for the user.
    pub fn of_domains(patterns: &[String]) -> Result<Self, String> {
        Self::build(patterns, |pattern| {
            if pattern.contains(['/', ':', '@']) {
                return Err(format!(
                    "\"{pattern}\" is no pattern of a domain name; write one like \"*.example.com\", \
                     and a port in `ports`, an address in `cidrs`"
                ));
            }
            Ok(GlobBuilder::new(pattern.trim_end_matches('.')).case_insensitive(true).build())
        })
    }

    /// Patterns of executables' base names.
    ///
    /// # Errors
    /// What is wrong with the first bad one, as text for the user.
    pub fn of_processes(patterns: &[String]) -> Result<Self, String> {
        Self::build(patterns, |pattern| {
            if pattern.contains('/') {
                return Err(format!(
                    "\"{pattern}\" is a path; write the last part of the executable's path, like \"curl\""
                ));
            }
            Ok(GlobBuilder::new(pattern).build())
        })
    }

    fn build(
        patterns: &[String],
        glob: impl Fn(&str) -> Result<Result<globset::Glob, globset::Error>, String>,
    ) -> Result<Self, String> {
        let mut set = GlobSet::builder();
        for pattern in patterns {
            if pattern.trim().is_empty() {
                return Err(format!("\"{pattern}\" is no name; use \"*\" for any"));
            }
            let bad = |error: globset::Error| format!("\"{pattern}\": {}", error.kind());
            set.add(glob(pattern)?.map_err(bad)?);
        }
        set.build().map(Self).map_err(|error| error.kind().to_string())
    }

    fn match_any(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}
