//! Multicast DNS (RFC 6762) and LLMNR (RFC 4795): the answer comes from another address than the
//! group that was asked.
//!
//! LLMNR keeps to DNS otherwise, so its queries wait among the others. An mDNS answer
//! has no id and no question: it counts for the names that its own socket asked for lately.

use std::sync::Arc;

use flowend_probe_types::{Addr, DnsEvent};
use smallvec::SmallVec;

use super::message::{Message, NameId};
use super::query::QUERY_NS;
use crate::fair::Table;

/// Port of mDNS (RFC 6762, section 3).
pub(super) const MDNS_PORT: u16 = 5353;

/// Port of LLMNR (RFC 4795, section 2).
pub(super) const LLMNR_PORT: u16 = 5355;

/// Sockets whose questions are kept: one per program that does mDNS itself, few programs do.
pub(super) const MAX_SOCKETS: usize = 256;

/// Names that one socket may wait for. The oldest gives way.
pub(super) const MAX_ASKED: usize = 64;

/// The end of each name that mDNS may answer for (RFC 6762, section 3), as labels.
const LOCAL: &[u8] = b"\x05local";

/// Whether the address is a group's.
pub(super) fn is_group(addr: Addr) -> bool {
    std::net::IpAddr::from(addr).is_multicast()
}

/// Whether mDNS may say this of an address: all names are of the link, or any neighbour could name it
/// after any host; and TTL 0 takes a record back (RFC 6762, section 10.1).
pub(super) fn may_say(chain: &[Arc<str>], ttl: u32) -> bool {
    // A dot inside a label is written in decimal.
    ttl > 0 && chain.iter().all(|name| name.ends_with(".local"))
}

/// The questions asked by mDNS.
#[derive(Debug)]
pub(super) struct Asked(Table<(u64, u64), SmallVec<[Name; 2]>>);

#[derive(Debug)]
struct Name {
    labels: Box<[u8]>,
    id: u16,
    time_ns: u64,
}

impl Asked {
    pub(super) fn new() -> Self {
        Self(Table::new(MAX_SOCKETS))
    }

    /// Takes in the questions of one query; `false` where none is for a name of the link.
    pub(super) fn ask(&mut self, facts: &DnsEvent, id: u16, message: &Message) -> bool {
        let local = |name: &NameId| is_local(message.labels(*name));
        let names: SmallVec<[NameId; 2]> =
            message.questions.iter().map(|question| question.name).filter(local).collect();
        if names.is_empty() {
            return false;
        }
        let socket = (facts.cgroup_id, facts.cookie);
        let mut asked = self.0.remove(&socket).unwrap_or_default();
        for name in names {
            let labels = message.labels(name);
            asked.retain(|old| old.is_awaited(facts.time_ns) && *old.labels != *labels);
            if asked.len() == MAX_ASKED {
                asked.remove(0);
            }
            asked.push(Name { labels: labels.into(), id, time_ns: facts.time_ns });
        }
        self.0.insert(facts.cgroup_id, socket, asked);
        true
    }

    /// Whether this socket asked at all: cheap, before the answer is parsed.
    pub(super) fn expects(&self, facts: &DnsEvent) -> bool {
        self.0.get(&(facts.cgroup_id, facts.cookie)).is_some()
    }

    /// Sockets whose questions are kept.
    #[cfg(test)]
    pub(super) fn sockets(&self) -> usize {
        self.0.len()
    }

    /// The names of an answer that its socket asked for.
    pub(super) fn answered(
        &self,
        facts: &DnsEvent,
        id: u16,
        message: &Message,
    ) -> SmallVec<[NameId; 2]> {
        let asked = self.0.get(&(facts.cgroup_id, facts.cookie)).map_or(&[][..], |a| a);
        // From port 5353 the whole of mDNS is spoken, where ids mean nothing (section 18.1). Any
        // other port gets an answer like those of DNS (section 6.7).
        let by_id = facts.local_port != MDNS_PORT;
        let mut names: SmallVec<[NameId; 2]> = SmallVec::new();
        for owner in message.records.iter().map(|record| record.owner) {
            let labels = message.labels(owner);
            let is_asked = || {
                asked.iter().any(|name| {
                    *name.labels == *labels
                        && name.is_awaited(facts.time_ns)
                        && (!by_id || name.id == id)
                })
            };
            // The records of one name mostly stand together.
            if names.last() != Some(&owner) && is_asked() && !names.contains(&owner) {
                names.push(owner);
            }
        }
        names
    }
}

impl Name {
    const fn is_awaited(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.time_ns) < QUERY_NS
    }
}

/// Below `.local`, and not `local` itself.
fn is_local(labels: &[u8]) -> bool {
    // The last label, with all before it: a label may end in these bytes without being one.
    let mut rest = labels;
    while let Some((len, tail)) = rest.split_first() {
        if rest == LOCAL {
            return rest.len() < labels.len();
        }
        rest = tail.get(usize::from(*len)..).unwrap_or_default();
    }
    false
}
