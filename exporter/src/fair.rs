//! Who holds how much of something that is bounded, and who gives way when it is full.
//!
//! Tables and queues are shared by all cgroups, and one of them may have more to put in than all others together.
//! When there is no room, whoever holds its share or more gives way itself; whoever holds less takes the room from
//! the one that holds most, unless the two would only change places by that. So a flood displaces its own.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashlink::LinkedHashSet;

/// A cgroup's id; 0 stands for those that are not known.
pub type Holder = u64;

/// What each holder has in a bounded table, the oldest first. It knows the keys, and the table what they stand for.
#[derive(Debug)]
pub struct Shares<K> {
    held: HashMap<Holder, Held<K>, RandomState>,
    all: usize,
    /// Who held most when it was last looked for.
    largest: Holder,
}

/// What one holder has.
#[derive(Debug)]
struct Held<K> {
    keys: LinkedHashSet<K>,
    /// Those that are missed least.
    spare: LinkedHashSet<K>,
}

impl<K: Eq + Hash> Held<K> {
    fn len(&self) -> usize {
        self.keys.len() + self.spare.len()
    }
}

impl<K: Eq + Hash> Default for Held<K> {
    fn default() -> Self {
        Self { keys: LinkedHashSet::default(), spare: LinkedHashSet::default() }
    }
}

impl<K: Eq + Hash> Default for Shares<K> {
    fn default() -> Self {
        Self { held: HashMap::default(), all: 0, largest: 0 }
    }
}

impl<K: Eq + Hash + Copy> Shares<K> {
    /// One more, the youngest of its holder.
    pub fn add(&mut self, holder: Holder, key: K) {
        self.all += usize::from(self.held.entry(holder).or_default().keys.insert(key));
    }

    /// This one is over or nearly so: it goes before all that are not.
    pub fn spare(&mut self, holder: Holder, key: K) {
        let Some(held) = self.held.get_mut(&holder) else { return };
        if held.keys.remove(&key) {
            held.spare.insert(key);
        }
    }

    /// One less.
    pub fn remove(&mut self, holder: Holder, key: &K) {
        let Some(held) = self.held.get_mut(&holder) else { return };
        self.all -= usize::from(held.keys.remove(key) || held.spare.remove(key));
        if held.len() == 0 {
            self.held.remove(&holder);
        }
    }

    /// Who has to give way for one more of `newcomer`: it may be itself. `None` where nobody holds anything.
    ///
    /// All holders are only looked at where the one that held most holds no more than its share by now.
    pub fn gives_way(&mut self, newcomer: Holder) -> Option<Holder> {
        let own = self.count(newcomer);
        let holders = self.held.len() + usize::from(own == 0);
        // Rounded up: with as many holders as there are places, one place is a share.
        let share = self.all.div_ceil(holders.max(1));
        if own > 0 && own >= share {
            return Some(newcomer);
        }
        if self.count(self.largest) <= share {
            let most = self.held.iter().max_by_key(|(holder, held)| (held.len(), **holder));
            self.largest = *most?.0;
        }
        // Where the places cannot be divided evenly, one holder has one more than another, and may keep it.
        let would_change_places = own > 0 && self.count(self.largest) <= own + 1;
        Some(if would_change_places { newcomer } else { self.largest })
    }

    /// What a holder misses least: the oldest of those that are spare, else the oldest of all. It stays.
    pub fn oldest(&self, holder: Holder) -> Option<K> {
        let held = self.held.get(&holder)?;
        held.spare.front().or_else(|| held.keys.front()).copied()
    }

    /// The youngest of a holder's, which stays.
    pub fn youngest(&self, holder: Holder) -> Option<K> {
        let held = self.held.get(&holder)?;
        held.keys.back().or_else(|| held.spare.back()).copied()
    }

    fn count(&self, holder: Holder) -> usize {
        self.held.get(&holder).map_or(0, Held::len)
    }
}

