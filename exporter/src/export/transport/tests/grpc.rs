//! What gRPC answers mean.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use tonic::Code;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::*;

/// One server and one client for many answers.
struct Table {
    client: Client,
    next: Arc<Mutex<Option<Reply>>>,
}

impl Table {
    async fn start(signal: Signal) -> Self {
        let next: Arc<Mutex<Option<Reply>>> = Arc::default();
        let give = Arc::clone(&next);
        let server = Server::start(Protocol::Grpc, move |_| {
            std::future::ready(give.lock().unwrap().take().unwrap())
        })
        .await;
        Self { client: client(signal, &server.receiver(Protocol::Grpc)), next }
    }

    async fn answer_to(&self, reply: Reply) -> Answer {
        *self.next.lock().unwrap() = Some(reply);
        self.client.send(Bytes::from_static(b"body")).await
    }
}

/// google.rpc.Status with RetryInfo, as a header.
fn retry_info(delay: Option<Duration>, is_padded: bool) -> String {
    let details = ErrorDetails::with_retry_info(delay);
    let status = tonic::Status::with_error_details(Code::Ok, "", details);
    let base64 = if is_padded {
        base64::engine::general_purpose::STANDARD
    } else {
        base64::engine::general_purpose::STANDARD_NO_PAD
    };
    base64.encode(status.details())
}

#[tokio::test]
async fn each_code_means_what_the_specification_says() {
    let table = Table::start(Signal::Logs).await;
    let seven = Some(Duration::from_secs(7));
    // Whether it may be tried again: without RetryInfo, and with it.
    for (code, name, plain, with_info) in [
        (1, "CANCELLED", true, true),
        (2, "UNKNOWN", false, false),
        (3, "INVALID_ARGUMENT", false, false),
        (4, "DEADLINE_EXCEEDED", true, true),
        (5, "NOT_FOUND", false, false),
        (6, "ALREADY_EXISTS", false, false),
        (7, "PERMISSION_DENIED", false, false),
        (8, "RESOURCE_EXHAUSTED", false, true),
        (9, "FAILED_PRECONDITION", false, false),
        (10, "ABORTED", true, true),
        (11, "OUT_OF_RANGE", true, true),
        (12, "UNIMPLEMENTED", false, false),
        (13, "INTERNAL", false, false),
        (14, "UNAVAILABLE", true, true),
        (15, "DATA_LOSS", true, true),
        (16, "UNAUTHENTICATED", false, false),
        (99, "UNKNOWN", false, false),
    ] {
        let why = format!("gRPC {name}: a % b");
        let want = |is_again, after| {
            let why = why.clone();
            if is_again { Answer::Again { after, why } } else { Answer::Refused { why } }
        };
        let said = || Reply::failed(code, "a %25 b");
        assert_eq!(table.answer_to(said()).await, want(plain, None), "{name}");
        for is_padded in [true, false] {
            let reply = said().with("grpc-status-details-bin", &retry_info(seven, is_padded));
            assert_eq!(table.answer_to(reply).await, want(with_info, seven), "{name}");
        }
    }
}

#[tokio::test]
async fn a_status_in_trailers_counts_as_one_in_headers() {
    let table = Table::start(Signal::Logs).await;
    let reply = Reply::new(200, &[("content-type", "application/grpc")], "")
        .then(Ok(Frame::trailers(map(&[("grpc-status", "14"), ("grpc-message", "later")]))));
    assert_eq!(again(table.answer_to(reply).await), "gRPC UNAVAILABLE: later");
}

