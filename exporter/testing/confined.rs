//! A process that confines itself as flowend does, and then tries what it must not be able to do.
//!
//! `confined [reads-processes] PID [FOLDER]...` says on stdout, a line each: the measures, each as it came out; then
//! `NAME: ok` or `NAME: ERRNO` for each try, made on a thread that was started afterwards. FOLDERs may be written
//! to. PID is another process, of another user.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use flowend::confine::{self, Needs};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let process = args.first().is_some_and(|arg| arg == "reads-processes");
    if process {
        args.remove(0);
    }
    let pid: i32 = args.remove(0).parse().expect("the pid of another process");
    let writes: Vec<PathBuf> = args.into_iter().map(PathBuf::from).collect();
    let elsewhere = std::env::current_dir().expect("a folder").join("elsewhere");
    let needs =
        Needs { writes: writes.clone(), listens: Some(0), process, hosts: false, pins: false };
    for step in confine::apply(&needs) {
        println!("{step}");
    }
    std::thread::spawn(move || {
        for (name, result) in tries(pid, &elsewhere, &writes) {
            println!("{name}: {}", result.err().map_or_else(|| "ok".into(), |e| format!("{e:?}")));
        }
    })
    .join()
    .expect("the tries");
}

fn of_io<T>(result: io::Result<T>) -> Result<(), Errno> {
    result.map(drop).map_err(|e| e.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw))
}

fn tries(
    pid: i32,
    elsewhere: &std::path::Path,
    writes: &[PathBuf],
) -> Vec<(String, Result<(), Errno>)> {
    let own_network = || File::open("/proc/thread-self/ns/net").expect("the own namespace");
    let netlink = |protocol| {
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).map(drop)
    };
    let time_to_live = || -> Result<(), Errno> {
        let any = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&any, sockopt::Ipv4Ttl, &64)
    };
    let listener = TcpListener::bind("127.0.0.1:0");
    let connect = || TcpStream::connect(listener.as_ref().ok()?.local_addr().ok()?).ok();
    let mut tries = vec![
        ("execute", of_io(Command::new("/bin/true").status())),
        ("signal", kill(Pid::from_raw(pid), None)),
        ("mount", mount(Some("none"), "/mnt", Some("tmpfs"), MsFlags::empty(), None::<&str>)),
        ("new user namespace", unshare(CloneFlags::CLONE_NEWUSER)),
        ("enter a pid namespace", setns(own_network(), CloneFlags::CLONE_NEWPID)),
        ("enter a network namespace", setns(own_network(), CloneFlags::CLONE_NEWNET)),
        ("routes", netlink(Some(SockProtocol::NetlinkRoute))),
        ("sockets of the kernel", netlink(Some(SockProtocol::NetlinkSockDiag))),
        ("option of IP", time_to_live()),
        ("load a program", flowend_loads()),
        ("read", of_io(std::fs::read("/etc/passwd"))),
        ("executable of another", of_io(std::fs::read_link(format!("/proc/{pid}/exe")))),
        ("write elsewhere", of_io(std::fs::write(elsewhere, "x"))),
        ("connect", connect().map(drop).ok_or(Errno::ENOTCONN)),
    ];
    let in_folder: Vec<_> = writes
        .iter()
        .map(|folder| {
            let result = std::fs::create_dir(folder.join("made"))
                .and_then(|()| std::fs::write(folder.join("made/new"), "x"))
                .and_then(|()| std::fs::rename(folder.join("made/new"), folder.join("made/name")));
            ("write below a folder", of_io(result))
        })
        .collect();
    tries.extend(in_folder);
    tries.into_iter().map(|(name, result)| (name.to_owned(), result)).collect()
}

/// EPERM where the kernel refuses maps and programs.
fn flowend_loads() -> Result<(), Errno> {
    use flowend::probe::{LoadError, Probe};
    match Probe::try_program("flowend_sockops") {
        Ok(()) => Ok(()),
        Err(LoadError::Permission { .. }) => Err(Errno::EPERM),
        Err(error) => panic!("{error}"),
    }
}
