//! Whom a name serves: the scope that a cgroup's lookups teach, and the scopes that name its connections.
//!
//! Three kinds of scope share one number space and never meet: a cgroup by its id, a target by the id of
//! the folder attached to, a resolver by its entry in the configuration. No I/O: paths are given.

use std::hash::Hasher as _;
use std::sync::Arc;

use hashlink::LruCache;
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;

use super::Scope;
use crate::config::{ResolverCgroup, ScopeKind};

/// Cgroups remembered at most.
const MAX_CGROUPS: usize = 65_536;

/// Scopes of one cgroup: that which its lookups teach first.
pub type CgroupScopes = SmallVec<[Scope; 2]>;

/// What a scope's number stands for, in its upper bits. A cgroup's id has none of them: the kernel counts
/// the upper half up only when the lower half has been through all its values (fs/kernfs/dir.c,
/// `__kernfs_new_node`).
#[derive(Clone, Copy)]
enum Tag {
    Cgroup = 0,
    Target = 1,
    Resolver = 2,
    Host = 3,
}

const TAG_SHIFT: u32 = 62;

const fn tagged(tag: Tag, value: u64) -> Scope {
    Scope((tag as u64) << TAG_SHIFT | (value & !(u64::MAX << TAG_SHIFT)))
}

/// Finds the scopes of cgroups. Bounded.
#[derive(Debug)]
pub struct Scopes {
    kind: ScopeKind,
    resolvers: Vec<Resolver>,
    /// The folders attached to: id and path.
    targets: Vec<(u64, Arc<str>)>,
    known: LruCache<u64, CgroupScopes>,
    unplaced: u64,
}

/// A resolver and its scope.
#[derive(Debug)]
struct Resolver {
    cgroup: ResolverCgroup,
    scope: Scope,
}

impl Resolver {
    /// All cgroups of one entry share a scope, which is the same after the resolver was started again, and
    /// in a file that outlives flowend: it follows from what the entry says, and from nothing else.
    fn new(cgroup: ResolverCgroup) -> Self {
        let mut hasher = SipHasher13::new();
        let texts = std::iter::once(&cgroup.resolver).chain(&cgroup.serves);
        for text in texts.map(|pattern| pattern.as_str()) {
            hasher.write(text.as_bytes());
            hasher.write_u8(0);
        }
        Self { scope: tagged(Tag::Resolver, hasher.finish()), cgroup }
    }

    fn is(&self, path: &str) -> bool {
        self.cgroup.resolver.covers(path)
    }

    fn serves(&self, path: &str) -> bool {
        self.cgroup.serves.iter().any(|pattern| pattern.covers(path))
    }
}

impl Scopes {
    /// Everybody who is watched.
    pub const HOST: Scope = tagged(Tag::Host, 0);

    /// Of a scope kind, and of resolvers; of two that mean the same cgroup, the first one counts.
    pub fn new(kind: ScopeKind, resolvers: Vec<ResolverCgroup>) -> Self {
        Self {
            kind,
            resolvers: resolvers.into_iter().map(Resolver::new).collect(),
            targets: Vec::new(),
            known: LruCache::new(MAX_CGROUPS),
            unplaced: 0,
        }
    }

    /// Says which folders are attached to: cgroup id and path below the mount. What is known of cgroups that
    /// were placed before stays: their folders may be gone before their last connection is.
    pub fn attached(&mut self, targets: Vec<(u64, Arc<str>)>) {
        self.targets = targets;
    }

    /// The scope that a lookup of this cgroup teaches: of a resolver its own, else that of the cgroup's kind.
    /// `path` is only asked for where it matters, and where this cgroup was not seen before.
    pub fn learn(&mut self, cgroup_id: u64, path: impl FnOnce() -> Option<Arc<str>>) -> Scope {
        let (scopes, placed) = self.of(cgroup_id, path);
        self.unplaced += u64::from(!placed);
        scopes.first().copied().unwrap_or(tagged(Tag::Cgroup, cgroup_id))
    }

    /// The scopes whose names are told of this cgroup's connections: that which it teaches first, then those
    /// of the resolvers that serve it. Of a cgroup that is not known, 0, there is at most the host's.
    pub fn serves(
        &mut self,
        cgroup_id: u64,
        path: impl FnOnce() -> Option<Arc<str>>,
    ) -> CgroupScopes {
        self.of(cgroup_id, path).0
    }

