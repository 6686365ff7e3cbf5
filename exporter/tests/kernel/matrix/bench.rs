//! What a case works with: two puppets, one at each end of a link, in one family.

use std::net::SocketAddr;
use std::path::PathBuf;

use flowend::clock::boot_ns;

use super::super::connections::Role;
use super::super::link::{Fate, Link};
use super::super::packet::Segment;
use super::super::support::{Puppet, Socket, parse};
use super::case::{DOWN, UP};
use super::made::{Info, Made, Span};

/// How the sockets' addresses are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
    /// IPv6 sockets with IPv4-mapped addresses.
    Mapped,
}

impl Family {
    pub(super) const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    /// The number of the link's net, by which the records of families are told apart.
    const fn net(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
            Self::Mapped => 46,
        }
    }

    fn address(self, host: u8) -> String {
        let net = self.net();
        match self {
            Self::V4 => format!("10.77.{net}.{host}"),
            Self::V6 => format!("[fd77:{net:x}::{host}]"),
            Self::Mapped => format!("[::ffff:10.77.{net}.{host}]"),
        }
    }
}

/// The fixture of one family.
pub(super) struct Bench {
    pub(super) family: Family,
    pub(super) link: Link,
    pub(super) client: Puppet,
    pub(super) server: Puppet,
    cgroup: PathBuf,
}

/// A connection, or an attempt at one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) listener: Option<Socket>,
    /// The connected socket.
    pub(super) c: Socket,
    /// The accepted socket; the listener until it is accepted.
    pub(super) s: Socket,
    pub(super) client_address: SocketAddr,
    pub(super) server_address: SocketAddr,
    pub(super) client_pid: u32,
    pub(super) server_pid: u32,
    pub(super) began: Span,
}

impl Open {
    /// Both addresses as packets show them.
    pub(super) fn pair(&self) -> (SocketAddr, SocketAddr) {
        let canonical = super::made::canonical;
        (canonical(self.client_address), canonical(self.server_address))
    }
}

impl Bench {
    pub(super) fn new(family: Family, cgroup: PathBuf) -> Self {
        let link = Link::new(family.net());
        for netns in [&link.client, &link.server] {
            prepare(netns);
        }
        let client = puppet(&link, Role::Client, &cgroup);
        let server = puppet(&link, Role::Server, &cgroup);
        Self { family, link, client, server, cgroup }
    }

    pub(super) const fn puppet(&mut self, role: Role) -> &mut Puppet {
        match role {
            Role::Client => &mut self.client,
            Role::Server => &mut self.server,
        }
    }

    /// SIGKILLs a puppet and starts another in its place.
    pub(super) fn kill(&mut self, role: Role) {
        let next = puppet(&self.link, role, &self.cgroup);
        std::mem::replace(self.puppet(role), next).kill();
    }

    /// Puts a new puppet in an end's place, in the namespace of this end or the other.
    pub(super) fn move_to(&mut self, role: Role, netns: Role) {
        *self.puppet(role) = puppet(&self.link, netns, &self.cgroup);
    }

    /// An address of an end, port 0.
    pub(super) fn host(&self, role: Role) -> String {
        let host = match role {
            Role::Client => 1,
            Role::Server => 2,
        };
        format!("{}:0", self.family.address(host))
    }

    /// Does something, and waits for all of its consequences; when that was.
    pub(super) fn during(&mut self, what: impl FnOnce(&mut Self)) -> Span {
        let from = boot_ns();
        what(self);
        self.link.settle();
        Span { from, to: boot_ns() }
    }

    pub(super) fn listen(&mut self) -> Socket {
        self.listen_with("")
    }

    /// See the puppet's options.
    pub(super) fn listen_with(&mut self, options: &str) -> Socket {
        let address = self.host(Role::Server);
        parse(&self.server.tell(&format!("listen {address} {options}")))
    }

    /// A listener and a connection to it.
    pub(super) fn open(&mut self) -> Open {
        let listener = self.listen();
        self.open_to(listener, "")
    }

    /// A connection to a listener, accepted; see the puppet's options.
    pub(super) fn open_to(&mut self, listener: Socket, options: &str) -> Open {
        let mut sockets = None;
        let began = self.during(|b| {
            let connect = format!("connect {} {options}", listener.local);
            let c = parse(&b.client.tell(&connect));
            sockets = Some((c, b.server.accept(listener)));
        });
        let (c, s) = sockets.expect("connected");
        self.opened(Some(listener), c, s, began)
    }

    /// Sends a SYN to an address, and does not wait for the answer.
    pub(super) fn attempt(&mut self, to: SocketAddr) -> Open {
        // Bound, so that the address is known whatever comes of it.
        let options = format!("from {}", self.host(Role::Client));
        let mut socket = None;
        let from = boot_ns();
        socket.replace(self.client.start_to_connect(to, &options));
        let began = Span { from, to: boot_ns() };
        let c = socket.expect("started");
        let nobody = Socket { id: 0, local: to, peer: None };
        self.opened(None, c, nobody, began)
    }

