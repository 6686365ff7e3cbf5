//! Events in the order of their times.
//!
//! Two CPUs write into one ring: an event may lie in it behind a younger one. The state machine is
//! spared that: each event waits here until everything older than it must have come.

use std::collections::VecDeque;

use flowend_probe_types::Event;

use super::kept::Waiting;

/// How far behind a younger event an older one may come, ns: far longer than a program between its
/// clock reading and its place in the ring.
pub const REORDER_NS: u64 = 5_000_000;

/// Events that wait at most; past it the oldest goes ahead. A full ring of the default size has fewer.
const LIMIT: usize = 131_072;

/// The waiting events, the oldest in front.
#[derive(Debug, Default)]
pub(super) struct Reorder {
    waiting: VecDeque<(u64, Event)>,
    newest_ns: u64,
}

impl Reorder {
    /// Takes in one event. Of the same time, the one that came first stays first.
    pub(super) fn push(&mut self, time_ns: u64, event: Event) {
        self.newest_ns = self.newest_ns.max(time_ns);
        let after = self.waiting.iter().rev().take_while(|(t, _)| *t > time_ns).count();
        if after == 0 {
            self.waiting.push_back((time_ns, event));
        } else {
            self.waiting.insert(self.waiting.len() - after, (time_ns, event));
        }
    }

    /// Hands over those that wait, and the time of the newest that came.
    pub(super) fn hand_over(&mut self) -> (Vec<Waiting>, u64) {
        (
            self.waiting.drain(..).filter_map(|(_, event)| Waiting::of(&event)).collect(),
            self.newest_ns,
        )
    }

    /// Takes them in again.
    pub(super) fn take_in(&mut self, waiting: &[Waiting], newest_ns: u64) {
        self.waiting.extend(waiting.iter().filter_map(Waiting::event));
        self.newest_ns = newest_ns;
    }

    /// The time of the newest event that came.
    pub(super) const fn newest_ns(&self) -> u64 {
        self.newest_ns
    }

    /// The oldest event, if it has waited long enough at `now_ns`, by the clock or by the events.
    pub(super) fn pop(&mut self, now_ns: u64) -> Option<Event> {
        let (time_ns, _) = self.waiting.front()?;
        let horizon = now_ns.max(self.newest_ns).saturating_sub(REORDER_NS);
        if *time_ns > horizon && self.waiting.len() <= LIMIT {
            return None;
        }
        self.waiting.pop_front().map(|(_, event)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowend_probe_types::{EventKind, TcpEvent};

    fn event(time_ns: u64, cookie: u64) -> Event {
        Event::Tcp(EventKind::Closed, TcpEvent { time_ns, cookie, ..TcpEvent::default() })
    }

    fn all(reorder: &mut Reorder, now_ns: u64) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| reorder.pop(now_ns))
            .map(|event| match event {
                Event::Tcp(_, e) => (e.time_ns, e.cookie),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn events_come_out_by_time_and_of_one_time_as_they_came() {
        let mut reorder = Reorder::default();
        for (time_ns, cookie) in [(10, 1), (30, 2), (20, 3), (30, 4), (10, 5)] {
            reorder.push(time_ns, event(time_ns, cookie));
        }
        assert_eq!(all(&mut reorder, 0), []);
        let sorted = [(10, 1), (10, 5), (20, 3), (30, 2), (30, 4)];
        assert_eq!(all(&mut reorder, 20 + REORDER_NS), sorted[..3]);
        // A much younger event is as good as the clock.
        reorder.push(2 * REORDER_NS, event(2 * REORDER_NS, 6));
        assert_eq!(all(&mut reorder, 0), sorted[3..]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut reorder = Reorder::default();
        for n in 0..=LIMIT as u64 {
            reorder.push(n, event(n, n));
        }
        assert_eq!(all(&mut reorder, 0), [(0, 0)]);
    }
}
