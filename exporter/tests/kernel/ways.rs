//! Connections between two puppets, each with its own numbers of bytes, ended in several ways; and what
//! the records of both ends must say, as far as flowend can know it.
//!
//! No step waits for time to pass: the other side reads until it has seen what was done.

use std::net::SocketAddr;

use super::connections::Role;
use super::json::Line;
use super::support::{Puppet, Socket};
use Role::{Client, Server};

/// How a connection ends: what this side does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It closes, and the other side follows.
    Closed(Role),
    /// It half-closes, gets [`MORE`] bytes, and the other side closes.
    HalfClosed(Role),
    /// It resets.
    Reset(Role),
    /// It closes with data unread, which resets.
    Unread(Role),
}

/// All of them, with the client and the server in turn.
pub(crate) const WAYS: [Way; 5] = [
    Way::Closed(Client),
    Way::HalfClosed(Client),
    Way::Reset(Server),
    Way::Unread(Client),
    Way::Closed(Server),
];

/// Bytes that come after a half-close, or are left unread.
const MORE: usize = 50;

impl Way {
    const fn first(self) -> Role {
        match self {
            Self::Closed(role)
            | Self::HalfClosed(role)
            | Self::Reset(role)
            | Self::Unread(role) => role,
        }
    }

    const fn resets(self) -> bool {
        matches!(self, Self::Reset(_) | Self::Unread(_))
    }

    const fn moves_more(self) -> bool {
        matches!(self, Self::HalfClosed(_) | Self::Unread(_))
    }
}

/// How much of a connection flowend was there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// All of it: nothing may be missing.
    Whole,
    /// Not its start, or it was forgotten since: direction and bytes may be missing.
    End,
    /// Any part, or nothing but that its socket is gone: anything may be missing.
    Parts,
}

/// A connection that is open, or was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conn {
    pub(crate) way: Way,
    pub(crate) c: Socket,
    pub(crate) s: Socket,
    /// Bytes that the client sends, all in all.
    pub(crate) up: usize,
    /// Bytes that the server sends.
    pub(crate) down: usize,
    pids: (u32, u32),
}

/// A client and a server who make connections with each other.
pub(crate) struct Pair {
    pub(crate) client: Puppet,
    pub(crate) server: Puppet,
    listener: Socket,
    made: usize,
}

impl Pair {
    /// The server listens on `host`, such as `127.0.0.1:0`.
    pub(crate) fn new(client: Puppet, mut server: Puppet, host: &str) -> Self {
        let listener = server.listen(host);
        Self { client, server, listener, made: 0 }
    }

    /// Opens a connection and moves bytes both ways: numbers that no other one of this pair has.
    pub(crate) fn open(&mut self, way: Way) -> Conn {
        let c = self.client.connect(self.listener.local);
        let s = self.server.accept(self.listener);
        self.made += 1;
        let (up, down) = (100 + self.made, 1000 + self.made);
        let mut conn =
            Conn { way, c, s, up: 0, down: 0, pids: (self.client.pid(), self.server.pid()) };
        self.transfer(&mut conn, Client, up);
        self.transfer(&mut conn, Server, down);
        conn
    }

    /// Moves bytes one way.
    pub(crate) fn transfer(&mut self, conn: &mut Conn, from: Role, n: usize) {
        let (sender, receiver) = (conn.socket(from), conn.socket(from.other()));
        self.puppet(from).send(sender, n);
        self.puppet(from.other()).recv(receiver, n);
        conn.sends(from, n);
    }

    /// Half-closes the connection, if that is how it ends.
    pub(crate) fn half_close(&mut self, conn: &Conn) {
        if let Way::HalfClosed(first) = conn.way {
            self.puppet(first).shutdown(conn.socket(first));
            assert_eq!(self.puppet(first.other()).drain(conn.socket(first.other())), 0);
        }
    }

    /// Ends a connection; one that is to be half-closed must be.
    pub(crate) fn end(&mut self, conn: &mut Conn) {
        let (first, second) = (conn.way.first(), conn.way.first().other());
        let (one, other) = (conn.socket(first), conn.socket(second));
        if conn.way.moves_more() {
            self.puppet(second).send(other, MORE);
            conn.sends(second, MORE);
            // One byte says that they are there.
            self.puppet(first).recv(one, if conn.way.resets() { 1 } else { MORE });
        }
        match conn.way {
            Way::HalfClosed(_) => {
                self.puppet(second).close(other);
                assert_eq!(self.puppet(first).drain(one), 0);
                self.puppet(first).close(one);
                return;
            }
            Way::Reset(_) => self.puppet(first).reset(one),
            Way::Closed(_) | Way::Unread(_) => self.puppet(first).close(one),
        }
        let heard = self.puppet(second).ask(&format!("drain {}", other.id));
        assert_eq!(heard.is_err(), conn.way.resets(), "{conn:?}: {heard:?}");
        self.puppet(second).close(other);
    }

