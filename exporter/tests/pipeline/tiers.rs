//! Two hosts, each with a flowend and an agent, and two gateways: the spans of a connection meet in one of them.

use std::collections::BTreeMap;

use super::http::get;
use super::network::Network;
use super::programs::{Program, collector, start_collector};
use super::shop::{HOSTS, Shop};
use super::stack::watch;
use super::stores::eventually;

const TEST: &str = "both_spans_of_a_connection_meet_in_one_gateway";

const ORDERS: usize = 40;
const GATEWAYS: [&str; 2] = ["gateway1", "gateway2"];

#[test]
fn both_spans_of_a_connection_meet_in_one_gateway() {
    let Some(program) = collector(TEST) else { return };
    let names = [&["agent1", "agent2", "gateway1", "gateway2", "sink"], HOSTS].concat();
    let network = Network::new(
        &names,
        &[("flowend-gateway", &GATEWAYS), ("tempo", &["sink"]), ("jaeger", &["sink"])],
    );
    let folder = tempfile::tempdir().unwrap();
    let storage = |host: &str| folder.path().join(host);
    // What the gateways keep comes here; their own metrics say the rest.
    let sink = sink(&network, &program);
    let gateways = GATEWAYS.map(|host| {
        let files = ["otel-collector.yaml", "deploy/collector/gateway.yaml"];
        let settings = [("SAMPLING_PERCENTAGE", "0")];
        start_collector(&network, host, &program, &files, &storage(host), &settings)
    });
    let agents = ["agent1", "agent2"].map(|host| {
        start_collector(
            &network,
            host,
            &program,
            &["deploy/collector/agent.yaml"],
            &storage(host),
            &[],
        )
    });
    let mut shop = Shop::open(&network, "flowend-pipeline-tiers.slice");
    // As if frontend were on one host, and the others on another.
    let of = |service: &str| format!("{}/{service}.service", shop.target());
    let others = format!("{},{}", of("orders"), of("database"));
    let flowends = [
        watch(&network, "agent1", "http://127.0.0.1:4317", &of("frontend"), &[]),
        watch(&network, "agent2", "http://127.0.0.1:4317", &others, &[]),
    ];
    (0..ORDERS).for_each(|_| shop.order());
    shop.reset();

    network.reach(|| {
        // Together the gateways saw each connection once, as one edge: no span stayed without the other.
        eventually("the edges", || {
            let edges = edges(&network);
            let both = |client: &str, server: &str| -> u64 {
                edges.iter().filter_map(|of| of.get(&(client.to_owned(), server.to_owned()))).sum()
            };
            let (first, second) = (both("frontend", "orders"), both("orders", "database"));
            if (first, second) == (ORDERS as u64 + 1, ORDERS as u64) {
                assert!(
                    edges.iter().all(|of| !of.is_empty()),
                    "all came to one gateway: {edges:?}"
                );
                Ok(())
            } else {
                Err(format!("{edges:?}"))
            }
        });
    });
    // The one with an error is kept with both of its spans, and no other.
    eventually("the kept trace", || {
        let kept = sink.messages();
        let spans = kept.matches("Span #").count();
        if spans == 4 { Ok(()) } else { Err(format!("{spans} spans: {kept}")) }
    });
    for flowend in flowends {
        let (status, messages) = flowend.stop();
        assert_eq!(status, Some(0), "{messages}");
        assert!(!messages.contains("dropped"), "{messages}");
    }
    drop(agents);
    drop(gateways);
    let kept = sink.stop();
    assert_eq!(kept.matches("Span #").count(), 4, "two spans, to Tempo and to Jaeger: {kept}");
    assert_eq!(kept.matches("flowend.end.reason: Str(reset)").count(), 4, "{kept}");
}

/// Takes OTLP and writes it to stderr.
fn sink(network: &Network, program: &std::path::Path) -> Program {
    let config = "yaml:{\
        receivers: {otlp: {protocols: {grpc: {endpoint: '0.0.0.0:4317'}}}},\
        exporters: {debug: {verbosity: detailed}},\
        service: {telemetry: {metrics: {level: none}}, pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}}";
    let mut command = network.command("sink", program);
    command.arg(format!("--config={config}"));
    let mut sink = Program::start("sink", command);
    sink.wait_for("Everything is ready");
    sink
}

/// Of each gateway: the edges of its service graph, client and server, with how many connections.
fn edges(network: &Network) -> Vec<BTreeMap<(String, String), u64>> {
    let of = |host: &str| {
        let (status, body) = get(&format!("{}/metrics", network.url(host, 8889)));
        assert_eq!(status, 200, "{body}");
        let samples =
            body.lines().filter(|line| line.starts_with("traces_service_graph_request_total{"));
        let mut edges = BTreeMap::new();
        for line in samples {
            let label = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\"")).expect(name);
                rest.split('"').next().expect("a value").to_owned()
            };
            // The value, and in this format perhaps an exemplar behind it.
            let value = line.rsplit_once("} ").and_then(|(_, v)| v.split(' ').next());
            let value = value.and_then(|v| v.parse::<f64>().ok()).expect("a value");
            *edges.entry((label("client"), label("server"))).or_insert(0) += value as u64;
        }
        edges
    };
    GATEWAYS.map(of).to_vec()
}
