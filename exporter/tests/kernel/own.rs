//! flowend's own connections are never reported.

use std::time::Duration;

use super::receiver::refusing;
use super::support::{Flowend, can_run};

#[test]
fn a_refused_receiver_makes_no_record_of_its_own_for_a_minute() {
    if !can_run("a_refused_receiver_makes_no_record_of_its_own_for_a_minute", &[]) {
        return;
    }
    let ((_bound, grpc), (_also_bound, http)) = (refusing(), refusing());
    let flowend = Flowend::run(&[
        "--output=json",
        "--output=otlp",
        "--set",
        &format!("otlp.endpoint=http://127.0.0.1:{grpc}"),
        "--set",
        &format!("otlp.traces.endpoint=http://127.0.0.1:{http}/v1/traces"),
        "--set=otlp.traces.protocol=http/protobuf",
        "--set=export.interval=10ms",
        "--set=export.retry_initial=50ms",
        "--set=export.retry_max=200ms",
        "--set=shutdown.timeout=1s",
    ]);
    let pid = flowend.pid();
    // Something to export, so that there is something to be refused.
    for _ in 0..10 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        drop(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        drop(listener.accept().unwrap());
    }
    std::thread::sleep(Duration::from_secs(60));
    flowend.wait_for_message("tries again");
    let records = flowend.json();
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "an unreachable receiver is no failure: {messages}");

    assert!(records.len() >= 20, "{} records", records.len());
    for record in &records {
        let a = &record["attributes"];
        assert_ne!(a["process.pid"], pid, "{record}");
        for port in [grpc, http] {
            assert_ne!(a["network.peer.port"], port, "{record}");
        }
    }
    let filtered: u64 = messages
        .split("filtered{self} ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no ledger: {messages}"));
    // Two receivers, refused at least every 200 ms each.
    assert!(filtered > 300, "{filtered} own connections were filtered: {messages}");
    for (output, port) in [("otlp.logs", grpc), ("otlp.traces", http)] {
        assert!(messages.contains(&format!("{output} to http://127.0.0.1:{port}/")), "{messages}");
        assert!(messages.contains(&format!("{output}: seen ")), "{messages}");
    }
    assert!(messages.contains("dropped{shutdown}"), "{messages}");
    assert!(messages.contains("onnection refused"), "{messages}");
}
