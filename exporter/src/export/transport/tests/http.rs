//! What HTTP answers mean.

use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use tonic_types::pb;

use super::*;

const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const HTML: (&str, &str) = ("content-type", "text/html; charset=utf-8");
const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");

async fn answer(reply: impl Fn() -> Reply + Clone + Send + Sync + 'static) -> Answer {
    answer_to(Protocol::Http, Signal::Logs, reply).await
}

#[tokio::test]
async fn each_status_means_what_the_specification_says() {
    for (status, want) in [
        (200, "taken"),
        (202, "taken"),
        (204, "taken"),
        (301, "refused"),
        (307, "refused"),
        (400, "refused"),
        (401, "refused"),
        (403, "refused"),
        (404, "refused"),
        (408, "refused"),
        (413, "too large"),
        (415, "refused"),
        (429, "again"),
        (500, "refused"),
        (501, "refused"),
        (502, "again"),
        (503, "again"),
        (504, "again"),
        (505, "refused"),
        (599, "refused"),
    ] {
        let answer = answer(move || Reply::new(status, &[], "")).await;
        let (got, why) = match answer {
            Answer::Taken { rejected: 0, message } => ("taken", message),
            Answer::Again { after: None, why } => ("again", why),
            Answer::TooLarge { why } => ("too large", why),
            Answer::Refused { why } => ("refused", why),
            other => panic!("{other:?}"),
        };
        assert_eq!(got, want, "{status}");
        assert_eq!(why.contains(&status.to_string()), want != "taken", "{why}");
    }
}

#[tokio::test]
async fn a_failure_has_the_receivers_words() {
    let status = pb::Status { code: 3, message: "no\x1bway".into(), details: vec![] };
    for (kind, body, want) in [
        (PROTOBUF, status.encode_to_vec(), "HTTP 400 Bad Request: no\\u{1b}way"),
        (JSON, b"{\"code\":3,\"message\":\"json\"}".to_vec(), "HTTP 400 Bad Request: json"),
        (("content-type", "text/plain"), b"plain\n".to_vec(), "HTTP 400 Bad Request: plain"),
        (("content-type", "text/html"), b"<html>".to_vec(), "HTTP 400 Bad Request"),
        (PROTOBUF, b"\xff".to_vec(), "HTTP 400 Bad Request"),
        (JSON, b"[]".to_vec(), "HTTP 400 Bad Request"),
    ] {
        let got = answer(move || Reply::new(400, &[kind], body.clone())).await;
        assert_eq!(got, Answer::Refused { why: want.into() });
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_says_where_to() {
    let got = answer(|| Reply::new(308, &[("location", "https://login.example/")], "")).await;
    let Answer::Refused { why } = got else { panic!("{got:?}") };
    assert_eq!(
        why,
        "HTTP 308 Permanent Redirect to https://login.example/: redirects are not followed, name the right \
         endpoint"
    );
}

#[test]
fn retry_after_is_seconds_or_a_date_and_bounded() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    for (text, want) in [
        ("120", Some(120)),
        ("0", None),
        ("3601", Some(3600)),
        ("99999999999999999999999", Some(3600)),
        ("Sun, 06 Nov 1994 08:50:00 GMT", Some(23)),
        ("Sunday, 06-Nov-94 08:50:00 GMT", Some(23)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", None),
        ("Mon, 07 Nov 1994 08:49:37 GMT", Some(3600)),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
    ] {
        let headers = map(&[("retry-after", text)]);
        let got = super::super::http::retry_after(&headers, now);
        assert_eq!(got, want.map(Duration::from_secs), "{text}");
    }
}

#[tokio::test]
async fn retry_after_is_heeded_for_each_status_that_may_be_tried_again() {
    for status in [429, 502, 503, 504] {
        let got = answer(move || Reply::new(status, &[("retry-after", "7")], "")).await;
        assert!(matches!(got, Answer::Again { after: Some(after), .. } if after.as_secs() == 7));
    }
    let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3000));
    let got = answer(move || Reply::new(503, &[("retry-after", &date)], "")).await;
    let Answer::Again { after: Some(after), .. } = got else { panic!("{got:?}") };
    assert!((2900..=3000).contains(&after.as_secs()), "{after:?}");
}

#[tokio::test]
async fn partial_success_is_told() {
    let want = Answer::Taken { rejected: 3, message: "bad".into() };
    let logs = || {
        let error_message = "bad".into();
        let partial = ExportLogsPartialSuccess { rejected_log_records: 3, error_message };
        Reply::protobuf(&ExportLogsServiceResponse { partial_success: Some(partial) })
    };
    assert_eq!(answer_to(Protocol::Http, Signal::Logs, logs).await, want);
    let traces = || {
        let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "bad".into() };
        Reply::protobuf(&ExportTraceServiceResponse { partial_success: Some(partial) })
    };
    assert_eq!(answer_to(Protocol::Http, Signal::Traces, traces).await, want);
    for (signal, body) in [
        (Signal::Logs, r#"{"partialSuccess":{"rejectedLogRecords":"3","errorMessage":"bad"}}"#),
        (Signal::Logs, r#"{"partial_success":{"rejected_log_records":3,"error_message":"bad"}}"#),
        (Signal::Traces, r#"{"partialSuccess":{"rejectedSpans":3,"errorMessage":"bad"},"new":1}"#),
    ] {
        let got = answer_to(Protocol::Http, signal, move || Reply::new(200, &[JSON], body)).await;
        assert_eq!(got, want, "{body}");
    }
    for body in ["{}", r#"{"partialSuccess":null}"#, r#"{"partialSuccess":{"errorMessage":null}}"#]
    {
        assert_eq!(answer(move || Reply::new(200, &[JSON], body)).await, taken(), "{body}");
    }
}

#[tokio::test]
async fn a_200_of_somebody_else_is_no_acknowledgement() {
    for (head, body, kind) in [
        (&[HTML][..], "<html>log in</html>", "text/html"),
        (&[HTML], "\n", "text/html"),
        (&[("content-type", "text/plain")], "OK", "text/plain"),
        (&[], "<html>log in</html>", "no type"),
        (&[PROTOBUF], "<html>log in</html>", "application/x-protobuf"),
        (&[JSON], "<html>", "application/json"),
        (&[JSON], "[]", "application/json"),
        (&[JSON], r#"{"error":"log in"}"#, "application/json"),
        (&[JSON], r#"{"partialSuccess":{"rejectedLogRecords":"x"}}"#, "application/json"),
    ] {
        let why = again(answer(move || Reply::new(200, head, body)).await);
        let want =
            format!("HTTP 200 OK, but its body ({kind}) is no OTLP answer; is there a proxy");
        assert!(why.starts_with(&want), "{why}");
    }
    // Nothing more to say is fine, in whatever type.
    assert_eq!(answer(move || Reply::new(200, &[HTML], "")).await, taken());
}
