//! cgroup targets: patterns of the configuration, and the folders that they mean at the moment.
//!
//! Programs attached to a cgroup see every cgroup below it, so the search stops at a folder that
//! matches: nested and overlapping targets are attached once, and a record is made once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::cgroup;

/// Which cgroups are watched, as the configuration says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Each with everything below it.
    pub targets: Vec<Pattern>,
    /// Cgroups, each with everything below it, that no record is made of though a target covers them.
    pub exclude: Vec<Pattern>,
}

impl Watched {
    /// Whether no record is made of the cgroup at `path`, relative to the mount.
    pub fn excludes(&self, path: &str) -> bool {
        self.exclude.iter().any(|pattern| pattern.covers(path))
    }

    /// Resolves the targets below the cgroup2 mount, without those that are excluded as a whole: these come
    /// apart, as paths relative to the mount.
    pub fn resolve(&self, mount: &Path) -> (Resolution, Vec<String>) {
        let mut resolution = resolve(mount, &self.targets);
        let mut excluded = Vec::new();
        if !self.exclude.is_empty() {
            resolution.attach.retain(|_, folder| {
                let path = cgroup::relative(mount, folder);
                let is_excluded = self.excludes(&path);
                if is_excluded {
                    excluded.push(path);
                }
                !is_excluded
            });
        }
        (resolution, excluded)
    }
}

/// What a pattern of a pod begins with.
const POD: &str = "pod:";

/// One entry of `targets`.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

/// A folder name of a pattern.
#[derive(Clone, Debug)]
enum Part {
    /// Just this name.
    Name(String),
    /// A name with `*`, `?` or `[...]`.
    Glob(GlobMatcher),
    /// `**`: any number of folders; at the end of a pattern, at least one.
    AnyDepth,
    /// The folder of the Kubernetes pod with this UID.
    Pod(String),
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Pattern {
    /// Parses one target.
    ///
    /// # Errors
    /// What is wrong with it, as text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("\"\" is no cgroup; \"/\" is the whole machine".into());
        }
        let (uid, rest) = match text.strip_prefix(POD) {
            Some(pod) => {
                let (uid, below) = pod.split_once('/').unwrap_or((pod, ""));
                (Some(parse_uid(text, uid)?), below)
            }
            None => (None, text),
        };
        let is_unit = !text.contains('/')
            && [".service", ".scope", ".slice"].iter().any(|suffix| text.ends_with(suffix));
        let mut parts = Vec::new();
        if is_unit || uid.is_some() {
            parts.push(Part::AnyDepth);
        }
        parts.extend(uid.map(Part::Pod));
        for name in rest.split('/').filter(|name| !name.is_empty()) {
            parts.push(match name {
                "." | ".." => return Err(format!("\"{text}\" must not hold \"{name}\"")),
                "**" => Part::AnyDepth,
                _ if name.contains(['*', '?', '[', '{']) => Part::Glob(
                    GlobBuilder::new(name)
                        .literal_separator(true)
                        .build()
                        .map_err(|error| format!("\"{text}\": {}", error.kind()))?
                        .compile_matcher(),
                ),
                _ => Part::Name(name.to_owned()),
            });
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the cgroup at `path` (relative to the mount, "/" for the root), or a folder above it, is one
    /// that the pattern means. The folders need not exist.
    pub fn covers(&self, path: &str) -> bool {
        let patterns = std::slice::from_ref(self);
        let is_whole = |states: &[State]| states.iter().any(|s| s.at == self.parts.len());
        let mut states = vec![State { pattern: 0, at: 0 }];
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if is_whole(&states) {
                return true;
            }
            let mut open = Vec::new();
            for state in &states {
                close_over(*state, patterns, &mut open);
            }
            states = open.iter().filter_map(|state| step(*state, name, patterns)).collect();
        }
        is_whole(&states)
    }
}

/// The UID in the pattern `text`, as the names of folders have it.
fn parse_uid(text: &str, uid: &str) -> Result<String, String> {
    let remedy = "in Kubernetes give the container a variable POD_UID with fieldRef metadata.uid, and write \
                  \"pod:$(POD_UID)\" in the value of a variable after it";
    if uid.is_empty() {
        return Err(format!("\"{text}\" lacks the UID of the pod; {remedy}"));
    }
    if uid.contains('$') {
        return Err(format!("\"{text}\": nobody has put the value of {uid} in; {remedy}"));
    }
    let uid = uid.to_ascii_lowercase();
    if !cgroup::is_pod_uid(&uid) {
        return Err(format!(
            "\"{text}\": \"{uid}\" is no UID of a pod, which has 32 hexadecimal digits, like \
             0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
        ));
    }
    Ok(uid)
}

