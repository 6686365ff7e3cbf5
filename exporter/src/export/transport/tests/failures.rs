//! What happens when nobody, or half a server, answers.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

use super::*;
use deaf::Deaf;

#[path = "../../../../testing/deaf.rs"]
mod deaf;

const BOTH: [Protocol; 2] = [Protocol::Grpc, Protocol::Http];

/// Short enough to wait for where nobody answers; and long enough for an answer on a busy machine.
const SHORT: Duration = Duration::from_millis(300);
const LONGER: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_refused_connection_is_known_for_one_and_so_is_its_socket() {
    for protocol in BOTH {
        // Bound and not listening: nobody else can get the port.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let client = client(Signal::Logs, &receiver(&format!("http://{address}"), protocol));
        let why = unreached(client.send(Bytes::new()).await);
        assert!(why.contains(&address.to_string()) && why.contains("Connection refused"), "{why}");
    }
}

#[tokio::test]
async fn a_name_without_an_address_is_nobody() {
    let client = client(Signal::Logs, &receiver("http://nowhere.invalid:4317", Protocol::Grpc));
    let why = unreached(client.send(Bytes::new()).await);
    assert!(why.contains("looking up nowhere.invalid: "), "{why}");
}

#[tokio::test]
async fn no_answer_in_time_is_tried_again_on_a_new_connection() {
    for protocol in BOTH {
        let server = Server::start(protocol, move |seen: Seen| async move {
            match (seen.connection, &seen.body[..]) {
                (1, body) if body.ends_with(b"silence") => std::future::pending().await,
                _ if protocol == Protocol::Grpc => Reply::grpc(&()),
                _ => Reply::new(200, &[], ""),
            }
        })
        .await;
        let receiver = Receiver { timeout: LONGER, ..server.receiver(protocol) };
        let client = client(Signal::Logs, &receiver);
        assert_eq!(client.send(Bytes::from_static(b"first")).await, taken());
        let why = again(client.send(Bytes::from_static(b"silence")).await);
        assert_eq!(why, "no answer within 2s");
        assert_eq!(client.send(Bytes::from_static(b"silence")).await, taken());
        let connections: Vec<_> = server.seen().iter().map(|seen| seen.connection).collect();
        assert_eq!(connections, [1, 1, 2], "{protocol:?}");
    }
}

/// What hears a connection attempt, and then is silent.
#[tokio::test]
async fn a_black_hole_takes_no_longer_than_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for scheme in ["http", "https"] {
        for protocol in BOTH {
            let address = listener.local_addr().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let mut receiver = receiver(&format!("{scheme}://{address}"), protocol);
            receiver.timeout = SHORT;
            receiver.tls = tls::authority().files(folder.path());
            let client = client(Signal::Logs, &receiver);
            let answer = client.send(Bytes::from_static(b"x")).await;
            // A connection that is not secured is none.
            let why = if scheme == "https" { unreached(answer) } else { again(answer) };
            assert_eq!(why, "no answer within 300ms");
        }
    }
}

#[tokio::test]
async fn without_hope_only_who_has_a_connection_waits_for_the_answer() {
    for protocol in BOTH {
        let (may_answer, wait) = watch::channel(false);
        let server = Server::start(protocol, move |_| {
            let mut wait = wait.clone();
            async move {
                wait.wait_for(|may| *may).await.unwrap();
                match protocol {
                    Protocol::Grpc => Reply::grpc(&()),
                    Protocol::Http => Reply::new(200, &[], ""),
                }
            }
        })
        .await;
        // It is lost when the server has the request, and before it answers.
        let hope = async {
            while server.seen().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            may_answer.send_replace(true);
        };
        let client = client(Signal::Logs, &server.receiver(protocol));
        assert_eq!(client.send_unless(Bytes::from_static(b"x"), hope).await, taken());
    }
}

