//! A workload that looks up more names than there is room for: memory stays within what was set, each message
//! is counted, and the connections of others are not lost over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::support::{Cgroup, Flowend, can_run};
use super::attacks::{SERVER, naming, server, udp};
use super::{Site, Visit, counted, names, record, watch};

/// Names looked up; a million are a bench's.
const LOOKUPS: u32 = 50_000;
/// `dns.cache_bytes`: room for a small part of them.
const CACHE_BYTES: u64 = 1 << 20;
/// What may come to it: queries on their way, the allocator's own, and the debug build's.
const OVERHEAD: u64 = 8 << 20;
/// Connections made meanwhile.
const CONNECTIONS: u8 = 100;

/// Memory of a process's own, bytes: without the ring buffer, which is shared with the kernel.
fn own_memory(flowend: &Flowend) -> u64 {
    let file = format!("/proc/{}/status", flowend.pid());
    let status = std::fs::read_to_string(&file).expect(&file);
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("RssAnon");
    let kilobytes = line.trim().strip_suffix(" kB").and_then(|n| n.parse::<u64>().ok());
    kilobytes.expect("a number of kB") * 1024
}

/// Events that found the ring full, by kind.
fn lost(messages: &str, kind: &str) -> u64 {
    let lines = messages.lines().filter_map(|l| l.split_once("events lost: "));
    let parts = lines.flat_map(|(_, rest)| rest.split(';').next().unwrap_or_default().split(", "));
    parts
        .filter_map(|part| part.split_once(' '))
        .filter(|(name, _)| *name == kind)
        .map(|(_, n)| n.parse::<u64>().expect("a number"))
        .sum()
}

#[test]
fn a_flood_of_names_stays_within_its_memory_and_costs_no_other_record() {
    let test = "a_flood_of_names_stays_within_its_memory_and_costs_no_other_record";
    if !can_run(test, &["ip"]) {
        return;
    }
    let mut site = Site::without_server();
    let (flooding, quiet) = (Cgroup::new(), Cgroup::new());
    let flowend = watch(&[&flooding, &quiet], &[&format!("dns.cache_bytes={CACHE_BYTES}")]);
    let (mut asker, mut other) = (site.puppet(&flooding), site.puppet(&quiet));
    let before = own_memory(&flowend);

    let (server, done) = (server(&site), Arc::new(AtomicBool::new(false)));
    server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let responder = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let (mut room, mut n) = ([0; 512], 0_u32);
            while !done.load(Ordering::Relaxed) {
                let Ok((length, from)) = server.recv_from(&mut room) else { continue };
                n += 1;
                let [_, high, middle, low] = n.to_be_bytes();
                server.send_to(&naming(&room[..length], [10, high, middle, low]), from).unwrap();
            }
        }
    });
    let (id, _) = udp(&mut asker, "");
    asker.post(&format!("udp-look-up {id} {SERVER} {LOOKUPS}"));
    let mut visits: Vec<Visit> = Vec::new();
    let mut highest = before;
    for n in 0..CONNECTIONS {
        visits.push(site.visit(&mut other, &format!("127.0.9.{}", n + 1)));
        highest = highest.max(own_memory(&flowend));
    }
    asker.finish();
    done.store(true, Ordering::Relaxed);
    responder.join().expect("the responder");

    // What the flood left is full; the newest answer is taken in all the same.
    for visit in &visits {
        record(&flowend, visit);
    }
    highest = highest.max(own_memory(&flowend));
    let grown = highest.saturating_sub(before);
    assert!(grown <= CACHE_BYTES + OVERHEAD, "grown by {grown} bytes");
    let visit = site.visit(&mut asker, "127.0.9.200");
    assert_eq!(names(&flowend, &visit), [""; 0]);

    let (_, messages) = flowend.stop();
    for kind in ["segment", "established", "closed"] {
        assert_eq!(lost(&messages, kind), 0, "{messages}");
    }
    // A query and an answer of each; what gave way in the ring is counted there.
    let seen = counted(&messages, "dns messages", "seen");
    assert_eq!(seen + lost(&messages, "dns"), u64::from(2 * LOOKUPS), "{messages}");
    assert!(counted(&messages, "dns messages", "learnt") > 0, "{messages}");
    let ends = u64::from(CONNECTIONS) + 1;
    assert_eq!(counted(&messages, "json", "exported"), ends, "{messages}");
}
