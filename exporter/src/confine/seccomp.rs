//! Which system calls are left, and with which arguments.
//!
//! What is in no list here gives EPERM. Not the end of the process: a library that begins to use another call
//! must not stop the reporting on a host where nobody is attacked, and each caller has a message for EPERM.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::Needs;

/// Calls that are left with any arguments: they reach what is open already, the process itself, or only read.
const PLAIN: &[i64] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Reading the file system.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    // Sockets, once made.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    // Threads and their signals.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // What and when it is.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_umask,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_capget,
    // A further filter can only narrow this one.
    libc::SYS_seccomp,
];

/// The same by their older names, which aarch64 does not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_access,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// What changes the file system, left where there is a folder to write to.
const WRITING: &[i64] = &[
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fchmod,
];

#[cfg(target_arch = "x86_64")]
const OLDER_WRITING: &[i64] =
    &[libc::SYS_mkdir, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_rename];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_WRITING: &[i64] = &[];

/// Commands of bpf() that are left (include/uapi/linux/bpf.h): to look into a map, to write into one (that flowend sleeps), to attach, to ask what is
/// attached. No program is loaded, no map made, and nothing of others is opened by its id.
const BPF_MAP_LOOKUP_ELEM: u64 = 1;
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_MAP_GET_NEXT_KEY: u64 = 4;
const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;
const BPF_LINK_CREATE: u64 = 28;
const BPF_COMMANDS: [u64; 5] = [
    BPF_MAP_LOOKUP_ELEM,
    BPF_MAP_UPDATE_ELEM,
    BPF_MAP_GET_NEXT_KEY,
    BPF_OBJ_GET_INFO_BY_FD,
    BPF_LINK_CREATE,
];
/// And where links are pinned, to pin. Nothing that is pinned is opened any more: that is done before.
const BPF_OBJ_PIN: u64 = 6;

/// Requests of ioctl() that are left (include/uapi/asm-generic/ioctls.h): of the terminal those that ask, and what tokio
/// and std set of a descriptor. As numbers, since the C libraries give them different types.
const TCGETS: u64 = 0x5401;
const TIOCGWINSZ: u64 = 0x5413;
const FIONREAD: u64 = 0x541b;
const FIONBIO: u64 = 0x5421;
const FIOCLEX: u64 = 0x5451;
const IOCTLS: [u64; 5] = [TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// One argument of a call, and what it must be.
#[derive(Clone, Copy)]
enum Argument {
    /// By number.
    Is(u8, u64),
    /// These bits of it are those.
    Bits(u8, u64, u64),
}

impl Argument {
    fn condition(self) -> Result<SeccompCondition, BackendError> {
        // As the kernel takes them, all of these are 32 bits wide; what stands above is ignored.
        let (number, operator, value) = match self {
            Self::Is(number, value) => (number, SeccompCmpOp::Eq, value),
            Self::Bits(number, mask, value) => (number, SeccompCmpOp::MaskedEq(mask), value),
        };
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value)
    }
}

/// Leaves a call where all these arguments are so; said again for the same call, also there.
fn allow(rules: &mut Rules, call: i64, arguments: &[Argument]) -> Result<(), BackendError> {
    let conditions: Result<Vec<_>, _> = arguments.iter().map(|a| a.condition()).collect();
    rules.entry(call).or_default().push(SeccompRule::new(conditions?)?);
    Ok(())
}

/// Applies the filters to all threads.
///
/// # Errors
/// A kernel without seccomp, or a policy that forbids it.
pub(super) fn apply(needs: &Needs, enters_namespaces: bool) -> Result<(), seccompiler::Error> {
    let rules = rules(needs, enters_namespaces)?;
    install(rules, SeccompAction::Errno(libc::EPERM.cast_unsigned()), SeccompAction::Allow)?;
    // The flags of clone3 are in memory, where no filter sees them. As on a kernel without it, the C library
    // falls back to clone. Of two filters with an error the newer one's counts.
    let no_clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    install(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.cast_unsigned()))
}

fn install(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<(), seccompiler::Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    apply_filter_all_threads(&program)
}

