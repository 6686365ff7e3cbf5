//! As much of a Kubernetes API server as the Collector's k8s_attributes processor asks for, with the pods that a test
//! wants. Reached through a kubeconfig (`auth_type: kubeConfig`), over plain HTTP on loopback.
//!
//! | GET | answer |
//! |---|---|
//! | `/api/v1/RESOURCE`: pods, namespaces, nodes | the list |
//! | `/apis/apps/v1/RESOURCE`: replicasets, deployments, statefulsets, daemonsets | the list |
//! | either, with `/namespaces/NAME` before the resource | the list of that namespace |
//! | with `watch=true` | what is added after `resourceVersion`, until the client goes |
//! | with `watch=true&sendInitialEvents=true` | all there is, a bookmark that says that this was all, what is added |
//! | anything else | 404, and [`Api::not_answered`] has it |
//!
//! Answers are JSON, which client-go takes though it prefers protobuf. Whoever asks `as=PartialObjectMetadata` gets
//! the metadata alone, as the processor does for all but pods. Of field selectors `metadata.name` and `spec.nodeName`
//! are heeded. Nothing is ever changed or deleted, and no watch times out: a test does not live that long.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What the controllers call the ReplicaSet of a Deployment ends in this; its pods have it as a label.
const TEMPLATE_HASH: &str = "5d8c7f9b6d";

/// A running pod of one container, and what it brings along: its namespace, node, and workload.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) uid: &'static str,
    pub(crate) node: &'static str,
    pub(crate) workload: Workload,
    pub(crate) labels: &'static [(&'static str, &'static str)],
    pub(crate) container: &'static str,
    /// As in the cgroup's name: 64 hexadecimal digits.
    pub(crate) container_id: &'static str,
}

