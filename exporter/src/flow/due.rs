//! Verdicts that wait for their time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// A verdict that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Due {
    pub(super) at_ns: u64,
    pub(super) cookie: u64,
    pub(super) generation: u64,
}

/// In the order of their times.
///
/// Each verdict waits for one of a few spans of time ([`super::SETTLE_NS`] and its like), and events come in the order of
/// their times: so each span has a queue that is in order by itself, and nothing needs to be sorted.
#[derive(Debug, Default)]
pub(super) struct DueTimes {
    /// By the span, ns.
    queues: Vec<(u64, VecDeque<Due>)>,
}

impl DueTimes {
    /// Takes in a verdict that waits for `wait_ns` from `from_ns`.
    pub(super) fn push(&mut self, from_ns: u64, wait_ns: u64, cookie: u64, generation: u64) {
        let due = Due { at_ns: from_ns.saturating_add(wait_ns), cookie, generation };
        let found = self.queues.iter().position(|(span, _)| *span == wait_ns);
        let at = found.unwrap_or_else(|| {
            self.queues.push((wait_ns, VecDeque::new()));
            self.queues.len() - 1
        });
        let queue = &mut self.queues[at].1;
        // A look is dated when it was done, and an event that came too late to be put in order is older.
        let later = queue.iter().rev().take_while(|other| other.at_ns > due.at_ns).count();
        if later == 0 {
            queue.push_back(due);
        } else {
            queue.insert(queue.len() - later, due);
        }
    }

    /// Hands over all of them, by their spans.
    pub(super) fn hand_over(&mut self) -> Vec<(u64, Vec<Due>)> {
        self.queues.drain(..).map(|(span, queue)| (span, queue.into())).collect()
    }

    /// Takes them in again, into an empty one.
    pub(super) fn take_in(&mut self, kept: Vec<(u64, Vec<Due>)>) {
        self.queues = kept.into_iter().map(|(span, queue)| (span, queue.into())).collect();
    }

    /// Takes out the earliest that is due at `now_ns`.
    pub(super) fn pop(&mut self, now_ns: u64) -> Option<Due> {
        let fronts = self.queues.iter_mut().filter_map(|(_, queue)| {
            let at_ns = queue.front()?.at_ns;
            (at_ns <= now_ns).then_some((at_ns, queue))
        });
        fronts.min_by_key(|(at_ns, _)| *at_ns).and_then(|(_, queue)| queue.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_come_out_by_their_times_whatever_they_waited_for() {
        let mut due = DueTimes::default();
        for (from, wait) in [(0, 100), (10, 10), (5, 10), (20, 100), (30, 10), (30, 0)] {
            due.push(from, wait, from, wait);
        }
        assert_eq!(due.pop(14), None);
        let all = |due: &mut DueTimes, now| -> Vec<u64> {
            std::iter::from_fn(|| due.pop(now)).map(|d| d.at_ns).collect()
        };
        assert_eq!(all(&mut due, 30), [15, 20, 30]);
        assert_eq!(all(&mut due, u64::MAX), [40, 100, 120]);
        due.push(u64::MAX, 10, 1, 1);
        assert_eq!(all(&mut due, u64::MAX), [u64::MAX]);
    }
}
