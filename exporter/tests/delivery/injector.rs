//! An OTLP receiver that fails as it is told to. It has threads and a clock of its own: a test may pause
//! the clock that it tests with.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use super::answer::answer;
use super::certificates::Certificates;
use super::mode::{Mode, Protocol};
use super::store::{Received, Store};

/// Longer than anything here takes; a test that reaches it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An answer is written by then: it need only go from one task to another, and to loopback.
const FLUSH: Duration = Duration::from_millis(20);

/// Stops when dropped.
pub(crate) struct Injector {
    port: u16,
    shared: Arc<Shared>,
    certificates: Option<Arc<Certificates>>,
    runtime: Option<Runtime>,
    /// Bound, and never listened on: nobody else gets the port while it is closed.
    _reserved: Socket,
}

struct Shared {
    protocol: Protocol,
    store: Arc<Store>,
    /// Changes whenever the connections there are must end.
    epoch: watch::Sender<u64>,
    /// The epoch that the listener follows.
    applied: watch::Sender<u64>,
}

impl Injector {
    pub(crate) fn start(protocol: Protocol) -> Self {
        Self::with(protocol, None)
    }

    /// With a certificate for localhost, by a CA of its own.
    pub(crate) fn start_tls(protocol: Protocol) -> Self {
        Self::with(protocol, Some(Arc::new(Certificates::new(protocol))))
    }

    fn with(protocol: Protocol, certificates: Option<Arc<Certificates>>) -> Self {
        let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        reserved.set_reuse_address(true).unwrap();
        reserved.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = reserved.local_addr().unwrap().as_socket().unwrap().port();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared {
            protocol,
            store: Store::new(),
            epoch: watch::Sender::new(0),
            applied: watch::Sender::new(0),
        });
        let listener = {
            let _inside = runtime.enter();
            listen_on(port)
        };
        runtime.spawn(listen(listener, port, Arc::clone(&shared), certificates.clone()));
        Self { port, shared, certificates, runtime: Some(runtime), _reserved: reserved }
    }

    /// As `otlp.endpoint` takes it.
    pub(crate) fn endpoint(&self) -> String {
        match self.certificates {
            Some(_) => format!("https://localhost:{}", self.port),
            None => format!("http://127.0.0.1:{}", self.port),
        }
    }

    /// Of the CA, where it speaks TLS.
    pub(crate) fn ca_pem(&self) -> &str {
        &self.certificates.as_ref().unwrap().ca_pem
    }

    /// From now on, also for what was scripted. When it returns, a port is closed or open as it must be.
    pub(crate) async fn set(&self, mode: Mode) {
        let cuts = mode.is_of_connections();
        let before = self.shared.store.set(mode);
        if !cuts && !before.is_of_connections() {
            return;
        }
        self.shared.epoch.send_modify(|n| *n += 1);
        let epoch = *self.shared.epoch.borrow();
        let mut applied = self.shared.applied.subscribe();
        applied.wait_for(|n| *n >= epoch).await.unwrap();
    }

    /// What becomes of the next requests, one by one; then it goes on as it is. Not for modes of connections.
    pub(crate) fn script(&self, modes: impl IntoIterator<Item = Mode>) {
        self.shared.store.script(modes.into_iter().inspect(|mode| {
            assert!(!mode.is_of_connections(), "{mode:?} is for connections, not a request");
        }));
    }

    pub(crate) fn received(&self) -> Received {
        self.shared.store.received()
    }

    /// Waits until what came is so, by the clock of the injector; fails the test when that takes too long.
    pub(crate) async fn wait_until(&self, is_so: impl Fn(&Received) -> bool + Send + 'static) {
        let store = Arc::clone(&self.shared.store);
        let waiting = async move {
            let mut changed = store.changed.subscribe();
            while !is_so(&store.received()) {
                changed.changed().await.unwrap();
            }
        };
        let runtime = self.runtime.as_ref().unwrap();
        let waited = runtime.spawn(async move { tokio::time::timeout(PATIENCE, waiting).await });
        assert!(waited.await.unwrap().is_ok(), "never came: {:?}", self.received());
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        // Not by dropping it: that waits, which is not allowed in a task.
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn listen_on(port: u16) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    socket.listen(1024).unwrap()
}

async fn listen(
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
    certificates: Option<Arc<Certificates>>,
) {
    let mut listener = Some(listener);
    let mut epoch = shared.epoch.subscribe();
    loop {
        let now = *epoch.borrow_and_update();
        if matches!(shared.store.steady(), Mode::Refused) {
            listener = None;
        } else {
            listener.get_or_insert_with(|| listen_on(port));
        }
        shared.applied.send_replace(now);
        let Some(listener) = &listener else {
            if epoch.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = epoch.changed() => if changed.is_err() { return },
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (shared, certificates) = (Arc::clone(&shared), certificates.clone());
                tokio::spawn(connection(stream, now, shared, certificates));
            }
        }
    }
}

/// Until its end, or that of the epoch.
async fn connection(
    stream: TcpStream,
    epoch: u64,
    shared: Arc<Shared>,
    certificates: Option<Arc<Certificates>>,
) {
    let mut now = shared.epoch.subscribe();
    let mode = shared.store.steady();
    let over = async {
        // Also when the injector is gone.
        let _ = now.wait_for(|n| *n != epoch).await;
    };
    let mut over = std::pin::pin!(over);
    match (&mode, certificates) {
        // Held, and not read.
        (Mode::BlackHole, _) => {
            over.await;
            drop(stream);
        }
        (mode, Some(certificates)) => {
            let is_expired = matches!(mode, Mode::ExpiredCertificate);
            let acceptor = TlsAcceptor::from(certificates.config(is_expired));
            tokio::select! {
                accepted = acceptor.accept(stream) => if let Ok(stream) = accepted {
                    serve(stream, &shared, over).await;
                },
                () = &mut over => {}
            }
        }
        (_, None) => serve(stream, &shared, over).await,
    }
}

/// Until the client ends it, a request is cut, or `over`.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shared: &Shared,
    over: impl Future<Output = ()>,
) {
    let line = Arc::new(Line::default());
    let service = service_fn(|request: Request<Incoming>| {
        let (store, line) = (Arc::clone(&shared.store), Arc::clone(&line));
        let protocol = shared.protocol;
        async move {
            match answer(protocol, request, &store, &line).await {
                Some(response) => Ok::<_, Infallible>(response),
                None => {
                    line.cut();
                    // Until the connection is dropped, and this with it.
                    std::future::pending().await
                }
            }
        }
    });
    let io = TokioIo::new(stream);
    // How a connection ends is the client's matter.
    let serving = async {
        match shared.protocol {
            Protocol::Grpc => {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(io, service).await);
            }
            Protocol::Http => {
                let server = hyper::server::conn::http1::Builder::new();
                drop(server.serve_connection(io, service).await);
            }
        }
    };
    let ending = async {
        tokio::select! {
            () = over => line.cut(),
            () = line.to_cut.notified() => {}
        }
        // Answers whose records count as acknowledged still go out.
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        () = serving => {}
        () = ending => {}
    }
}

/// Whether a connection is to be cut: then nothing on it is acknowledged any more.
#[derive(Debug, Default)]
pub(crate) struct Line {
    is_cut: AtomicBool,
    to_cut: Notify,
}

impl Line {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.to_cut.notify_one();
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }
}
