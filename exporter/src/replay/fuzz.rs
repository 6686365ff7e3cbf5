//! Frames of any bytes through all of `replay` but its file, and files of any bytes through all of it.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use super::capture::{Capture, Packet};
use super::engine::{Ended, Engine};
use super::names::NameSources;
use crate::dns::DnsSettings;

/// Connections at the same time: few, so that room runs out.
const MAX_FLOWS: usize = 8;

/// Of an input that comes in pieces, the longest.
const PIECE: usize = 7;

/// Takes in frames, each a number of a link type and its bytes, a second apart; checks that each is accounted
/// for and that each connection gives one record; and returns the names told.
pub(crate) fn frames<'a>(frames: impl Iterator<Item = (u32, &'a [u8])>) -> Vec<String> {
    let mut replayed = Replayed::new();
    for (index, (link, bytes)) in (1_u64..).zip(frames) {
        let on_the_wire = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let time_ns = index * 1_000_000_000;
        replayed.take(&Packet { index, time_ns, link, bytes, on_the_wire });
    }
    replayed.finish()
}

/// Takes in the file of a capture, and then the same in pieces, as a pipe gives it; checks what `frames` checks, that
/// nothing comes of a file that is not in it, and that the pieces make no difference.
pub(crate) fn file(bytes: &[u8]) -> Vec<String> {
    let (whole, said) = read(bytes, bytes.len());
    let (pieces, said_of_pieces) = read(bytes, PIECE);
    assert_eq!(said, said_of_pieces);
    let names = whole.finish();
    assert_eq!(names, pieces.finish());
    names
}

/// Reads a file to where it can be read; what came of it, and the words for its end.
fn read(bytes: &[u8], piece: usize) -> (Replayed, String) {
    let mut replayed = Replayed::new();
    let mut capture = match at_once(Capture::new("fuzz", Pieces { rest: bytes, piece })) {
        Ok(capture) => capture,
        Err(error) => return (replayed, error.to_string()),
    };
    let mut captured = 0;
    let end = loop {
        match at_once(capture.next()) {
            Ok(Some(packet)) => {
                captured += packet.bytes.len();
                replayed.take(&packet);
            }
            Ok(None) => break "the end".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    assert!(captured <= bytes.len(), "{captured} bytes captured");
    assert!(capture.offset() <= bytes.len() as u64);
    (replayed, format!("{end}, after packet {}, at byte {}", capture.packets(), capture.offset()))
}

/// What has never to wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory is always ready"),
    }
}

/// Bytes, so many at a time at most.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = self.rest.len().min(self.piece).min(room.remaining());
        let (now, rest) = self.rest.split_at(n);
        room.put_slice(now);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// All that is behind the file, and the ends so far.
struct Replayed {
    engine: Engine,
    ended: Vec<Ended>,
}

impl Replayed {
    fn new() -> Self {
        let cache = DnsSettings {
            cache_bytes: 1 << 20,
            min_ttl: Duration::from_secs(5),
            max_ttl: Duration::from_secs(60),
        };
        let sources = NameSources { cache, mdns: true, llmnr: true };
        Self { engine: Engine::new(MAX_FLOWS, Some(sources), Vec::new()), ended: Vec::new() }
    }

    fn take(&mut self, packet: &Packet<'_>) {
        let Self { engine, ended } = self;
        // Where there is no room, replay ends; here it goes on with what is open.
        let _ = engine.packet(packet);
        ended.extend(std::iter::from_fn(|| engine.next_end()));
        assert!(engine.summary().holds(), "{}", engine.summary());
        let (_, streams, fragments) = engine.dns_stats().unwrap_or_default();
        assert!(streams.holds() && fragments.holds(), "{streams}; {fragments}");
    }

    /// The names told, once each connection gave one record.
    fn finish(self) -> Vec<String> {
        let Self { mut engine, mut ended } = self;
        while engine.finish_one() {}
        ended.extend(std::iter::from_fn(|| engine.next_end()));
        assert_eq!(engine.summary().connections, ended.len() as u64);
        let names = |end: Ended| end.local_names.into_iter().chain(end.remote_names);
        ended.into_iter().flat_map(names).map(|name| name.to_string()).collect()
    }
}
