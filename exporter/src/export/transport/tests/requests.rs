//! What the server gets.

use std::io::Read as _;

use tokio::sync::Barrier;

use super::*;
use crate::config::{Compression, NamedFile, header};

fn ok(protocol: Protocol) -> Reply {
    if protocol == Protocol::Grpc { Reply::grpc(&()) } else { Reply::new(200, &[], "") }
}

#[tokio::test]
async fn a_request_is_what_otlp_wants() {
    for (protocol, signal, path, kind) in [
        (
            Protocol::Grpc,
            Signal::Logs,
            "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
            "application/grpc+proto",
        ),
        (
            Protocol::Grpc,
            Signal::Traces,
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            "application/grpc+proto",
        ),
        (Protocol::Http, Signal::Logs, "/v1/logs", "application/x-protobuf"),
    ] {
        let server = Server::always(protocol, move || ok(protocol)).await;
        let mut receiver = server.receiver(protocol);
        if protocol == Protocol::Http {
            receiver.endpoint = format!("{}v1/logs", receiver.endpoint).parse().unwrap();
        }
        receiver.headers = vec![header("X-Tenant", "a").unwrap(), header("b-bin", "AAAA").unwrap()];
        assert_eq!(client(signal, &receiver).send(Bytes::from_static(b"body")).await, taken());
        let seen = &server.seen()[0];
        assert_eq!(seen.path, path);
        assert_eq!(seen.headers["content-type"], kind);
        assert_eq!(seen.headers["user-agent"], concat!("flowend/", env!("CARGO_PKG_VERSION")));
        assert_eq!(
            (&seen.headers["x-tenant"], &seen.headers["b-bin"]),
            (&"a".parse().unwrap(), &"AAAA".parse().unwrap())
        );
        assert!(!seen.headers.contains_key("content-encoding"));
        let is_grpc = protocol == Protocol::Grpc;
        assert_eq!(seen.version == Version::HTTP_2, is_grpc);
        assert_eq!(seen.headers.get("te").is_some_and(|te| te == "trailers"), is_grpc);
        assert_eq!(seen.headers.get("grpc-timeout").is_some_and(|t| t == "20000m"), is_grpc);
        let want = if is_grpc { &b"\0\0\0\0\x04body"[..] } else { b"body" };
        assert_eq!(&seen.body[..], want);
    }
}

fn inflate(name: &HeaderValue, bytes: &[u8]) -> Vec<u8> {
    if name == "zstd" {
        return zstd::stream::decode_all(bytes).unwrap();
    }
    assert_eq!(name, "gzip");
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

#[tokio::test]
async fn compressed_bodies_are_the_same_once_decompressed() {
    // Compressed on the spot, and elsewhere.
    for length in [0_usize, 10_000, 1_000_000] {
        let body: Bytes = (0..length).map(|n| (n / 7 % 256) as u8).collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            for protocol in [Protocol::Grpc, Protocol::Http] {
                let server = Server::always(protocol, move || ok(protocol)).await;
                let compression = Some(compression);
                let receiver = Receiver { compression, ..server.receiver(protocol) };
                assert_eq!(client(Signal::Logs, &receiver).send(body.clone()).await, taken());
                let seen = &server.seen()[0];
                let got = match protocol {
                    Protocol::Http => inflate(&seen.headers["content-encoding"], &seen.body),
                    Protocol::Grpc => {
                        let (prefix, rest) = seen.body.split_at(5);
                        assert_eq!(prefix[0], 1);
                        assert_eq!(prefix[1..], (rest.len() as u32).to_be_bytes());
                        inflate(&seen.headers["grpc-encoding"], rest)
                    }
                };
                assert!(got == body, "{protocol:?} {compression:?} {length}");
                assert!(length < 1000 || seen.body.len() < length / 4);
            }
        }
    }
}

#[tokio::test]
async fn several_requests_are_on_their_way_at_once() {
    const REQUESTS: usize = 8;
    // gRPC: all through one connection; HTTP: one each, which are kept for the next ones.
    for (protocol, connections) in [(Protocol::Grpc, 1), (Protocol::Http, REQUESTS)] {
        let all_here = Arc::new(Barrier::new(REQUESTS));
        let server = Server::start(protocol, move |_| {
            let all_here = Arc::clone(&all_here);
            async move {
                all_here.wait().await;
                ok(protocol)
            }
        })
        .await;
        let client = client(Signal::Logs, &server.receiver(protocol));
        for _round in 0..2 {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..REQUESTS {
                let client = client.clone();
                tasks.spawn(async move { client.send(Bytes::from_static(b"x")).await });
            }
            assert!(tasks.join_all().await.iter().all(|answer| *answer == taken()));
        }
        assert_eq!(server.connections(), connections, "{protocol:?}");
    }
}

#[tokio::test]
async fn headers_of_the_file_win_and_are_read_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let server = Server::always(protocol, move || ok(protocol)).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("headers");
        let file = NamedFile {
            origin: "file f".into(),
            key: "otlp.headers_file".into(),
            path: path.clone(),
        };
        let mut receiver = server.receiver(protocol);
        receiver.headers = vec![header("a", "fixed").unwrap(), header("b", "fixed").unwrap()];
        receiver.headers_file = Some(file);
        let why = again(client(Signal::Logs, &receiver).send(Bytes::new()).await);
        assert!(why.contains("`otlp.headers_file`") && why.contains("cannot be read"), "{why}");
        assert_eq!(server.connections(), 0, "nothing is sent without its token");
        std::fs::write(&path, "a: token\nc=d").unwrap();
        assert_eq!(client(Signal::Logs, &receiver).send(Bytes::new()).await, taken());
        let seen = &server.seen()[0].headers;
        assert_eq!(
            (&seen["a"], &seen["b"], &seen["c"]),
            (&"token".parse().unwrap(), &"fixed".parse().unwrap(), &"d".parse().unwrap())
        );
        assert_eq!(seen.get_all("a").iter().count(), 1, "replaced, not added");
    }
}

#[tokio::test]
async fn own_sockets_are_written_down() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let server = Server::always(protocol, move || ok(protocol)).await;
        let own = OwnSockets::default();
        let client = Client::new(Signal::Logs, &server.receiver(protocol), own.clone()).unwrap();
        assert_eq!(client.send(Bytes::new()).await, taken());
        assert_eq!(own.open(), 1, "{protocol:?}");
    }
}
