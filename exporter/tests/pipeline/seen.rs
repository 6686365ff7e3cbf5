//! Two services and a database talk; what every store shows of it afterwards.

use std::collections::BTreeMap;

use serde_json::Value;

use super::panels;
use super::programs::Built;
use super::shop::API;
use super::stack::Stack;
use super::stores::{Span, Stores, eventually};

const TEST: &str = "each_store_shows_what_the_services_did";

const ORDERS: usize = 20;
const PAYMENTS: usize = 5;
const RESETS: usize = 3;
const REFUSALS: usize = 2;
const HALF_CLOSES: usize = 2;
/// Connection ends: two of each connection whose both ends are watched.
const ENDS: usize = 4 * ORDERS + PAYMENTS + 2 * RESETS + REFUSALS + 2 * HALF_CLOSES;

#[test]
fn each_store_shows_what_the_services_did() {
    let Some(built) = Built::find(TEST) else { return };
    let mut stack = Stack::start(built, "flowend-pipeline-seen.slice");
    let flowend = stack.flowend(&[]);
    let shop = &mut stack.shop;
    shop.look_up();
    for _ in 0..ORDERS {
        shop.order();
    }
    (0..PAYMENTS).for_each(|_| shop.pay());
    (0..RESETS).for_each(|_| shop.reset());
    (0..REFUSALS).for_each(|_| shop.refusal());
    (0..HALF_CLOSES).for_each(|_| shop.half_close());
    let stores = stack.stores();
    stack.network.reach(|| {
        let trace = tempo_has_both_ends(&stores);
        jaeger_has_both_ends(&stores, &trace);
        loki_has_each_end(&stores);
        loki_finds_by_label_and_metadata(&stores);
        links_lead_from_a_trace_to_its_records_and_counts(&stores, &trace);
        prometheus_has_the_graph(&stores);
        prometheus_has_the_counts(&stores);
        each_panel_has_data(&stores);
        // Nothing was sent twice.
        assert_eq!(stores.sent().unwrap(), [ENDS as u64; 2]);
    });
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    for signal in ["logs", "traces"] {
        let line = format!("otlp.{signal}: seen {ENDS} = exported {ENDS} ");
        assert!(messages.contains(&line), "no \"{line}\": {messages}");
    }
}

/// A trace with both ends of a connection of frontend to orders; its id.
fn tempo_has_both_ends(stores: &Stores) -> String {
    let query = r#"{ resource.service.name = "frontend" && kind = client && span.flowend.end.reason = "fin" && span.server.port = 8080 }"#;
    eventually("Tempo's search", || {
        let ids = stores.tempo_search(query)?;
        let id = ids.first().ok_or_else(|| "nothing found".to_owned())?;
        let spans = stores.tempo_trace(id)?;
        let of_kind = |kind: &str| spans.iter().find(|span| span.kind == kind);
        let (Some(client), Some(server)) =
            (of_kind("SPAN_KIND_CLIENT"), of_kind("SPAN_KIND_SERVER"))
        else {
            return Err(format!("not both ends: {spans:?}"));
        };
        assert_eq!(spans.len(), 2, "{spans:?}");
        agree(client, server);
        Ok(id.clone())
    })
}

/// Parent and child, and each says of the connection what the other says.
fn agree(client: &Span, server: &Span) {
    assert_eq!((client.service.as_str(), server.service.as_str()), ("frontend", "orders"));
    assert_eq!((server.parent.as_str(), client.parent.as_str()), (client.id.as_str(), ""));
    let say = |span: &Span, key: &str| span.attributes.get(key).cloned().unwrap_or(Value::Null);
    // Who ended it, at which addresses and ports: the same at both ends.
    for key in [
        "source.address",
        "source.port",
        "destination.address",
        "destination.port",
        "flowend.end.reason",
    ] {
        assert_eq!(say(client, key), say(server, key), "{key}");
        assert_ne!(say(client, key), Value::Null, "{key}");
    }
    assert_eq!(
        (say(client, "flowend.end.by"), say(server, "flowend.end.by")),
        ("local".into(), "remote".into())
    );
    assert_eq!(say(client, "flowend.connection.direction"), "outgoing");
    assert_eq!(say(server, "flowend.connection.direction"), "incoming");
}

fn jaeger_has_both_ends(stores: &Stores, id: &str) {
    let trace = eventually("Jaeger's trace", || {
        let trace = stores.jaeger_trace(id)?;
        let n = trace["spans"].as_array().map_or(0, Vec::len);
        if n == 2 { Ok(trace) } else { Err(format!("{n} spans")) }
    });
    let services: Vec<&str> = trace["processes"]
        .as_object()
        .unwrap()
        .values()
        .map(|process| process["serviceName"].as_str().unwrap())
        .collect();
    assert!(services.contains(&"frontend") && services.contains(&"orders"), "{services:?}");
    let spans = trace["spans"].as_array().unwrap();
    let child =
        spans.iter().find(|span| !span["references"].as_array().unwrap().is_empty()).unwrap();
    let parent =
        spans.iter().find(|span| span["references"].as_array().unwrap().is_empty()).unwrap();
    assert_eq!(child["references"][0]["spanID"], parent["spanID"]);
    assert_eq!(child["operationName"], "tcp connection");
}