/// What the patterns mean at the moment.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Folders to attach to, by cgroup id.
    pub attach: BTreeMap<u64, PathBuf>,
    /// Folders in which one of these may appear or vanish.
    pub watch: Vec<PathBuf>,
    /// Patterns that match nothing yet.
    pub unmatched: Vec<String>,
}

/// Resolves the patterns below the cgroup2 mount.
pub fn resolve(mount: &Path, patterns: &[Pattern]) -> Resolution {
    let mut resolution = Resolution::default();
    let mut matched = vec![false; patterns.len()];
    let start: Vec<State> = (0..patterns.len()).map(|pattern| State { pattern, at: 0 }).collect();
    visit(mount, &start, patterns, &mut matched, &mut resolution);
    resolution.unmatched = patterns
        .iter()
        .zip(&matched)
        .filter(|(_, matched)| !**matched)
        .map(|(pattern, _)| pattern.text.clone())
        .collect();
    resolution
}

/// How far into which pattern the path to a folder has come.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    pattern: usize,
    at: usize,
}

fn visit(
    folder: &Path,
    states: &[State],
    patterns: &[Pattern],
    matched: &mut [bool],
    resolution: &mut Resolution,
) {
    let mut hit = false;
    for state in states {
        if patterns[state.pattern].parts.len() == state.at {
            matched[state.pattern] = true;
            hit = true;
        }
    }
    if hit {
        if let Ok(id) = cgroup::id_of(folder) {
            resolution.attach.insert(id, folder.to_owned());
        }
        // Patterns that would match below are covered by this attachment, if they match at all.
        for state in states.iter().filter(|s| patterns[s.pattern].parts.len() > s.at) {
            if !matched[state.pattern] && matches_below(folder, *state, patterns) {
                matched[state.pattern] = true;
            }
        }
        return;
    }
    resolution.watch.push(folder.to_owned());
    for (child, next) in children(folder, states, patterns) {
        visit(&child, &next, patterns, matched, resolution);
    }
}

fn matches_below(folder: &Path, state: State, patterns: &[Pattern]) -> bool {
    if patterns[state.pattern].parts.len() == state.at {
        return true;
    }
    children(folder, &[state], patterns)
        .into_iter()
        .any(|(child, next)| next.iter().any(|s| matches_below(&child, *s, patterns)))
}

/// The folders below `folder` that some pattern goes on into.
fn children(folder: &Path, states: &[State], patterns: &[Pattern]) -> Vec<(PathBuf, Vec<State>)> {
    let mut open = Vec::new();
    for state in states {
        close_over(*state, patterns, &mut open);
    }
    let only_names = open
        .iter()
        .all(|s| matches!(patterns[s.pattern].parts.get(s.at), Some(Part::Name(_)) | None));
    let mut names: Vec<String> = if only_names {
        // No need to list a folder of thousands for one name.
        open.iter()
            .filter_map(|s| match patterns[s.pattern].parts.get(s.at) {
                Some(Part::Name(name)) if folder.join(name).is_dir() => Some(name.clone()),
                _ => None,
            })
            .collect()
    } else {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| {
            let next: Vec<State> = open.iter().filter_map(|s| step(*s, &name, patterns)).collect();
            (!next.is_empty()).then(|| (folder.join(name), next))
        })
        .collect()
}

/// `**` may stand for no folder at all, except at the end of a pattern.
fn close_over(state: State, patterns: &[Pattern], open: &mut Vec<State>) {
    if open.contains(&state) {
        return;
    }
    open.push(state);
    let parts = &patterns[state.pattern].parts;
    if matches!(parts.get(state.at), Some(Part::AnyDepth)) && state.at + 1 < parts.len() {
        close_over(State { at: state.at + 1, ..state }, patterns, open);
    }
}