/// A bounded table in which a flood displaces its own entries.
#[derive(Debug)]
pub struct Table<K, V> {
    entries: HashMap<K, (Holder, V), RandomState>,
    shares: Shares<K>,
    limit: usize,
}

impl<K: Eq + Hash + Copy, V> Table<K, V> {
    /// For at most `limit` entries, and one at least.
    pub fn new(limit: usize) -> Self {
        Self { entries: HashMap::default(), shares: Shares::default(), limit: limit.max(1) }
    }

    /// Puts an entry in, as the youngest of its holder; another one of its key goes. Returns what had to give way.
    pub fn insert(&mut self, holder: Holder, key: K, value: V) -> Option<V> {
        self.remove(&key);
        let mut displaced = None;
        if self.entries.len() >= self.limit {
            let oldest = self.shares.gives_way(holder).and_then(|loser| self.shares.oldest(loser));
            displaced = oldest.and_then(|key| self.remove(&key));
        }
        self.shares.add(holder, key);
        self.entries.insert(key, (holder, value));
        displaced
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (holder, value) = self.entries.remove(key)?;
        self.shares.remove(holder, key);
        Some(value)
    }

    /// This entry is hardly needed any more: of its holder's it goes first.
    pub fn spare(&mut self, key: K) {
        if let Some((holder, _)) = self.entries.get(&key) {
            self.shares.spare(*holder, key);
        }
    }

    /// This entry is in use: it becomes the youngest of its holder. While there is much room that does not matter.
    pub fn touch(&mut self, key: K) {
        if self.entries.len() > self.limit / 2
            && let Some((holder, _)) = self.entries.get(&key)
        {
            self.shares.remove(*holder, &key);
            self.shares.add(*holder, key);
        }
    }

