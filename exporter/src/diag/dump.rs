//! All TCP sockets of one network namespace, asked of the kernel.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use flowend_probe_types::TcpState;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket as Netlink, SocketAddr};
use nix::sys::socket::getsockopt;

use super::listeners::{Listener, Listeners};
use super::message::{Message, messages, request};
use super::procfs;
use super::socket::{Socket, SocketKind};
use crate::clock;

/// The kernel fills at most 32 KiB at a time, fewer when memory is short (net/netlink/af_netlink.c,
/// netlink_dump); twice that is never cut.
const RECEIVE_BYTES: usize = 64 * 1024;

/// How often a dump is asked for that the kernel says was inconsistent.
const ATTEMPTS: usize = 3;

/// The kernel answers at once; without an answer for this long something is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the sockets of a network namespace are not known.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// No sock_diag for TCP.
    #[error(
        "this kernel tells nothing of open TCP connections ({0}): it lacks CONFIG_INET_DIAG and \
         CONFIG_INET_TCP_DIAG, or their modules are not loaded; try: modprobe -a inet_diag tcp_diag"
    )]
    Unsupported(io::Error),
    /// A security policy forbids it.
    #[error(
        "sock_diag: no permission to {what} ({cause}); it takes no capability, so a security policy \
         (seccomp, SELinux) forbids it: allow NETLINK_SOCK_DIAG sockets"
    )]
    Forbidden {
        /// Step that was forbidden.
        what: String,
        /// Of the system.
        cause: io::Error,
    },
    /// Anything else that the system says.
    #[error("sock_diag: cannot {what}: {cause}")]
    System {
        /// Step that failed.
        what: String,
        /// Of the system.
        cause: io::Error,
    },
    /// The answer is not what sock_diag answers.
    #[error(
        "sock_diag: the kernel's answer cannot be read: {0}; please report this, with `uname -r`"
    )]
    Malformed(String),
}

impl DiagError {
    pub(super) fn system(what: impl Into<String>, cause: io::Error) -> Self {
        let what = what.into();
        match cause.kind() {
            io::ErrorKind::PermissionDenied => Self::Forbidden { what, cause },
            _ => Self::System { what, cause },
        }
    }
}

/// The TCP sockets of one network namespace.
///
/// The kernel walks its table bucket by bucket, and does not stop the world: a connection opened
/// meanwhile may be missing, and one that lasts throughout may be missing or stand twice when its
/// bucket changed between two answers. Absence from one dump is no proof of an end; absence from two is.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The namespace's cookie, never used again; absent before Linux 5.14.
    pub cookie: Option<u64>,
    /// Inode of /proc/PID/ns/net.
    pub inode: u64,
    /// `CLOCK_BOOTTIME` before the first request, ns: whatever opened later may be missing.
    pub started_ns: u64,
    /// All sockets that do not listen.
    pub sockets: Vec<Socket>,
    /// What is listened on.
    pub listeners: Listeners,
    /// There were more sockets than the caller wanted.
    pub truncated: bool,
    /// The kernel said of each attempt that its table changed too much meanwhile.
    pub interrupted: bool,
}

impl Namespace {
    /// Whether a connection that lasted throughout should be in it.
    pub const fn is_whole(&self) -> bool {
        !self.truncated && !self.interrupted
    }

    fn insert(&mut self, socket: Socket, v6_only: bool) {
        if socket.state == TcpState::Listen {
            self.listeners.extend([Listener { socket, v6_only }]);
        } else {
            self.sockets.push(socket);
        }
    }

    /// Sockets of all kinds.
    pub(super) fn len(&self) -> usize {
        self.sockets.len() + self.listeners.iter().count()
    }
}

/// Dumps the network namespace of the calling thread, at most `max_sockets` of its sockets. Takes no
/// capability. Blocks for as long as the kernel needs.
///
/// # Errors
/// [`DiagError`], with the remedy.
pub fn dump(max_sockets: usize) -> Result<Namespace, DiagError> {
    dump_wanted(max_sockets, None)
}

/// As [`dump`]; with `time_waits`, of the minisockets in TIME-WAIT, of which there may be very many, only
/// those with one of these cookies.
pub(super) fn dump_wanted(
    max_sockets: usize,
    time_waits: Option<&HashSet<u64>>,
) -> Result<Namespace, DiagError> {
    for _ in 1..ATTEMPTS {
        let namespace = dump_once(max_sockets, time_waits)?;
        if !namespace.interrupted {
            return Ok(namespace);
        }
    }
    dump_once(max_sockets, time_waits)
}