    pub(crate) const fn puppet(&mut self, role: Role) -> &mut Puppet {
        match role {
            Client => &mut self.client,
            Server => &mut self.server,
        }
    }
}

impl Conn {
    const fn socket(&self, role: Role) -> Socket {
        match role {
            Client => self.c,
            Server => self.s,
        }
    }

    const fn sends(&mut self, from: Role, n: usize) {
        match from {
            Client => self.up += n,
            Server => self.down += n,
        }
    }

    /// Own address and peer at one end.
    pub(crate) const fn addresses(&self, role: Role) -> (SocketAddr, SocketAddr) {
        match role {
            Client => (self.c.local, self.s.local),
            Server => (self.s.local, self.c.local),
        }
    }

    /// The process at one end.
    pub(crate) const fn pid(&self, role: Role) -> u32 {
        match role {
            Client => self.pids.0,
            Server => self.pids.1,
        }
    }

    /// What is wrong with the record of an end of this connection.
    pub(crate) fn problems(&self, role: Role, line: &Line, seen: Seen) -> Vec<String> {
        let problems = [self.wrong_words(role, line, seen), self.wrong_numbers(role, line, seen)];
        let problems = problems.into_iter().flatten();
        problems.map(|words| format!("{role:?} of {self:?}: {words}: {line:?}")).collect()
    }

    /// Who opened it and who ended it, and how.
    fn wrong_words(&self, role: Role, line: &Line, seen: Seen) -> Vec<String> {
        let by = if self.way.first() == role { "local" } else { "remote" };
        let reason = if self.way.resets() { "reset" } else { "fin" };
        let direction = if role == Client { "outgoing" } else { "incoming" };
        let [nobody, nothing] =
            if seen == Seen::Parts { ["none", "vanished"] } else { [by, reason] };
        let unknown = if seen == Seen::Whole { direction } else { "unknown" };
        let mut wrong = Vec::new();
        for (key, words) in [
            ("flowend.connection.direction", [direction, unknown]),
            ("flowend.end.by", [by, nobody]),
            ("flowend.end.reason", [reason, nothing]),
        ] {
            let got = line.text(key);
            let is_right = got.is_some_and(|got| words.contains(&got));
            wrong.extend((!is_right).then(|| format!("{key} {got:?}, not one of {words:?}")));
        }
        // These follow from what the record says itself.
        let is_reset = line.text("flowend.end.reason") == Some("reset");
        for (key, want) in [
            ("flowend.end.reset_by", is_reset.then_some(by)),
            ("error.type", is_reset.then_some("connection_reset")),
        ] {
            let got = line.text(key);
            wrong.extend((got != want).then(|| format!("{key} {got:?}, not {want:?}")));
        }
        wrong
    }

    /// Addresses, bytes and process.
    fn wrong_numbers(&self, role: Role, line: &Line, seen: Seen) -> Vec<String> {
        let (local, peer) = self.addresses(role);
        let is_remote = line.text("flowend.end.by") == Some("remote");
        let (source, destination) = if is_remote { (peer, local) } else { (local, peer) };
        let (sent, received) = match role {
            Client => (self.up, self.down),
            Server => (self.down, self.up),
        };
        let mut wrong = Vec::new();
        for (prefix, want) in [("source", source), ("destination", destination)] {
            let got = line.endpoint(prefix);
            wrong.extend((got != Some(want)).then(|| format!("{prefix} {got:?}, not {want}")));
        }
        let number = |n: usize| i64::try_from(n).expect("a small number");
        for (key, want) in [
            ("flowend.bytes.sent", number(sent)),
            ("flowend.bytes.received", number(received)),
            ("process.pid", self.pid(role).into()),
        ] {
            let got = line.int(key);
            let is_right = got == Some(want) || (got.is_none() && seen != Seen::Whole);
            wrong.extend((!is_right).then(|| format!("{key} {got:?}, not {want}")));
        }
        wrong
    }
}

/// Both sockets of each connection: own address and peer.
pub(crate) fn sockets<'a>(
    conns: impl IntoIterator<Item = &'a Conn>,
) -> Vec<(SocketAddr, SocketAddr)> {
    conns.into_iter().flat_map(|conn| [Client, Server].map(|role| conn.addresses(role))).collect()
}
