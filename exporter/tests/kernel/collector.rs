//! A receiver that nobody here wrote: the OpenTelemetry Collector, built from its Go modules by
//! `collector/build`, decodes the same stream.

use std::path::Path;
use std::process::{Command, Stdio};

use super::connections::{Role, make};
use super::support::{Cgroup, Flowend, Killed, Puppet, can_run, collect, skip, wait_until};

const TEST: &str = "the_collector_decodes_event_name_ids_and_attributes";

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// TEST_COLLECTOR names the built program; `.ci/run` builds it and sets this.
fn collector() -> Option<String> {
    let path = std::env::var("TEST_COLLECTOR").ok().filter(|p| !p.is_empty());
    if path.is_none() {
        skip(TEST, "TEST_COLLECTOR (`export TEST_COLLECTOR=$(collector/build)`; needs Go)");
    }
    path
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_collector_decodes_event_name_ids_and_attributes() {
    if !can_run(TEST, &[]) {
        return;
    }
    let Some(program) = collector() else { return };
    for config in ["otel-collector.yaml", "collector/receive.yaml"] {
        let config = root().join(config);
        let output = Command::new(&program)
            .arg("validate")
            .arg(format!("--config={}", config.display()))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            config.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let (grpc, http) = (free_port(), free_port());
    let mut child = Command::new(&program)
        .arg(format!("--config={}", root().join("collector/receive.yaml").display()))
        .env("FLOWEND_TEST_GRPC", format!("127.0.0.1:{grpc}"))
        .env("FLOWEND_TEST_HTTP", format!("127.0.0.1:{http}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let shown = collect(child.stdout.take().unwrap());
    let messages = collect(child.stderr.take().unwrap());
    let _collector = Killed(child);
    let shown = || shown.lock().unwrap().clone();
    wait_until(
        || messages.lock().unwrap().contains("Everything is ready"),
        || messages.lock().unwrap().clone(),
    );

    let cgroup = Cgroup::new();
    for (endpoint, protocol, compression) in [
        (grpc, "grpc", "none"),
        (http, "http/protobuf", "gzip"),
        (grpc, "grpc", "zstd"),
        (http, "http/protobuf", "zstd"),
        (grpc, "grpc", "gzip"),
    ] {
        let before = shown().len();
        let flowend = Flowend::run(&[
            "--output=otlp",
            "--output=json",
            "--set",
            &format!("targets={}", cgroup.name),
            "--set",
            &format!("otlp.endpoint=http://127.0.0.1:{endpoint}"),
            "--set",
            &format!("otlp.protocol={protocol}"),
            "--set",
            &format!("otlp.compression={compression}"),
            "--set=export.interval=10ms",
        ]);
        let (mut client, mut server) = (Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup));
        let made = make(&mut client, &mut server, "127.0.0.1:0", Role::Client, true);
        wait_until(|| flowend.json().len() >= 2, || flowend.stderr());
        let record = flowend.json().into_iter().find(|r| r["span"]["kind"] == "CLIENT").unwrap();
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        assert!(
            messages.contains("otlp.logs: seen 2 = exported 2 "),
            "{protocol} {compression}: {messages}"
        );
        assert!(
            messages.contains("otlp.traces: seen 2 = exported 2 "),
            "{protocol} {compression}: {messages}"
        );

        let trace = format!("Trace ID: {}", record["trace_id"].as_str().unwrap());
        let span = format!("    ID             : {}", record["span_id"].as_str().unwrap());
        wait_until(
            || shown()[before..].contains(&trace) && shown()[before..].contains(&span),
            shown,
        );
        let text = shown()[before..].to_owned();
        for words in [
            "EventName: flowend.tcp.end",
            "SeverityText: WARN",
            &format!("Span ID: {}", record["span_id"].as_str().unwrap()),
            "InstrumentationScope flowend ",
            "     -> service.name: Str(puppet)",
            &format!("     -> process.linux.cgroup: Str({})", cgroup.name),
            &format!("     -> source.port: Int({})", made.client.port()),
            "     -> source.address: Str(127.0.0.1)",
            "     -> flowend.start_known: Bool(true)",
            "     -> flowend.end.reason: Str(reset)",
            "     -> error.type: Str(connection_reset)",
            "    Name           : tcp connection",
            "    Kind           : Client",
            "    Kind           : Server",
            "    Status code    : Error",
            &format!("    Parent ID      : {}", record["span_id"].as_str().unwrap()),
        ] {
            assert!(text.contains(words), "{protocol} {compression}: no \"{words}\" in {text}");
        }
    }
}
