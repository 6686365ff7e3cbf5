//! Whatever is done to a file: no panic, each packet counted, one record for each connection.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use proptest::collection::vec;
use proptest::prelude::*;

use super::capture::Capture;
use super::engine::Engine;
use super::tests::{Step, connections, ip};

/// What reading a file came to.
struct Read {
    /// Client ports of the packets that were read.
    ports: HashSet<u16>,
    records: usize,
    summary: String,
    is_whole: bool,
}

/// The outcome of what never waits, since its input is in memory.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits"),
    }
}

fn read(file: &[u8]) -> Option<Read> {
    let mut capture = at_once(Capture::new("capture", file)).ok()?;
    let mut engine = Engine::new(1000, None, Vec::new());
    let mut ports = HashSet::new();
    let is_whole = loop {
        match at_once(capture.next()) {
            Ok(Some(packet)) => {
                let port =
                    |at: usize| Some(u16::from_be_bytes(*packet.bytes.get(at..)?.first_chunk()?));
                ports.extend([port(20), port(22)].into_iter().flatten().filter(|p| *p != SERVER));
                engine.packet(&packet).unwrap();
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    while engine.finish_one() {}
    let records = std::iter::from_fn(|| engine.next_end()).count();
    Some(Read { ports, records, summary: engine.summary().to_string(), is_whole })
}

const SERVER: u16 = 50_000;

/// A pcap file of raw IP: each number picks the connection whose next packet comes.
fn file(picks: &[usize]) -> Vec<u8> {
    let mut scripts: Vec<std::vec::IntoIter<Step>> =
        connections().into_iter().map(Vec::into_iter).collect();
    let mut file =
        [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 262_144, 101].map(u32::to_le_bytes).concat();
    for (n, pick) in (0_u32..).zip(picks) {
        let which = pick % scripts.len();
        let Some(step) = scripts[which].next() else { continue };
        let mut bytes = ip(step, SERVER, 1000);
        // Each connection has a port of its own, in the place of the usual client's.
        let at = if step.0 == super::tests::Sender::Client { 20 } else { 22 };
        bytes[at..at + 2].copy_from_slice(&(1000 + u16::try_from(which).unwrap()).to_be_bytes());
        let captured = u32::try_from(bytes.len()).unwrap();
        let length = u32::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        file.extend([n, 0, captured, length].map(u32::to_le_bytes).concat());
        file.extend(bytes);
    }
    file
}

proptest! {
    #[test]
    fn a_cut_file_yields_one_record_for_each_connection(
        picks in vec(any::<usize>(), 0..120),
        cut in any::<prop::sample::Index>(),
    ) {
        let file = file(&picks);
        let cut = cut.index(file.len() + 1);
        match read(&file[..cut]) {
            None => prop_assert!(cut < 24),
            Some(read) => {
                prop_assert_eq!(read.records, read.ports.len(), "{}", read.summary);
                prop_assert_eq!(read.is_whole, (cut - 24) % 56 == 0);
            }
        }
    }

    #[test]
    fn a_damaged_file_is_read_as_far_as_it_goes(
        picks in vec(any::<usize>(), 0..60),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = file(&picks);
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(read) = read(&file[..cut.index(file.len() + 1)]) {
            let number = |word: &str| -> usize {
                let rest = read.summary.split(word).nth(1).unwrap_or(" 0");
                rest.split([' ', ';']).find_map(|n| n.parse().ok()).unwrap_or(0)
            };
            let skipped: usize = ["link_type", "not_ip", "not_tcp", "fragment", "truncated", "bad_header"]
                .iter()
                .map(|cause| number(&format!("{{{cause}}}")))
                .sum();
            prop_assert_eq!(number("packets "), number("tcp ") + skipped, "{}", &read.summary);
            prop_assert_eq!(read.records, number("connections "), "{}", &read.summary);
        }
    }

    #[test]
    fn any_pcapng_blocks_are_read_or_refused(
        blocks in vec((0_u32..8, vec(any::<u8>(), 0..80)), 0..20),
    ) {
        let mut file = [0x0a0d_0d0a_u32, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28]
            .map(u32::to_le_bytes)
            .concat();
        for (kind, mut body) in blocks {
            body.resize(body.len().next_multiple_of(4), 0);
            let length = u32::try_from(body.len() + 12).unwrap().to_le_bytes();
            file.extend([&kind.to_le_bytes()[..], &length, &body, &length].concat());
        }
        let read = read(&file).unwrap();
        prop_assert!(read.records <= read.ports.len());
    }
}