#[tokio::test]
async fn a_delay_is_bounded_and_garbled_details_are_none() {
    let table = Table::start(Signal::Logs).await;
    let hour = Some(Duration::from_secs(3600));
    for (code, details, want) in [
        (14, retry_info(Some(Duration::from_secs(1_000_000)), true), Some(hour)),
        (
            14,
            retry_info(Some(Duration::from_millis(1)), true),
            Some(Some(Duration::from_millis(1))),
        ),
        (14, retry_info(Some(Duration::ZERO), true), Some(None)),
        (8, retry_info(None, true), Some(None)),
        (14, "!!! no base64".into(), Some(None)),
        (8, "!!! no base64".into(), None),
        (8, "AAAA".into(), None),
    ] {
        let answer = table
            .answer_to(Reply::failed(code, "").with("grpc-status-details-bin", &details))
            .await;
        let after = match answer {
            Answer::Again { after, .. } => Some(after),
            Answer::Refused { why } => {
                assert_eq!(why, "gRPC RESOURCE_EXHAUSTED", "no words: no colon");
                None
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(after, want, "{code} {details}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_told_from_a_busy_server() {
    let table = Table::start(Signal::Traces).await;
    for (code, said, is_too_large) in [
        (8, "grpc: received message larger than max (5 vs. 4)", true),
        (8, "grpc: received message after decompression larger than max 4", true),
        (8, "Received message larger than max (5 vs. 4)", true),
        (8, "gRPC message exceeds maximum size 4: 5", true),
        (8, "Received message exceeds the maximum configured message size.", true),
        (11, "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes", true),
        (8, "too many messages", false),
        (13, "message larger than max", false),
    ] {
        let answer = table.answer_to(Reply::failed(code, said)).await;
        let is = matches!(&answer, Answer::TooLarge { why } if why.ends_with(said));
        assert_eq!(is, is_too_large, "{answer:?}");
    }
}

#[tokio::test]
async fn partial_success_is_told() {
    let said = |rejected| (rejected, "bad \n".to_owned());
    for (rejected, want) in [(3, 3), (0, 0), (-1, 0)] {
        let (rejected_log_records, error_message) = said(rejected);
        let partial_success =
            Some(ExportLogsPartialSuccess { rejected_log_records, error_message });
        let logs = ExportLogsServiceResponse { partial_success };
        let (rejected_spans, error_message) = said(rejected);
        let partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
        let traces = ExportTraceServiceResponse { partial_success };
        let want = Answer::Taken { rejected: want, message: "bad".into() };
        let table = Table::start(Signal::Logs).await;
        assert_eq!(table.answer_to(Reply::grpc(&logs)).await, want);
        assert_eq!(
            table.answer_to(Reply::grpc(&ExportLogsServiceResponse::default())).await,
            taken()
        );
        let table = Table::start(Signal::Traces).await;
        assert_eq!(table.answer_to(Reply::grpc(&traces)).await, want);
    }
}

#[tokio::test]
async fn ok_without_a_whole_message_is_no_acknowledgement() {
    let table = Table::start(Signal::Logs).await;
    let ok = || Ok(Frame::trailers(map(&[("grpc-status", "0")])));
    for body in [
        &b""[..],
        b"\0\0\0\0",
        b"\0\0\0\0\x05ab",
        b"\0\0\0\0\0more",
        // Compressed, which was not offered.
        b"\x01\0\0\0\0",
    ] {
        let reply = Reply::new(200, &[], body).then(ok());
        let why = again(table.answer_to(reply).await);
        assert_eq!(why, "gRPC OK, but without a whole message that can be read", "{body:?}");
    }
    let reply = Reply::new(200, &[], &b"\0\0\0\0\x01\xff"[..]).then(ok());
    assert!(again(table.answer_to(reply).await).contains("no OTLP answer"));
}

#[tokio::test]
async fn what_is_no_grpc_server_is_told_by_its_http_status() {
    let table = Table::start(Signal::Logs).await;
    for (status, want) in [
        (200, "again"),
        (400, "refused"),
        (401, "refused"),
        (404, "refused"),
        (413, "too large"),
        (429, "again"),
        (500, "refused"),
        (502, "again"),
        (503, "again"),
        (504, "again"),
    ] {
        let page = Reply::new(status, &[("content-type", "text/html")], "<html>hello</html>");
        let (got, why) = match table.answer_to(page).await {
            Answer::Again { after: None, why } => ("again", why),
            Answer::TooLarge { why } => ("too large", why),
            Answer::Refused { why } => ("refused", why),
            other => panic!("{other:?}"),
        };
        assert_eq!(got, want, "{status}");
        assert!(why.starts_with(&format!("HTTP {status} ")) && why.contains("gRPC"), "{why}");
    }
    let reply = Reply::new(503, &[("retry-after", "9")], "");
    let answer = table.answer_to(reply).await;
    assert!(matches!(answer, Answer::Again { after: Some(after), .. } if after.as_secs() == 9));
}
