//! What the connections of the stress test are: the load that makes them and the test that checks
//! their records both derive it from a connection's number.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where the server listens.
pub(crate) const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7000);

/// Client ports used of each address: never the same address and port twice, so that a connection in
/// TIME-WAIT is in nobody's way, and an address and port tell which connection it was.
const FIRST_PORT: u16 = 10_000;
const PORTS: u32 = 50_000;

/// One connection of one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) round: u8,
    pub(crate) number: u32,
}

impl Planned {
    /// The client's address and port: 127.1.ROUND.x.
    pub(crate) fn client(self) -> SocketAddr {
        let host = u8::try_from(1 + self.number / PORTS).expect("at most 12,700,000 connections");
        let port = FIRST_PORT + u16::try_from(self.number % PORTS).expect("less than PORTS");
        (Ipv4Addr::new(127, 1, self.round, host), port).into()
    }

    /// The connection that a client's address and port belong to.
    pub(crate) fn of_client(address: SocketAddr) -> Option<Self> {
        let IpAddr::V4(ip) = address.ip() else { return None };
        let [127, 1, round, host] = ip.octets() else { return None };
        let port = address.port().checked_sub(FIRST_PORT)?;
        let number = u32::from(host.checked_sub(1)?) * PORTS + u32::from(port);
        Some(Self { round, number })
    }

    /// Bytes that the client sends. With [`Planned::down`], a pair that no other connection has among
    /// two million (997 and 1999 are primes).
    pub(crate) const fn up(self) -> usize {
        1 + self.number as usize % 997
    }

    /// Bytes that the server sends, after it has received all of the client's.
    pub(crate) const fn down(self) -> usize {
        1 + self.number as usize % 1999
    }

    /// Who closes first, when all bytes have arrived; the other side follows.
    pub(crate) const fn client_closes(self) -> bool {
        self.number.is_multiple_of(2)
    }
}