fn rules(needs: &Needs, enters_namespaces: bool) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for call in PLAIN.iter().chain(OLDER) {
        rules.insert(*call, Vec::new());
    }
    files(&mut rules, needs)?;
    sockets(&mut rules)?;
    process(&mut rules)?;
    let pinning = needs.pins.then_some(BPF_OBJ_PIN);
    for command in BPF_COMMANDS.into_iter().chain(pinning) {
        allow(&mut rules, libc::SYS_bpf, &[Argument::Is(0, command)])?;
    }
    if enters_namespaces {
        let network = libc::CLONE_NEWNET.cast_unsigned().into();
        allow(&mut rules, libc::SYS_setns, &[Argument::Is(1, network)])?;
    }
    Ok(rules)
}

/// Opening files: for reading only where nothing is to be written.
fn files(rules: &mut Rules, needs: &Needs) -> Result<(), BackendError> {
    let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
    let reads_only = |flags| Argument::Bits(flags, writes.cast_unsigned().into(), 0);
    let opens = [
        (libc::SYS_openat, 2),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, 1),
    ];
    for (call, flags) in opens {
        if needs.writes.is_empty() {
            allow(rules, call, &[reads_only(flags)])?;
        } else {
            rules.insert(call, Vec::new());
        }
    }
    if !needs.writes.is_empty() {
        for call in WRITING.iter().chain(OLDER_WRITING) {
            rules.insert(*call, Vec::new());
        }
    }
    // Its flags are in memory, where no filter sees them.
    if needs.hosts {
        rules.insert(libc::SYS_openat2, Vec::new());
    }
    for request in IOCTLS {
        allow(rules, libc::SYS_ioctl, &[Argument::Is(1, request)])?;
    }
    Ok(())
}

/// Making sockets, and their options. CAP_NET_ADMIN, which is kept, would let netlink and options change routes and
/// firewall.
fn sockets(rules: &mut Rules) -> Result<(), BackendError> {
    let number = |n: libc::c_int| u64::from(n.cast_unsigned());
    for domain in [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX] {
        allow(rules, libc::SYS_socket, &[Argument::Is(0, number(domain))])?;
    }
    let look = [
        Argument::Is(0, number(libc::AF_NETLINK)),
        Argument::Is(2, number(libc::NETLINK_SOCK_DIAG)),
    ];
    allow(rules, libc::SYS_socket, &look)?;
    allow(rules, libc::SYS_socketpair, &[Argument::Is(0, number(libc::AF_UNIX))])?;
    for level in [libc::SOL_SOCKET, libc::IPPROTO_TCP, libc::SOL_NETLINK] {
        allow(rules, libc::SYS_setsockopt, &[Argument::Is(1, number(level))])?;
    }
    for (level, option) in [
        (libc::IPPROTO_IP, libc::IP_RECVERR),
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    ] {
        let arguments = [Argument::Is(1, number(level)), Argument::Is(2, number(option))];
        allow(rules, libc::SYS_setsockopt, &arguments)?;
    }
    Ok(())
}

/// Threads, but no processes; memory that is written to or executed, but not both.
fn process(rules: &mut Rules) -> Result<(), BackendError> {
    let number = |n: libc::c_int| u64::from(n.cast_unsigned());
    let thread = number(libc::CLONE_THREAD);
    allow(rules, libc::SYS_clone, &[Argument::Bits(0, thread, thread)])?;
    let (write, execute) = (number(libc::PROT_WRITE), number(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        allow(rules, call, &[Argument::Bits(2, execute, 0)])?;
    }
    // The C library's modules for names (nsswitch.conf) are loaded when the first name is looked up.
    if cfg!(target_env = "gnu") {
        allow(rules, libc::SYS_mmap, &[Argument::Bits(2, write | execute, execute)])?;
    }
    for option in [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS] {
        allow(rules, libc::SYS_prctl, &[Argument::Is(0, number(option))])?;
    }
    // A panic that nobody catches aborts: by a signal to its own thread.
    allow(rules, libc::SYS_tgkill, &[Argument::Is(0, std::process::id().into())])?;
    Ok(())
}

/// Whether this kernel has it, as far as it tells.
pub(super) fn is_there() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
        .is_ok_and(|actions| actions.split_whitespace().any(|action| action == "errno"))
}
