//! The dashboard's queries, run as Grafana would run them, against the stores that it would ask.

use std::collections::HashSet;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::http;

const DASHBOARD: &str = include_str!("../../../deploy/grafana/dashboards/flowend.json");

/// The time range of the dashboard when it is opened, s.
const RANGE: u64 = 1800;
/// The step of its graphs, s: `timeInterval` of the data source is the smallest.
const STEP: u64 = 15;

/// Panels that may be empty, and why. All others must have data after a run with a reset, a refusal, a half-close
/// and a lookup.
const MAY_BE_EMPTY: [(&str, &str); 1] =
    [("Retransmits", "the test's links lose nothing, so nothing is sent again")];

/// The URLs under which the stores answer, like `http://10.0.0.5:9090`.
#[derive(Clone, Debug)]
pub(crate) struct Stores {
    pub(crate) prometheus: String,
    pub(crate) loki: String,
    pub(crate) tempo: String,
    pub(crate) jaeger: String,
}

/// What one query of one panel found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) panel: String,
    pub(crate) query: String,
    /// Series, log lines or traces.
    pub(crate) items: usize,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6}  {}: {}", self.items, self.panel, self.query)
    }
}

/// Runs every query of every panel, and of every variable. The error names each that a store refused, and each that
/// found nothing where there must be something.
pub(crate) fn check(stores: &Stores) -> Result<Vec<Found>, String> {
    let dashboard = dashboard();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for question in questions(&dashboard) {
        let Question { panel, query, .. } = &question;
        match question.ask(stores, now) {
            Ok(items) => {
                let may_be_empty = MAY_BE_EMPTY.iter().any(|(title, _)| title == panel);
                if items == 0 && !may_be_empty {
                    wrong.push(format!("panel {panel:?} has no data: {query}"));
                }
                all.push(Found { panel: panel.clone(), query: query.clone(), items });
            }
            Err(error) => wrong.push(format!("panel {panel:?}: {error}: {query}")),
        }
    }
    if wrong.is_empty() { Ok(all) } else { Err(wrong.join("\n")) }
}

/// The sum of what a panel of counts shows: of all rows of a table, of a single number.
pub(crate) fn shown(stores: &Stores, panel: &str) -> Result<f64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let dashboard = dashboard();
    let mut asked = questions(&dashboard).into_iter().filter(|question| question.panel == panel);
    let question = asked.next().unwrap_or_else(|| panic!("no panel {panel:?}"));
    assert_eq!(question.of, Of::PrometheusInstant, "{panel:?} shows no count of now");
    let answer = question.answer(stores, now)?;
    let value = |series: &Value| text(&series["value"][1]).parse::<f64>().expect("a number");
    Ok(list(&answer["data"]["result"]).iter().map(value).sum())
}

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).expect("deploy/grafana/dashboards/flowend.json is JSON")
}

/// What Grafana asks for a panel.
#[derive(Debug)]
struct Question {
    panel: String,
    query: String,
    of: Of,
}

/// Which store answers, by which of its interfaces.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    PrometheusInstant,
    PrometheusRange,
    PrometheusLabel,
    LokiInstant,
    LokiRange,
    Tempo,
    JaegerServices,
}

/// Every question of the dashboard. It panics where the dashboard has a query of a kind that is not known here: nothing
/// is left out.
fn questions(dashboard: &Value) -> Vec<Question> {
    let variables = list(&dashboard["templating"]["list"]);
    let mut questions: Vec<_> = variables.iter().map(label_values).collect();
    // No panel shows Jaeger's traces. Its data source begins with this question, and links lead there.
    questions.push(Question {
        panel: "data source Jaeger".into(),
        query: "services".into(),
        of: Of::JaegerServices,
    });
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        for target in list(&panel["targets"]) {
            let put = |of, query: &str| Question {
                panel: title.to_owned(),
                query: substitute(query, variables),
                of,
            };
            let kind = target["queryType"].as_str();
            match (text(&target["datasource"]["uid"]), kind) {
                ("prometheus", None) if target["instant"] == true => {
                    questions.push(put(Of::PrometheusInstant, text(&target["expr"])));
                }
                ("prometheus", None) if target["range"] == true => {
                    questions.push(put(Of::PrometheusRange, text(&target["expr"])));
                }
                ("loki", Some("instant")) => {
                    questions.push(put(Of::LokiInstant, text(&target["expr"])));
                }
                ("loki", Some("range")) => {
                    questions.push(put(Of::LokiRange, text(&target["expr"])));
                }
                ("tempo", Some("traceql")) => {
                    questions.push(put(Of::Tempo, text(&target["query"])));
                }
                ("tempo", Some("serviceMap")) => {
                    let of_graph = service_map(text(&target["serviceMapQuery"]));
                    questions.extend(of_graph.map(|query| put(Of::PrometheusInstant, &query)));
                }
                other => panic!("panel {title:?} asks {other:?}: teach panels.rs that"),
            }
        }
    }
    questions
}