/// What owns a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Workload {
    /// Through a ReplicaSet.
    Deployment(&'static str),
    StatefulSet(&'static str),
    DaemonSet(&'static str),
}

/// Answers until it is dropped.
pub(crate) struct Api {
    pub(crate) addr: SocketAddr,
    cluster: Arc<Mutex<Cluster>>,
    /// Its own, so that a test need not be async. An option only for `drop`.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Api {
    pub(crate) fn start(pods: &[Pod]) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let mut cluster = Cluster::default();
        for pod in pods {
            cluster.add_pod(pod);
        }
        let cluster = Arc::new(Mutex::new(cluster));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(serve(listener, Arc::clone(&cluster)));
        Self { addr, cluster, runtime: Some(runtime) }
    }

    /// The pod starts now: who watches hears of it.
    pub(crate) fn add(&self, pod: &Pod) {
        self.cluster.lock().unwrap().add_pod(pod);
    }

    /// Writes what the environment variable KUBECONFIG is to name.
    pub(crate) fn write_kubeconfig(&self, file: &Path) {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": { "server": format!("http://{}", self.addr) } }],
            "users": [{ "name": "test", "user": {} }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        });
        // JSON is YAML.
        std::fs::write(file, config.to_string()).unwrap();
    }

    /// What a role must allow for what was asked so far: verb, API group, resource.
    pub(crate) fn asked(&self) -> BTreeSet<(&'static str, &'static str, &'static str)> {
        self.cluster.lock().unwrap().asked.clone()
    }

    /// Requests that this server does not know how to answer: whoever tests with it wants none.
    pub(crate) fn not_answered(&self) -> Vec<String> {
        self.cluster.lock().unwrap().not_answered.clone()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // Not by its own drop, which waits, and panics in an async test.
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// A kind of object that can be listed.
#[derive(Debug, PartialEq)]
struct Resource {
    /// "" is the core group.
    group: &'static str,
    name: &'static str,
    kind: &'static str,
}

impl Resource {
    fn api_version(&self) -> String {
        if self.group.is_empty() { "v1".to_owned() } else { format!("{}/v1", self.group) }
    }
}

const PODS: Resource = Resource { group: "", name: "pods", kind: "Pod" };
const NAMESPACES: Resource = Resource { group: "", name: "namespaces", kind: "Namespace" };
const NODES: Resource = Resource { group: "", name: "nodes", kind: "Node" };
const REPLICA_SETS: Resource = Resource { group: "apps", name: "replicasets", kind: "ReplicaSet" };
const DEPLOYMENTS: Resource = Resource { group: "apps", name: "deployments", kind: "Deployment" };
const STATEFUL_SETS: Resource =
    Resource { group: "apps", name: "statefulsets", kind: "StatefulSet" };
const DAEMON_SETS: Resource = Resource { group: "apps", name: "daemonsets", kind: "DaemonSet" };
static RESOURCES: [Resource; 7] =
    [PODS, NAMESPACES, NODES, REPLICA_SETS, DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS];

#[derive(Default)]
struct Cluster {
    /// In the order in which they came: the resource version of an object is its place here, from 1.
    objects: Vec<(Resource, Value)>,
    watches: Vec<(Query, mpsc::UnboundedSender<Bytes>)>,
    asked: BTreeSet<(&'static str, &'static str, &'static str)>,
    not_answered: Vec<String>,
}

impl Cluster {
    fn add_pod(&mut self, pod: &Pod) {
        let namespace = pod.namespace;
        self.add(NAMESPACES, json!({ "metadata": { "name": namespace } }));
        self.add(NODES, json!({ "metadata": { "name": pod.node } }));
        let mut labels: BTreeMap<&str, &str> = pod.labels.iter().copied().collect();
        let owner = match pod.workload {
            Workload::Deployment(name) => {
                labels.insert("pod-template-hash", TEMPLATE_HASH);
                let deployment = self.add(
                    DEPLOYMENTS,
                    json!({ "metadata": { "name": name, "namespace": namespace, "labels": pod.labels_of_workload() } }),
                );
                self.add(
                    REPLICA_SETS,
                    json!({ "metadata": {
                        "name": format!("{name}-{TEMPLATE_HASH}"),
                        "namespace": namespace,
                        "labels": labels,
                        "ownerReferences": [deployment],
                    } }),
                )
            }
            Workload::StatefulSet(name) => self.add(
                STATEFUL_SETS,
                json!({ "metadata": { "name": name, "namespace": namespace, "labels": pod.labels_of_workload() } }),
            ),
            Workload::DaemonSet(name) => self.add(
                DAEMON_SETS,
                json!({ "metadata": { "name": name, "namespace": namespace, "labels": pod.labels_of_workload() } }),
            ),
        };
        let image = format!("registry.invalid/{}:1", pod.container);
        self.add(
            PODS,
            json!({
                "metadata": {
                    "name": pod.name,
                    "namespace": namespace,
                    "uid": pod.uid,
                    "labels": labels,
                    "ownerReferences": [owner],
                },
                "spec": {
                    "nodeName": pod.node,
                    "containers": [{ "name": pod.container, "image": image }],
                },
                "status": {
                    "phase": "Running",
                    "containerStatuses": [{
                        "name": pod.container,
                        "image": image,
                        "imageID": "",
                        "containerID": format!("containerd://{}", pod.container_id),
                        "ready": true,
                        "restartCount": 0,
                    }],
                },
            }),
        );
    }

    /// Adds the object, if it is not there yet, and says who its dependents name as owner.
    fn add(&mut self, resource: Resource, mut object: Value) -> Value {
        let (name, namespace) =
            (object["metadata"]["name"].clone(), object["metadata"]["namespace"].clone());
        let known = self.objects.iter().find(|(other, object)| {
            *other == resource
                && object["metadata"]["name"] == name
                && object["metadata"]["namespace"] == namespace
        });
        let api_version = resource.api_version();
        let kind = resource.kind;
        let uid = if let Some((_, known)) = known {
            known["metadata"]["uid"].clone()
        } else {
            let version = self.objects.len() + 1;
            object["apiVersion"] = json!(api_version);
            object["kind"] = json!(kind);
            let metadata = &mut object["metadata"];
            metadata["resourceVersion"] = json!(version.to_string());
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            if metadata["uid"].is_null() {
                metadata["uid"] = json!(format!("00000000-0000-4000-8000-{version:012}"));
            }
            let uid = metadata["uid"].clone();
            self.watches.retain(|(query, sender)| {
                // A client that went away takes nothing.
                !query.wants(&resource, &object)
                    || sender.send(event("ADDED", &query.shown(&object))).is_ok()
            });
            self.objects.push((resource, object));
            uid
        };
        json!({ "apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true })
    }

    /// The body is what comes out of the channel, to its end.
    fn answer(&mut self, query: Query) -> mpsc::UnboundedReceiver<Bytes> {
        self.asked.insert((
            if query.is_watch { "watch" } else { "list" },
            query.resource.group,
            query.resource.name,
        ));
        let (sender, body) = mpsc::unbounded_channel();
        // `sender` may go unheard: `body` is here.
        let send = |bytes| drop(sender.send(bytes));
        let wanted = |after: usize| {
            let objects = self.objects.iter().skip(after);
            objects
                .filter(|(resource, object)| query.wants(resource, object))
                .map(|(_, object)| query.shown(object))
        };
        if query.is_watch {
            for object in wanted(query.after) {
                send(event("ADDED", &object));
            }
            if query.with_bookmark {
                let (api_version, kind) = query.shown_as();
                send(event(
                    "BOOKMARK",
                    &json!({ "apiVersion": api_version, "kind": kind, "metadata": {
                        "resourceVersion": self.objects.len().to_string(),
                        "annotations": { "k8s.io/initial-events-end": "true" },
                    } }),
                ));
            }
            self.watches.push((query, sender));
        } else {
            let (api_version, kind) = query.shown_as();
            let list = json!({
                "apiVersion": api_version,
                "kind": format!("{kind}List"),
                "metadata": { "resourceVersion": self.objects.len().to_string() },
                "items": wanted(0).collect::<Vec<_>>(),
            });
            send(Bytes::from(list.to_string()));
        }
        body
    }
}

impl Pod {
    /// A workload is labelled as its pods are, but for what its controller adds.
    fn labels_of_workload(&self) -> BTreeMap<&'static str, &'static str> {
        self.labels.iter().copied().collect()
    }
}

/// A line of a watch.
fn event(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": what, "object": object })))
}

/// What a request asks for.
struct Query {
    resource: &'static Resource,
    namespace: Option<String>,
    /// JSON pointer and value.
    fields: Vec<(&'static str, String)>,
    only_metadata: bool,
    is_watch: bool,
    with_bookmark: bool,
    after: usize,
}

impl Query {
    /// None: not a request that is answered here.
    fn of(request: &Request<Incoming>) -> Option<Self> {
        if request.method() != Method::GET {
            return None;
        }
        let path: Vec<_> = request.uri().path().trim_start_matches('/').split('/').collect();
        let (group, path) = match path.as_slice() {
            ["api", "v1", path @ ..] => ("", path),
            ["apis", group, "v1", path @ ..] => (*group, path),
            _ => return None,
        };
        let (namespace, name) = match path {
            [name] => (None, *name),
            ["namespaces", namespace, name] => (Some((*namespace).to_owned()), *name),
            _ => return None,
        };
        let resource = RESOURCES.iter().find(|r| r.group == group && r.name == name)?;
        let parameters = parameters(request.uri().query().unwrap_or_default());
        let parameter = |key: &str| parameters.get(key).map_or("", String::as_str);
        if !parameter("labelSelector").is_empty() {
            return None;
        }
        let mut fields = Vec::new();
        for field in parameter("fieldSelector").split(',').filter(|f| !f.is_empty()) {
            fields.push(match field.split_once('=')? {
                ("metadata.name", name) => ("/metadata/name", name.to_owned()),
                ("spec.nodeName", name) => ("/spec/nodeName", name.to_owned()),
                _ => return None,
            });
        }
        let accepted = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok());
        // client-go writes 1 in some places and true in others.
        let is = |key| matches!(parameter(key), "true" | "1");
        let with_bookmark = is("sendInitialEvents");
        Some(Self {
            resource,
            namespace,
            fields,
            only_metadata: accepted.is_some_and(|v| v.contains("as=PartialObjectMetadata")),
            is_watch: is("watch"),
            with_bookmark,
            // Who asks for the initial events wants them all: the version is the least that they may be of.
            after: if with_bookmark {
                0
            } else {
                parameter("resourceVersion").parse().unwrap_or(0)
            },
        })
    }

    fn wants(&self, resource: &Resource, object: &Value) -> bool {
        *self.resource == *resource
            && self.namespace.as_ref().is_none_or(|n| object["metadata"]["namespace"] == **n)
            && self.fields.iter().all(|(pointer, value)| {
                object.pointer(pointer).and_then(Value::as_str) == Some(value)
            })
    }

    fn shown_as(&self) -> (String, &'static str) {
        if self.only_metadata {
            ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadata")
        } else {
            (self.resource.api_version(), self.resource.kind)
        }
    }

    fn shown(&self, object: &Value) -> Value {
        if !self.only_metadata {
            return object.clone();
        }
        let (api_version, kind) = self.shown_as();
        json!({ "apiVersion": api_version, "kind": kind, "metadata": object["metadata"] })
    }
}

fn parameters(query: &str) -> BTreeMap<&str, String> {
    let decoded =
        |value| percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key, decoded(value)))
        .collect()
}

async fn serve(listener: std::net::TcpListener, cluster: Arc<Mutex<Cluster>>) {
    let listener = TcpListener::from_std(listener).unwrap();
    // Ends with this task.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let cluster = Arc::clone(&cluster);
        let service = hyper::service::service_fn(move |request| {
            let response = answer(&request, &cluster);
            async { Ok::<_, Infallible>(response) }
        });
        connections.spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

fn answer(request: &Request<Incoming>, cluster: &Mutex<Cluster>) -> Response<Chunks> {
    let mut cluster = cluster.lock().unwrap();
    let (status, chunks) = if let Some(query) = Query::of(request) {
        (StatusCode::OK, cluster.answer(query))
    } else {
        let asked = format!("{} {}", request.method(), request.uri());
        let status = json!({
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "reason": "NotFound",
            "code": 404,
            "message": format!("the test's API server does not answer {asked}"),
        });
        cluster.not_answered.push(asked);
        let (sender, body) = mpsc::unbounded_channel();
        drop(sender.send(Bytes::from(status.to_string())));
        (StatusCode::NOT_FOUND, body)
    };
    let mut response = Response::new(Chunks(chunks));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is sent as it comes.
struct Chunks(mpsc::UnboundedReceiver<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}