    /// Messages of cgroups that could not be placed: nothing said where their folder is. What they taught is
    /// for themselves alone.
    pub const fn unplaced(&self) -> u64 {
        self.unplaced
    }

    /// The scopes of a cgroup, and whether it could be placed.
    fn of(
        &mut self,
        cgroup_id: u64,
        path: impl FnOnce() -> Option<Arc<str>>,
    ) -> (CgroupScopes, bool) {
        if cgroup_id == 0 {
            let host = (self.kind == ScopeKind::Host).then_some(Self::HOST);
            return (host.into_iter().collect(), host.is_some());
        }
        if self.resolvers.is_empty() {
            // Nothing to find out; the most common case.
            match self.kind {
                ScopeKind::Cgroup => return (own(cgroup_id), true),
                ScopeKind::Host => return (std::iter::once(Self::HOST).collect(), true),
                ScopeKind::Target => {}
            }
        }
        if let Some(known) = self.known.get(&cgroup_id) {
            return (known.clone(), true);
        }
        let placed = path().and_then(|path| self.place(cgroup_id, &path));
        match placed {
            Some(scopes) => {
                self.known.insert(cgroup_id, scopes.clone());
                (scopes, true)
            }
            // Not remembered: its path may become known.
            None if self.kind == ScopeKind::Host => (std::iter::once(Self::HOST).collect(), false),
            None => (own(cgroup_id), false),
        }
    }

    /// `None` where the path is below no target.
    fn place(&self, cgroup_id: u64, path: &str) -> Option<CgroupScopes> {
        let of_kind = match self.kind {
            ScopeKind::Cgroup => Some(tagged(Tag::Cgroup, cgroup_id)),
            ScopeKind::Target => self.target_of(path),
            ScopeKind::Host => Some(Scopes::HOST),
        };
        let itself = self.resolvers.iter().find(|resolver| resolver.is(path));
        let mut scopes: CgroupScopes = match (itself, of_kind) {
            // Its lookups teach the resolver's scope, so nothing is ever in one of its own cgroup.
            (Some(resolver), Some(scope)) if self.kind != ScopeKind::Cgroup => {
                [resolver.scope, scope].into_iter().collect()
            }
            (Some(resolver), _) => std::iter::once(resolver.scope).collect(),
            (None, scope) => std::iter::once(scope?).collect(),
        };
        for resolver in self.resolvers.iter().filter(|resolver| resolver.serves(path)) {
            if !scopes.contains(&resolver.scope) {
                scopes.push(resolver.scope);
            }
        }
        Some(scopes)
    }

