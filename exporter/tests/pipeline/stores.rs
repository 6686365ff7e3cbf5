//! What the stores' own APIs answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::http::get;
pub(crate) use super::panels::Stores;
use super::programs::LONG;

/// The labels of a series, and its value now.
type Sample = (BTreeMap<String, String>, f64);

/// A line of Loki: its labels and structured metadata, and the text.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) text: String,
}

/// A span as Tempo has it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) kind: String,
    pub(crate) id: String,
    /// Empty: none.
    pub(crate) parent: String,
    pub(crate) attributes: BTreeMap<String, Value>,
}

impl Span {
    /// As Loki writes it; Tempo's JSON has it in base64.
    pub(crate) fn id_in_hex(&self) -> String {
        let bytes = BASE64_STANDARD.decode(&self.id).expect("base64");
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Asks until the answer holds, and gives what was seen in it.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        match ask() {
            Ok(seen) => return seen,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn json(url: &str) -> Result<Value, String> {
    let (status, body) = get(url);
    if status != 200 {
        return Err(format!("{url}: {status}: {body}"));
    }
    serde_json::from_str(&body).map_err(|error| format!("{url}: {error}: {body}"))
}

/// An array of the answer.
fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Stores {
    /// The series that an expression gives now, with their values.
    pub(crate) fn prometheus(&self, query: &str) -> Result<Vec<Sample>, String> {
        let answer = json(&format!("{}/api/v1/query?query={}", self.prometheus, encoded(query)))?;
        let series = array(&answer["data"]["result"]).iter().map(|series| {
            let labels = serde_json::from_value(series["metric"].clone()).expect("labels");
            let value = series["value"][1].as_str().and_then(|v| v.parse().ok()).expect("a value");
            (labels, value)
        });
        Ok(series.collect())
    }

    /// The sum of all series that an expression gives.
    pub(crate) fn total(&self, query: &str) -> Result<f64, String> {
        Ok(self.prometheus(query)?.iter().map(|(_, value)| value).sum())
    }

    /// The lines of a query, of the last hour.
    pub(crate) fn loki(&self, query: &str) -> Result<Vec<Line>, String> {
        let url = format!(
            "{}/loki/api/v1/query_range?since=1h&limit=5000&query={}",
            self.loki,
            encoded(query)
        );
        let answer = json(&url)?;
        let lines = array(&answer["data"]["result"]).iter().flat_map(|stream| {
            let labels: BTreeMap<String, String> =
                serde_json::from_value(stream["stream"].clone()).expect("labels");
            array(&stream["values"]).iter().map(move |value| Line {
                labels: labels.clone(),
                text: value[1].as_str().expect("a line").to_owned(),
            })
        });
        Ok(lines.collect())
    }

    /// The ids of the traces that a TraceQL query finds.
    pub(crate) fn tempo_search(&self, query: &str) -> Result<Vec<String>, String> {
        let answer = json(&format!("{}/api/search?limit=2000&q={}", self.tempo, encoded(query)))?;
        // Without its leading zeros.
        let ids =
            array(&answer["traces"]).iter().map(|trace| trace["traceID"].as_str().expect("an id"));
        Ok(ids.map(|id| format!("{id:0>32}")).collect())
    }

    /// The spans of a trace.
    pub(crate) fn tempo_trace(&self, id: &str) -> Result<Vec<Span>, String> {
        let answer = json(&format!("{}/api/v2/traces/{id}", self.tempo))?;
        let mut spans = Vec::new();
        for resource in array(&answer["trace"]["resourceSpans"]) {
            let of_resource = attributes(&resource["resource"]["attributes"]);
            let service =
                of_resource.get("service.name").and_then(Value::as_str).unwrap_or_default();
            for span in
                array(&resource["scopeSpans"]).iter().flat_map(|scope| array(&scope["spans"]))
            {
                let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
                spans.push(Span {
                    service: service.to_owned(),
                    kind: text("kind"),
                    id: text("spanId"),
                    parent: text("parentSpanId"),
                    attributes: attributes(&span["attributes"]),
                });
            }
        }
        if spans.is_empty() { Err(format!("no spans: {answer}")) } else { Ok(spans) }
    }

    /// Log records that Loki was sent, and spans that Tempo was sent: by their own counters, for what they show
    /// afterwards has each of them once.
    pub(crate) fn sent(&self) -> Result<[u64; 2], String> {
        Ok([
            counter(&self.loki, "loki_distributor_lines_received_total")?,
            counter(&self.tempo, "tempo_distributor_spans_received_total")?,
        ])
    }

    /// A trace as Jaeger's user interface gets it.
    pub(crate) fn jaeger_trace(&self, id: &str) -> Result<Value, String> {
        let answer = json(&format!("{}/api/traces/{id}", self.jaeger))?;
        answer["data"].get(0).cloned().ok_or_else(|| format!("no trace: {answer}"))
    }
}

/// The sum of a counter that a program tells of itself.
fn counter(program: &str, name: &str) -> Result<u64, String> {
    let (status, body) = get(&format!("{program}/metrics"));
    let samples = body.lines().filter_map(|line| line.strip_prefix(name)?.split(' ').next_back());
    let values: Vec<f64> = samples.filter_map(|value| value.parse().ok()).collect();
    if status != 200 || values.is_empty() {
        return Err(format!("{program}: no {name}: {status}"));
    }
    Ok(values.iter().sum::<f64>() as u64)
}

/// Attributes as OTLP's JSON has them, each with its bare value.
fn attributes(list: &Value) -> BTreeMap<String, Value> {
    let value = |value: &Value| value.as_object().and_then(|v| v.values().next().cloned());
    array(list)
        .iter()
        .filter_map(|kv| Some((kv["key"].as_str()?.to_owned(), value(&kv["value"])?)))
        .collect()
}
