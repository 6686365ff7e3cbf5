//! OTLP over HTTP/protobuf, with headers.

use super::connections::{Role, make, of_socket};
use super::receiver::{Answers, HttpReceiver};
use super::support::{Cgroup, Flowend, Puppet, can_run, flat, text, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn http_protobuf_arrives_as_configured_by_the_standard_variables() {
    if !can_run("http_protobuf_arrives_as_configured_by_the_standard_variables", &[]) {
        return;
    }
    let receiver = HttpReceiver::start(Answers::Taken).await;
    let cgroup = Cgroup::new();
    let mut command = Flowend::command(&[
        "run",
        "--set",
        &format!("targets={}", cgroup.name),
        "--set=export.interval=10ms",
    ]);
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=from%20otel")
        .env("FLOWEND_OTLP__HEADERS__X-TENANT", "from flowend")
        .env("OTEL_SERVICE_NAME", "named");
    let flowend = Flowend::spawn(command);
    let made = tokio::task::block_in_place(|| {
        let (mut client, mut server) = (Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup));
        let made = make(&mut client, &mut server, "127.0.0.1:0", Role::Server, false);
        wait_until(
            || {
                let [logs, spans] = receiver.ids();
                logs.len() >= 2 && spans.len() >= 2
            },
            || flowend.stderr(),
        );
        made
    });
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let seen = receiver.seen();
    let (logs, spans) = of_socket(&seen.received, made.client, made.server);
    assert_eq!((logs.len(), spans.len()), (1, 1));
    assert_eq!(logs[0].item.trace_id, spans[0].item.trace_id);
    let resource = flat(&logs[0].resource);
    assert_eq!(text(&resource, "service.name"), "named");
    assert!(!seen.heads.is_empty());
    for (path, headers) in &seen.heads {
        assert_eq!(headers["content-type"], "application/x-protobuf", "{path}");
        // FLOWEND_* wins over OTEL_*.
        assert_eq!(headers["x-tenant"], "from flowend", "{path}");
    }
}
