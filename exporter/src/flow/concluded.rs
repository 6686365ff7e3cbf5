//! Connections that were reported: a late event of one must not make a second connection of it.

use std::collections::HashSet;

use foldhash::fast::RandomState;

use super::kept::KeptConcluded;

/// Connections remembered at least; twice as many at most.
const REMEMBERED: usize = 65_536;

/// Cookies in two generations. The older one is forgotten as a whole once the younger one is full: nothing is
/// moved or unlinked with each connection.
#[derive(Debug)]
pub(super) struct Concluded {
    young: Generation,
    old: Generation,
    /// When the newest of those that were forgotten was reported.
    forgotten_ns: u64,
}

#[derive(Debug, Default)]
struct Generation {
    cookies: HashSet<u64, RandomState>,
    newest_ns: u64,
}

impl Concluded {
    pub(super) fn new() -> Self {
        Self { young: Generation::default(), old: Generation::default(), forgotten_ns: 0 }
    }

    /// Remembers one that is reported at `now_ns`.
    pub(super) fn insert(&mut self, cookie: u64, now_ns: u64) {
        if self.young.cookies.len() >= REMEMBERED {
            self.forgotten_ns = self.forgotten_ns.max(self.old.newest_ns);
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.cookies.clear();
            self.young.newest_ns = 0;
        }
        self.young.cookies.insert(cookie);
        self.young.newest_ns = self.young.newest_ns.max(now_ns);
    }

    /// Hands over all that is remembered.
    pub(super) fn hand_over(&mut self) -> KeptConcluded {
        let all = |g: &mut Generation| (g.cookies.drain().collect(), g.newest_ns);
        KeptConcluded {
            generations: [all(&mut self.young), all(&mut self.old)],
            forgotten_ns: self.forgotten_ns,
        }
    }

    /// Takes it in again.
    pub(super) fn take_in(&mut self, kept: KeptConcluded) {
        let KeptConcluded { generations: [young, old], forgotten_ns } = kept;
        let all = |(cookies, newest_ns): (Vec<u64>, u64)| Generation {
            cookies: cookies.into_iter().collect(),
            newest_ns,
        };
        *self = Self { young: all(young), old: all(old), forgotten_ns };
    }

    pub(super) fn contains(&self, cookie: u64) -> bool {
        self.young.cookies.contains(&cookie) || self.old.cookies.contains(&cookie)
    }

    /// The same socket has another connection.
    pub(super) fn remove(&mut self, cookie: u64) {
        // Of few sockets, so it is looked for before anything is changed.
        for generation in [&mut self.young, &mut self.old] {
            generation.cookies.remove(&cookie);
        }
    }

    /// When the newest of those that were forgotten again was reported, or 0.
    pub(super) const fn forgotten_ns(&self) -> u64 {
        self.forgotten_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: u64 = REMEMBERED as u64;

    #[test]
    fn the_last_ones_are_remembered_and_what_is_forgotten_is_dated() {
        let mut concluded = Concluded::new();
        for cookie in 0..2 * N {
            concluded.insert(cookie, 10 * cookie);
        }
        assert!((0..2 * N).all(|cookie| concluded.contains(cookie)));
        assert_eq!(concluded.forgotten_ns(), 0);
        concluded.insert(2 * N, 20 * N);
        assert!(!(0..N).any(|cookie| concluded.contains(cookie)));
        assert!((N..=2 * N).all(|cookie| concluded.contains(cookie)));
        assert_eq!(concluded.forgotten_ns(), 10 * (N - 1));
    }

    #[test]
    fn a_socket_that_connects_again_is_no_longer_one_of_them() {
        let mut concluded = Concluded::new();
        concluded.insert(1, 1);
        for cookie in 2..N + 2 {
            concluded.insert(cookie, cookie);
        }
        for cookie in [1, N + 1] {
            assert!(concluded.contains(cookie));
            concluded.remove(cookie);
            assert!(!concluded.contains(cookie));
        }
    }
}
