//! cgroup targets: patterns of the configuration, and the folders that they mean at the moment.
//!
//! Programs attached to a cgroup see every cgroup below it, so the search stops at a folder that
//! matches: nested and overlapping targets are attached once, and a record is made once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

use crate::cgroup;

/// One entry of `targets`.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

/// A folder name of a pattern.
#[derive(Clone, Debug)]
enum Part {
    /// Just this name.
    Name(String),
    /// A name with `*`, `?` or `[...]`.
    Glob(GlobMatcher),
    /// `**`: any number of folders; at the end of a pattern, at least one.
    AnyDepth,
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
            return Err("\"\" is no cgroup; use \"/\" for the whole machine".into());
        }
        let is_unit = !text.contains('/')
            && [".service", ".scope", ".slice"].iter().any(|suffix| text.ends_with(suffix));
        let mut parts = Vec::new();
        if is_unit {
            parts.push(Part::AnyDepth);
        }
        for name in text.split('/').filter(|name| !name.is_empty()) {
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

    #[test]
    fn what_a_pattern_resolves_to_it_covers() {
        let root = tree(&["a/b/c.service", "a/d", "e/b"]);
        for text in ["/", "a", "a/**", "**/b", "c.service", "*/b", "a/b/c.service", "nothing"] {
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
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
