//! From a cgroup to the bytes of /etc/hosts as its processes see them.
//!
//! What is below a workload's root is the workload's: a link may lead anywhere, a file may be a device
//! or a pipe, a file system may be a process that never answers. So links are resolved as the workload
//! resolves them, nothing is opened before it is known to be a regular file, no more is read than
//! [`MAX_FILE`], and it all happens on a thread that may hang (`patient.rs`).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

/// The most that is read of a file, bytes.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// The most that is read of a list of processes, bytes: more than 10,000 processes.
const MAX_PROCS: u64 = 1 << 16;

/// Processes of a cgroup that are tried, at most.
const MAX_TRIES: usize = 16;

/// Which version of which file: what changes when its content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stamp {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// When the content was written, ns since 1970.
    pub(super) mtime_ns: u64,
    /// When the inode was changed, at the latest when it got its name, ns since 1970.
    pub(super) ctime_ns: u64,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        let ns = |seconds: i64, ns: i64| {
            let (seconds, ns) = (u64::try_from(seconds), u64::try_from(ns));
            seconds.unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(ns.unwrap_or(0))
        };
        Ok(metadata.is_file().then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }))
    }
}

/// What a look for the file found.
#[derive(Debug)]
pub(super) enum Opening {
    /// The file, opened.
    File(File, Stamp),
    /// No names: there is none, or with words what stands there instead.
    Nothing(Option<String>),
    /// It cannot be known now; what was known stays. In words, where there is a remedy.
    Unknown(Option<String>),
    /// The cgroup's folder is gone.
    Gone,
}

/// The bytes of a file.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    /// The version that was read; `None` when it was written to meanwhile.
    pub(super) stamp: Option<Stamp>,
    /// There is more in the file; `bytes` ends with a whole line.
    pub(super) is_cut: bool,
}

/// Opens /etc/hosts of the first process of the cgroup in `folder` whose root can be entered. Blocks.
pub(super) fn open_of_cgroup(folder: &Path) -> Opening {
    let procs = match read_procs(folder) {
        Ok(procs) => procs,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Opening::Gone,
        // The kernel's answer while the folder is being removed.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Opening::Gone,
        Err(error) => {
            return Opening::Unknown(Some(format!("{}/cgroup.procs: {error}", folder.display())));
        }
    };
    let mut denied = None;
    // 0 is a process outside of this pid namespace.
    for pid in procs.lines().filter(|pid| *pid != "0").take(MAX_TRIES) {
        match root_of(pid, folder) {
            Ok(Some(root)) => return open_below(root),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                denied = Some(format!(
                    "/proc/{pid}/root: {error}; for processes of other users flowend needs CAP_SYS_PTRACE"
                ));
            }
            // Gone meanwhile, or a zombie.
            Err(_) => {}
        }
    }
    Opening::Unknown(denied)
}

fn read_procs(folder: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(folder.join("cgroup.procs"))?.take(MAX_PROCS).read_to_string(&mut text)?;
    // The last number may be half of one.
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    Ok(text)
}

/// The root folder of a process; `None` if it is not in this cgroup (any more).
///
/// The process's folder in /proc stands for this one process, whoever has its number later. So asking
/// for the cgroup's processes once it is open says whether it is one of them, and it cannot be another
/// tenant's process.
fn root_of(pid: &str, folder: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let process = openat(AT_FDCWD, format!("/proc/{pid}").as_str(), flags, Mode::empty())?;
    if !read_procs(folder)?.lines().any(|line| line == pid) {
        return Ok(None);
    }
    Ok(Some(openat(process, "root", flags, Mode::empty())?))
}

/// Opens etc/hosts below `root`. Links, absolute ones too, lead as they do for a process whose root
/// this is, and never out of it.
pub(super) fn open_below(root: impl AsFd) -> Opening {
    // First as a mere place in the tree: opening a device does something, opening a pipe waits.
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let place = match openat2(root, "etc/hosts", how) {
        Ok(place) => File::from(place),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Opening::Nothing(None),
        Err(nix::Error::ELOOP) => return Opening::Nothing(Some("its links go round".into())),
        // A folder was renamed on the way (openat2(2)).
        Err(nix::Error::EAGAIN) => return Opening::Unknown(None),
        Err(nix::Error::ENOSYS) => {
            return Opening::Unknown(Some(
                "it is opened with openat2, which is of Linux 5.6".into(),
            ));
        }
        Err(error) => return Opening::Unknown(Some(error.to_string())),
    };
    open_place(&place).unwrap_or_else(|error| Opening::Unknown(Some(error.to_string())))
}