fn dump_once(
    max_sockets: usize,
    time_waits: Option<&HashSet<u64>>,
) -> Result<Namespace, DiagError> {
    let netlink = open()?;
    let mut namespace = Namespace {
        cookie: getsockopt(&netlink, NetnsCookie).ok(),
        inode: procfs::own_net_namespace()
            .map_err(|e| DiagError::system("read /proc/thread-self/ns/net", e))?,
        started_ns: clock::boot_ns(),
        sockets: Vec::new(),
        listeners: Listeners::default(),
        truncated: false,
        interrupted: false,
    };
    let request = request();
    retry(|| netlink.send_to(&request, &SocketAddr::new(0, 0), 0))
        .map_err(|error| DiagError::system("ask for sockets", error))?;
    receive(&netlink, max_sockets, time_waits, &mut namespace)?;
    Ok(namespace)
}

nix::getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    nix::sys::socket::sockopt::GetStruct<u64>
);

/// The option SO_NETNS_COOKIE.
#[derive(Clone, Copy, Debug)]
struct NetnsCookie;

fn open() -> Result<Netlink, DiagError> {
    let netlink = Netlink::new(NETLINK_SOCK_DIAG).map_err(|error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT) => DiagError::Unsupported(error),
        _ => DiagError::system("open a socket", error),
    })?;
    socket2::SockRef::from(&netlink)
        .set_read_timeout(Some(PATIENCE))
        .map_err(|error| DiagError::system("limit the wait for an answer", error))?;
    Ok(netlink)
}

/// Reads the answer to its end, or until there is no more room.
fn receive(
    netlink: &Netlink,
    mut room: usize,
    time_waits: Option<&HashSet<u64>>,
    namespace: &mut Namespace,
) -> Result<(), DiagError> {
    let is_wanted = |socket: &Socket| {
        socket.kind != SocketKind::TimeWait
            || time_waits.is_none_or(|wanted| wanted.contains(&socket.cookie))
    };
    let mut datagram = Vec::with_capacity(RECEIVE_BYTES);
    loop {
        datagram.clear();
        let (length, sender) = retry(|| netlink.recv_from(&mut datagram, libc::MSG_TRUNC))
            .map_err(|error| DiagError::system("receive sockets", error))?;
        // Any process may send to a netlink socket whose number it guesses; the kernel's is 0.
        if sender.port_number() != 0 {
            continue;
        }
        if length > datagram.len() {
            return Err(DiagError::Malformed(format!("{length} bytes in one piece")));
        }
        for message in messages(&datagram) {
            let (message, interrupted) =
                message.map_err(|error| DiagError::Malformed(error.to_string()))?;
            namespace.interrupted |= interrupted;
            match message {
                Message::Socket { socket, .. } if !is_wanted(&socket) => {}
                Message::Socket { .. } if room == 0 => {
                    namespace.truncated = true;
                    return Ok(());
                }
                Message::Socket { socket, v6_only } => {
                    room -= 1;
                    namespace.insert(socket, v6_only);
                }
                Message::Done => return Ok(()),
                Message::Refused(error) => return Err(refused(error)),
                Message::Other => {}
            }
        }
    }
}

/// Without inet_diag there is nobody to answer, without tcp_diag nobody who knows TCP
/// (net/core/sock_diag.c, net/ipv4/inet_diag.c).
fn refused(error: io::Error) -> DiagError {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOENT) => DiagError::Unsupported(error),
        _ => DiagError::system("dump sockets", error),
    }
}

/// Again after a signal.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_refuses_is_said_with_a_remedy() {
        for (code, words) in [
            (libc::ENOENT, "modprobe -a inet_diag tcp_diag"),
            (libc::EOPNOTSUPP, "CONFIG_INET_DIAG"),
            (libc::EPERM, "seccomp, SELinux"),
            (libc::EACCES, "no permission to dump sockets"),
            (libc::ENOMEM, "cannot dump sockets"),
        ] {
            let text = refused(io::Error::from_raw_os_error(code)).to_string();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_signal_is_no_error() {
        let mut calls = 0;
        let result = retry(|| {
            calls += 1;
            if calls < 3 { Err(io::ErrorKind::Interrupted.into()) } else { Ok(calls) }
        });
        assert_eq!(result.unwrap(), 3);
    }
}