#[tokio::test]
async fn without_hope_nobody_waits_for_a_connection() {
    let deaf = Deaf::new();
    for protocol in BOTH {
        let client = client(Signal::Logs, &receiver(&deaf.endpoint, protocol));
        let lost = std::future::ready(());
        let answer = client.send_unless(Bytes::from_static(b"x"), lost).await;
        assert_eq!(unreached(answer), "no connection to it in time", "{protocol:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_tried_again() {
    let data = || Ok(Frame::data(Bytes::from_static(b"\0\0\0")));
    let cut = || Err(io::Error::other("cut"));
    for protocol in BOTH {
        // In the middle of the answer's body.
        let answer = answer_to(protocol, Signal::Logs, move || {
            Reply::new(200, &[("content-type", "application/x-protobuf")], "")
                .then(data())
                .then(cut())
        })
        .await;
        let why = again(answer);
        assert!(why.starts_with("the answer was cut: "), "{why}");
        // The status of a failure is enough.
        let answer = answer_to(protocol, Signal::Logs, move || {
            Reply::new(503, &[("retry-after", "3")], "").then(data()).then(cut())
        })
        .await;
        assert!(matches!(answer, Answer::Again { after: Some(after), .. } if after.as_secs() == 3));
    }
}

#[tokio::test]
async fn half_an_answer_is_none() {
    for (protocol, bytes) in [
        (Protocol::Http, &b""[..]),
        (Protocol::Http, b"HTTP/1.1 20"),
        (Protocol::Http, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nab"),
        (Protocol::Http, b"\x16\x03\x01 no HTTP at all\r\n\r\n"),
        (Protocol::Grpc, b""),
        (Protocol::Grpc, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
            }
        });
        let client = client(Signal::Logs, &receiver(&endpoint, protocol));
        let why = again(client.send(Bytes::from_static(b"body")).await);
        assert!(!why.is_empty(), "{bytes:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read_to_its_end() {
    let endless = |status| {
        let mut reply = Reply::new(status, &[("content-type", "application/x-protobuf")], "");
        for _ in 0..1000 {
            reply = reply.then(Ok(Frame::data(Bytes::from_static(&[0; 64 << 10]))));
        }
        reply
    };
    for protocol in BOTH {
        let why = again(answer_to(protocol, Signal::Logs, move || endless(200)).await);
        assert!(why.contains("is larger than 4194304 bytes"), "{why}");
        let answer = answer_to(protocol, Signal::Logs, move || endless(413)).await;
        assert!(matches!(answer, Answer::TooLarge { .. }), "{answer:?}");
    }
}

/// Where a server was before. Another test's client may have got the port in between, for as long as it lives.
async fn listen_again(address: std::net::SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            listener => return listener.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_new_connection_follows_a_server_that_was_away() {
    for protocol in BOTH {
        let reply = move || {
            if protocol == Protocol::Grpc { Reply::grpc(&()) } else { Reply::new(200, &[], "") }
        };
        // Ends after one connection, so that the client's is closed and the port is free again.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = client(Signal::Logs, &receiver(&format!("http://{address}"), protocol));
        let serve = move |_| std::future::ready(reply());
        let first = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            connection(stream, protocol == Protocol::Grpc, serve).await;
        });
        assert_eq!(client.send(Bytes::new()).await, taken());
        first.abort();
        let _ = first.await;
        // Over the connection there was, or over none.
        let away = client.send(Bytes::new()).await;
        assert!(matches!(away, Answer::Again { .. } | Answer::Unreached { .. }), "{away:?}");
        let listener = listen_again(address).await;
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            connection(stream, protocol == Protocol::Grpc, serve).await;
        });
        assert_eq!(client.send(Bytes::new()).await, taken(), "{protocol:?}");
    }
}

/// A server that is not willing to take all of it says so before it has it.
#[tokio::test]
async fn an_answer_that_comes_before_the_request_is_through_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        stream.read_exact(&mut buffer).await.unwrap();
        let reply =
            b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(reply).await.unwrap();
        // Without reading on: a close would reset the connection, and the answer with it.
        std::future::pending::<()>().await;
    });
    let client = client(Signal::Logs, &receiver(&endpoint, Protocol::Http));
    let answer = client.send(vec![0; 32 << 20].into()).await;
    assert!(matches!(answer, Answer::TooLarge { .. }), "{answer:?}");
}
