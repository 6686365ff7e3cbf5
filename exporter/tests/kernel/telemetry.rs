//! flowend's own counts, as Prometheus gets them.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::support::{Flowend, can_run, wait_until};

const JSON: &str = r#"signal="json",destination="stdout""#;

/// Metrics by name and labels.
fn scrape(port: u16) -> BTreeMap<String, u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: flowend\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (metric, value) = line.rsplit_once(' ').unwrap();
            (metric.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// All values of a metric that have this label, added up.
fn sum(metrics: &BTreeMap<String, u64>, name: &str, label: &str) -> u64 {
    let of = |key: &&String| key.split('{').next() == Some(name) && key.contains(label);
    assert!(metrics.keys().any(|key| of(&key)), "no {name} with {label} in {metrics:?}");
    metrics.iter().filter(|(key, _)| of(key)).map(|(_, value)| value).sum()
}

#[test]
fn the_counts_add_up_at_each_scrape_and_scrapes_are_not_reported() {
    if !can_run("the_counts_add_up_at_each_scrape_and_scrapes_are_not_reported", &[]) {
        return;
    }
    // The whole machine: the scrapes themselves are seen, and whatever other tests do.
    let flowend = Flowend::run(&[
        "--output=json",
        "--set=telemetry.listen=127.0.0.1:0",
        "--set=dns.scope=host",
    ]);
    let words = "metrics at http://127.0.0.1:";
    flowend.wait_for_message(words);
    let port =
        flowend.stderr().split(words).nth(1).and_then(|rest| rest.split('/').next()?.parse().ok());
    let port: u16 = port.expect("a port");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..5 {
        drop(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        drop(listener.accept().unwrap());
    }
    wait_until(
        || {
            let now = scrape(port);
            let seen = sum(&now, "flowend_ends_seen_total", "");
            let became = sum(&now, "flowend_ends_total", JSON);
            assert_eq!(seen, became + sum(&now, "flowend_ends_in_flight", JSON), "{now:?}");
            let messages = sum(&now, "flowend_dns_messages_seen_total", "");
            assert_eq!(messages, sum(&now, "flowend_dns_messages_total", ""), "{now:?}");
            let segments = sum(&now, "flowend_dns_segments_total", "");
            let waiting = sum(&now, "flowend_dns_segments_in_flight", "");
            assert_eq!(sum(&now, "flowend_dns_segments_seen_total", ""), segments + waiting);
            // Both ends of the five, and scrapes enough.
            sum(&now, "flowend_connections_reported_total", "") >= 10
                && sum(&now, "flowend_ends_total", r#"cause="self""#) >= 5
        },
        || flowend.stderr(),
    );
    let pid = flowend.pid();
    for record in flowend.json() {
        assert_ne!(record["attributes"]["process.pid"], pid, "{record}");
        assert_ne!(record["attributes"]["network.local.port"], port, "{record}");
    }
    assert_eq!(flowend.stop().0, Some(0));
}

#[test]
fn a_port_in_use_is_said_and_nothing_starts() {
    if !can_run("a_port_in_use_is_said_and_nothing_starts", &[]) {
        return;
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--set=telemetry.listen={}", taken.local_addr().unwrap());
    let output = Flowend::command(&["run", &listen]).output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    assert!(messages.contains("key `telemetry.listen`: 127.0.0.1:"), "{messages}");
    assert!(messages.contains("choose another address or port"), "{messages}");
}
