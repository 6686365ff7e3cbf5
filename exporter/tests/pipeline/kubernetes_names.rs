//! The names that people read in Kubernetes: the shipped cluster collector asks a Kubernetes API for them, and finds the pod
//! by what flowend knows from a cgroup's name: a pod's uid, or a container's id.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::kubernetes_api::{Api, Pod, Workload};
use super::network::shipped;
use super::programs::{LONG, built};
use super::support::{Killed, collect};

const TEST: &str = "the_collector_names_the_pod_of_a_uid_and_of_a_container";

const ORDERS: Pod = Pod {
    namespace: "shop",
    name: "orders-5d8c7f9b6d-x2x7k",
    uid: "1f0c3b7e-7a52-4c7e-9a57-5b1c6f1de001",
    node: "node-a",
    workload: Workload::Deployment("orders"),
    labels: &[("app.kubernetes.io/part-of", "webshop"), ("rollout", "blue")],
    container: "server",
    container_id: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
};

const LEDGER: Pod = Pod {
    namespace: "money",
    name: "ledger-0",
    uid: "1f0c3b7e-7a52-4c7e-9a57-5b1c6f1de002",
    node: "node-b",
    workload: Workload::StatefulSet("ledger"),
    labels: &[("app.kubernetes.io/name", "general-ledger")],
    container: "db",
    container_id: "89abcdef0123456789abcdef0123456789abcdef0123456789abcdef01234567",
};

const WATCHER: Pod = Pod {
    namespace: "monitoring",
    name: "watcher-l9x2p",
    uid: "1f0c3b7e-7a52-4c7e-9a57-5b1c6f1de003",
    node: "node-b",
    workload: Workload::DaemonSet("watcher"),
    labels: &[("app", "watcher")],
    container: "main",
    container_id: "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210",
};

type Resource = BTreeMap<String, String>;

