//! Where the programs for DNS alone are attached: the cgroups of resolvers, as far as no target covers them.
//!
//! Programs of a cgroup see all below it, and those of a target read DNS, too. So that no message is seen
//! twice, a resolver's cgroup inside a target is left out, and one with a target inside is divided: into
//! the largest folders below it that hold none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::cgroup;
use crate::targets::{Pattern, Resolution, resolve};

/// What the patterns of resolvers mean beside the targets.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Folders to attach to and to watch, and what matches nothing yet.
    pub(super) found: Resolution,
    /// Folders that were divided: what their own processes look up is not seen.
    pub(super) divided: Vec<PathBuf>,
}

/// Resolves the patterns below the cgroup2 mount; `targets` are the folders that targets are attached to.
pub(super) fn beside(
    mount: &Path,
    patterns: &[Pattern],
    targets: &BTreeMap<u64, PathBuf>,
) -> Beside {
    let mut found = resolve(mount, patterns);
    let whole = std::mem::take(&mut found.attach);
    let mut beside = Beside { found, divided: Vec::new() };
    let targets: BTreeSet<&Path> = targets.values().map(PathBuf::as_path).collect();
    for (id, folder) in whole {
        divide(id, folder, &targets, &mut beside);
    }
    beside
}

fn divide(id: u64, folder: PathBuf, targets: &BTreeSet<&Path>, beside: &mut Beside) {
    if folder.ancestors().any(|above| targets.contains(above)) {
        return;
    }
    // Paths are ordered name by name: what is inside a folder follows it.
    let next = targets.range(folder.as_path()..).next();
    if !next.is_some_and(|target| target.starts_with(&folder)) {
        beside.found.attach.insert(id, folder);
        return;
    }
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let child = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir())
            && let Ok(id) = cgroup::id_of(&child)
        {
            divide(id, child, targets, beside);
        }
    }
    // A child that appears is attached to, too.
    beside.found.watch.push(folder.clone());
    beside.divided.push(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(targets: &[&str], resolvers: &[&str], attach: &[&str], divided: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        for folder in ["system/dns/cache", "system/web/a", "system/web/b", "pods/x", "system.slice"]
        {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        let parse =
            |p: &[&str]| p.iter().map(|p| Pattern::parse(p).unwrap()).collect::<Vec<Pattern>>();
        let covered = resolve(root.path(), &parse(targets)).attach;
        let beside = beside(root.path(), &parse(resolvers), &covered);
        let names = |folders: Vec<&PathBuf>| {
            let mut names: Vec<_> =
                folders.iter().map(|f| cgroup::relative(root.path(), f)).collect();
            names.sort();
            names
        };
        assert_eq!(
            names(beside.found.attach.values().collect()),
            attach,
            "{targets:?} {resolvers:?}"
        );
        assert_eq!(names(beside.divided.iter().collect()), divided, "{targets:?} {resolvers:?}");
        assert!(
            beside.divided.iter().all(|folder| beside.found.watch.contains(folder)),
            "a divided folder is watched"
        );
    }

    #[test]
    fn no_cgroup_is_covered_twice() {
        check(&["pods"], &["system/dns"], &["/system/dns"], &[]);
        check(&["pods"], &["system", "system/dns"], &["/system"], &[]);
        check(&["/"], &["system/dns"], &[], &[]);
        check(&["system"], &["system/dns", "system"], &[], &[]);
        check(&["system/dns"], &["system/dns"], &[], &[]);
        check(&["system/web"], &["system"], &["/system/dns"], &["/system"]);
        check(
            &["system/web/a"],
            &["/"],
            &["/pods", "/system.slice", "/system/dns", "/system/web/b"],
            &["/", "/system", "/system/web"],
        );
        check(&["pods"], &["system/none"], &[], &[]);
        // A name that only begins alike is no folder above.
        check(&["system.slice"], &["system"], &["/system"], &[]);
    }
}
