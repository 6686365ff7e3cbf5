//! From the name asked for to its addresses: along aliases (CNAME) and services (SRV, SVCB, HTTPS).
//!
//! Only what is reached from the question is named; whatever else a message holds names nothing.
//! Each name is visited once, or twice where a service leads to it, so a ring of aliases ends, and time is bounded by the square of
//! [`super::message::MAX_RECORDS`].

use std::sync::Arc;

use flowend_probe_types::Addr;
use smallvec::SmallVec;

use super::cache::Names;
use super::message::{Data, Message, NameId, Record};
use super::name;

/// Names of one chain: the one asked for, and those that it leads to. A longer one names nothing.
pub(super) const MAX_CHAIN: usize = 16;

/// What following a name led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// At least one address was named.
    pub(super) any: bool,
    /// A chain was longer than [`MAX_CHAIN`].
    pub(super) too_long: bool,
    /// A name has no text: [`name::of_labels`].
    pub(super) unprintable: bool,
}

/// Follows `asked`, and tells each address with its chain and its TTL in seconds; `tell` says whether
/// it took it. `additional`: whether the records of `asked` itself may lie in the additional section.
pub(super) fn follow(
    message: &Message,
    asked: NameId,
    additional: bool,
    tell: impl FnMut(&Names, Addr, u32) -> bool,
) -> Reached {
    let mut walk = Walk {
        message,
        steps: SmallVec::new(),
        again: SmallVec::new(),
        reached: Reached::default(),
        tell,
    };
    walk.steps.push(Step::new(asked, None, u32::MAX, additional));
    let mut next = 0;
    loop {
        if next < walk.steps.len() {
            walk.visit(next);
            next += 1;
        } else if let Some(at) = walk.again.pop() {
            walk.visit(at);
        } else {
            return walk.reached;
        }
    }
}

/// A name on the way.
struct Step {
    name: NameId,
    from: Option<usize>,
    /// Names from the one asked for to this one.
    depth: usize,
    /// The least of the chain, seconds.
    ttl: u32,
    additional: bool,
    text: Option<Arc<str>>,
    chain: Option<Names>,
}

impl Step {
    const fn new(name: NameId, from: Option<usize>, ttl: u32, additional: bool) -> Self {
        Self { name, from, depth: 1, ttl, additional, text: None, chain: None }
    }
}

struct Walk<'a, F> {
    message: &'a Message,
    steps: SmallVec<[Step; 6]>,
    /// Names that a service leads to, and that may have been visited before that was known: a service may
    /// be its own target (RFC 9460, section 2.5.2).
    again: SmallVec<[usize; 1]>,
    reached: Reached,
    tell: F,
}

impl<F: FnMut(&Names, Addr, u32) -> bool> Walk<'_, F> {
    fn visit(&mut self, at: usize) {
        let Step { name, ttl, additional, .. } = self.steps[at];
        let message = self.message;
        let here = |record: &&Record| record.owner == name && (additional || !record.additional);
        for record in message.records.iter().filter(here) {
            let ttl = ttl.min(record.ttl);
            match &record.data {
                Data::Address(addr) => self.name(at, *addr, ttl),
                Data::Alias(target) => {
                    self.step(at, *target, ttl, additional);
                }
                Data::Service(target, hints) => {
                    // A server sends what is known of a target along (RFC 2782; RFC 9460, section 4.1).
                    let Some(to) = self.step(at, *target, ttl, true) else { continue };
                    for hint in hints {
                        self.name(to, *hint, ttl);
                    }
                }
            }
        }
    }

    /// The step to a name: a new one if it is new, and its chain not too long.
    fn step(&mut self, from: usize, name: NameId, ttl: u32, additional: bool) -> Option<usize> {
        if let Some(known) = self.steps.iter().position(|step| step.name == name) {
            if additional && !std::mem::replace(&mut self.steps[known].additional, true) {
                self.again.push(known);
            }
            return Some(known);
        }
        let depth = self.steps[from].depth + 1;
        if depth > MAX_CHAIN {
            self.reached.too_long = true;
            return None;
        }
        self.steps.push(Step { depth, ..Step::new(name, Some(from), ttl, additional) });
        Some(self.steps.len() - 1)
    }

    fn name(&mut self, at: usize, addr: Addr, ttl: u32) {
        if self.steps[at].chain.is_none() {
            let chain = self.chain(at);
            self.steps[at].chain = chain;
        }
        match &self.steps[at].chain {
            Some(chain) => self.reached.any |= (self.tell)(chain, addr, ttl),
            None => self.reached.unprintable = true,
        }
    }

    /// The names from the one asked for to this one.
    fn chain(&mut self, at: usize) -> Option<Names> {
        let mut names: SmallVec<[Arc<str>; MAX_CHAIN]> = SmallVec::new();
        let mut next = Some(at);
        while let Some(at) = next {
            let step = &mut self.steps[at];
            if step.text.is_none() {
                step.text = name::of_labels(self.message.labels(step.name));
            }
            names.push(Arc::clone(step.text.as_ref()?));
            next = step.from;
        }
        names.reverse();
        Some(names.into_iter().collect())
    }
}
