//! The demo's own DNS server: a fresh machine has none. It knows one name, by way of an alias, and runs
//! outside the watched cgroup.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// The name that is asked for. `.test` is nobody's (RFC 6761, section 6.2).
pub(super) const ASKED: &str = "shop.demo.test";

/// What it is an alias for.
const ALIAS: &str = "edge.demo.test";

/// The names of the address, in the order in which a record tells them.
pub(super) const NAMES: [&str; 2] = [ASKED, ALIAS];

/// Its address. Not 127.0.0.1, where the connections without a name go to.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 80);

/// Where the server listens: no address that a system's resolver is known to use.
const SERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 2, 53), Ipv4Addr::new(127, 83, 53, 53)];

/// DNS's port: on another one no message is learnt from.
const PORT: u16 = 53;

/// Seconds that an answer holds: longer than the demo runs.
const TTL: u32 = 300;

/// The longest query (RFC 1035, section 2.3.4).
const MAX_QUERY: usize = 512;

/// Stops when dropped.
pub(super) struct NameServer {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl NameServer {
    /// Listens on port 53 of an address of loopback.
    ///
    /// # Errors
    /// When another program has the port on all of them; names them.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let addresses = SERVERS.map(|ip| SocketAddr::from((ip, PORT)));
        match UdpSocket::bind(&addresses[..]).await {
            Ok(socket) => {
                Ok(Self { address: socket.local_addr()?, server: tokio::spawn(serve(socket)) })
            }
            Err(error) => {
                let [first, second] = addresses;
                anyhow::bail!("neither {first} nor {second} (UDP) can be listened on: {error}")
            }
        }
    }

    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(socket: UdpSocket) {
    let mut buffer = [0; MAX_QUERY];
    loop {
        // An ICMP error of an answer that nobody waited for any more is reported here.
        let Ok((len, client)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = answer(&buffer[..len]) {
            let _ = socket.send_to(&answer, client).await;
        }
    }
}

/// The answer to a query; to what is none, nothing.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let [question] = query.queries.as_slice() else { return None };
    let mut answer = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    answer.add_query(question.clone());
    let (asked, alias) = (name(ASKED)?, name(ALIAS)?);
    if question.name == asked && question.query_type == RecordType::A {
        answer.add_answer(Record::from_rdata(asked, TTL, RData::CNAME(CNAME(alias.clone()))));
        answer.add_answer(Record::from_rdata(alias, TTL, RData::A(A(ADDRESS))));
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer.to_vec().ok()
}

/// The query for the name, as a resolver sends it.
pub(super) fn query(id: u16) -> anyhow::Result<Vec<u8>> {
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let asked = Name::from_ascii(format!("{ASKED}."))?;
    query.add_query(Query::query(asked, RecordType::A));
    Ok(query.to_vec()?)
}

/// The address in an answer.
pub(super) fn address_in(answer: &[u8], id: u16) -> Option<IpAddr> {
    let answer = Message::from_vec(answer).ok().filter(|answer| answer.metadata.id == id)?;
    answer.answers.iter().find_map(|record| match &record.data {
        RData::A(a) => Some(a.0.into()),
        _ => None,
    })
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_the_one_name_and_nothing_else() {
        let asked = query(7).unwrap();
        assert_eq!(address_in(&answer(&asked).unwrap(), 7), Some(ADDRESS.into()));
        assert_eq!(address_in(&answer(&asked).unwrap(), 8), None, "of another query");
        let mut other = Message::new(7, MessageType::Query, OpCode::Query);
        other.add_query(Query::query(name("other.test").unwrap(), RecordType::A));
        let refused = answer(&other.to_vec().unwrap()).unwrap();
        assert_eq!(
            Message::from_vec(&refused).unwrap().metadata.response_code,
            ResponseCode::NXDomain
        );
        assert_eq!(answer(b"no DNS"), None);
    }
}
