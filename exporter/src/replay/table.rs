//! The connections of a capture: which packet belongs to which, and when one is reported.
//!
//! One that is over stays until its two endpoints begin another one, until room is needed, or until
//! the capture ends: late ACKs and repeated FINs are still its packets. Memory is bounded by
//! `flows.max`. Where that many are open at once the replay ends with an error: forgetting one would
//! give it a second record with its next packet.

use flowend_probe_types::Addr;
use hashlink::LinkedHashMap;

use super::conversation::{Arrival, Belongs, Conversation};
use crate::flow::Endpoint;

/// How a connection left the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Its end was seen.
    Over,
    /// The capture ended first.
    Open,
    /// Its endpoints began another one, so it is gone; its end was not seen.
    Replaced,
}

/// More connections are open at once than `flows.max` allows.
#[derive(Debug)]
pub(super) struct Full;

/// The two endpoints of a connection, in an order that does not depend on the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair([(Addr, u16); 2]);

impl Pair {
    fn of(packet: &Arrival) -> Self {
        let plain = |e: Endpoint| (e.addr, e.port);
        let mut pair = [plain(packet.source()), plain(packet.destination())];
        pair.sort_by_key(|(addr, port)| (addr.octets(), *port));
        Self(pair)
    }
}

/// All connections that may still get packets.
#[derive(Debug)]
pub(super) struct Table {
    open: LinkedHashMap<Pair, Conversation>,
    /// Those that are over, the one over for longest in front.
    over: LinkedHashMap<Pair, Conversation>,
    limit: usize,
}

impl Table {
    /// For at most `limit` connections.
    pub(super) fn new(limit: usize) -> Self {
        Self { open: LinkedHashMap::new(), over: LinkedHashMap::new(), limit }
    }

    /// Takes in a packet. `begin` is called with each new connection, `out` with each that leaves.
    ///
    /// # Errors
    /// [`Full`], when there is no room for another connection.
    pub(super) fn apply(
        &mut self,
        packet: &Arrival,
        mut begin: impl FnMut(&mut Conversation),
        mut out: impl FnMut(Conversation, Leaving),
    ) -> Result<(), Full> {
        let pair = Pair::of(packet);
        let known = self.open.get_mut(&pair);
        let Some(current) = known.or_else(|| self.over.get_mut(&pair)) else {
            return self.begin(pair, packet, &mut begin, &mut out);
        };
        let rival = current.rival.as_deref_mut();
        if let Some(rival) = rival
            && (rival.is_repeated_by(packet) || rival.is_answered_by(packet))
        {
            rival.apply(packet);
            if rival.established.is_some() || rival.is_over() || current.is_over() {
                self.promote_rival(pair, &mut out);
            }
            return Ok(());
        }
        match current.belongs(packet) {
            Belongs::Here => {
                let end = current.end();
                current.apply(packet);
                if current.end() != end {
                    self.file(pair);
                }
            }
            Belongs::ToNext => {
                self.take_out(pair, &mut out);
                self.begin(pair, packet, &mut begin, &mut out)?;
            }
            // A second rival takes the place of the first, which nobody answered.
            Belongs::ToRival => {
                let mut rival = Conversation::new(packet);
                begin(&mut rival);
                rival.apply(packet);
                if let Some(unanswered) = current.rival.replace(Box::new(rival)) {
                    out(*unanswered, Leaving::Replaced);
                }
            }
        }
        Ok(())
    }

    /// Takes one connection out, for the end of the capture: first those that are over, each in the
    /// order of its end, then those that are open, each in the order of its beginning.
    pub(super) fn pop(&mut self, out: impl FnMut(Conversation, Leaving)) -> bool {
        let next = self.over.pop_front().or_else(|| self.open.pop_front());
        let Some((_, conversation)) = next else { return false };
        leave(conversation, Leaving::Open, out);
        true
    }

    fn begin(
        &mut self,
        pair: Pair,
        packet: &Arrival,
        begin: &mut impl FnMut(&mut Conversation),
        out: &mut impl FnMut(Conversation, Leaving),
    ) -> Result<(), Full> {
        while self.open.len() + self.over.len() >= self.limit {
            let (pair, mut longest_over) = self.over.pop_front().ok_or(Full)?;
            // Nobody has answered it yet, but somebody may.
            if let Some(rival) = longest_over.rival.take() {
                self.open.insert(pair, *rival);
            }
            leave(longest_over, Leaving::Over, &mut *out);
        }
        let mut conversation = Conversation::new(packet);
        begin(&mut conversation);
        conversation.apply(packet);
        self.open.insert(pair, conversation);
        self.file(pair);
        Ok(())
    }

    /// Keeps open ones and those that are over apart. One that was refused may go on, and end again.
    fn file(&mut self, pair: Pair) {
        let Some(conversation) = self.remove(pair) else { return };
        let kind = if conversation.is_over() { &mut self.over } else { &mut self.open };
        kind.insert(pair, conversation);
    }

    fn remove(&mut self, pair: Pair) -> Option<Conversation> {
        self.open.remove(&pair).or_else(|| self.over.remove(&pair))
    }

    fn take_out(&mut self, pair: Pair, out: &mut impl FnMut(Conversation, Leaving)) {
        if let Some(conversation) = self.remove(pair) {
            leave(conversation, Leaving::Replaced, out);
        }
    }

    fn promote_rival(&mut self, pair: Pair, out: &mut impl FnMut(Conversation, Leaving)) {
        let Some(mut old) = self.remove(pair) else { return };
        let rival = old.rival.take();
        leave(old, Leaving::Replaced, out);
        if let Some(rival) = rival {
            self.open.insert(pair, *rival);
            self.file(pair);
        }
    }
}

/// Hands a connection out, and the rival that was never answered.
fn leave(
    mut conversation: Conversation,
    unless_over: Leaving,
    mut out: impl FnMut(Conversation, Leaving),
) {
    let rival = conversation.rival.take();
    hand_out(conversation, unless_over, &mut out);
    if let Some(rival) = rival {
        hand_out(*rival, unless_over, &mut out);
    }
}

fn hand_out(
    mut conversation: Conversation,
    unless_over: Leaving,
    out: &mut impl FnMut(Conversation, Leaving),
) {
    conversation.settle();
    let leaving = if conversation.is_over() { Leaving::Over } else { unless_over };
    out(conversation, leaving);
}
