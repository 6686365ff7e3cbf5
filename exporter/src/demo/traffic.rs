//! The demo's connections: made and ended for real, and written down as they happened.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::nameserver;

/// Longer than the delayed ACK (40 ms), so that each step is seen before the next one.
const STEP: Duration = Duration::from_millis(60);

/// Which end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    Client,
    Server,
}

/// One connection as it happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ending {
    /// In words.
    pub(super) what: String,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// Who sent the first FIN or RST.
    pub(super) by: Role,
    /// As in `flowend.end.reason`.
    pub(super) reason: String,
    /// Who sent an RST.
    pub(super) reset_by: Option<Role>,
    /// Payload bytes, client to server.
    pub(super) up: u64,
    /// Payload bytes, server to client.
    pub(super) down: u64,
    /// Whether there is an accepted socket.
    pub(super) accepted: bool,
    /// The names of the server's address, where it was looked up.
    pub(super) server_names: Vec<String>,
}

impl Ending {
    /// Sockets, so records.
    pub(super) const fn records(&self) -> usize {
        if self.accepted { 2 } else { 1 }
    }
}

/// Times that the name is asked for, and how long each waits for the answer.
const LOOKUPS: u16 = 3;
const LOOKUP: Duration = Duration::from_secs(1);

/// Joins the cgroup, makes the connections, and prints each ending as a line of JSON. With a DNS server, the
/// last ones go to an address that it names.
///
/// # Errors
/// When the cgroup cannot be joined, loopback does not work or the server does not answer.
pub fn traffic(cgroup: &Path, server: Option<SocketAddr>) -> anyhow::Result<()> {
    std::fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot join the cgroup {}", cgroup.display()))?;
    let mut hosts = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        hosts.push(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)));
    }
    for host in hosts {
        for make in [
            closed_by_client,
            closed_by_server,
            reset_by_client,
            reset_by_server,
            half_closed,
            refused,
        ] {
            say(&make(host)?)?;
        }
    }
    let Some(server) = server else { return Ok(()) };
    let host = SocketAddr::from((look_up(server)?, 0));
    for make in [closed_by_client, closed_by_server] {
        let mut ending = make(host)?;
        ending.what = format!("{}, connected by name", ending.what);
        ending.server_names = nameserver::NAMES.map(str::to_owned).to_vec();
        say(&ending)?;
    }
    Ok(())
}

fn say(ending: &Ending) -> anyhow::Result<()> {
    let line = serde_json::to_string(ending)?;
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Asks for the name's address as a resolver does, over UDP.
fn look_up(server: SocketAddr) -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(LOOKUP))?;
    let mut answer = [0; 512];
    for id in 1..=LOOKUPS {
        socket.send(&nameserver::query(id)?)?;
        let Ok(len) = socket.recv(&mut answer) else { continue };
        if let Some(address) = nameserver::address_in(&answer[..len], id) {
            return Ok(address);
        }
    }
    anyhow::bail!("{server} did not answer {} in {LOOKUPS} tries", nameserver::ASKED)
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
    ending: Ending,
}

impl Pair {
    fn open(host: SocketAddr, what: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(host)?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (server, _) = listener.accept()?;
        let ending = Ending {
            what: what.into(),
            client: client.local_addr()?,
            server: client.peer_addr()?,
            by: Role::Client,
            reason: "fin".into(),
            reset_by: None,
            up: 0,
            down: 0,
            accepted: true,
            server_names: Vec::new(),
        };
        Ok(Self { client, server, ending })
    }

    fn up(&mut self, bytes: usize) -> std::io::Result<()> {
        self.client.write_all(&vec![b'u'; bytes])?;
        self.ending.up += bytes as u64;
        self.server.read_exact(&mut vec![0; bytes])
    }

    fn down(&mut self, bytes: usize) -> std::io::Result<()> {
        self.server.write_all(&vec![b'd'; bytes])?;
        self.ending.down += bytes as u64;
        self.client.read_exact(&mut vec![0; bytes])
    }
}

fn closed_by_client(host: SocketAddr) -> anyhow::Result<Ending> {
    let mut pair = Pair::open(host, "closed by the client")?;
    pair.up(100)?;
    pair.down(2000)?;
    drop(pair.client);
    std::thread::sleep(STEP);
    Ok(pair.ending)
}

fn closed_by_server(host: SocketAddr) -> anyhow::Result<Ending> {
    let mut pair = Pair::open(host, "closed by the server")?;
    pair.up(10)?;
    pair.down(50_000)?;
    drop(pair.server);
    std::thread::sleep(STEP);
    pair.ending.by = Role::Server;
    Ok(pair.ending)
}

fn reset_by_client(host: SocketAddr) -> anyhow::Result<Ending> {
    let mut pair = Pair::open(host, "reset by the client (SO_LINGER 0)")?;
    pair.up(7)?;
    socket2::SockRef::from(&pair.client).set_linger(Some(Duration::ZERO))?;
    drop(pair.client);
    std::thread::sleep(STEP);
    pair.ending.reason = "reset".into();
    pair.ending.reset_by = Some(Role::Client);
    Ok(pair.ending)
}

fn reset_by_server(host: SocketAddr) -> anyhow::Result<Ending> {
    let mut pair = Pair::open(host, "reset by the server (closed with unread data)")?;
    pair.client.write_all(&[b'u'; 300])?;
    pair.ending.up = 300;
    std::thread::sleep(STEP);
    drop(pair.server);
    std::thread::sleep(STEP);
    pair.ending.by = Role::Server;
    pair.ending.reason = "reset".into();
    pair.ending.reset_by = Some(Role::Server);
    Ok(pair.ending)
}

fn half_closed(host: SocketAddr) -> anyhow::Result<Ending> {
    let mut pair = Pair::open(host, "half-closed by the client, then data from the server")?;
    pair.up(5)?;
    pair.client.shutdown(Shutdown::Write)?;
    std::thread::sleep(STEP);
    pair.down(1234)?;
    drop(pair.server);
    std::thread::sleep(STEP);
    Ok(pair.ending)
}

fn refused(host: SocketAddr) -> anyhow::Result<Ending> {
    // A port that was just free, and nobody listens at.
    let server = TcpListener::bind(host)?.local_addr()?;
    // A source port of its own: the kernel's choice would not be known after the refusal.
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(server), socket2::Type::STREAM, None)?;
    socket.bind(&host.into())?;
    let client = socket.local_addr()?.as_socket().context("no address")?;
    match socket.connect(&server.into()) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        other => anyhow::bail!("connect to a closed port: {other:?}"),
    }
    Ok(Ending {
        what: "refused by a closed port".into(),
        client,
        server,
        by: Role::Server,
        reason: "refused".into(),
        reset_by: Some(Role::Server),
        up: 0,
        down: 0,
        accepted: false,
        server_names: Vec::new(),
    })
}
