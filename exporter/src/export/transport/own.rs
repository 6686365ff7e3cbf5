//! flowend's own sockets, and the connector that opens them.
//!
//! flowend's own connections must never be reported: with a receiver that refuses, every retry would
//! end a connection, and so make a record to export. Each socket's cookie is therefore written down
//! before it connects. Cookies need no pid and no permission, so this works in any container.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hashlink::LruCache;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tower_service::Service;

/// Failed attempts whose ends are still to be seen; the end follows within milliseconds.
const MAX_FAILED: usize = 4096;

/// Connections that came about, and whose ends are still to be seen: never, where flowend itself is
/// outside of its targets.
const MAX_OPEN: usize = 65_536;

/// The cookies of flowend's own sockets. Bounded, and attempts that failed apart from connections that
/// are open: some never were a TCP connection, and none may push out one that lives.
#[derive(Clone, Debug, Default)]
pub struct OwnSockets(Arc<Mutex<Cookies>>);

#[derive(Debug)]
struct Cookies {
    open: LruCache<u64, ()>,
    failed: LruCache<u64, ()>,
}

impl Default for Cookies {
    fn default() -> Self {
        Self { open: LruCache::new(MAX_OPEN), failed: LruCache::new(MAX_FAILED) }
    }
}

impl OwnSockets {
    /// Before the socket connects.
    pub(crate) fn add(&self, cookie: u64) {
        self.lock().open.insert(cookie, ());
    }

    /// The socket did not connect.
    fn fail(&self, cookie: u64) {
        let mut cookies = self.lock();
        if cookies.open.remove(&cookie).is_some() {
            cookies.failed.insert(cookie, ());
        }
    }

    /// Those whose ends are still to be seen, for the flowend that goes on.
    pub fn all(&self) -> Vec<u64> {
        let cookies = self.lock();
        let mut all: Vec<u64> =
            cookies.open.iter().chain(&cookies.failed).map(|(c, ())| *c).collect();
        all.sort_unstable();
        all
    }

    /// Takes them in again.
    pub fn take_in(&self, cookies: &[u64]) {
        cookies.iter().for_each(|cookie| self.add(*cookie));
    }

    /// Whether this is an own socket; it stays known as one.
    pub fn contains(&self, cookie: u64) -> bool {
        let cookies = self.lock();
        cookies.open.contains_key(&cookie) || cookies.failed.contains_key(&cookie)
    }

    /// Whether this was an own socket; it has ended, and is forgotten.
    pub fn take(&self, cookie: u64) -> bool {
        let mut cookies = self.lock();
        cookies.open.remove(&cookie).is_some() || cookies.failed.remove(&cookie).is_some()
    }

    /// How many connections are known to be open.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.lock().open.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cookies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens TCP connections whose cookies are written down. It goes to the receiver itself: no proxy of
/// the environment is asked.
#[derive(Clone, Debug)]
pub(super) struct OwnConnector {
    pub(super) own: OwnSockets,
    /// The longest that all addresses of the host may take together, with the lookup of its name.
    pub(super) timeout: Duration,
}

impl Service<Uri> for OwnConnector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}

impl OwnConnector {
    async fn connect(&self, uri: &Uri) -> io::Result<TcpStream> {
        let deadline = Instant::now() + self.timeout;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let port =
            uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let addresses: Vec<SocketAddr> = timeout(self.timeout, lookup_host((host, port)))
            .await
            .map_err(|_| timed_out(format!("looking up {host}: no answer in time")))?
            .map_err(|error| io::Error::new(error.kind(), format!("looking up {host}: {error}")))?
            .collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for (tried, address) in addresses.iter().enumerate() {
            // An address that does not answer must leave time for those after it.
            let share = deadline.saturating_duration_since(Instant::now())
                / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            match timeout(share, self.attempt(*address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => {
                    last = io::Error::new(error.kind(), format!("{address}: {error}"))
                }
                Err(_) => last = timed_out(format!("{address}: no answer in time")),
            }
        }
        Err(last)
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        let attempt = Attempt { own: &self.own, cookie: socket2::SockRef::from(&socket).cookie()? };
        self.own.add(attempt.cookie);
        let stream = socket.connect(address).await?;
        attempt.succeeded();
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

fn timed_out(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, words)
}

/// A socket that has not connected yet. Dropped before it has, by an error or by the timeout, it counts
/// as failed.
struct Attempt<'a> {
    own: &'a OwnSockets,
    cookie: u64,
}

impl Attempt<'_> {
    fn succeeded(self) {
        std::mem::forget(self);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.own.fail(self.cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_sockets_are_known_until_they_end_and_failures_are_bounded() {
        let own = OwnSockets::default();
        own.add(1);
        for cookie in 10..10 + 2 * MAX_FAILED as u64 {
            own.add(cookie);
            own.fail(cookie);
        }
        let last = 9 + 2 * MAX_FAILED as u64;
        assert!(own.take(last), "a failed attempt is an own socket, too");
        assert!(!own.take(last), "and is forgotten when its end was seen");
        assert!(own.contains(1) && own.contains(1), "asking forgets nothing");
        assert!(own.take(1), "an open connection outlives any number of failures");
        assert!(!own.contains(1));
        let cookies = own.lock();
        assert_eq!((cookies.open.len(), cookies.failed.len()), (0, MAX_FAILED - 1));
    }
}
