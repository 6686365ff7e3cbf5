//! What the configuration makes of records: which are kept, what their attributes are called, whose they are. In
//! one file, and looked at as JSON and at an OTLP receiver.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use flowend::demo::{Received, Receiver};
use opentelemetry_proto::tonic::common::v1::any_value::Value;

use super::connections::Role::{Client, Server};
use super::ledger::{ledger, terms};
use super::receiver::{Id, id, ids, ids_of_json, sorted};
use super::support::{Attributes, Cgroup, Flowend, Puppet, can_run, flat, text, wait_until};
use super::telemetry::{port, scrape, sum};
use super::ways::{Pair, Way};

/// Connections with each server that are closed, and those that are reset.
const CLOSED: usize = 12;
const RESET: usize = 3;
/// Two ends each.
const ENDS: usize = 2 * (CLOSED + RESET);

/// One server for each thing that the rules do: drop, keep half, keep.
type Ports = [u16; 3];

/// Ports that nobody else gets, and that a server may listen on though they are taken.
fn reserve() -> ([socket2::Socket; 3], Ports) {
    let sockets = [(); 3].map(|()| {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket
    });
    let port = |socket: &socket2::Socket| {
        socket.local_addr().unwrap().as_socket().expect("an address").port()
    };
    let ports = sockets.each_ref().map(port);
    (sockets, ports)
}

/// The same with each server. The processes stay: their names are read a moment later.
fn connect(cgroup: &Cgroup, ports: Ports) -> [Pair; 3] {
    ports.map(|port| {
        let puppet = || Puppet::in_cgroup(cgroup);
        let mut pair = Pair::new(puppet(), puppet(), &format!("127.0.0.1:{port}"));
        let closed = [Way::Closed(Client), Way::Closed(Server)].into_iter().cycle().take(CLOSED);
        for way in closed.chain([Way::Reset(Client); RESET]) {
            let mut conn = pair.open(way);
            pair.end(&mut conn);
        }
        pair
    })
}

fn config(cgroup: &Cgroup, endpoint: &str, ports: Ports) -> String {
    let [dropped, halved, kept] = ports;
    format!(
        r#"
targets = ["{target}"]
outputs = ["json", "otlp"]

[otlp]
endpoint = "{endpoint}"

[export]
interval = "10ms"

[sampling]
ratio = 0.0

[[sampling.rules]]
ports = ["{dropped}"]
processes = ["puppet"]
action = "drop"

[[sampling.rules]]
ports = ["{halved}"]
ratio = 0.5

[[sampling.rules]]
ports = ["{kept}"]
cidrs = ["127.0.0.0/8"]
action = "keep"

[attributes]
profile = "tracee"
omit = ["flowend.history"]

[attributes.rename]
"dstIP" = "destination.ip"

[attributes.add]
team = "net"

[resource]
service_name = "{{executable}} in {{folder}}"

[telemetry]
listen = "127.0.0.1:0"
"#,
        target = cgroup.name
    )
}

/// What is to become of each end that the other flowend reports, which keeps all: `ot=th` of those that are kept.
#[derive(Debug, Default)]
struct Expected {
    kept: BTreeMap<Id, &'static str>,
    sampled_out: usize,
    filtered: usize,
}

