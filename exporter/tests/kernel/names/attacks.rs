//! Forged answers, from outside the workload that asked: none may name an address, and each is counted.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::super::support::{Cgroup, Puppet, can_run, parse};
use super::message::{hex, name_bytes, query};
use super::{Site, counted, names, watch};

/// The type of an address record (RFC 1035, section 3.2.2).
pub(super) const A: u16 = 1;
/// Where a test's own server is.
pub(super) const SERVER: &str = "127.0.0.8:53";
/// IPPROTO_RAW: the whole packet is the sender's, with its IP header (raw(7)).
const WHOLE_PACKET: i32 = 255;
const UDP: u8 = 17;

/// An address record in the class IN (RFC 1035, section 4.1.3).
pub(super) fn address_record(owner: &[u8], ip: [u8; 4], ttl: u32) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend([0, 1, 0, 1]);
    record.extend(ttl.to_be_bytes());
    record.extend([0, 4]);
    record.extend(ip);
    record
}

/// The answer to a query, with these records.
pub(super) fn answer(query: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&u16::try_from(records.len()).expect("few").to_be_bytes());
    message.extend(records.concat());
    message
}

/// The usual answer: one address of the name asked for.
pub(super) fn naming(query: &[u8], ip: [u8; 4]) -> Vec<u8> {
    // A pointer to the question's name (RFC 1035, section 4.1.4).
    answer(query, &[address_record(&[0xc0, 12], ip, 60)])
}

/// A test's own server: not in any cgroup that is watched.
pub(super) fn server(site: &Site) -> UdpSocket {
    let socket = site.netns.inside(|| UdpSocket::bind(SERVER)).expect("port 53");
    socket.set_read_timeout(Some(super::super::support::PATIENCE)).expect("a timeout");
    socket
}

/// Sends datagrams with any source.
struct Forger(RawSocket);

impl Forger {
    fn new(site: &Site) -> Self {
        let open = || RawSocket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(WHOLE_PACKET)));
        Self(site.netns.inside(open).expect("a raw socket"))
    }

    fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        let length = u16::try_from(payload.len() + 28).expect("a short datagram");
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        // The kernel fills in the IP checksum; a UDP checksum of 0 is none (RFC 768).
        packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
        packet.extend(from.ip().octets());
        packet.extend(to.ip().octets());
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend((length - 20).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(payload);
        assert_eq!(self.0.send_to(&packet, &to.into()).expect("a forged packet"), packet.len());
    }
}

fn v4(address: &str) -> SocketAddrV4 {
    address.parse().expect("an IPv4 address")
}

/// A puppet's UDP socket: its number and address.
pub(super) fn udp(puppet: &mut Puppet, options: &str) -> (u32, SocketAddrV4) {
    let socket = parse(&puppet.tell(&format!("udp 127.0.0.1:0{options}")));
    (socket.id, v4(&socket.local.to_string()))
}

/// Addresses that forged answers tell: `127.66.N.0`.
fn lie(n: u8) -> [u8; 4] {
    [127, 66, n, 1]
}

fn text(ip: [u8; 4]) -> String {
    Ipv4Addr::from(ip).to_string()
}

