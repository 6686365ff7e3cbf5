//! The same connections under the clients of opentelemetry-otlp and tonic.

use opentelemetry_http::HttpClient as _;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;

use super::super::{Headers, OwnHttpClient, channel};
use super::*;
use crate::config::header;

/// A server with and without TLS, and what is needed to talk to it.
async fn servers(
    protocol: Protocol,
    reply: fn() -> Reply,
) -> [(Server, Receiver, tempfile::TempDir); 2] {
    let authority = tls::authority();
    let acceptor = authority.issue("127.0.0.1", false).acceptor(protocol, None);
    let mut made = Vec::new();
    for (scheme, acceptor) in [("http", None), ("https", Some(acceptor))] {
        let answer = move |_| std::future::ready(reply());
        let server = Server::start_with(protocol, acceptor, answer).await;
        let folder = tempfile::tempdir().unwrap();
        let mut receiver = receiver(&format!("{scheme}://127.0.0.1:{}", server.port), protocol);
        receiver.headers = vec![header("x-tenant", "a").unwrap()];
        receiver.tls = authority.files(folder.path());
        made.push((server, receiver, folder));
    }
    made.try_into().unwrap_or_else(|_| unreachable!("two were made"))
}

#[tokio::test]
async fn a_channel_connects_as_the_client_does() {
    for (server, receiver, _folder) in servers(Protocol::Grpc, || Reply::grpc(&())).await {
        let own = OwnSockets::default();
        let channel = channel(&receiver, own.clone()).unwrap();
        let mut client = LogsServiceClient::with_interceptor(channel, Headers::new(&receiver));
        let mut request = tonic::Request::new(ExportLogsServiceRequest::default());
        request.metadata_mut().insert("other", "from the environment".parse().unwrap());
        client.export(request).await.unwrap();
        let seen = &server.seen()[0].headers;
        assert_eq!(seen["x-tenant"], "a");
        assert!(!seen.contains_key("other"), "only what is configured");
        assert_eq!(own.open(), 1);
    }
}

#[tokio::test]
async fn the_http_client_connects_as_the_client_does() {
    for (server, receiver, _folder) in servers(Protocol::Http, || Reply::new(204, &[], "")).await {
        let own = OwnSockets::default();
        let client = OwnHttpClient::new(&receiver, own.clone()).unwrap();
        let request = Request::post(receiver.endpoint.clone()).header("x-tenant", "environment");
        let response = client.send_bytes(request.body(Bytes::new()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 204);
        let seen = &server.seen()[0].headers;
        assert_eq!(seen.get_all("x-tenant").iter().collect::<Vec<_>>(), ["a"]);
        assert_eq!(own.open(), 1);
        assert_eq!(*client.last_error.lock().unwrap(), None);
    }
    let nobody = receiver("http://nowhere.invalid", Protocol::Http);
    let client = OwnHttpClient::new(&nobody, OwnSockets::default()).unwrap();
    let request = Request::post("http://nowhere.invalid/").body(Bytes::new()).unwrap();
    assert!(client.send_bytes(request).await.is_err());
    let why = client.last_error.lock().unwrap().clone().unwrap();
    assert!(why.contains("looking up nowhere.invalid"), "{why}");
}