fn expect(lines: &[serde_json::Value], ports: Ports) -> Expected {
    let mut expected = Expected::default();
    let [dropped, halved, _] = ports.map(u64::from);
    for (line, id) in lines.iter().zip(ids_of_json(lines)) {
        let attributes = &line["attributes"];
        let port = attributes["server.port"].as_u64().expect("a port");
        // The last 56 bits of the trace id, as OpenTelemetry's consistent sampling has it.
        let random = u64::from_str_radix(&id.0[18..], 16).expect("hexadecimal");
        if port == dropped {
            expected.filtered += 1;
        } else if port != halved || attributes["flowend.end.reason"] == "reset" {
            // Errors are kept by default.
            expected.kept.insert(id, "ot=th:0");
        } else if random >= 1 << 55 {
            expected.kept.insert(id, "ot=th:8");
        } else {
            expected.sampled_out += 1;
        }
    }
    expected
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_shapes_the_records_of_all_outputs() {
    if !can_run("one_file_shapes_the_records_of_all_outputs", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let receiver = Receiver::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flowend.toml");
    tokio::task::block_in_place(|| {
        let (_reserved, ports) = reserve();
        std::fs::write(&file, config(&cgroup, &receiver.endpoint(), ports)).unwrap();
        let plain = Flowend::run(&["--output=json", &format!("--set=targets={}", cgroup.name)]);
        let flowend = Flowend::run(&["--config", file.to_str().unwrap()]);
        let _pairs = connect(&cgroup, ports);
        wait_until(|| plain.json().len() == 3 * ENDS, || plain.stderr());
        let expected = expect(&plain.json(), ports);
        let ends = |n: usize| n as u64;
        let telemetry = port(&flowend);
        wait_until(
            || sum(&scrape(telemetry), "flowend_ends_seen_total", "") == ends(3 * ENDS),
            || flowend.stderr(),
        );
        let kept = expected.kept.len();
        let has_all = || ids(&receiver.received()).iter().all(|ids| ids.len() >= kept);
        wait_until(has_all, || flowend.stderr());
        wait_until(|| flowend.json().len() >= kept, || flowend.stderr());
        let lines = flowend.json();

        let now = scrape(telemetry);
        let ended = |label: &str| sum(&now, "flowend_connections_ended_total", label);
        assert_eq!(ended(""), ends(3 * ENDS), "whatever the rules say: {now:?}");
        assert_eq!(ended("reason=\"reset\""), ends(3 * 2 * RESET), "{now:?}");
        assert_eq!(ended("direction=\"incoming\""), ends(3 * ENDS / 2), "{now:?}");
        let service = format!("puppet in {}", cgroup.name.trim_start_matches('/'));
        assert_eq!(ended(&format!("service=\"{service}\"")), ends(3 * ENDS), "{now:?}");
        let filtered = r#"signal="logs",destination="otlp",outcome="filtered",cause="rule""#;
        assert_eq!(sum(&now, "flowend_ends_total", filtered), ends(ENDS), "{now:?}");

        plain.stop();
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        assert_eq!(expected.filtered, ENDS);
        for output in ["json", "otlp.logs", "otlp.traces"] {
            let mut want = terms([
                ("seen", 3 * ENDS),
                ("exported", kept),
                ("filtered{rule}", ENDS),
                ("sampled_out", expected.sampled_out),
            ]);
            want.retain(|_, n| *n > 0);
            assert_eq!(ledger(&messages, output), want, "{messages}");
        }
        check(&receiver.received(), &lines, &expected.kept, &service);
    });
}

/// The same of JSON, log records and spans.
fn check(
    received: &Received,
    lines: &[serde_json::Value],
    kept: &BTreeMap<Id, &'static str>,
    service: &str,
) {
    let want: Vec<Id> = kept.keys().cloned().collect();
    assert_eq!(sorted(ids_of_json(lines)), want, "those that the rules keep, and each once");
    assert_eq!(ids(received).map(sorted), [want.clone(), want]);
    let by_id: BTreeMap<Id, _> = ids_of_json(lines).into_iter().zip(lines).collect();
    for log in &received.logs {
        let line = by_id[&id(&log.item.trace_id, &log.item.span_id)];
        // Sampled, and a random trace id (W3C Trace Context, level 2).
        assert_eq!(log.item.flags, 0b11);
        check_same(&flat(&log.item.attributes), &flat(&log.resource), line, service);
    }
    for span in &received.spans {
        let id = id(&span.item.trace_id, &span.item.span_id);
        let line = by_id[&id];
        assert_eq!(span.item.flags & 0xff, 0b11);
        check_same(&flat(&span.item.attributes), &flat(&span.resource), line, service);
        let threshold = kept[&id];
        assert_eq!(span.item.trace_state, threshold);
        assert_eq!(line["span"]["trace_state"], threshold);
        let probability = line["attributes"].get("flowend.sampling.probability");
        assert_eq!(probability, (threshold == "ot=th:8").then_some(&0.5.into()), "{line}");
    }
}

/// A record in OTLP says what its JSON line says, in the words of the configuration.
fn check_same(
    attributes: &Attributes,
    resource: &Attributes,
    line: &serde_json::Value,
    service: &str,
) {
    let as_json = |attributes: &Attributes| -> serde_json::Map<_, _> {
        attributes.iter().map(|(key, value)| (key.clone(), json(value))).collect()
    };
    let sort = |value: &serde_json::Value| -> BTreeMap<String, serde_json::Value> {
        value.as_object().expect("an object").clone().into_iter().collect()
    };
    assert_eq!(sort(&as_json(attributes).into()), sort(&line["attributes"]));
    assert_eq!(sort(&as_json(resource).into()), sort(&line["resource"]));
    assert_eq!(text(resource, "service.name"), service);
    assert_eq!(text(attributes, "team"), "net");
    let keys: BTreeSet<&str> = attributes.keys().map(String::as_str).collect();
    for there in ["srcIP", "srcPort", "destination.ip", "dstPort", "connectionDirection"] {
        assert!(keys.contains(there), "no {there}: {line}");
    }
    for gone in ["dstIP", "source.address", "destination.address", "flowend.history"] {
        assert!(!keys.contains(gone), "{gone}: {line}");
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::StringValue(text) => text.as_str().into(),
        Value::IntValue(n) => (*n).into(),
        Value::DoubleValue(n) => (*n).into(),
        Value::BoolValue(b) => (*b).into(),
        other => panic!("{other:?}: no attribute here is one"),
    }
}
