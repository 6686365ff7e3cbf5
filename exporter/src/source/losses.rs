//! Whose events the ring had no room for: what the probe counted, held against its accounts.

use std::collections::HashMap;

use flowend_probe_types::{Account, EventKind, LOST_SLOTS};

use crate::fair::{Losses, NAMED_LOSERS};
use crate::flow::LostOf;

/// Accounts remembered at most: some more than there are in the kernel.
const KEPT: usize = 8192;

/// Who lost what, as far as the accounts say it.
#[derive(Debug)]
pub(super) struct LossBook {
    lost: [u64; LOST_SLOTS.len()],
    accounts: HashMap<u64, [u64; Account::WORDS]>,
    /// Events whose loss an account has told of.
    told: u64,
    by_cgroup: Losses,
}

impl LossBook {
    /// Nothing is lost yet.
    pub(super) fn new() -> Self {
        Self {
            lost: [0; LOST_SLOTS.len()],
            accounts: HashMap::new(),
            told: 0,
            by_cgroup: Losses::new(NAMED_LOSERS),
        }
    }

    /// What is counted so far was told by somebody else. The accounts of then are gone with the programs.
    pub(super) fn go_on(&mut self, lost: [u64; LOST_SLOTS.len()]) {
        self.told = accounted(&lost);
        self.lost = lost;
    }

    /// What is counted so far was judged; what is lost later is for the next one.
    pub(super) const fn judged(&self) -> [u64; LOST_SLOTS.len()] {
        self.lost
    }

    /// Whether the counters have moved.
    pub(super) fn has_news(&self, lost: &[u64; LOST_SLOTS.len()]) -> bool {
        self.lost != *lost
    }

    /// Takes in the counters of now. What an account forgot is anybody's.
    pub(super) fn take(
        &mut self,
        lost: [u64; LOST_SLOTS.len()],
        accounts: HashMap<u64, [u64; Account::WORDS]>,
        mut whose: impl FnMut(LostOf),
    ) {
        let accounted = accounted(&lost);
        // Some were told of twice, where an account was not found in between.
        self.told = self.told.min(accounted);
        for (id, words) in &accounts {
            let before = self.accounts.get(id);
            // An account that is less than it was is another one.
            let since = |word: usize| {
                let before = before.map_or(0, |before| before[word]);
                words[word].checked_sub(before).unwrap_or(words[word])
            };
            let (events, names) = (since(Account::LOST), since(Account::LOST_NAMES));
            if events > 0 {
                self.told += events;
                whose(LostOf::Holder(*id));
            }
            if events + names > 0 {
                self.by_cgroup.add(if *id & Account::NETNS == 0 { *id } else { 0 }, events + names);
            }
        }
        // Whoever makes an account while they are read may hide another one for that time.
        let before = std::mem::replace(&mut self.accounts, accounts);
        let room = KEPT.saturating_sub(self.accounts.len());
        let hidden: Vec<_> = before
            .into_iter()
            .filter(|(id, _)| !self.accounts.contains_key(id))
            .take(room)
            .collect();
        self.accounts.extend(hidden);
        if accounted > self.told {
            self.told = accounted;
            whose(LostOf::Anybody);
        }
        let error = EventKind::Error.lost_slot() as usize;
        if lost[error] > self.lost[error] {
            whose(LostOf::Errors);
        }
        self.lost = lost;
    }

    /// Events that each cgroup lost, by id; namespaces count among the others.
    pub(super) const fn by_cgroup(&self) -> &Losses {
        &self.by_cgroup
    }
}

/// Events of connections that have an account.
fn accounted(lost: &[u64; LOST_SLOTS.len()]) -> u64 {
    let kinds =
        [EventKind::SegmentIn, EventKind::ActiveEstablished, EventKind::Closed, EventKind::GaveUp];
    kinds.iter().map(|kind| lost[kind.lost_slot() as usize]).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lost of segments, of error reports, and of names; in all.
    fn lost(segments: u64, errors: u64, names: u64) -> [u64; LOST_SLOTS.len()] {
        let mut lost = [0; LOST_SLOTS.len()];
        lost[EventKind::SegmentIn.lost_slot() as usize] = segments;
        lost[EventKind::Error.lost_slot() as usize] = errors;
        lost[EventKind::DnsQuery.lost_slot() as usize] = names;
        lost
    }

    fn account(lost: u64, names: u64) -> [u64; Account::WORDS] {
        let mut words = [0; Account::WORDS];
        (words[Account::LOST], words[Account::LOST_NAMES]) = (lost, names);
        words
    }

    #[test]
    fn a_loss_is_of_the_cgroup_whose_account_tells_it_and_else_of_anybody() {
        type Accounts = &'static [(u64, u64, u64)];
        use LostOf::{Anybody, Errors, Holder};
        let steps: [(_, Accounts, &[LostOf]); 11] = [
            (lost(5, 0, 0), &[(1, 3, 0), (2, 2, 0)], &[Holder(1), Holder(2)]),
            (lost(6, 0, 0), &[(1, 4, 0), (2, 2, 0)], &[Holder(1)]),
            // Names alone make no connection doubtful.
            (lost(6, 0, 9), &[(1, 4, 9), (2, 2, 0)], &[]),
            // Error reports have no account.
            (lost(6, 1, 9), &[(1, 4, 9), (2, 2, 0)], &[Errors]),
            // The account of 1 is gone, and then another one.
            (lost(7, 1, 9), &[(2, 2, 0)], &[Anybody]),
            (lost(9, 1, 9), &[(1, 2, 0), (2, 2, 0)], &[Holder(1)]),
            // It began anew between two looks.
            (lost(10, 1, 9), &[(1, 1, 0), (2, 2, 0)], &[Holder(1)]),
            // A part of what was lost is told of nowhere.
            (lost(14, 1, 9), &[(1, 4, 0), (2, 2, 0)], &[Holder(1), Anybody]),
            // An account may be ahead of the counters.
            (lost(15, 1, 9), &[(1, 4, 0), (2, 4, 0)], &[Holder(2)]),
            // One that is hidden for a while is the same afterwards.
            (lost(17, 1, 9), &[(1, 4, 0)], &[Anybody]),
            (lost(18, 1, 9), &[(1, 4, 0), (2, 5, 0)], &[Holder(2)]),
        ];
        let mut book = LossBook::new();
        for (n, (lost, accounts, want)) in steps.into_iter().enumerate() {
            let accounts = accounts.iter().map(|(id, l, names)| (*id, account(*l, *names)));
            let mut got = Vec::new();
            assert!(book.has_news(&lost), "{n}");
            book.take(lost, accounts.collect(), |of| got.push(of));
            got.sort_unstable_by_key(|of| if let Holder(id) = of { *id } else { u64::MAX });
            assert_eq!(got, want, "{n}");
            assert!(!book.has_news(&lost), "{n}");
        }
        let mut by_cgroup: Vec<_> = book.by_cgroup.iter().collect();
        by_cgroup.sort_unstable();
        assert_eq!(by_cgroup, [(1, 4 + 9 + 2 + 1 + 3), (2, 5)]);
    }
}
