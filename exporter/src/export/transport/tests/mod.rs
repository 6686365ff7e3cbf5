//! The client against servers that say what each case wants, over real sockets.

mod failures;
mod grpc;
mod http;
mod otel;
mod requests;
mod tls;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Version};
use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{Answer, Client, OwnSockets};
use crate::config::{Protocol, Receiver, TlsFiles};
use crate::export::Signal;

/// A request as the server got it.
#[derive(Clone, Debug)]
struct Seen {
    version: Version,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    /// Counts connections from 1.
    connection: usize,
}

/// What the server answers: a head, and frames until the connection is cut or the body is whole.
#[derive(Debug, Default)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    frames: VecDeque<io::Result<Frame<Bytes>>>,
    /// Whether what stands before a cut has been sent.
    is_flushed: bool,
}

impl Reply {
    fn new(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let mut frames = VecDeque::new();
        if !body.is_empty() {
            frames.push_back(Ok(Frame::data(body)));
        }
        Self { status, headers: map(headers), frames, is_flushed: false }
    }

    /// OTLP/HTTP's answer.
    fn protobuf(body: &impl Message) -> Self {
        Self::new(200, &[("content-type", "application/x-protobuf")], body.encode_to_vec())
    }

    /// gRPC's answer: a message, and the status in trailers.
    fn grpc(body: &impl Message) -> Self {
        let reply = Self::new(200, &[("content-type", "application/grpc")], framed(body));
        reply.then(Ok(Frame::trailers(map(&[("grpc-status", "0")]))))
    }

    /// gRPC's failure: the status in the headers alone.
    fn failed(code: i32, message: &str) -> Self {
        let (code, content) = (code.to_string(), ("content-type", "application/grpc"));
        Self::new(200, &[content, ("grpc-status", &code), ("grpc-message", message)], "")
    }

    fn then(mut self, frame: io::Result<Frame<Bytes>>) -> Self {
        self.frames.push_back(frame);
        self
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.extend(map(&[(name, value)]));
        self
    }
}

impl hyper::body::Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // A server that has nothing to do flushes.
        if matches!(self.frames.front(), Some(Err(_))) && !self.is_flushed {
            self.is_flushed = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.frames.pop_front())
    }
}

fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
    };
    pairs.iter().map(pair).collect()
}

/// A message as gRPC sends it.
fn framed(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(message.encoded_len() as u32);
    message.encode(&mut framed).unwrap();
    framed.freeze()
}

/// A server on a free port of its own; it ends with the test's runtime.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F, R>(protocol: Protocol, answer: F) -> Self
    where
        F: Fn(Seen) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        Self::start_with(protocol, None, answer).await
    }

    async fn start_with<F, R>(protocol: Protocol, tls: Option<TlsAcceptor>, answer: F) -> Self
    where
        F: Fn(Seen) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
            connections: Arc::default(),
        };
        let (seen, connections) = (Arc::clone(&server.seen), Arc::clone(&server.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::Relaxed) + 1;
                let (seen, answer, tls) = (Arc::clone(&seen), answer.clone(), tls.clone());
                let answer = async move |request: Request<Incoming>| {
                    let (head, body) = request.into_parts();
                    let got = Seen {
                        version: head.version,
                        path: head.uri.path().to_owned(),
                        headers: head.headers,
                        body: body.collect().await.unwrap().to_bytes(),
                        connection,
                    };
                    seen.lock().unwrap().push(got.clone());
                    answer(got).await
                };
                let answer = Arc::new(answer);
                let serve = move |request| {
                    let answer = Arc::clone(&answer);
                    async move { answer(request).await }
                };
                tokio::spawn(accept(stream, tls, protocol, serve));
            }
        });
        server
    }

    /// Gives the same answer to everybody.
    async fn always(
        protocol: Protocol,
        reply: impl Fn() -> Reply + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::start(protocol, move |_| std::future::ready(reply())).await
    }

    fn receiver(&self, protocol: Protocol) -> Receiver {
        receiver(&format!("http://127.0.0.1:{}", self.port), protocol)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn accept<S, R>(stream: TcpStream, tls: Option<TlsAcceptor>, protocol: Protocol, serve: S)
where
    S: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    match tls {
        None => connection(stream, protocol == Protocol::Grpc, serve).await,
        // A handshake that fails is the client's to tell.
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                connection(stream, is_h2, serve).await;
            }
        }
    }
}

async fn connection<S, R>(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    is_h2: bool,
    serve: S,
) where
    S: Fn(Request<Incoming>) -> R + Send + 'static,
    R: Future<Output = Reply> + Send + 'static,
{
    let service = hyper::service::service_fn(move |request| {
        let reply = serve(request);
        async move {
            let mut reply = reply.await;
            let mut response = Response::builder().status(reply.status).body(()).unwrap();
            *response.headers_mut() = std::mem::take(&mut reply.headers);
            Ok::<_, Infallible>(response.map(|()| reply))
        }
    });
    let io = TokioIo::new(stream);
    // That a client leaves is no failure of the test.
    if is_h2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(io, service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

fn receiver(endpoint: &str, protocol: Protocol) -> Receiver {
    Receiver {
        endpoint: endpoint.parse().unwrap(),
        protocol,
        compression: None,
        timeout: Duration::from_secs(20),
        headers: Vec::new(),
        headers_file: None,
        tls: TlsFiles::default(),
    }
}

fn client(signal: Signal, receiver: &Receiver) -> Client {
    Client::new(signal, receiver, OwnSockets::default()).unwrap()
}

/// One request to a server that gives this answer.
async fn answer_to(
    protocol: Protocol,
    signal: Signal,
    reply: impl Fn() -> Reply + Clone + Send + Sync + 'static,
) -> Answer {
    let server = Server::always(protocol, reply).await;
    client(signal, &server.receiver(protocol)).send(Bytes::from_static(b"body")).await
}

fn taken() -> Answer {
    Answer::Taken { rejected: 0, message: String::new() }
}

/// The words for what was in the way of a connection.
#[track_caller]
fn unreached(answer: Answer) -> String {
    match answer {
        Answer::Unreached { why } => why,
        other => panic!("{other:?}"),
    }
}

/// The words of either: a side that refuses the other's certificate does so during the handshake or after it.
#[track_caller]
fn not_now(answer: Answer) -> String {
    match answer {
        Answer::Again { after: None, why } | Answer::Unreached { why } => why,
        other => panic!("{other:?}"),
    }
}

/// The words of an answer that is to be tried again at the sender's own time.
#[track_caller]
fn again(answer: Answer) -> String {
    match answer {
        Answer::Again { after: None, why } => why,
        other => panic!("{other:?}"),
    }
}