    /// What was opened, with the addresses and processes of both ends.
    pub(super) fn opened(
        &self,
        listener: Option<Socket>,
        c: Socket,
        s: Socket,
        began: Span,
    ) -> Open {
        Open {
            listener,
            c,
            s,
            client_address: c.local,
            server_address: c.peer.expect("a peer"),
            client_pid: self.client.pid(),
            server_pid: self.server.pid(),
            began,
        }
    }

    /// An address of the server where nobody listens.
    pub(super) fn closed_port(&mut self) -> SocketAddr {
        let listener = self.listen();
        self.server.close(listener);
        listener.local
    }

    /// [`UP`] bytes to the server, then [`DOWN`] bytes back, all acknowledged.
    pub(super) fn exchange(&mut self, open: &Open) {
        self.client.send(open.c, size(UP));
        self.link.settle();
        self.server.recv(open.s, size(UP));
        self.server.send(open.s, size(DOWN));
        self.link.settle();
        self.client.recv(open.c, size(DOWN));
        self.link.settle();
    }

    /// A connection on which data was exchanged.
    pub(super) fn open_and_exchange(&mut self) -> Open {
        let open = self.open();
        self.exchange(&open);
        open
    }

    /// The socket of a connection at an end.
    pub(super) const fn socket(open: &Open, role: Role) -> Socket {
        match role {
            Role::Client => open.c,
            Role::Server => open.s,
        }
    }

    /// Closes the socket of a connection at an end.
    pub(super) fn close(&mut self, open: &Open, role: Role) -> Span {
        let socket = Self::socket(open, role);
        self.during(|b| b.puppet(role).close(socket))
    }

    /// Half-closes it.
    pub(super) fn shutdown(&mut self, open: &Open, role: Role) -> Span {
        let socket = Self::socket(open, role);
        self.during(|b| b.puppet(role).shutdown(socket))
    }

    /// `TCP_INFO` of a connection at an end.
    pub(super) fn info(&mut self, open: &Open, role: Role) -> Info {
        let socket = Self::socket(open, role);
        Info::parse(&self.puppet(role).tell(&format!("info {}", socket.id)))
    }

    /// Loses the segments from one end that fit; everything else gets through.
    pub(super) fn lose(
        &self,
        from: Role,
        mut is_lost: impl FnMut(&Segment) -> bool + Send + 'static,
    ) {
        self.link.on(
            move |sender, segment, _| {
                if sender == from && is_lost(segment) { Fate::Drop } else { Fate::Pass }
            },
        );
    }

    /// Done with a case: the wire is as it was, the listener closed, and what the link saw is kept.
    pub(super) fn done(&mut self, open: &Open, mut made: Made) -> Vec<Made> {
        self.link.pass();
        if let Some(listener) = open.listener {
            self.server.close(listener);
        }
        self.link.settle();
        made.wire = Some(self.link.crossings(made.client, made.server));
        vec![made]
    }
}

/// Short timeouts: the kernel's own take minutes.
fn prepare(netns: &super::super::support::Netns) {
    for (key, value) in [
        // A SYN is sent twice and given up after 3 s, and so is a SYN-ACK.
        ("ipv4/tcp_syn_retries", "1"),
        ("ipv4/tcp_synack_retries", "1"),
        // Data and FINs are given up after 0.6 s.
        ("ipv4/tcp_retries2", "1"),
        ("ipv4/tcp_orphan_retries", "1"),
        // Fast Open without a cookie, for all listeners.
        ("ipv4/tcp_fastopen", "1543"),
        // A port pair in TIME-WAIT may be used again at once.
        ("ipv4/tcp_tw_reuse", "1"),
        // Every forged segment is answered.
        ("ipv4/tcp_invalid_ratelimit", "0"),
    ] {
        netns.set(key, value);
    }
    for (key, value) in [
        // Since 6.5; before, each SYN waits twice as long as the one before it, as with 0.
        ("ipv4/tcp_syn_linear_timeouts", "0"),
        // Since 6.14, in ms; before, it is a second.
        ("ipv4/tcp_tw_reuse_delay", "1"),
    ] {
        if netns.has(key) {
            netns.set(key, value);
        }
    }
}

fn puppet(link: &Link, role: Role, cgroup: &std::path::Path) -> Puppet {
    let netns = link.netns(role).file();
    Puppet::start(&["--cgroup".as_ref(), cgroup, "--netns".as_ref(), &netns])
}

/// A number of bytes.
fn size(n: u64) -> usize {
    usize::try_from(n).expect("fits the memory")
}