    fn target_of(&self, path: &str) -> Option<Scope> {
        let is_below = |target: &str| {
            let rest = path.strip_prefix(target.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let (id, _) = self.targets.iter().find(|(_, target)| is_below(target))?;
        Some(tagged(Tag::Target, *id))
    }
}

fn own(cgroup_id: u64) -> CgroupScopes {
    std::iter::once(tagged(Tag::Cgroup, cgroup_id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Pattern;

    fn resolver(cgroup: &str, serves: &[&str]) -> ResolverCgroup {
        let parse = |text: &str| Pattern::parse(text).unwrap();
        ResolverCgroup {
            resolver: parse(cgroup),
            serves: serves.iter().map(|text| parse(text)).collect(),
        }
    }

    /// A cgroup id for each path, so that a test need not count.
    const TREE: [(u64, &str); 7] = [
        (1, "/"),
        (10, "/apps"),
        (11, "/apps/web"),
        (12, "/apps/db"),
        (20, "/system/resolved.service"),
        (21, "/system/resolved.service/worker"),
        (30, "/else"),
    ];

    fn path(id: u64) -> impl FnOnce() -> Option<Arc<str>> {
        move || TREE.iter().find(|(known, _)| *known == id).map(|(_, path)| Arc::from(*path))
    }

    /// Whether what `teacher` looked up names the connections of `other`.
    fn teaches(scopes: &mut Scopes, teacher: u64, other: u64) -> bool {
        let taught = scopes.learn(teacher, path(teacher));
        scopes.serves(other, path(other)).contains(&taught)
    }

    #[test]
    fn whom_a_name_serves() {
        let resolved = || vec![resolver("resolved.service", &["apps"])];
        let targets = [(10, "/apps"), (30, "/else")];
        #[rustfmt::skip]
        let cases = [
            // kind, resolvers, teacher, served, not served
            (ScopeKind::Cgroup, vec![], 11, vec![11], vec![10, 12, 1, 30, 0]),
            (ScopeKind::Target, vec![], 11, vec![11, 10, 12], vec![30, 20, 1, 0]),
            (ScopeKind::Host, vec![], 11, vec![11, 12, 20, 30, 99, 0], vec![]),
            (ScopeKind::Cgroup, resolved(), 11, vec![11], vec![10, 12, 20, 30]),
            (ScopeKind::Cgroup, resolved(), 20, vec![10, 11, 12, 20, 21], vec![30, 1, 0]),
            (ScopeKind::Target, resolved(), 21, vec![10, 11, 12, 20, 21], vec![30, 1, 0]),
            (ScopeKind::Host, resolved(), 20, vec![10, 11, 12, 20], vec![30, 1, 0]),
            (ScopeKind::Host, resolved(), 11, vec![11, 20, 30], vec![]),
        ];
        for (kind, resolvers, teacher, served, others) in cases {
            let text = format!("{kind:?} {} resolvers, {teacher}", resolvers.len());
            let mut scopes = Scopes::new(kind, resolvers);
            scopes.attached(targets.iter().map(|(id, path)| (*id, Arc::from(*path))).collect());
            for (ids, want) in [(served, true), (others, false)] {
                for id in ids {
                    assert_eq!(teaches(&mut scopes, teacher, id), want, "{text} -> {id}");
                }
            }
        }
    }

    #[test]
    fn the_own_scope_comes_first() {
        let resolvers = vec![resolver("/system/resolved.service", &["/"])];
        let mut scopes = Scopes::new(ScopeKind::Cgroup, resolvers);
        let of_resolver = scopes.learn(20, path(20));
        let own = scopes.learn(11, path(11));
        assert_ne!(own, of_resolver);
        assert_eq!(scopes.serves(11, path(11)).as_slice(), [own, of_resolver]);
        assert_eq!(scopes.serves(20, path(20)).as_slice(), [of_resolver]);
    }

    #[test]
    fn a_resolvers_scope_follows_from_what_its_entry_says() {
        let scope = |entries: &[(&str, &[&str])]| {
            let resolvers = entries.iter().map(|(cgroup, serves)| resolver(cgroup, serves));
            Scopes::new(ScopeKind::Cgroup, resolvers.collect()).learn(20, path(20))
        };
        let one = scope(&[("resolved.service", &["apps"])]);
        assert_eq!(one, scope(&[("nscd", &["apps"]), ("resolved.service", &["apps"])]));
        assert_ne!(one, scope(&[("resolved.service", &["apps", "else"])]), "it serves others");
        assert_ne!(one, scope(&[("resolved.service", &["appselse"])]));
    }

    #[test]
    fn scopes_of_different_kinds_never_meet() {
        let mut all = vec![Scopes::HOST];
        for id in [0, 1, 77, u64::MAX >> 2] {
            for tag in [Tag::Cgroup, Tag::Target, Tag::Resolver] {
                all.push(tagged(tag, id));
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(tagged(Tag::Cgroup, 77), Scope(77));
    }

    #[test]
    fn a_cgroup_that_cannot_be_placed_teaches_itself_alone_and_is_counted() {
        let mut scopes = Scopes::new(ScopeKind::Target, Vec::new());
        // Not below a target yet, and without a path.
        assert!(teaches(&mut scopes, 11, 11) && teaches(&mut scopes, 99, 99));
        assert!(!teaches(&mut scopes, 11, 12) && !teaches(&mut scopes, 99, 11));
        assert_eq!(scopes.unplaced(), 4);
        scopes.attached(vec![(10, "/apps".into())]);
        assert!(teaches(&mut scopes, 11, 12));
        assert_eq!(scopes.unplaced(), 4);
        // Its folder is gone: it stays where it was.
        scopes.attached(Vec::new());
        assert!(teaches(&mut scopes, 11, 12));
    }

    #[test]
    fn the_path_is_asked_for_once() {
        let resolvers = vec![resolver("resolved.service", &["/"])];
        let mut scopes = Scopes::new(ScopeKind::Cgroup, resolvers);
        let first = scopes.serves(11, path(11));
        assert_eq!(scopes.serves(11, || panic!("asked again")), first);
        for id in 100..100 + MAX_CGROUPS as u64 {
            scopes.serves(id, || Some("/many".into()));
        }
        assert_eq!(scopes.known.len(), MAX_CGROUPS, "bounded");
    }
}
