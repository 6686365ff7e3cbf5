//! Where the cgroup v2 hierarchy is mounted, and how much of it can be seen there.
//!
//! In a container there may be several mounts: its own /sys/fs/cgroup, which in a cgroup namespace of its own
//! (cgroup_namespaces(7)) begins at the container's cgroup and shows nothing but that, and the host's at another path.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;

use super::id_of;

/// The id of the hierarchy's root on every machine (kernel/cgroup/cgroup.c, `cgroup_setup_root`).
const ROOT_ID: u64 = 1;

/// Why there is no cgroup v2 hierarchy to watch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MountError {
    /// Only cgroup v1.
    #[error(
        "only cgroup v1 is mounted here, and flowend needs cgroup v2 (the hybrid layout is enough); \
         boot with systemd.unified_cgroup_hierarchy=1, or mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    OnlyV1,
    /// None at all.
    #[error(
        "no cgroup v2 hierarchy is mounted in this mount namespace; in a container, mount the host's \
         /sys/fs/cgroup into it, else: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    None,
    /// mountinfo cannot be read.
    #[error("/proc/self/mountinfo: {0}; flowend needs /proc")]
    MountInfo(String),
    /// The one that the user named is none.
    #[error("key `cgroup_mount`: {} {problem}; {remedy}", path.display())]
    Named {
        /// As it was named.
        path: PathBuf,
        /// What it is instead.
        problem: String,
        /// What to write.
        remedy: String,
    },
}

/// A mount of the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its folder.
    pub point: PathBuf,
    /// Whether it begins at the root of the hierarchy, and not at a cgroup below it.
    pub is_whole: bool,
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let point = self.point.display();
        if self.is_whole {
            return write!(f, "{point} shows the whole hierarchy");
        }
        write!(
            f,
            "{point} shows a part of the hierarchy alone, and cgroups outside of it are not seen; in a container, \
             mount the host's /sys/fs/cgroup as well, at a path of its own such as /host/sys/fs/cgroup"
        )
    }
}

/// The mount to use: the one that the user named, else the one that shows most.
///
/// # Errors
/// [`MountError`], with the remedy.
pub fn mount(named: Option<&Path>) -> Result<Mount, MountError> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| MountError::MountInfo(error.to_string()))?;
    let point = match named {
        Some(path) => named_mount(path, &text)?,
        None => visible_mount(&text)?,
    };
    let is_whole = id_of(&point).is_ok_and(|id| id == ROOT_ID);
    Ok(Mount { point, is_whole })
}

/// The folder of the mount that shows most.
///
/// # Errors
/// [`MountError`], with the remedy.
pub fn find_mount() -> Result<PathBuf, MountError> {
    mount(None).map(|mount| mount.point)
}

/// A line of a mountinfo file (proc_pid_mountinfo(5)).
#[derive(Debug)]
struct Line<'a> {
    id: u64,
    root: &'a str,
    point: PathBuf,
    kind: &'a str,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (mount, source) = text.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (root, point) = (fields.nth(2)?, fields.next()?);
        Some(Self { id, root, point: unescape(point).into(), kind: source.split(' ').next()? })
    }

    /// How far below the cgroup of this process's namespace the mount begins; less than 0 for above. The kernel
    /// writes a root that is outside of the namespace with `..`.
    fn depth(&self) -> i64 {
        let folders = self.root.split('/').filter(|name| !name.is_empty());
        folders.map(|name| if name == ".." { -1 } else { 1 }).sum()
    }
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(Line::parse)
}

/// All cgroup2 mounts, the one that shows most first.
fn mounts(text: &str) -> Result<Vec<Line<'_>>, MountError> {
    let mut found: Vec<_> = lines(text).filter(|line| line.kind == "cgroup2").collect();
    if found.is_empty() {
        let has_v1 = lines(text).any(|line| line.kind == "cgroup");
        return Err(if has_v1 { MountError::OnlyV1 } else { MountError::None });
    }
    found.sort_by_key(Line::depth);
    Ok(found)
}

/// The first that its path leads to: another mount may lie over it.
fn visible_mount(text: &str) -> Result<PathBuf, MountError> {
    let leads_to = |line: &Line<'_>| mount_id(&line.point).is_ok_and(|id| id == line.id);
    let visible = mounts(text)?.into_iter().find(leads_to);
    visible.map(|line| line.point).ok_or(MountError::None)
}