fn open_place(place: &File) -> io::Result<Opening> {
    if Stamp::of(place)?.is_none() {
        let kind = kind_of(place.metadata()?.file_type());
        return Ok(Opening::Nothing(Some(format!("it is {kind}, not a regular file"))));
    }
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    Ok(match Stamp::of(&file)? {
        Some(stamp) => Opening::File(file, stamp),
        None => Opening::Unknown(None),
    })
}

fn kind_of(kind: std::fs::FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt as _;
    match kind {
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

/// Reads what [`open_of_cgroup`] has opened. Blocks.
pub(super) fn read(file: &File) -> io::Result<Content> {
    let before = Stamp::of(file)?;
    let mut bytes = Vec::new();
    // One byte more says that there is more.
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    let is_cut = bytes.len() as u64 > MAX_FILE;
    if is_cut {
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        bytes.truncate(end);
    }
    let stamp = before.filter(|stamp| Stamp::of(file).is_ok_and(|now| now == Some(*stamp)));
    Ok(Content { bytes, stamp, is_cut })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root folder with what `make` puts into its /etc.
    fn root(make: impl FnOnce(&Path)) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        make(&root.path().join("etc/hosts"));
        root
    }

    fn opened(root: &Path) -> Opening {
        open_below(File::open(root).unwrap())
    }

    fn text(root: &Path) -> String {
        match opened(root) {
            Opening::File(file, stamp) => {
                let content = read(&file).unwrap();
                assert_eq!(content.stamp, Some(stamp));
                String::from_utf8(content.bytes).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn links_lead_as_the_workload_sees_them() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "192.0.2.66 not.for.you\n").unwrap();
        let plain = root(|hosts| std::fs::write(hosts, "192.0.2.1 a\n").unwrap());
        assert_eq!(text(plain.path()), "192.0.2.1 a\n");
        // Absolute: below the workload's root, not the own.
        let absolute = root(|hosts| symlink("/static", hosts).unwrap());
        std::fs::write(absolute.path().join("static"), "192.0.2.2 b\n").unwrap();
        assert_eq!(text(absolute.path()), "192.0.2.2 b\n");
        for target in
            [secret.clone(), Path::new("../../../../..").join(secret.strip_prefix("/").unwrap())]
        {
            let leading_out = root(|hosts| symlink(&target, hosts).unwrap());
            let found = opened(leading_out.path());
            assert!(matches!(found, Opening::Nothing(None)), "{}: {found:?}", target.display());
        }
    }

    #[test]
    fn only_a_regular_file_is_opened() {
        let none = root(|_| ());
        assert!(matches!(opened(none.path()), Opening::Nothing(None)));
        let fifo = |hosts: &Path| nix::unistd::mkfifo(hosts, Mode::S_IRUSR).unwrap();
        let socket = |hosts: &Path| drop(std::os::unix::net::UnixListener::bind(hosts).unwrap());
        type Make<'a> = &'a dyn Fn(&Path);
        let cases: [(&str, Make<'_>); 4] = [
            ("it is a folder, not a regular file", &|hosts| std::fs::create_dir(hosts).unwrap()),
            ("it is a pipe, not a regular file", &fifo),
            ("it is a socket, not a regular file", &socket),
            ("its links go round", &|hosts| symlink("hosts", hosts).unwrap()),
        ];
        for (words, make) in cases {
            let root = root(make);
            match opened(root.path()) {
                Opening::Nothing(Some(found)) => assert_eq!(found, words),
                other => panic!("{words}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_large_file_is_cut_after_a_line() {
        let line = b"192.0.2.1 name.test\n";
        let large = root(|hosts| std::fs::write(hosts, line.repeat(1 << 16)).unwrap());
        let Opening::File(file, _) = opened(large.path()) else { panic!() };
        let content = read(&file).unwrap();
        assert!(content.is_cut);
        assert_eq!(content.bytes.len(), (1 << 20) / line.len() * line.len());
        // Without any line's end there is nothing that could be a whole line.
        let one_line = root(|hosts| std::fs::write(hosts, vec![b'x'; 2 << 20]).unwrap());
        let Opening::File(file, _) = opened(one_line.path()) else { panic!() };
        assert_eq!(read(&file).unwrap().bytes, b"");
    }

    #[test]
    fn a_cgroup_that_is_gone_says_so() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(open_of_cgroup(&folder.path().join("gone")), Opening::Gone));
        // One without processes is nothing to learn from; nor is a process that is not in it.
        std::fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        assert!(matches!(open_of_cgroup(folder.path()), Opening::Unknown(None)));
        let own = std::process::id().to_string();
        assert!(matches!(root_of(&own, folder.path()), Ok(None)));
        std::fs::write(folder.path().join("cgroup.procs"), format!("0\n{own}\n")).unwrap();
        assert!(matches!(root_of(&own, folder.path()), Ok(Some(_))));
    }
}
