//! An OTLP receiver over HTTP that takes everything and looks at nothing.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// A record waits a second for company at most; what has not come after this long does not come.
const QUIET: Duration = Duration::from_secs(3);

/// Its threads end with the process.
pub(crate) struct Sink {
    port: u16,
    requests: Arc<AtomicU64>,
}

impl Sink {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let requests = Arc::clone(&counted);
                // A connection that ends is none of the bench's business: the ledger tells what was not taken.
                std::thread::spawn(move || answer(&stream, &requests));
            }
        });
        Ok(Self { port, requests })
    }

    /// As `otlp.endpoint` takes it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until no more requests come.
    pub(crate) fn wait_until_quiet(&self) {
        let (mut seen, mut since) = (u64::MAX, Instant::now());
        while since.elapsed() < QUIET {
            let now = self.requests.load(Ordering::Relaxed);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn answer(stream: &TcpStream, requests: &AtomicU64) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    loop {
        let length = body_length(&mut reader)?;
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        let mut stream = stream;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads the head of a request.
fn body_length(reader: &mut impl std::io::BufRead) -> anyhow::Result<u64> {
    let mut length = None;
    loop {
        let mut line = String::new();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "no more requests");
        let line = line.trim_end();
        if line.is_empty() {
            return length.context("a request without content-length");
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse()?);
        }
    }
}
