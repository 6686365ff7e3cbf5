//! Until when events were lost, and of whose connections: what was not seen proves nothing for those alone.
//!
//! Of segments the probe tells the cgroup, of socket events the network namespace ([`Account::NETNS`]).

use flowend_probe_types::Account;
use hashlink::LruCache;

use super::kept::KeptLost;

/// Whose events were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostOf {
    /// Nobody can tell.
    Anybody,
    /// A cgroup's, or a network namespace's, as the probe's accounts have them ([`Account`]).
    Holder(u64),
    /// Error reports, which tell of no holder: of anybody's connections, but of those only that nothing else explains.
    Errors,
}

/// Cgroups and namespaces told apart; one that lost events longest ago gives way, and then everybody may have lost them.
const HOLDERS: usize = 4096;

/// When events were lost last, `CLOCK_BOOTTIME` ns; 0 for never.
#[derive(Debug)]
pub(super) struct Lost {
    /// Nobody can tell of whom.
    of_anybody_ns: u64,
    of: LruCache<u64, u64>,
    /// Of any cgroup, and of any namespace.
    latest_ns: [u64; 2],
    /// Until when establishments may go unheard, since a program that tells them is missing somewhere.
    pub(super) unheard_ns: u64,
}

impl Lost {
    pub(super) fn new() -> Self {
        Self { of_anybody_ns: 0, of: LruCache::new_unbounded(), latest_ns: [0; 2], unheard_ns: 0 }
    }

    /// Events were lost, at the latest at `at_ns`: of this holder, or nobody knows of whom.
    pub(super) fn note(&mut self, holder: Option<u64>, at_ns: u64) {
        let Some(holder) = holder else {
            self.of_anybody_ns = self.of_anybody_ns.max(at_ns);
            return;
        };
        let latest_ns = &mut self.latest_ns[usize::from(holder & Account::NETNS != 0)];
        *latest_ns = at_ns.max(*latest_ns);
        let before_ns = self.of.remove(&holder).unwrap_or(0);
        self.of.insert(holder, at_ns.max(before_ns));
        if self.of.len() > HOLDERS
            && let Some((_, forgotten_ns)) = self.of.remove_lru()
        {
            self.of_anybody_ns = self.of_anybody_ns.max(forgotten_ns);
        }
    }

    /// Hands over what is known.
    pub(super) fn hand_over(&self) -> KeptLost {
        let of = self.of.iter().map(|(holder, at_ns)| (*holder, *at_ns)).collect();
        KeptLost { of_anybody_ns: self.of_anybody_ns, of }
    }

    /// Takes it in.
    pub(super) fn take_in(&mut self, kept: KeptLost) {
        self.note(None, kept.of_anybody_ns);
        for (holder, at_ns) in kept.of {
            self.note(Some(holder), at_ns);
        }
    }

    /// Until when events of a connection may have been lost, given its cgroup and the cookie of its namespace;
    /// 0 stands for one that is not known.
    pub(super) fn until_ns(&self, cgroup_id: u64, netns: u64) -> u64 {
        let [of_any_cgroup, of_any_netns] = self.latest_ns;
        let of = |known, holder, of_any| match known {
            0 => of_any,
            _ if of_any == 0 => 0,
            _ => self.of.peek(&holder).copied().unwrap_or(0),
        };
        let of_cgroup = of(cgroup_id, cgroup_id, of_any_cgroup);
        let of_netns = of(netns, netns | Account::NETNS, of_any_netns);
        self.of_anybody_ns.max(of_cgroup).max(of_netns)
    }

    /// Until when a connection of this cgroup may have been established without an event of it.
    pub(super) fn establishments_until_ns(&self, cgroup_id: u64) -> u64 {
        self.until_ns(cgroup_id, 0).max(self.unheard_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a few cgroups in the namespace 3.
    fn until_ns<const N: usize>(lost: &Lost, cgroups: [u64; N]) -> [u64; N] {
        cgroups.map(|cgroup_id| lost.until_ns(cgroup_id, 3))
    }

    #[test]
    fn what_one_cgroup_lost_is_nothing_to_another() {
        let mut lost = Lost::new();
        assert_eq!(until_ns(&lost, [0, 7]), [0, 0]);
        lost.note(Some(7), 50);
        lost.note(Some(7), 40);
        assert_eq!(until_ns(&lost, [0, 7, 8]), [50, 50, 0]);
        lost.note(None, 45);
        assert_eq!(until_ns(&lost, [0, 7, 8]), [50, 50, 45]);
    }

    #[test]
    fn what_one_namespace_lost_is_nothing_to_another() {
        let mut lost = Lost::new();
        lost.note(Some(Account::NETNS | 7), 50);
        let until = [(7, 3), (7, 7), (7, 0), (0, 3)].map(|(c, n)| lost.until_ns(c, n));
        assert_eq!(until, [0, 50, 50, 0]);
    }

    #[test]
    fn what_is_handed_over_is_each_holders_own() {
        let mut lost = Lost::new();
        lost.note(Some(7), 50);
        lost.note(Some(8), 60);
        lost.note(None, 45);
        let mut next = Lost::new();
        next.take_in(lost.hand_over());
        assert_eq!(until_ns(&next, [0, 7, 8, 9]), until_ns(&lost, [0, 7, 8, 9]));
        assert_eq!(until_ns(&next, [7, 8, 9]), [50, 60, 45]);
    }

    #[test]
    fn a_loss_that_is_forgotten_is_everybodys() {
        let mut lost = Lost::new();
        for id in 1..=HOLDERS as u64 {
            lost.note(Some(id), 10 + id);
        }
        assert_eq!(until_ns(&lost, [1, 2, 999_999]), [11, 12, 0]);
        lost.note(Some(9999), 5);
        assert_eq!(until_ns(&lost, [1, 2, 9999, 999_999]), [11, 12, 11, 11]);
    }
}
