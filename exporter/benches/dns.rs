//! Cost of the DNS cache: `cargo bench --bench dns`.
//!
//! A flood of a million distinct names, with what the cache says it takes held against the memory of
//! the process; then CPU time per message, from its bytes to the cache, and per lookup.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flowend::dns::{AnswerFate, Dns, DnsSettings, Scope};
use flowend_probe_types::{Addr, DnsEvent, EventKind};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

const ROUNDS: usize = 9;
/// Messages of a round: each has a socket, a name and addresses of its own.
const MESSAGES: u32 = 2048;
/// Addresses that lookups choose from.
const ADDRESSES: u32 = 50_000;
const LOOKUPS: u32 = 500_000;
const FLOOD: u32 = 1_000_000;
const FLOOD_BYTES: u64 = 64 << 20;
/// What the process may take beyond the bytes of the cache: moka's tables and queues, and what the
/// allocator holds back.
const OVERHEAD_BYTES: u64 = 24 << 20;
const SECOND: u64 = 1_000_000_000;
const SCOPE: Scope = Scope(1);

fn main() {
    // First: memory that other work gave back would be taken again, and not show.
    flood();
    println!("\n{:52} {:>10} {:>10}", "ns of CPU time, median", "ns", "per s");
    messages();
    lookups();
}

/// The answer with this number.
type Make = fn(u32) -> Vec<u8>;

fn messages() {
    let cases: [(&str, Make); 4] = [
        ("answer, one address", |n| answer(n, 0, 1)),
        ("answer, chain of 5 aliases, 4 addresses", |n| answer(n, 5, 4)),
        ("answer, 30 addresses", |n| answer(n, 0, 30)),
        ("answer, 200 addresses", |n| answer(n, 0, 200)),
    ];
    let queries: Vec<_> = (0..MESSAGES).map(query).collect();
    let ask = |dns: &mut Dns, at| {
        for (n, bytes) in (0..).zip(&queries) {
            dns.observe(EventKind::DnsQuery, &facts(n, at), bytes, SCOPE);
        }
    };
    let mut dns = cache(256 << 20);
    let ns = median(|round| {
        let ns = cpu_ns(|| ask(&mut dns, round * SECOND));
        ns / f64::from(MESSAGES)
    });
    print("query", ns);
    for (what, make) in cases {
        let answers: Vec<_> = (0..MESSAGES).map(make).collect();
        // The first time it comes, and when it is answered again.
        for again in [false, true] {
            let mut dns = cache(256 << 20);
            let round = |dns: &mut Dns, at: u64| {
                ask(dns, at);
                let ns = cpu_ns(|| {
                    for (n, bytes) in (0..).zip(&answers) {
                        dns.observe(EventKind::DnsAnswer, &facts(n, at + 1), bytes, SCOPE);
                    }
                });
                ns / f64::from(MESSAGES)
            };
            round(&mut dns, 0);
            let ns = median(|n| {
                if !again {
                    dns = cache(256 << 20);
                }
                round(&mut dns, (n + 1) * SECOND)
            });
            let stats = dns.stats();
            assert_eq!(stats.answers(AnswerFate::Learnt) % u64::from(MESSAGES), 0, "{stats}");
            assert_eq!(stats.seen, stats.accounted(), "{stats}");
            assert_eq!(dns.waiting(), 0, "{stats}");
            print(&format!("{what}{}", if again { ", again" } else { "" }), ns);
        }
    }
    let answers: Vec<_> = (0..MESSAGES).map(|n| answer(n, 0, 200)).collect();
    let mut dns = cache(1 << 20);
    let ns = median(|at| {
        let ns = cpu_ns(|| {
            for (n, bytes) in (0..).zip(&answers) {
                dns.observe(EventKind::DnsAnswer, &facts(n, at), bytes, SCOPE);
            }
        });
        ns / f64::from(MESSAGES)
    });
    assert_eq!(dns.stats().answers(AnswerFate::Unmatched), dns.stats().seen);
    print("answer that nobody asked for", ns);
}

