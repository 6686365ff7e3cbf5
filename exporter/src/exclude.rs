//! Cgroups whose connections are left out though a target covers them.

use std::sync::Arc;

use hashlink::LruCache;

use crate::targets::Pattern;

/// Cgroups remembered at most.
const MAX_CGROUPS: usize = 65_536;

/// Tells the excluded cgroups from the others: once for each, and not for each of its connections.
#[derive(Debug)]
pub struct Excluded {
    patterns: Vec<Pattern>,
    known: LruCache<u64, bool>,
}

impl Excluded {
    /// These, each with everything below it.
    pub fn new(patterns: Vec<Pattern>) -> Self {
        Self { patterns, known: LruCache::new(MAX_CGROUPS) }
    }

    /// Whether a connection of this cgroup is left out. `path` is only asked for where it matters, and where this
    /// cgroup was not seen before. One that nobody knows the path of is reported: it may be any.
    pub fn covers(
        &mut self,
        cgroup_id: Option<u64>,
        path: impl FnOnce(u64) -> Option<Arc<str>>,
    ) -> bool {
        let Some(id) = cgroup_id.filter(|_| !self.patterns.is_empty()) else { return false };
        if let Some(known) = self.known.get(&id) {
            return *known;
        }
        // Not remembered without a path: it may become known.
        let Some(path) = path(id) else { return false };
        let is_covered = self.patterns.iter().any(|pattern| pattern.covers(&path));
        self.known.insert(id, is_covered);
        is_covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(patterns: &[&str]) -> Excluded {
        Excluded::new(patterns.iter().map(|text| Pattern::parse(text).unwrap()).collect())
    }

    #[test]
    fn a_cgroup_is_judged_by_its_path_and_once() {
        let mut excluded = excluded(&["a/b", "x.service"]);
        for (id, path, want) in [
            (1, "/a", false),
            (2, "/a/b", true),
            (3, "/a/b/c", true),
            (4, "/s/x.service", true),
            (5, "/", false),
        ] {
            assert_eq!(excluded.covers(Some(id), |_| Some(path.into())), want, "{path}");
            let again = excluded.covers(Some(id), |_| panic!("asked for {path} twice"));
            assert_eq!(again, want, "{path}");
        }
    }

    #[test]
    fn what_is_not_known_is_reported_until_it_is() {
        let mut some = excluded(&["/"]);
        assert!(!some.covers(None, |_| Some("/".into())));
        assert!(!some.covers(Some(1), |_| None));
        assert!(some.covers(Some(1), |_| Some("/a".into())));
        assert!(!excluded(&[]).covers(Some(1), |_| panic!("nothing is excluded")));
    }
}