/// The folder that the user named, once it is sure what it is.
fn named_mount(path: &Path, text: &str) -> Result<PathBuf, MountError> {
    let bad = |problem: String| {
        let remedy = visible_mount(text).map_or_else(
            |_| "mount the host's /sys/fs/cgroup, and name where".to_owned(),
            |point| format!("leave the key empty for {}, or name another one", point.display()),
        );
        MountError::Named { path: path.to_owned(), problem, remedy }
    };
    let unreadable = |error: io::Error| bad(format!("cannot be opened ({error})"));
    let folder = path.canonicalize().map_err(unreadable)?;
    let id = mount_id(&folder).map_err(unreadable)?;
    match lines(text).find(|line| line.id == id) {
        Some(line) if line.kind != "cgroup2" => {
            Err(bad(format!("is of type {}, and not cgroup2", line.kind)))
        }
        Some(line) if line.point != folder => {
            let point = line.point.display();
            Err(bad(format!("is a folder inside the cgroup2 mount {point}, and no mount itself")))
        }
        Some(_) => Ok(folder),
        None => Err(bad("is no mount of this mount namespace".into())),
    }
}

/// The id of the mount that a path leads to, as in mountinfo.
fn mount_id(path: &Path) -> io::Result<u64> {
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let folder: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", folder.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no mnt_id in /proc/self/fdinfo"))
}

/// Space, tab, newline and backslash are octal escapes in mountinfo.
fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, plain);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    const PART_FIRST: &str = "40 1 0:38 /kubepods /part rw - cgroup2 cgroup2 rw\n\
        41 1 0:38 / /with\\040space rw shared:1 master:2 - cgroup2 cgroup2 rw\n";
    /// From within a cgroup namespace: its own, a neighbour's, one above it, and the host's.
    const POD: &str = "60 50 0:38 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
        61 50 0:38 /../cri-containerd-1.scope /neighbour ro - cgroup2 cgroup2 rw\n\
        62 50 0:38 /.. /pod ro - cgroup2 cgroup2 rw\n\
        63 50 0:38 /../../../.. /host/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_mount_that_shows_most_comes_first_wherever_it_is() {
        for (text, want) in [
            (UNIFIED, Ok(&["/sys/fs/cgroup"][..])),
            (HYBRID, Ok(&["/sys/fs/cgroup/unified"])),
            (PART_FIRST, Ok(&["/with space", "/part"])),
            (POD, Ok(&["/host/sys/fs/cgroup", "/pod", "/sys/fs/cgroup", "/neighbour"])),
            (V1, Err(MountError::OnlyV1)),
            ("22 1 0:5 / /proc rw - proc proc rw\n", Err(MountError::None)),
            ("nonsense\n", Err(MountError::None)),
        ] {
            let got = mounts(text).map(|m| m.into_iter().map(|l| l.point).collect::<Vec<_>>());
            assert_eq!(got, want.map(|w| w.iter().map(PathBuf::from).collect()), "{text}");
        }
    }

    #[test]
    fn a_mount_that_another_one_hides_is_not_taken() {
        // No mount has this id, so the path leads to another one.
        let hidden = format!("{} 1 0:38 / / rw - cgroup2 cgroup2 rw\n", u64::MAX);
        assert_eq!(visible_mount(&hidden), Err(MountError::None));
        let id = mount_id(Path::new("/")).unwrap();
        let seen = format!("{hidden}{id} 1 0:38 /part / rw - cgroup2 cgroup2 rw\n");
        assert_eq!(visible_mount(&seen), Ok(PathBuf::from("/")));
    }

    #[test]
    fn a_named_folder_that_is_no_cgroup2_mount_is_refused_with_what_it_is() {
        let line = |id: u64, kind: &str| format!("{id} 1 0:38 / / rw - {kind} none rw\n");
        let (root, inside) = (Path::new("/"), Path::new("/proc/self"));
        let (here, there) = (mount_id(root).unwrap(), mount_id(inside).unwrap());
        let nowhere = Path::new("/nonexistent");
        assert_eq!(named_mount(root, &line(here, "cgroup2")), Ok("/".into()));
        for (path, text, words) in [
            (root, line(here, "ext4"), "is of type ext4, and not cgroup2"),
            (root, line(u64::MAX, "cgroup2"), "is no mount of this mount namespace"),
            (
                inside,
                line(there, "cgroup2"),
                "is a folder inside the cgroup2 mount /, and no mount",
            ),
            (nowhere, line(here, "cgroup2"), "cannot be opened (No such file"),
            (nowhere, line(here, "cgroup2"), "; leave the key empty for /, or name another one"),
            (nowhere, V1.into(), "; mount the host's /sys/fs/cgroup, and name where"),
        ] {
            let error = named_mount(path, &text).unwrap_err().to_string();
            let start = format!("key `cgroup_mount`: {} ", path.display());
            assert!(error.starts_with(&start) && error.contains(words), "{error}");
        }
    }
}