/// Exactly the ends that there were, each once.
fn loki_has_each_end(stores: &Stores) {
    let lines = eventually("Loki's lines", || {
        let lines = stores.loki(r#"{service_name=~"frontend|orders|database"}"#)?;
        if lines.len() >= ENDS {
            Ok(lines)
        } else {
            Err(format!("{} of {ENDS} lines", lines.len()))
        }
    });
    assert_eq!(lines.len(), ENDS);
    let mut ids: Vec<_> =
        lines.iter().map(|line| (&line.labels["trace_id"], &line.labels["span_id"])).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), ENDS, "each once");
    let mut by_reason = BTreeMap::new();
    for line in &lines {
        assert_eq!(line.labels["event_name"], "flowend.tcp.end", "{line:?}");
        *by_reason.entry(line.labels["flowend_end_reason"].as_str()).or_insert(0) += 1;
    }
    let fin = 4 * ORDERS + PAYMENTS + 2 * HALF_CLOSES;
    assert_eq!(
        by_reason,
        BTreeMap::from([("fin", fin), ("reset", 2 * RESETS), ("refused", REFUSALS)])
    );
}

fn loki_finds_by_label_and_metadata(stores: &Stores) {
    // orders is a label, the others are structured metadata.
    let query =
        format!(r#"{{service_name="orders"}} | server_address="{API}" | flowend_end_reason="fin""#);
    let lines = stores.loki(&query).unwrap();
    assert_eq!(lines.len(), PAYMENTS, "{lines:?}");
    for line in &lines {
        assert!(line.text.contains(":443 ended: fin, by local, after "), "{}", line.text);
        assert_eq!(
            line.labels["flowend_destination_domains"],
            format!(r#"["{API}"]"#),
            "text of a JSON array"
        );
        let trace = &line.labels["trace_id"];
        let spans = eventually("the span of the line", || stores.tempo_trace(trace));
        assert_eq!(spans[0].id_in_hex(), line.labels["span_id"], "from the record to its span");
    }
}

/// What Grafana asks where somebody follows a link of Tempo's data source from the span of frontend.
fn links_lead_from_a_trace_to_its_records_and_counts(stores: &Stores, trace: &str) {
    let sources = include_str!("../../../deploy/grafana/provisioning/datasources/flowend.yaml");
    // Two dollars are one, for Grafana would look for a variable of its environment.
    let query = |start: &str| {
        let mut found =
            sources.lines().map(str::trim).filter_map(|line| line.strip_prefix("query: "));
        let query = found.find(|query| query.trim_matches('\'').starts_with(start)).expect(start);
        query.trim_matches('\'').replace("$$", "$")
    };
    let to_logs = query("{")
        .replace("${__tags}", r#"service_name="frontend""#)
        .replace("${__trace.traceId}", trace);
    let lines = stores.loki(&to_logs).unwrap();
    assert_eq!(lines.len(), 1, "{to_logs}: {lines:?}");
    assert_eq!(lines[0].labels["trace_id"], trace);
    let to_counts = query("sum by (reason)").replace("$__tags", r#"service="frontend""#);
    assert!(!to_counts.contains('$'), "{to_counts}");
    eventually(&to_counts, || {
        let series = stores.prometheus(&to_counts)?;
        let reasons: Vec<_> =
            series.iter().filter_map(|(labels, _)| labels.get("reason")).collect();
        if reasons.iter().any(|reason| *reason == "fin") {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    });
}

/// The edges, by Tempo and by the Collector.
fn prometheus_has_the_graph(stores: &Stores) {
    for (prefix, whose) in [("traces", "Tempo"), ("collector", "the Collector")] {
        for (client, server, at_least) in [
            ("frontend", "orders", ORDERS + RESETS + HALF_CLOSES),
            ("orders", "database", ORDERS),
            ("orders", API, PAYMENTS),
        ] {
            let query = format!(
                r#"{prefix}_service_graph_request_total{{client="{client}",server="{server}"}}"#
            );
            let count = eventually(&format!("the graph of {whose}"), || {
                let count = stores.total(&query)?;
                if count >= at_least as f64 {
                    Ok(count)
                } else {
                    Err(format!("{query}: {count} of {at_least}"))
                }
            });
            assert_eq!(count, at_least as f64, "{query}");
        }
    }
    let failed =
        r#"collector_service_graph_request_failed_total{client="frontend",server="orders"}"#;
    assert_eq!(stores.total(failed).unwrap(), RESETS as f64);
}

/// The dashboard, as Grafana would fill it.
fn each_panel_has_data(stores: &Stores) {
    for found in eventually("the dashboard", || panels::check(stores)) {
        println!("{found}");
    }
    let shown = eventually("the panel of counts", || panels::shown(stores, "Connections ended"));
    assert_eq!(shown, ENDS as f64);
}

/// What flowend counted itself, and what the Collector made of the spans.
fn prometheus_has_the_counts(stores: &Stores) {
    let expected = |query: &str, n: usize| {
        eventually(query, || {
            let count = stores.total(query)?;
            if count >= n as f64 { Ok(()) } else { Err(format!("{count} of {n}")) }
        });
        assert_eq!(stores.total(query).unwrap(), n as f64, "{query}");
    };
    expected("flowend_connections_ended_total", ENDS);
    expected(r#"flowend_connections_ended_total{service="frontend",reason="reset"}"#, RESETS);
    expected(r#"flowend_ends_total{outcome="exported",signal="logs"}"#, ENDS);
    expected("traces_span_metrics_calls_total", ENDS);
    expected(
        r#"traces_span_metrics_calls_total{service_name="frontend",flowend_end_reason="refused"}"#,
        REFUSALS,
    );
}
