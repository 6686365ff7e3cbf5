//! A link that another flowend pinned: opened, asked what it is, and given another program.
//!
//! BPF_LINK_UPDATE exchanges the program of a link that stays attached, so there is neither a moment without a program
//! nor one with two. aya has it for XDP and tc only, and does not show a link's descriptor.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Commands (include/uapi/linux/bpf.h).
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// What BPF_OBJ_GET takes of `union bpf_attr`.
#[repr(C)]
struct ObjectGet {
    path: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// What BPF_LINK_UPDATE takes of it.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct About {
    pub(super) id: u32,
    /// Of a cgroup's link: the cgroup that it is attached to, or 0 where it is not any more.
    pub(super) cgroup: Option<u64>,
}

/// Opens a pinned object.
///
/// # Errors
/// As open(2): ENOENT, EACCES; EPERM without CAP_BPF.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr =
        ObjectGet { path: path.as_ptr().expose_provenance() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &attr)?;
    // SAFETY: a descriptor that the kernel has just made, and nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `program` in the place of the one that `link` attaches.
///
/// # Errors
/// ENOLINK where its cgroup is gone or somebody detached it (kernel/bpf/cgroup.c, cgroup_bpf_replace), EINVAL for a
/// program of another type, EPERM without CAP_BPF.
pub(super) fn exchange(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &attr).map(drop)
}

/// What it is (kernel/bpf/cgroup.c, bpf_cgroup_link_show_fdinfo).
///
/// # Errors
/// What is no link; as read(2).
pub(super) fn about(link: BorrowedFd<'_>) -> io::Result<About> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is no BPF link"))
}

fn parse(fdinfo: &str) -> Option<About> {
    let field = |name: &str| {
        fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    Some(About {
        id: field("link_id")?.parse().ok()?,
        cgroup: field("cgroup_id").and_then(|id| id.parse().ok()),
    })
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as are said of a struct that lives through the call, and keeps no pointer to
    // it; the path that one of them points to lives as long.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_ref(attr), size_of::<T>()) };
    // A descriptor or 0, which fit.
    libc::c_int::try_from(result).ok().filter(|n| *n >= 0).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_link_is_read() {
        let text = "pos:\t0\nlink_type:\tcgroup\nlink_id:\t17\ncgroup_id:\t4711\nattach_type:\t0\n";
        assert_eq!(parse(text), Some(About { id: 17, cgroup: Some(4711) }));
        let perf = "link_type:\tperf\nlink_id:\t9\n";
        assert_eq!(parse(perf), Some(About { id: 9, cgroup: None }));
        assert_eq!(parse("pos:\t0\\n"), None);
    }
}
