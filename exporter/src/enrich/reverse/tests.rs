//! Against a DNS server of the test's own, over UDP on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, PTR, SOA};
use hickory_proto::rr::{Label, Record};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig};
use tokio::net::UdpSocket;

use super::*;

const SECOND: u64 = 1_000_000_000;

/// When each answer of these tests arrives: the clock stands still.
const NOW: u64 = 1000 * SECOND;

/// What the server says to a name, or nothing at all.
type Zone = fn(&Name, &mut Message) -> bool;

struct World {
    reverse: Reverse,
    questions: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl World {
    async fn new(zone: Zone) -> Self {
        Self::with(zone, |_| ()).await
    }

    async fn with(zone: Zone, change: impl FnOnce(&mut ReverseSettings)) -> Self {
        let mut settings = ReverseSettings {
            timeout: Duration::from_secs(20),
            concurrency: 4,
            max_addresses: 1000,
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_secs(3600),
        };
        change(&mut settings);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let questions = Arc::new(AtomicU64::new(0));
        let server = tokio::spawn(serve(socket, zone, Arc::clone(&questions)));
        let config = config(address);
        let reverse = Reverse::with(config, ResolverOpts::default(), settings, || NOW).unwrap();
        Self { reverse, questions, server }
    }

    /// Wants an address, and waits for what becomes of it.
    async fn ask(&self, ip: &str, now_ns: u64) {
        self.reverse.want(addr(ip), now_ns);
        while self.reverse.stats().pending > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn get(&self, ip: &str, since_ns: u64) -> Option<String> {
        self.reverse.get(addr(ip), since_ns).map(|name| name.to_string())
    }

    fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }
}

fn config(server: SocketAddr) -> ResolverConfig {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    ResolverConfig::from_parts(
        None,
        vec![Name::from_str("search.test.").unwrap()],
        vec![NameServerConfig::new(server.ip(), true, vec![connection])],
    )
}

async fn serve(socket: UdpSocket, zone: Zone, questions: Arc<AtomicU64>) {
    let mut buffer = [0; 4096];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
        let query = Message::from_vec(&buffer[..n]).unwrap();
        let question = query.queries[0].clone();
        assert_eq!(question.query_type, RecordType::PTR);
        questions.fetch_add(1, Ordering::Relaxed);
        let mut answer =
            Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        answer.add_query(question.clone());
        if zone(&question.name, &mut answer) {
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    }
}

fn addr(ip: &str) -> Addr {
    ip.parse::<IpAddr>().unwrap().into()
}

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn ptr(owner: &Name, ttl: u32, target: Name) -> Record {
    Record::from_rdata(owner.clone(), ttl, RData::PTR(PTR(target)))
}

/// Of an address its reverse name, as a zone file has it.
fn arpa(ip: &str) -> Name {
    let mut name = Name::from(ip.parse::<IpAddr>().unwrap());
    name.set_fqdn(true);
    name
}

/// 192.0.2.1 and 2001:db8::1 have names, 192.0.2.2 several, 192.0.2.3 one by an alias; the rest has none.
fn zone(asked: &Name, answer: &mut Message) -> bool {
    if *asked == arpa("192.0.2.1") {
        answer.add_answer(ptr(asked, 60, name("One.Example.test.")));
        // Not of the address asked for.
        answer.add_answer(ptr(&arpa("192.0.2.9"), 60, name("a.example.test.")));
    } else if *asked == arpa("2001:db8::1") {
        answer.add_answer(ptr(asked, 60, name("six.example.test.")));
    } else if *asked == arpa("192.0.2.2") {
        for target in ["b.test.", "a.test.", "c.test."] {
            answer.add_answer(ptr(asked, 60, name(target)));
        }
    } else if *asked == arpa("192.0.2.3") {
        // RFC 2317.
        let alias = name("3.0-29.2.0.192.in-addr.arpa.");
        answer.add_answer(Record::from_rdata(
            asked.clone(),
            30,
            RData::CNAME(CNAME(alias.clone())),
        ));
        answer.add_answer(ptr(&alias, 60, name("three.example.test.")));
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    true
}

#[tokio::test]
async fn names_come_from_the_servers_and_hold_as_long_as_they_say() {
    let world = World::new(zone).await;
    for (ip, want, seconds) in [
        ("192.0.2.1", "one.example.test", 60),
        ("2001:db8::1", "six.example.test", 60),
        ("192.0.2.2", "a.test", 60),
        ("192.0.2.3", "three.example.test", 30),
    ] {
        assert_eq!(world.get(ip, NOW), None, "not asked for yet");
        world.ask(ip, NOW).await;
        let until = NOW + seconds * SECOND;
        assert_eq!(world.get(ip, NOW).as_deref(), Some(want), "{ip}");
        // A long connection that began before the answer came.
        assert_eq!(world.get(ip, 0).as_deref(), Some(want), "{ip}");
        assert_eq!(world.get(ip, until - 1).as_deref(), Some(want), "{ip}");
        assert_eq!(world.get(ip, until), None, "{ip}");
        // Asked again when it has lapsed, and not before.
        let questions = world.questions();
        world.ask(ip, until - 1).await;
        assert_eq!(world.questions(), questions, "{ip}");
        world.ask(ip, until).await;
        assert_eq!(world.questions(), questions + 1, "{ip}");
    }
    let want = ReverseStats { wanted: 12, known: 4, asked: 8, named: 8, ..Default::default() };
    assert_eq!(world.reverse.stats(), want);
    assert_eq!(
        want.to_string(),
        "reverse lookups: wanted 12 = known 4 + waiting 0 + asked 8 + refused 0; \
         asked 8 = named 8 + negative 0 + failed 0 + timed_out 0 + in_flight 0"
    );
}

#[tokio::test]
async fn a_ttl_is_kept_within_bounds() {
    let world = World::new(|asked, answer| {
        let ttl = if *asked == arpa("192.0.2.1") { 0 } else { u32::MAX >> 1 };
        answer.add_answer(ptr(asked, ttl, name("a.test.")));
        true
    })
    .await;
    for (ip, seconds) in [("192.0.2.1", 5), ("192.0.2.2", 3600)] {
        world.ask(ip, NOW).await;
        assert!(world.get(ip, NOW + seconds * SECOND - 1).is_some(), "{ip}");
        assert_eq!(world.get(ip, NOW + seconds * SECOND), None, "{ip}");
    }
}

#[tokio::test]
async fn that_there_is_no_name_is_remembered() {
    let world = World::new(|asked, answer| {
        if *asked != arpa("192.0.2.1") {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        if *asked != arpa("192.0.2.3") {
            // RFC 2308: the lesser of both times, 70 s.
            let zone = name("2.0.192.in-addr.arpa.");
            let soa = SOA::new(name("ns.test."), name("h.test."), 1, 2, 3, 4, 70);
            answer.add_authority(Record::from_rdata(zone, 100, RData::SOA(soa)));
        }
        true
    })
    .await;
    for (ip, seconds) in [("192.0.2.1", 70), ("192.0.2.2", 70), ("192.0.2.3", 30)] {
        let before = world.questions();
        world.ask(ip, NOW).await;
        assert!(world.questions() > before, "{ip}");
        assert_eq!(world.get(ip, NOW), None, "{ip}");
        let asked = world.reverse.stats().asked;
        world.ask(ip, NOW + seconds * SECOND - 1).await;
        assert_eq!(world.reverse.stats().asked, asked, "{ip}");
        world.ask(ip, NOW + seconds * SECOND).await;
        assert_eq!(world.reverse.stats().asked, asked + 1, "{ip}");
    }
    let stats = world.reverse.stats();
    assert_eq!((stats.negative, stats.known, stats.failed), (6, 3, 0));
}

#[tokio::test]
async fn what_fails_is_not_asked_for_again_at_once() {
    let world = World::new(|asked, answer| {
        let rcode = if *asked == arpa("192.0.2.1") {
            ResponseCode::ServFail
        } else {
            ResponseCode::Refused
        };
        answer.metadata.response_code = rcode;
        true
    })
    .await;
    for ip in ["192.0.2.1", "192.0.2.2"] {
        world.ask(ip, NOW).await;
        assert_eq!(world.get(ip, NOW), None);
        world.ask(ip, NOW + 30 * SECOND - 1).await;
        world.ask(ip, NOW + 30 * SECOND).await;
    }
    let stats = world.reverse.stats();
    assert_eq!((stats.asked, stats.failed, stats.known), (4, 4, 2), "{stats}");
}

#[tokio::test]
async fn an_answer_outlives_a_failure_for_the_connections_of_its_time() {
    static FAILS: AtomicU64 = AtomicU64::new(0);
    let world = World::new(|asked, answer| {
        if FAILS.load(Ordering::Relaxed) == 1 {
            answer.metadata.response_code = ResponseCode::ServFail;
        } else {
            answer.add_answer(ptr(asked, 60, name("a.test.")));
        }
        true
    })
    .await;
    world.ask("192.0.2.1", NOW).await;
    FAILS.store(1, Ordering::Relaxed);
    world.ask("192.0.2.1", NOW + 60 * SECOND).await;
    assert_eq!(world.reverse.stats().failed, 1);
    assert_eq!(world.get("192.0.2.1", NOW + 59 * SECOND).as_deref(), Some("a.test"));
    assert_eq!(world.get("192.0.2.1", NOW + 60 * SECOND), None);
}

#[tokio::test]
async fn a_server_that_is_silent_holds_up_no_more_than_it_may() {
    let world = World::with(
        |_, _| false,
        |settings| {
            settings.timeout = Duration::from_millis(50);
            settings.concurrency = 2;
        },
    )
    .await;
    for last in 1..=5 {
        world.reverse.want(addr(&format!("192.0.2.{last}")), NOW);
    }
    world.reverse.want(addr("192.0.2.1"), NOW);
    let stats = world.reverse.stats();
    assert_eq!((stats.asked, stats.waiting, stats.refused, stats.pending), (2, 1, 3, 2));
    world.ask("192.0.2.9", NOW).await;
    let stats = world.reverse.stats();
    assert_eq!((stats.timed_out, stats.failed, stats.pending), (2, 0, 0), "{stats}");
    // There is room again for one that was refused.
    world.ask("192.0.2.5", NOW).await;
    assert_eq!(world.reverse.stats().timed_out, 3);
}

#[tokio::test]
async fn an_address_that_no_connection_can_have_is_not_asked_for() {
    let world = World::new(zone).await;
    for ip in ["0.0.0.0", "::", "224.0.0.251", "ff02::fb", "255.255.255.255"] {
        world.ask(ip, NOW).await;
    }
    assert_eq!(world.reverse.stats(), ReverseStats::default());
    for ip in ["10.0.0.1", "169.254.1.1", "fe80::1", "fd00::1"] {
        world.ask(ip, NOW).await;
    }
    assert_eq!(world.reverse.stats().negative, 4);
}

#[tokio::test]
async fn a_name_cannot_hurt_who_reads_it() {
    let world = World::new(|asked, answer| {
        let labels = [&b"a.b\x1b[2J"[..], b"q\"", "\u{202e}".as_bytes()];
        let labels = labels.map(|label| Label::from_raw_bytes(label).unwrap());
        let mut target = Name::from_labels(labels).unwrap();
        target.set_fqdn(true);
        answer.add_answer(ptr(asked, 60, target));
        true
    })
    .await;
    world.ask("192.0.2.1", NOW).await;
    let want = "a\\046b\\027[2j.q\\034.\\226\\128\\174";
    assert_eq!(world.get("192.0.2.1", NOW).as_deref(), Some(want));
}

#[tokio::test]
async fn the_number_of_answers_is_bounded() {
    let world = World::with(zone, |settings| settings.max_addresses = 10).await;
    for last in 1..=40 {
        world.ask(&format!("198.51.100.{last}"), NOW).await;
    }
    world.reverse.shared.cache.run_pending_tasks();
    assert_eq!(world.reverse.shared.cache.entry_count(), 10);
}

#[test]
fn without_a_server_it_is_said_what_to_do() {
    for text in ["", "# nothing\n", "search example.test\n", "nameserver not.an.address\n"] {
        let error = parse_resolv_conf(text)
            .map_err(|error| ReverseError::Content(error_chain(&error)).to_string())
            .unwrap_err();
        assert!(error.starts_with("/etc/resolv.conf: "), "{error}");
        assert!(error.ends_with("names a DNS server (nameserver ADDRESS)"), "{error}");
    }
}