/// For its service map Grafana asks the Prometheus that the data source names, for the edges and how long they took.
fn service_map(selector: &str) -> [String; 2] {
    ["traces_service_graph_request_total", "traces_service_graph_request_server_seconds_sum"]
        .map(|metric| format!("sum by (client, server) (rate({metric}{selector}[$__range]))"))
}

/// The values that a variable offers: `label_values(METRIC, LABEL)`.
fn label_values(variable: &Value) -> Question {
    let query = text(&variable["query"]["query"]);
    assert!(query.starts_with("label_values("), "{query}");
    Question {
        panel: format!("variable {}", text(&variable["name"])),
        query: query.to_owned(),
        of: Of::PrometheusLabel,
    }
}

/// Puts in what Grafana puts in when "All" is chosen.
fn substitute(query: &str, variables: &[Value]) -> String {
    let mut query = query.to_owned();
    for (name, value) in [
        ("$__rate_interval", format!("{}s", 4 * STEP)),
        ("$__interval", format!("{STEP}s")),
        ("$__range", format!("{RANGE}s")),
    ] {
        query = query.replace(name, &value);
    }
    for variable in variables {
        let name = format!("${}", text(&variable["name"]));
        query = query.replace(&name, text(&variable["allValue"]));
    }
    assert!(!query.contains('$'), "a variable that is not known here: {query}");
    query
}

impl Question {
    /// How many series, lines or traces there are with a value.
    fn ask(&self, stores: &Stores, now: u64) -> Result<usize, String> {
        Ok(self.of.count(&self.answer(stores, now)?))
    }

    fn answer(&self, stores: &Stores, now: u64) -> Result<Value, String> {
        let from = now - RANGE;
        let query = encoded(&self.query);
        let Stores { prometheus, loki, tempo, jaeger } = stores;
        let url = match self.of {
            Of::PrometheusInstant => format!("{prometheus}/api/v1/query?query={query}&time={now}"),
            Of::PrometheusRange => format!(
                "{prometheus}/api/v1/query_range?query={query}&start={}&end={now}&step={STEP}",
                from / STEP * STEP,
            ),
            Of::PrometheusLabel => {
                let inner = self.query.trim_start_matches("label_values(").trim_end_matches(')');
                let (metric, label) = inner.split_once(", ").expect("label_values(METRIC, LABEL)");
                format!("{prometheus}/api/v1/label/{label}/values?match[]={}", encoded(metric))
            }
            Of::LokiInstant => {
                format!("{loki}/loki/api/v1/query?query={query}&time={now}000000000")
            }
            Of::LokiRange => format!(
                "{loki}/loki/api/v1/query_range?query={query}&start={from}&end={now}&step={STEP}&limit=200"
            ),
            Of::Tempo => {
                format!("{tempo}/api/search?q={query}&start={from}&end={now}&limit=50&spss=3")
            }
            Of::JaegerServices => format!("{jaeger}/api/services"),
        };
        let (status, body) = http::get(&url);
        if status != 200 {
            return Err(format!("status {status}: {body}"));
        }
        serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))
    }
}

impl Of {
    fn count(self, answer: &Value) -> usize {
        let result = || list(&answer["data"]["result"]).iter();
        match self {
            Self::PrometheusInstant => result().filter(|s| is_number(&s["value"])).count(),
            Self::PrometheusRange => {
                result().filter(|s| list(&s["values"]).iter().any(is_number)).count()
            }
            // Of a metric query one value, of a log query one line in each pair.
            Self::LokiInstant => result().count(),
            Self::LokiRange => result().map(|s| list(&s["values"]).len()).sum(),
            Self::PrometheusLabel | Self::JaegerServices => list(&answer["data"]).len(),
            Self::Tempo => list(&answer["traces"]).len(),
        }
    }
}

