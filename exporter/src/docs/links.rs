//! Every link from one page of the repository to another one leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::repository;

/// What is not ours: dependencies, and what a build leaves behind.
const SKIPPED: [&str; 2] = ["target", "node_modules"];

/// The headings' anchors and the links of a page.
#[derive(Default)]
struct Page {
    anchors: BTreeSet<String>,
    links: Vec<String>,
}

impl Page {
    fn of(text: &str) -> Self {
        let mut page = Self::default();
        let mut times = BTreeMap::<String, usize>::new();
        let mut heading: Option<String> = None;
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(part) | Event::Code(part) => {
                    heading.as_mut().into_iter().for_each(|heading| heading.push_str(&part));
                }
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    let before = times.entry(anchor.clone()).or_default();
                    page.anchors.insert(match *before {
                        0 => anchor,
                        n => format!("{anchor}-{n}"),
                    });
                    *before += 1;
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                _ => {}
            }
        }
        page
    }
}

/// The anchor that GitHub, and most who show Markdown, give a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// What is wrong with a link of the page at `path`.
fn problem(path: &Path, link: &str, pages: &BTreeMap<PathBuf, Page>) -> Option<String> {
    let is_elsewhere = link.contains("://") || link.starts_with("mailto:");
    if is_elsewhere {
        return None;
    }
    let (file, anchor) = match link.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (link, None),
    };
    let target = match file {
        "" => path.to_path_buf(),
        file => path.parent().expect("a file is in a folder").join(file),
    };
    let Ok(target) = target.canonicalize() else { return Some(format!("no file {file}")) };
    let anchor = anchor?;
    match pages.get(&target) {
        Some(page) if page.anchors.contains(anchor) => None,
        Some(page) => Some(format!("no heading #{anchor}; there are {:?}", page.anchors)),
        None => Some("an anchor in what is no page".into()),
    }
}

/// Markdown files, below hidden folders too where they are ours (.ci).
fn find(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let is_skipped = name == ".git" || SKIPPED.iter().any(|skipped| name == *skipped);
        if entry.file_type().unwrap().is_dir() && !is_skipped {
            find(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut paths = Vec::new();
    find(&repository().canonicalize().unwrap(), &mut paths);
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path, Page::of(&text))
    };
    let pages: BTreeMap<_, _> = paths.into_iter().map(read).collect();
    let mut problems = Vec::new();
    for (path, page) in &pages {
        for link in &page.links {
            problems.extend(
                problem(path, link, &pages)
                    .map(|problem| format!("{}: link {link}: {problem}", path.display())),
            );
        }
    }
    assert!(pages.values().map(|page| page.links.len()).sum::<usize>() > 20, "no links found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn the_list_of_pages_has_each_page() {
    let docs = repository().join("docs");
    let list = Page::of(&super::page("README.md")).links;
    let mut pages = Vec::new();
    find(&docs, &mut pages);
    let mut names: Vec<_> = pages
        .iter()
        .map(|page| page.strip_prefix(&docs).unwrap().display().to_string())
        .filter(|name| name != "README.md")
        .collect();
    let mut listed = list.clone();
    names.sort();
    listed.sort();
    assert_eq!(listed, names, "docs/README.md (left), the pages (right)");
}

#[test]
fn wrong_links_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        (path, Page::of(text))
    };
    let other = write("other.md", "# One `two.three`, four\n\n## Twice\n\n## Twice\n");
    let (path, page) = write("page.md", "# Here\n\n[a](other.md)\n");
    write("file.txt", "");
    assert_eq!(page.links, ["other.md"]);
    let pages = BTreeMap::from([other, (path.clone(), page)]);
    for good in [
        "other.md",
        "other.md#one-twothree-four",
        "other.md#twice-1",
        "#here",
        "./file.txt",
        "https://example.com/x#y",
    ] {
        assert_eq!(problem(&path, good, &pages), None, "{good}");
    }
    for bad in ["others.md", "other.md#two", "#one", "file.txt#here", "other.md#twice-2"] {
        assert!(problem(&path, bad, &pages).is_some(), "{bad}");
    }
}