/// What it is, who seems to send it, to whom, the message, and what becomes of it if it is looked at.
type Forged = (&'static str, &'static str, SocketAddrV4, Vec<u8>, Option<&'static str>);

/// Runs the lookup with everybody else answering before the server does.
fn forged_answers(connected: bool) {
    let mut site = Site::without_server();
    let (asking, other) = (Cgroup::new(), Cgroup::new());
    let flowend = watch(&[&asking, &other], &[]);
    let (mut asker, mut neighbour) = (site.puppet(&asking), site.puppet(&other));
    let (server, forger) = (server(&site), Forger::new(&site));
    let told = [127, 0, 7, 1];

    let options = if connected { format!(" to {SERVER}") } else { String::new() };
    let (id, from) = udp(&mut asker, &options);
    let (_, unasked) = udp(&mut asker, "");
    let (neighbours, theirs) = udp(&mut neighbour, &options);
    let question = query(0x1234, "real.test", A);
    asker.tell(&format!("udp-send {id} {SERVER} {}", hex(&question)));
    let mut room = [0; 512];
    let (n, sender) = server.recv_from(&mut room).unwrap();
    assert_eq!((&room[..n], sender), (&question[..], from.into()));
    // Somebody in another cgroup asks something else with the same id.
    let second = query(0x1234, "theirs.test", A);
    neighbour.tell(&format!("udp-send {neighbours} {SERVER} {}", hex(&second)));
    assert_eq!(server.recv_from(&mut room).unwrap().1, theirs.into());

    let wrong_id = query(0x1235, "real.test", A);
    let wrong_question = query(0x1234, "other.test", A);
    let wrong_type = query(0x1234, "real.test", 28);
    let right = |n| naming(&question, lie(n));
    // Who seems to send what to whom, and what becomes of it. A connected socket gets nothing from anybody but
    // its server; and only port 53 is looked at.
    let reached = |fate| if connected { None } else { Some(fate) };
    let forged: [Forged; 8] = [
        ("wrong id", SERVER, from, naming(&wrong_id, lie(1)), Some("unmatched")),
        ("wrong question", SERVER, from, naming(&wrong_question, lie(2)), Some("wrong_question")),
        ("wrong type", SERVER, from, naming(&wrong_type, lie(3)), Some("wrong_question")),
        ("wrong server", "127.0.0.9:53", from, right(4), reached("unmatched")),
        ("another cgroup's socket, its own id", SERVER, theirs, right(5), Some("wrong_question")),
        ("a socket that asked nothing", SERVER, unasked, right(6), Some("unmatched")),
        ("wrong port", "127.0.0.8:5300", from, right(7), None),
        ("mDNS's port", "127.0.0.8:5353", from, right(8), None),
    ];
    for (_, sender, to, message, _) in &forged {
        forger.send(v4(sender), *to, message);
    }
    server.send_to(&naming(&question, told), sender).unwrap();
    // A second answer to the same query.
    server.send_to(&naming(&question, lie(9)), sender).unwrap();
    let second = ("a second answer", Some("unmatched"));
    let fates: Vec<_> = forged.iter().map(|f| (f.0, f.4)).chain([second]).collect();

    for (n, (what, _)) in (1_u8..).zip(&fates) {
        for puppet in [&mut asker, &mut neighbour] {
            let visit = site.visit(puppet, &text(lie(n)));
            assert_eq!(names(&flowend, &visit), [""; 0], "{what}");
        }
    }
    let (visit, theirs) =
        (site.visit(&mut asker, &text(told)), site.visit(&mut neighbour, &text(told)));
    assert_eq!(names(&flowend, &visit), ["real.test"], "no forged one took its query away");
    assert_eq!(names(&flowend, &theirs), [""; 0], "another workload's");
    let (_, messages) = flowend.stop();
    assert_eq!(counted(&messages, "dns messages", "learnt"), 1, "{messages}");
    let mut ignored = 0;
    for fate in ["unmatched", "wrong_question"] {
        let expected = fates.iter().filter(|(_, f)| *f == Some(fate)).count() as u64;
        assert_eq!(counted(&messages, "dns messages", fate), expected, "{fate}: {messages}");
        ignored += expected;
    }
    // Two queries, and the answer.
    assert_eq!(counted(&messages, "dns messages", "seen"), ignored + 3, "{messages}");
}

#[test]
fn forged_answers_to_an_unconnected_socket_name_nothing() {
    if can_run("forged_answers_to_an_unconnected_socket_name_nothing", &["ip"]) {
        forged_answers(false);
    }
}

#[test]
fn forged_answers_to_a_connected_socket_name_nothing() {
    if can_run("forged_answers_to_a_connected_socket_name_nothing", &["ip"]) {
        forged_answers(true);
    }
}

/// The server asked tells more than it was asked for.
#[test]
fn what_was_not_asked_for_names_nothing() {
    if !can_run("what_was_not_asked_for_names_nothing", &["ip"]) {
        return;
    }
    let mut site = Site::without_server();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &[]);
    let mut asker = site.puppet(&cgroup);
    let server = server(&site);
    let (id, from) = udp(&mut asker, "");
    let question = query(1, "asked.test", A);
    asker.tell(&format!("udp-send {id} {SERVER} {}", hex(&question)));
    server.recv_from(&mut [0; 512]).unwrap();
    let mut message = answer(
        &question,
        &[
            address_record(&[0xc0, 12], [127, 0, 7, 2], 60),
            address_record(&name_bytes("bank.test"), lie(20), 60),
        ],
    );
    // And as glue, which only services' hosts come in.
    message[10..12].copy_from_slice(&[0, 1]);
    message.extend(address_record(&name_bytes("mail.test"), lie(21), 60));
    server.send_to(&message, from).unwrap();
    let cases: [([u8; 4], &[&str]); 3] =
        [([127, 0, 7, 2], &["asked.test"]), (lie(20), &[]), (lie(21), &[])];
    for (ip, expected) in cases {
        let visit = site.visit(&mut asker, &text(ip));
        assert_eq!(names(&flowend, &visit), expected, "{ip:?}");
    }
    flowend.stop();
}