fn lookups() {
    let mut dns = cache(256 << 20);
    for n in 0..ADDRESSES {
        dns.observe(EventKind::DnsQuery, &facts(n, 0), &query(n), SCOPE);
        dns.observe(EventKind::DnsAnswer, &facts(n, 1), &answer(n, 0, 1), SCOPE);
    }
    dns.free();
    // Far apart, as addresses of connections are: a stride that is prime to their number.
    let pick = |n: u32| (u64::from(n) * 7_919 % u64::from(ADDRESSES)) as u32;
    let cases: [(&str, u32, u32, usize); 3] = [
        ("lookup, one of 50,000 addresses", 1, 0, 1),
        ("lookup, one of 64 addresses", ADDRESSES / 64, 0, 1),
        ("lookup, no such address", 1, 0x0100_0000, 0),
    ];
    for (what, step, offset, found) in cases {
        let addrs: Vec<Addr> =
            (0..ADDRESSES).map(|n| address(pick(n) / step * step, 0, offset)).collect();
        let ns = median(|_| {
            let mut names = 0;
            let ns = cpu_ns(|| {
                for n in 0..LOOKUPS {
                    let addr = addrs[(n % ADDRESSES) as usize];
                    names += black_box(dns.names(&[SCOPE], addr, SECOND)).len();
                }
            });
            assert_eq!(names, found * LOOKUPS as usize, "{what}");
            ns / f64::from(LOOKUPS)
        });
        print(what, ns);
    }
}

/// A million names, each of its own address, into a cache that holds a part of them.
fn flood() {
    let before = resident();
    let mut dns = cache(FLOOD_BYTES);
    let mut most = 0;
    for n in 0..FLOOD {
        let at = u64::from(n) * 1000;
        dns.observe(EventKind::DnsQuery, &facts(n, at), &query(n), SCOPE);
        dns.observe(EventKind::DnsAnswer, &facts(n, at + 1), &answer(n, 0, 1), SCOPE);
        if n % 10_000 == 0 {
            most = most.max(resident().saturating_sub(before));
        }
    }
    dns.free();
    let stats = dns.cache_stats();
    println!("flood of {FLOOD} distinct names into {FLOOD_BYTES} bytes\n{stats}");
    println!("{}", dns.stats());
    let per_entry = |bytes: u64| bytes as f64 / stats.entries as f64;
    println!(
        "the process grew by {most} bytes at most: {:.0} an entry, of which {:.0} are accounted for",
        per_entry(most),
        per_entry(stats.bytes)
    );
    assert!(stats.bytes <= FLOOD_BYTES, "{stats}");
    assert_eq!(stats.entries + stats.evictions, u64::from(FLOOD), "{stats}");
    assert!(most >= stats.bytes / 2, "{most} bytes: not what the flood took");
    assert!(most <= FLOOD_BYTES + OVERHEAD_BYTES, "{most} bytes");
}

fn cache(cache_bytes: u64) -> Dns {
    let (min_ttl, max_ttl) = (Duration::from_secs(5), Duration::from_secs(3600));
    Dns::new(DnsSettings { cache_bytes, min_ttl, max_ttl })
}

/// Of the socket with this number.
fn facts(n: u32, time_ns: u64) -> DnsEvent {
    DnsEvent {
        local: IpAddr::from([10, 0, 0, 1]).into(),
        local_port: 40_000,
        remote: IpAddr::from([10, 0, 0, 53]).into(),
        remote_port: 53,
        cookie: u64::from(n),
        cgroup_id: 1,
        time_ns,
        ..DnsEvent::default()
    }
}

fn asked(n: u32) -> Name {
    name(&format!("host{n:07}.service.example.test."))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn query(n: u32) -> Vec<u8> {
    let mut message = Message::new(n as u16, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(asked(n), RecordType::A));
    message.to_vec().expect("a message")
}

fn answer(n: u32, aliases: u32, addresses: u32) -> Vec<u8> {
    let mut message = Message::new(n as u16, MessageType::Response, OpCode::Query);
    message.add_query(Query::query(asked(n), RecordType::A));
    let mut owner = asked(n);
    for alias in 0..aliases {
        let target = name(&format!("alias{alias}.{n:07}.edge.example.net."));
        let data = RData::CNAME(CNAME(target.clone()));
        message.add_answer(Record::from_rdata(owner, 300, data));
        owner = target;
    }
    for at in 0..addresses {
        let IpAddr::V4(ip) = address(n, at, 0).into() else { unreachable!("of IPv4") };
        message.add_answer(Record::from_rdata(owner.clone(), 300, RData::A(A(ip))));
    }
    message.to_vec().expect("a message")
}

fn address(n: u32, at: u32, offset: u32) -> Addr {
    // Those of one answer lie apart from all other answers' addresses.
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n + (at << 21) + (offset << 7))).into()
}

fn median(mut round: impl FnMut(u64) -> f64) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS as u64).map(&mut round).collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

/// CPU time of this thread: other work on the machine is none of ours.
fn cpu_ns(work: impl FnOnce()) -> f64 {
    let now = || {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
        Duration::from(time.expect("the clock of this thread"))
    };
    let start = now();
    work();
    (now() - start).as_nanos() as f64
}

/// Resident memory of this process, bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
    kib * 1024
}

fn print(what: &str, ns: f64) {
    println!("{what:52} {ns:10.0} {:10.0}", 1e9 / ns);
}