/// Whether Prometheus' pair of a time and a value has a value to draw.
fn is_number(pair: &Value) -> bool {
    pair[1].as_str().and_then(|n| n.parse::<f64>().ok()).is_some_and(|n| !n.is_nan())
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn panels_that_may_be_empty_are_there() {
    let dashboard = dashboard();
    for (title, _) in MAY_BE_EMPTY {
        let mut panels = list(&dashboard["panels"]).iter();
        assert!(panels.any(|panel| panel["title"] == title), "{title}");
    }
}

#[test]
fn each_panel_says_what_it_shows_and_asks_a_data_source_that_is_provisioned() {
    let sources = include_str!("../../../deploy/grafana/provisioning/datasources/flowend.yaml");
    let uids: HashSet<_> =
        sources.lines().filter_map(|line| line.strip_prefix("    uid: ")).collect();
    let dashboard = dashboard();
    assert!(questions(&dashboard).len() > 20);
    let (mut ids, mut titles) = (HashSet::new(), HashSet::new());
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64()), "two panels have the id of {title:?}");
        assert!(titles.insert(title), "two panels are called {title:?}");
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(&panel["description"]).len() > 40, "{title:?} has no description");
        assert!(!list(&panel["targets"]).is_empty(), "{title:?} asks nothing");
        for target in list(&panel["targets"]) {
            let uid = text(&target["datasource"]["uid"]);
            assert!(uids.contains(uid), "{title:?} asks {uid:?}, which nobody provisions");
            assert_eq!(target["datasource"], panel["datasource"], "{title:?}");
        }
    }
}

/// Panels with counts of connections say how sampling changes them, and the counters' ones that it does not.
#[test]
fn each_panel_of_connections_says_what_sampling_does_to_it() {
    for panel in list(&dashboard()["panels"]) {
        let asked = list(&panel["targets"]).iter();
        let asked: String = asked.map(|t| format!("{}{}", t["expr"], t["query"])).collect();
        let description = text(&panel["description"]);
        let counted = asked.contains("flowend_connections_ended_total");
        let exact = description.contains("sampling changes nothing here");
        assert_eq!(exact, counted || asked.contains("flowend_connection_bytes_total"));
        if asked.contains("event_name=") || asked.contains("traces_") {
            assert!(description.contains("sampling"), "{}", panel["title"]);
        }
    }
}

#[test]
fn panels_fill_the_grid_and_do_not_overlap() {
    let mut taken = HashSet::new();
    for panel in list(&dashboard()["panels"]) {
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        let (x, y, w, h) = (at("x"), at("y"), at("w"), at("h"));
        assert!(x + w <= 24, "{} is wider than the grid", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{} lies on another panel", panel["title"]);
        }
    }
}

#[test]
fn answers_are_counted_by_what_they_show() {
    let cases = [
        (
            Of::PrometheusInstant,
            r#"{"data":{"result":[{"value":[1,"NaN"]},{"value":[1,"0"]}]}}"#,
            1,
        ),
        (
            Of::PrometheusRange,
            r#"{"data":{"result":[{"values":[[1,"NaN"],[2,"3"]]},{"values":[]}]}}"#,
            1,
        ),
        (Of::PrometheusLabel, r#"{"data":["a","b"]}"#, 2),
        (Of::LokiInstant, r#"{"data":{"result":[{"value":[1,"2"]}]}}"#, 1),
        (
            Of::LokiRange,
            r#"{"data":{"result":[{"values":[["1","a"],["2","b"]]},{"values":[["1","c"]]}]}}"#,
            3,
        ),
        (Of::Tempo, r#"{"traces":[{"traceID":"1"}]}"#, 1),
        (Of::Tempo, r#"{"metrics":{}}"#, 0),
    ];
    for (of, answer, want) in cases {
        assert_eq!(of.count(&serde_json::from_str(answer).unwrap()), want, "{of:?} {answer}");
    }
}