fn step(state: State, name: &str, patterns: &[Pattern]) -> Option<State> {
    let parts = &patterns[state.pattern].parts;
    let goes_on = match parts.get(state.at)? {
        Part::Name(want) => want == name,
        Part::Glob(glob) => glob.is_match(name),
        Part::Pod(uid) => cgroup::pod_uid(name).is_some_and(|found| found == *uid),
        Part::AnyDepth if state.at + 1 == parts.len() => true,
        Part::AnyDepth => return Some(state),
    };
    goes_on.then_some(State { at: state.at + 1, ..state })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(folders: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in folders {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        root
    }

    fn attached(root: &Path, patterns: &[&str]) -> (Vec<String>, Vec<String>) {
        let patterns: Vec<_> = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
        let resolution = resolve(root, &patterns);
        let mut paths: Vec<_> =
            resolution.attach.values().map(|p| cgroup::relative(root, p)).collect();
        paths.sort();
        (paths, resolution.unmatched)
    }

    #[test]
    fn patterns_mean_the_topmost_folders_they_match() {
        let root = tree(&[
            "system.slice/nginx.service/sub",
            "system.slice/ssh.service",
            "kubepods.slice/burstable/pod1/c1",
            "kubepods.slice/burstable/pod2/c2",
            "kubepods.slice/besteffort/pod3",
            "user.slice/user-0.slice/app.slice/nginx.service",
        ]);
        let cases: &[(&[&str], &[&str])] = &[
            (&["/"], &["/"]),
            (&["/", "system.slice"], &["/"]),
            (&["system.slice"], &["/system.slice"]),
            (&["/system.slice/"], &["/system.slice"]),
            (
                &["system.slice/*.service"],
                &["/system.slice/nginx.service", "/system.slice/ssh.service"],
            ),
            (&["system.slice", "system.slice/nginx.service"], &["/system.slice"]),
            (
                &["system.slice/nginx.service/sub", "system.slice/nginx.service"],
                &["/system.slice/nginx.service"],
            ),
            (&["kubepods.slice/**"], &["/kubepods.slice/besteffort", "/kubepods.slice/burstable"]),
            (
                &["kubepods.slice/**/pod[12]"],
                &["/kubepods.slice/burstable/pod1", "/kubepods.slice/burstable/pod2"],
            ),
            (
                &["nginx.service"],
                &[
                    "/system.slice/nginx.service",
                    "/user.slice/user-0.slice/app.slice/nginx.service",
                ],
            ),
        ];
        for (patterns, want) in cases {
            let (paths, unmatched) = attached(root.path(), patterns);
            assert_eq!(paths, *want, "{patterns:?}");
            assert!(unmatched.is_empty(), "{patterns:?}: {unmatched:?}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_means_and_everything_below() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            // pattern; covered; not covered
            ("/", &["/", "/a", "/a/b"], &[]),
            ("a/b", &["/a/b", "/a/b/c/d"], &["/", "/a", "/a/bc", "/x/a/b", "/b"]),
            ("/a/", &["/a", "/a/b"], &["/ab"]),
            ("a/*.service", &["/a/x.service", "/a/x.service/sub"], &["/a", "/a/b/x.service"]),
            ("x.service", &["/x.service", "/a/b/x.service/c"], &["/a/y.service", "/"]),
            ("k/**", &["/k/a", "/k/a/b"], &["/k", "/"]),
            ("k/**/pod[12]", &["/k/pod1", "/k/a/b/pod2/c"], &["/k/a/pod3", "/pod1"]),
            ("**/a/**/b", &["/a/b", "/x/a/y/a/z/b/c"], &["/b/a", "/x/a"]),
        ];
        for (pattern, covered, others) in cases {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.as_str(), *pattern);
            for (paths, want) in [(covered, true), (others, false)] {
                for path in *paths {
                    assert_eq!(parsed.covers(path), want, "{pattern} {path}");
                }
            }
        }
    }

    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    const OTHER: &str = "1f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    const HASH: &str = "00112233445566778899aabbccddeeff";

    /// The folder of the pod with this UID, in each way that kubelet may name it.
    fn pod_folders(uid: &str) -> Vec<String> {
        let escaped = uid.replace('-', "_");
        vec![
            format!("kubepods.slice/kubepods-pod{escaped}.slice"),
            format!(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice"
            ),
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
                 kubelet-kubepods-besteffort-pod{escaped}.slice"
            ),
            format!("kubepods/pod{uid}"),
            format!("my/root/kubepods/burstable/pod{uid}"),
        ]
    }

    #[test]
    fn a_pod_is_found_wherever_its_kubelet_puts_it() {
        for uid in [UID, HASH] {
            for (pod, other) in pod_folders(uid).iter().zip(pod_folders(OTHER)) {
                let root = tree(&[&format!("{pod}/one/two"), &format!("{other}/one"), "plain"]);
                let upper = uid.to_ascii_uppercase();
                for (pattern, want) in [
                    (format!("pod:{uid}"), format!("/{pod}")),
                    (format!("pod:{upper}"), format!("/{pod}")),
                    (format!("pod:{uid}/one"), format!("/{pod}/one")),
                    (format!("pod:{uid}/*/t*"), format!("/{pod}/one/two")),
                ] {
                    let (paths, unmatched) = attached(root.path(), &[&pattern]);
                    assert_eq!((paths, unmatched), (vec![want.clone()], vec![]), "{pattern}");
                    let pattern = Pattern::parse(&pattern).unwrap();
                    assert!(pattern.covers(&want) && pattern.covers(&format!("{want}/below")));
                    for outside in ["/", "/plain", &format!("/{other}"), &format!("/{other}/one")] {
                        assert!(!pattern.covers(outside), "{pattern} {outside}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_excluded_as_a_whole_is_not_attached_to() {
        let root = tree(&["a/b/c", "a/d", "e"]);
        let parse = |texts: &[&str]| texts.iter().map(|t| Pattern::parse(t).unwrap()).collect();
        for (targets, exclude, attach, excluded) in [
            (&["a", "e"][..], &[][..], &["/a", "/e"][..], &[][..]),
            (&["a", "e"], &["e"], &["/a"], &["/e"]),
            (&["a/*", "e"], &["a"], &["/e"], &["/a/b", "/a/d"]),
            // What lies inside of a target is left out by whoever reads its events.
            (&["a"], &["a/b"], &["/a"], &[]),
            (&["/"], &["a", "e"], &["/"], &[]),
            (&["a"], &["/"], &[], &["/a"]),
        ] {
            let watched = Watched { targets: parse(targets), exclude: parse(exclude) };
            let (resolution, mut left_out) = watched.resolve(root.path());
            let folders = resolution.attach.values();
            let mut paths: Vec<_> = folders.map(|f| cgroup::relative(root.path(), f)).collect();
            paths.sort();
            left_out.sort();
            assert_eq!(paths, attach, "{targets:?} {exclude:?}");
            assert_eq!(left_out, excluded, "{targets:?} {exclude:?}");
        }
    }

    #[test]
    fn what_a_pattern_resolves_to_it_covers() {
        let pod = pod_folders(UID).remove(0);
        let root = tree(&["a/b/c.service", "a/d", "e/b", &format!("{pod}/b")]);
        let (all, part) = (format!("pod:{UID}"), format!("pod:{UID}/**"));
        let texts = ["/", "a", "a/**", "**/b", "c.service", "*/b", "a/b/c.service", "nothing"];
        for text in texts.into_iter().chain([all.as_str(), part.as_str()]) {
            let pattern = Pattern::parse(text).unwrap();
            let resolved: Vec<_> =
                resolve(root.path(), std::slice::from_ref(&pattern)).attach.into_values().collect();
            cgroup::walk(root.path(), root.path(), &mut |_, path| {
                let folder = root.path().join(&path[1..]);
                let is_below = resolved.iter().any(|attached| folder.starts_with(attached));
                assert_eq!(pattern.covers(path), is_below, "{text} {path}");
            });
        }
    }

    #[test]
    fn what_is_not_there_is_named_and_watched_for() {
        let root = tree(&["a/b"]);
        let patterns: Vec<_> =
            ["a/b/c", "x/y", "a/**"].iter().map(|p| Pattern::parse(p).unwrap()).collect();
        let resolution = resolve(root.path(), &patterns);
        assert_eq!(resolution.unmatched, ["a/b/c", "x/y"]);
        assert_eq!(resolution.watch, [root.path().to_owned(), root.path().join("a")]);
        std::fs::create_dir_all(root.path().join("x/y")).unwrap();
        let resolution = resolve(root.path(), &patterns);
        assert_eq!(resolution.unmatched, ["a/b/c"]);
        assert_eq!(resolution.attach.len(), 2);
    }

    #[test]
    fn a_recreated_folder_has_another_id() {
        let root = tree(&["a"]);
        let patterns = [Pattern::parse("a").unwrap()];
        let before = resolve(root.path(), &patterns);
        // Another folder takes the inode number, so that the new one cannot.
        std::fs::rename(root.path().join("a"), root.path().join("b")).unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        assert_ne!(before.attach, resolve(root.path(), &patterns).attach);
    }

    #[test]
    fn bad_patterns_are_refused_with_the_reason() {
        for (text, words) in [
            ("", "whole machine"),
            ("a/../b", "must not hold"),
            ("a/[", "unclosed character class"),
            ("pod:", "\"pod:\" lacks the UID of the pod; in Kubernetes give"),
            ("pod:/x", "lacks the UID"),
            ("pod:$(POD_UID)", "nobody has put the value of $(POD_UID) in; in Kubernetes give"),
            ("pod:nginx-0", "\"nginx-0\" is no UID of a pod, which has 32 hexadecimal digits"),
            ("pod:00112233445566778899aabbccddeeff/..", "must not hold"),
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