    /// An entry.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Takes all entries out, each with its holder; of one holder the oldest first.
    pub fn drain(&mut self) -> Vec<(Holder, K, V)> {
        let shares = std::mem::take(&mut self.shares);
        let mut all = Vec::with_capacity(self.entries.len());
        for (holder, held) in shares.held {
            for key in held.spare.into_iter().chain(held.keys) {
                all.extend(self.entries.remove(&key).map(|(_, value)| (holder, key, value)));
            }
        }
        all
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Cgroups of which it is said by name what they lost.
pub const NAMED_LOSERS: usize = 64;

/// How much was lost of each cgroup. Bounded: past the limit, nobody is named.
#[derive(Clone, Debug)]
pub struct Losses {
    of: HashMap<Holder, u64, RandomState>,
    limit: usize,
    others: u64,
}

impl Losses {
    /// Of so many cgroups by id; all that come later count together.
    pub fn new(limit: usize) -> Self {
        Self { of: HashMap::default(), limit, others: 0 }
    }

    /// Counts `n` that this cgroup lost.
    pub fn add(&mut self, holder: Holder, n: u64) {
        let has_room = holder != 0 && self.of.len() < self.limit;
        match self.of.get_mut(&holder) {
            Some(count) => *count += n,
            None if has_room => drop(self.of.insert(holder, n)),
            None => self.others += n,
        }
    }

    /// Each cgroup's count, and those of the others under 0.
    pub fn iter(&self) -> impl Iterator<Item = (Holder, u64)> {
        let others = std::iter::once((0, self.others)).filter(|(_, n)| *n > 0);
        self.of.iter().map(|(holder, n)| (*holder, *n)).chain(others)
    }
}

/// What cgroups lost, by what it was and by the cgroup's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LossesByName(BTreeMap<(&'static str, Arc<str>), u64>);

impl LossesByName {
    /// All whose path is not known, and all past the limit of [`Losses`].
    pub const OTHER: &'static str = "other";

    /// Adds what was lost of one thing; `name` tells a cgroup's path.
    pub fn add(
        &mut self,
        what: &'static str,
        losses: &Losses,
        name: impl Fn(Holder) -> Option<Arc<str>>,
    ) {
        for (holder, n) in losses.iter() {
            let name = name(holder).unwrap_or_else(|| Arc::from(Self::OTHER));
            *self.0.entry((what, name)).or_default() += n;
        }
    }

    /// What was lost, of which cgroup, and how much.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Arc<str>, u64)> {
        self.0.iter().map(|((what, cgroup), n)| (*what, cgroup, *n))
    }

    /// What is new since then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let more = |(key, n): (&(&'static str, Arc<str>), &u64)| {
            let n = n.saturating_sub(before.0.get(key).copied().unwrap_or(0));
            (n > 0).then(|| (key.clone(), n))
        };
        Self(self.0.iter().filter_map(more).collect())
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cgroups of which a line tells at most, for each thing that was lost.
const TOLD: usize = 3;

impl fmt::Display for LossesByName {
    /// `connections of /a 12, of /b 3; events of /a 700`: those that lost most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_what = BTreeMap::<_, Vec<_>>::new();
        for (what, cgroup, n) in self.iter() {
            by_what.entry(what).or_default().push((n, cgroup));
        }
        for (place, (what, mut lost)) in by_what.into_iter().enumerate() {
            lost.sort_by(|a, b| b.cmp(a));
            let told: Vec<_> =
                lost.iter().take(TOLD).map(|(n, cgroup)| format!("of {cgroup} {n}")).collect();
            let before = if place > 0 { "; " } else { "" };
            write!(f, "{before}{what} {}", told.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `max` places that is given `n` entries by each of `holders` in turn; who holds how many.
    fn fill(shares: &mut Shares<u64>, max: usize, holders: &[Holder], n: u64) {
        for round in 0..n {
            for holder in holders {
                if shares.all >= max {
                    let loser = shares.gives_way(*holder).unwrap();
                    let oldest = shares.oldest(loser).unwrap();
                    shares.remove(loser, &oldest);
                }
                shares.add(*holder, holder << 32 | shares.count(*holder) as u64 | round << 16);
                assert!(shares.all <= max);
            }
        }
    }

    #[test]
    fn a_flood_displaces_its_own() {
        let mut shares = Shares::default();
        for key in 0..3 {
            shares.add(7, key);
        }
        fill(&mut shares, 100, &[9], 1000);
        assert_eq!((shares.count(7), shares.count(9)), (3, 97));
        assert_eq!(shares.oldest(7), Some(0), "nothing of the quiet one is gone");
    }

    #[test]
    fn whoever_holds_less_than_its_share_gets_room_from_the_largest() {
        let mut shares = Shares::default();
        fill(&mut shares, 90, &[1], 90);
        fill(&mut shares, 90, &[2], 1000);
        assert_eq!((shares.count(1), shares.count(2)), (45, 45));
        fill(&mut shares, 90, &[3], 1000);
        assert_eq!([1, 2, 3].map(|holder| shares.count(holder)), [30, 30, 30]);
        // Two that ask for ever more stay where they are.
        fill(&mut shares, 90, &[1, 3], 1000);
        assert_eq!([1, 2, 3].map(|holder| shares.count(holder)), [30, 30, 30]);
    }

    #[test]
    fn those_that_ask_for_ever_more_settle_where_the_places_cannot_be_divided() {
        let mut shares = Shares::default();
        fill(&mut shares, 100, &[1, 2, 3], 100);
        let settled = [1, 2, 3].map(|holder| shares.count(holder));
        assert!(settled.iter().all(|held| (33..=34).contains(held)), "{settled:?}");
        for holder in [1, 2, 3].repeat(10) {
            assert_eq!(shares.gives_way(holder), Some(holder));
        }
        // A fourth gets its share all the same.
        fill(&mut shares, 100, &[4], 100);
        assert_eq!([1, 2, 3, 4].map(|holder| shares.count(holder)), [25; 4]);
    }

    #[test]
    fn what_is_spare_goes_before_what_is_older() {
        let mut shares = Shares::default();
        (0..4).for_each(|key| shares.add(1, key));
        shares.spare(1, 2);
        shares.spare(1, 1);
        // Nobody has these.
        shares.spare(1, 9);
        shares.spare(2, 0);
        for (left, oldest) in [(4, 2), (3, 1), (2, 0), (1, 3)] {
            assert_eq!((shares.all, shares.count(1)), (left, left));
            assert_eq!(shares.oldest(1), Some(oldest));
            shares.remove(1, &oldest);
        }
        assert_eq!((shares.all, shares.oldest(1)), (0, None));
    }

    #[test]
    fn more_holders_than_places_and_a_single_place() {
        let mut shares = Shares::default();
        let holders: Vec<Holder> = (1..50).collect();
        fill(&mut shares, 10, &holders, 3);
        assert_eq!(shares.all, 10);
        let mut single = Shares::default();
        fill(&mut single, 1, &[1, 2, 1], 5);
        assert_eq!(single.all, 1);
        assert_eq!(Shares::<u64>::default().gives_way(1), None);
    }

    #[test]
    fn a_table_is_bounded_and_a_flood_displaces_its_own() {
        let mut table = Table::new(10);
        for key in 0..3 {
            assert_eq!(table.insert(1, key, key), None);
        }
        for key in 100..1000 {
            assert!(table.insert(2, key, key).is_none_or(|displaced| displaced >= 100));
        }
        assert_eq!((table.len(), table.get(&0), table.get(&999)), (10, Some(&0), Some(&999)));
        // Put in again it is the youngest, and takes no other's place.
        assert_eq!(table.insert(1, 0, 7), None);
        assert_eq!((table.len(), table.get(&0)), (10, Some(&7)));
        for key in 3..6 {
            table.insert(1, key, key);
        }
        assert_eq!(table.insert(1, 6, 6), Some(2), "of its own, with its share in use");
        assert_eq!(table.remove(&0), Some(7));
        assert_eq!((table.remove(&0), table.len(), table.is_empty()), (None, 9, false));
    }

    #[test]
    fn what_leaves_by_itself_is_not_held_any_more() {
        let mut shares = Shares::default();
        fill(&mut shares, 10, &[1], 10);
        shares.remove(1, &shares.oldest(1).unwrap());
        shares.remove(1, &u64::MAX);
        shares.remove(2, &0);
        assert_eq!((shares.all, shares.count(1)), (9, 9));
    }

    #[test]
    fn losses_are_told_by_name_and_by_what_is_new() {
        let mut lost = Losses::new(9);
        for (holder, n) in [(1, 5), (2, 7), (3, 1), (4, 2), (5, 30)] {
            lost.add(holder, n);
        }
        let name = |holder| (holder < 5).then(|| Arc::from(format!("/{holder}")));
        let mut all = LossesByName::default();
        assert!(all.is_empty() && all.to_string().is_empty());
        all.add("events", &lost, name);
        let before = all.clone();
        assert_eq!(all.to_string(), "events of other 30, of /2 7, of /1 5");
        all.add("connections", &lost, |_| None);
        all.add("events", &lost, |_| Some(Arc::from("/4")));
        let new = "connections of other 45; events of /4 45";
        assert_eq!(all.since(&before).to_string(), new);
        assert!(all.since(&all).is_empty());
    }

    #[test]
    fn losses_name_as_many_as_there_is_room_for_and_count_all() {
        let mut losses = Losses::new(2);
        for (holder, n) in [(5, 1), (0, 2), (6, 3), (7, 4), (5, 5), (8, 6)] {
            losses.add(holder, n);
        }
        let mut all: Vec<_> = losses.iter().collect();
        all.sort_unstable();
        assert_eq!(all, [(0, 12), (5, 6), (6, 3)]);
    }
}