fn resource(attributes: &[(&str, &str)]) -> Resource {
    attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_collector_names_the_pod_of_a_uid_and_of_a_container() {
    let Some(program) = built(TEST, "TEST_COLLECTOR", "collector/build") else { return };
    // An older cluster lists, and watches from there; a newer one sends what there is in the watch.
    for with_list in [false, true] {
        let api = Api::start(&[ORDERS, LEDGER]);
        let collector = Collector::start(&program, &api, with_list);
        check_names(&api, &collector);
        assert_eq!(api.not_answered(), [""; 0]);
        // What the collector's roles have to allow, and no more.
        for file in [
            "kubernetes/collector.yaml",
            "kubernetes/gateway.yaml",
            "helm/flowend/templates/collector.yaml",
        ] {
            let text = std::fs::read_to_string(shipped("deploy").join(file)).unwrap();
            let lines = |key: &str| {
                text.lines().map(str::trim).filter(|l| l.starts_with(key)).collect::<Vec<_>>()
            };
            let allowed = (lines("resources: ["), lines("verbs: ["));
            assert_eq!(
                allowed,
                (vec!["resources: [pods]"], vec!["verbs: [list, watch]"]),
                "{file}"
            );
        }
        let mut asked = BTreeSet::from([("watch", "", "pods")]);
        if with_list {
            asked.insert(("list", "", "pods"));
        }
        assert_eq!(api.asked(), asked);
    }
}

fn check_names(api: &Api, collector: &Collector) {
    let orders = resource(&[
        ("k8s.namespace.name", "shop"),
        ("k8s.pod.name", ORDERS.name),
        ("k8s.pod.uid", ORDERS.uid),
        ("k8s.node.name", "node-a"),
        ("k8s.deployment.name", "orders"),
        ("k8s.pod.label.app.kubernetes.io/part-of", "webshop"),
        ("service.namespace", "shop"),
        ("service.name", "orders"),
        // Known without its id: the pod has no other.
        ("k8s.container.name", "server"),
        ("container.id", ORDERS.container_id),
    ]);
    let ledger = resource(&[
        ("k8s.namespace.name", "money"),
        ("k8s.pod.name", "ledger-0"),
        ("k8s.pod.uid", LEDGER.uid),
        ("k8s.node.name", "node-b"),
        ("k8s.statefulset.name", "ledger"),
        ("k8s.pod.label.app.kubernetes.io/name", "general-ledger"),
        ("service.namespace", "money"),
        // The label, and not the workload's name.
        ("service.name", "general-ledger"),
        ("k8s.container.name", "db"),
        ("container.id", LEDGER.container_id),
    ]);
    // What flowend says about the resource, and what is left of it at the other end.
    for (case, sent, expected) in [
        ("a pod's uid", resource(&[("k8s.pod.uid", ORDERS.uid)]), orders.clone()),
        ("a container's id", resource(&[("container.id", LEDGER.container_id)]), ledger),
        (
            "both, and the name of a service that is only the container's id",
            resource(&[
                ("k8s.pod.uid", ORDERS.uid),
                ("container.id", ORDERS.container_id),
                ("service.name", &ORDERS.container_id[..12]),
            ]),
            orders.clone(),
        ),
        (
            "the name of a service that somebody chose",
            resource(&[
                ("k8s.pod.uid", ORDERS.uid),
                ("container.id", ORDERS.container_id),
                ("service.name", "chosen"),
            ]),
            orders.into_iter().chain(resource(&[("service.name", "chosen")])).collect(),
        ),
        (
            "a pod that the cluster does not know",
            resource(&[("k8s.pod.uid", "1f0c3b7e-7a52-4c7e-9a57-5b1c6f1de0ff")]),
            resource(&[("k8s.pod.uid", "1f0c3b7e-7a52-4c7e-9a57-5b1c6f1de0ff")]),
        ),
    ] {
        for signal in Signal::BOTH {
            collector.send(signal, case, &sent);
            collector.wait(|seen| seen.contains_key(&(signal, case.to_owned())));
            // Without what a later release may add.
            let arrived = &collector.seen()[&(signal, case.to_owned())];
            let differs: Vec<_> =
                expected.iter().filter(|(key, value)| arrived.get(*key) != Some(value)).collect();
            assert!(
                differs.is_empty(),
                "{case}, {signal:?}: wanted {differs:#?}, got {arrived:#?}"
            );
            let unwanted: Vec<_> = arrived
                .keys()
                .filter(|key| key.starts_with("k8s.") && !expected.contains_key(*key))
                .collect();
            assert!(unwanted.is_empty(), "{case}, {signal:?}: {unwanted:?} in {arrived:#?}");
        }
    }

    // One that starts later is known by the watch.
    api.add(&WATCHER);
    let mut round = 0;
    collector.wait(|seen| {
        let named = |round| {
            let arrived = seen.get(&(Signal::Logs, format!("later {round}")));
            arrived.and_then(|r| r.get("k8s.daemonset.name")).is_some_and(|name| name == "watcher")
        };
        if (0..round).any(named) {
            return true;
        }
        collector.send(
            Signal::Logs,
            &format!("later {round}"),
            &resource(&[("k8s.pod.uid", WATCHER.uid)]),
        );
        round += 1;
        false
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Signal {
    Logs,
    Traces,
}

impl Signal {
    const BOTH: [Self; 2] = [Self::Logs, Self::Traces];
}

/// What arrived: by signal and the record's body or the span's name, the resource's attributes.
type Seen = BTreeMap<(Signal, String), Resource>;

/// The real Collector with the shipped files; in place of the backends it prints.
struct Collector {
    _child: Killed,
    http: u16,
    /// What the debug exporter prints.
    shown: Arc<Mutex<String>>,
    /// The Collector's own log.
    messages: Arc<Mutex<String>>,
    _folder: tempfile::TempDir,
}

impl Collector {
    fn start(program: &Path, api: &Api, with_list: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        api.write_kubeconfig(&kubeconfig);
        let http = free_port();
        let mut command = Command::new(program);
        for file in ["otel-collector.yaml", "deploy/collector/kubernetes.yaml"] {
            command.arg(format!("--config={}", shipped(file).display()));
        }
        for over in [
            "exporters::debug: {verbosity: detailed, use_internal_logger: false}",
            "service::pipelines::logs::exporters: [debug]",
            "service::pipelines::traces::exporters: [debug]",
            "service::telemetry::metrics: {level: none, readers: []}",
        ] {
            command.arg(format!("--config=yaml:{over}"));
        }
        let mut child = command
            .env("KUBERNETES_AUTH", "kubeConfig")
            .env("KUBECONFIG", &kubeconfig)
            .env("KUBE_FEATURE_WatchListClient", (!with_list).to_string())
            .env("STORAGE_DIRECTORY", folder.path().join("storage"))
            .env("OTLP_HTTP_LISTEN", format!("127.0.0.1:{http}"))
            .env("OTLP_GRPC_LISTEN", "127.0.0.1:0")
            .env("HEALTH_LISTEN", "127.0.0.1:0")
            .env("PROMETHEUS_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = collect(child.stdout.take().unwrap());
        let messages = collect(child.stderr.take().unwrap());
        let collector = Self { _child: Killed(child), http, shown, messages, _folder: folder };
        collector.wait_for(|| collector.messages.lock().unwrap().contains("Everything is ready"));
        collector
    }

    /// Sends a log record or span that is called `case`, as OTLP in JSON.
    fn send(&self, signal: Signal, case: &str, resource: &Resource) {
        let attributes: Vec<_> = resource
            .iter()
            .map(|(key, value)| json!({ "key": key, "value": { "stringValue": value } }))
            .collect();
        let resource = json!({ "attributes": attributes });
        let (path, body) = match signal {
            Signal::Logs => (
                "/v1/logs",
                json!({ "resourceLogs": [{ "resource": resource, "scopeLogs": [{ "logRecords": [{
                    "timeUnixNano": "1", "body": { "stringValue": case },
                }] }] }] }),
            ),
            Signal::Traces => (
                "/v1/traces",
                json!({ "resourceSpans": [{ "resource": resource, "scopeSpans": [{ "spans": [{
                    "traceId": "0102030405060708090a0b0c0d0e0f10", "spanId": "0102030405060708",
                    "name": case, "kind": 2, "startTimeUnixNano": "1", "endTimeUnixNano": "2",
                }] }] }] }),
            ),
        };
        let body = body.to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: collector\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn seen(&self) -> Seen {
        let mut seen = Seen::new();
        let mut resource = Resource::new();
        let mut is_resource = false;
        // As the debug exporter writes it: the resource's attributes first, then its records or spans.
        for line in self.shown().lines() {
            let line = line.trim();
            if let Some(attribute) = line.strip_prefix("-> ") {
                if is_resource && let Some((key, value)) = attribute.split_once(": Str(") {
                    resource.insert(key.to_owned(), value.trim_end_matches(')').to_owned());
                }
                continue;
            }
            is_resource = line == "Resource attributes:";
            if line.starts_with("ResourceLog #") || line.starts_with("ResourceSpans #") {
                resource.clear();
            } else if let Some(body) = line.strip_prefix("Body: Str(") {
                seen.insert(
                    (Signal::Logs, body.trim_end_matches(')').to_owned()),
                    resource.clone(),
                );
            } else if let Some((_, name)) =
                line.split_once(": ").filter(|(key, _)| key.trim() == "Name")
            {
                seen.insert((Signal::Traces, name.to_owned()), resource.clone());
            }
        }
        seen
    }

    fn wait(&self, mut so: impl FnMut(&Seen) -> bool) {
        self.wait_for(|| so(&self.seen()));
    }

    fn wait_for(&self, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + LONG;
        while !so() {
            assert!(Instant::now() < deadline, "{}{}", self.messages.lock().unwrap(), self.shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
