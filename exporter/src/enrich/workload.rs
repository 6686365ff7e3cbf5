//! Workloads: what a cgroup's path says about container, pod and unit, and the resource made of it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hashlink::LruCache;
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::resource::v1 as proto;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use prost::Message as _;

use super::{Known, Labels, LabelsReceiver, Process, Template};
use crate::cgroup::{self, Paths};

/// Workloads, and cgroups without a path, remembered at most.
const LIMIT: usize = 16_384;

/// Cgroups of which it is remembered that they were looked up a moment ago.
const OBSERVED: usize = 64;

/// A cgroup id without a folder is not looked for again within this time.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// A monitored workload, and the OpenTelemetry resource that stands for it.
#[derive(Debug)]
pub struct Workload {
    /// `service.name`.
    pub service_name: String,
    /// Path of the cgroup below the mount, "/" for the root; absent when it could not be found out.
    pub cgroup_path: Option<String>,
    /// Its attributes.
    pub resource: Resource,
    /// The resource as an encoded OTLP message of type Resource: once, and not with each request.
    pub wire: Bytes,
}

/// What of the configuration shapes a resource.
#[derive(Clone, Debug, Default)]
pub struct WorkloadSettings {
    /// What service.name is made of; the default where the user does not say it.
    pub service_name: Option<Template>,
    /// Added to every resource; they win over what flowend finds out, as the user's word.
    pub attributes: BTreeMap<String, String>,
    /// host.name.
    pub host_name: String,
}

impl WorkloadSettings {
    fn template(&self) -> Cow<'_, Template> {
        self.service_name.as_ref().map_or_else(|| Cow::Owned(Template::default()), Cow::Borrowed)
    }
}

/// A cgroup's workload.
#[derive(Clone, Debug)]
struct OfCgroup {
    /// Of a process whose executable is not known.
    workload: Arc<Workload>,
    /// Whether its processes are services of their own, by executable.
    wants_executable: bool,
}

/// Finds the workload of a connection by its cgroup and process. Bounded.
#[derive(Debug)]
pub struct Workloads {
    settings: WorkloadSettings,
    mount: PathBuf,
    paths: Paths,
    unknown: HashMap<u64, Instant>,
    /// Cgroups looked up since the last [`Workloads::forget_observed`], each at a place of its own.
    observed: [u64; OBSERVED],
    labels: Arc<Labels>,
    labels_news: Option<LabelsReceiver>,
    /// `None`: of all cgroups whose path is not known.
    by_cgroup: LruCache<Option<u64>, OfCgroup>,
    by_executable: LruCache<(Option<u64>, Arc<str>), Arc<Workload>>,
}

impl Workloads {
    /// For the hierarchy mounted at `mount`.
    pub fn new(mount: PathBuf, paths: Paths, settings: WorkloadSettings) -> Self {
        Self {
            settings,
            mount,
            paths,
            unknown: HashMap::new(),
            observed: [0; OBSERVED],
            labels: Arc::default(),
            labels_news: None,
            by_cgroup: LruCache::new(LIMIT),
            by_executable: LruCache::new(LIMIT),
        }
    }

    /// With the labels of the pod that all workloads are part of.
    #[must_use]
    pub fn with_labels(mut self, mut labels: LabelsReceiver) -> Self {
        self.labels = Arc::clone(&labels.borrow_and_update());
        self.labels_news = Some(labels);
        self
    }

    /// Makes the resources of records to come by other settings. Paths stay known: their folders may be gone.
    pub fn reconfigure(&mut self, settings: WorkloadSettings) {
        self.settings = settings;
        self.by_cgroup.clear();
        self.by_executable.clear();
    }

    /// Looks a cgroup up while its folder is there: it may be gone when the connection ends. Asked for each event, so
    /// a cgroup is looked up once until [`Workloads::forget_observed`].
    pub fn observe(&mut self, cgroup_id: u64) {
        let place = &mut self.observed[cgroup_id as usize % OBSERVED];
        if cgroup_id != 0 && *place != cgroup_id {
            *place = cgroup_id;
            self.path_of(cgroup_id);
        }
    }

    /// The path of a cgroup that was seen before.
    pub fn known_path(&self, cgroup_id: u64) -> Option<Arc<str>> {
        self.paths.get(cgroup_id)
    }

    /// Has the cgroups of coming events looked up again: those in use stay among the paths that are remembered,
    /// and what could not be found is tried again.
    pub const fn forget_observed(&mut self) {
        self.observed = [0; OBSERVED];
    }

    /// The workload of a socket.
    pub fn of(&mut self, cgroup_id: Option<u64>, process: Option<&Process>) -> Arc<Workload> {
        self.take_labels();
        let (key, OfCgroup { workload, wants_executable }) = self.of_cgroup(cgroup_id);
        match process.and_then(|p| p.executable.as_ref()) {
            Some(executable) if wants_executable => self.of_executable(key, executable),
            _ => workload,
        }
    }

    /// With the key by which it is known.
    fn of_cgroup(&mut self, cgroup_id: Option<u64>) -> (Option<u64>, OfCgroup) {
        // Of a cgroup that was here before, the path need not be looked up.
        if cgroup_id.is_some()
            && let Some(known) = self.by_cgroup.get(&cgroup_id)
        {
            return (cgroup_id, known.clone());
        }
        let path = cgroup_id.and_then(|id| self.path_of(id));
        let key = path.as_ref().and(cgroup_id);
        if let Some(known) = self.by_cgroup.get(&key) {
            return (key, known.clone());
        }
        let parts = path.as_deref().map(Parts::of).unwrap_or_default();
        let known = parts.known(path.as_deref(), None, &self.settings.host_name, &self.labels);
        let of_cgroup = OfCgroup {
            workload: Arc::new(Workload::new(&self.settings, &known)),
            wants_executable: self.settings.template().wants_executable(&known),
        };
        self.by_cgroup.insert(key, of_cgroup.clone());
        (key, of_cgroup)
    }

    fn of_executable(&mut self, cgroup_id: Option<u64>, executable: &Arc<str>) -> Arc<Workload> {
        let key = (cgroup_id, Arc::clone(executable));
        if let Some(workload) = self.by_executable.get(&key) {
            return Arc::clone(workload);
        }
        let path = cgroup_id.and_then(|id| self.path_of(id));
        let parts = path.as_deref().map(Parts::of).unwrap_or_default();
        let host = &self.settings.host_name;
        let known = parts.known(path.as_deref(), Some(executable), host, &self.labels);
        let workload = Arc::new(Workload::new(&self.settings, &known));
        self.by_executable.insert(key, Arc::clone(&workload));
        workload
    }

    /// Labels that changed are part of each resource that is made from now on.
    fn take_labels(&mut self) {
        let Some(news) = &mut self.labels_news else { return };
        if news.has_changed().unwrap_or(false) {
            self.labels = Arc::clone(&news.borrow_and_update());
            self.by_cgroup.clear();
            self.by_executable.clear();
        }
    }

    /// The path of a cgroup below the mount, "/" for the root. Of one that is not known yet, the folders are
    /// walked for it, and not again for a while where that does not find it.
    pub fn path_of(&mut self, id: u64) -> Option<Arc<str>> {
        if let Some(path) = self.paths.get(id) {
            return Some(path);
        }
        let now = Instant::now();
        // A folder removed before the first look stays unknown: no walk for each of its connections.
        if self.unknown.get(&id).is_some_and(|since| now.duration_since(*since) < UNKNOWN_FOR) {
            return None;
        }
        cgroup::walk(&self.mount, &self.mount, &mut |id, path| {
            self.paths.learn(id, || path.to_owned());
        });
        let found = self.paths.get(id);
        if found.is_none() {
            if self.unknown.len() >= LIMIT {
                self.unknown.clear();
            }
            self.unknown.insert(id, now);
        }
        found
    }
}

impl Workload {
    fn new(settings: &WorkloadSettings, known: &Known<'_>) -> Self {
        let path = known.cgroup;
        let service_name = settings.template().render(known);
        let service_name = service_name.unwrap_or_else(|| settings.host_name.clone());
        let mut attributes = BTreeMap::from([
            ("service.name".to_owned(), service_name.clone()),
            ("host.name".to_owned(), settings.host_name.clone()),
        ]);
        let instance = match (known.container_id, path) {
            (Some(id), _) => id.to_owned(),
            (None, Some(path)) => format!("{}:{path}", settings.host_name),
            (None, None) => settings.host_name.clone(),
        };
        attributes.insert("service.instance.id".into(), instance);
        if let Some(id) = known.container_id {
            attributes.insert("container.id".into(), id.to_owned());
        }
        if let Some(uid) = known.pod_uid {
            attributes.insert("k8s.pod.uid".into(), uid.to_owned());
        }
        if let Some(path) = path {
            attributes.insert("process.linux.cgroup".into(), path.to_owned());
        }
        for (key, value) in known.labels.into_iter().flatten() {
            attributes.insert(format!("k8s.pod.label.{key}"), value.clone());
        }
        attributes.extend(settings.attributes.clone());
        // OTEL_SERVICE_NAME wins over a service.name in OTEL_RESOURCE_ATTRIBUTES (specification).
        if settings.service_name.is_some() {
            attributes.insert("service.name".into(), service_name.clone());
        }
        let service_name = attributes.get("service.name").cloned().unwrap_or(service_name);
        let resource = Resource::builder_empty()
            .with_attributes(attributes.into_iter().map(|(k, v)| KeyValue::new(k, v)))
            .build();
        Self::with_resource(service_name, path.map(str::to_owned), resource)
    }

    /// A workload with a resource that is already made.
    pub fn with_resource(
        service_name: String,
        cgroup_path: Option<String>,
        resource: Resource,
    ) -> Self {
        let ResourceAttributesWithSchema { attributes, .. } = (&resource).into();
        let message = proto::Resource { attributes: attributes.0, ..proto::Resource::default() };
        let wire = message.encode_to_vec().into();
        Self { service_name, cgroup_path, resource, wire }
    }
}

/// What the folder names of a cgroup's path say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts<'a> {
    container_id: Option<&'a str>,
    pod_uid: Option<String>,
    unit: Option<&'a str>,
    folder: Option<&'a str>,
}

impl<'a> Parts<'a> {
    /// Reads a path below the cgroup2 mount; the innermost folder that says something counts.
    fn of(path: &'a str) -> Self {
        let mut parts = Self::default();
        for folder in path.split('/').filter(|f| !f.is_empty()).rev() {
            parts.folder.get_or_insert(folder);
            // A container around the pod is its node (kind), and none of its own.
            if parts.container_id.is_none() && parts.pod_uid.is_none() {
                parts.container_id = cgroup::container_id(folder);
            }
            if parts.pod_uid.is_none() {
                parts.pod_uid = cgroup::pod_uid(folder);
            }
            if parts.unit.is_none() {
                parts.unit = cgroup::unit(folder);
            }
        }
        parts
    }

    /// With what else is known of the workload.
    fn known<'k>(
        &'k self,
        path: Option<&'k str>,
        executable: Option<&'k str>,
        host: &'k str,
        labels: &'k Labels,
    ) -> Known<'k> {
        Known {
            container_id: self.container_id,
            unit: self.unit.map(|unit| unit.rsplit_once('.').map_or(unit, |(name, _)| name)),
            executable,
            folder: self.folder,
            cgroup: path,
            pod_uid: self.pod_uid.as_deref(),
            host: Some(host),
            labels: Some(labels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const HASH: &str = "00112233445566778899aabbccddeeff";
    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    fn new(settings: &WorkloadSettings, path: Option<&str>, executable: Option<&str>) -> Workload {
        let (parts, labels) = (path.map(Parts::of).unwrap_or_default(), Labels::new());
        Workload::new(settings, &parts.known(path, executable, &settings.host_name, &labels))
    }

    /// Workloads whose cgroups have these paths, by ids from 1 on.
    fn workloads(template: &str, paths: &[&str]) -> Workloads {
        let known = Paths::new(16);
        for (id, path) in (1..).zip(paths) {
            known.learn(id, || (*path).to_owned());
        }
        let settings = WorkloadSettings {
            service_name: Some(Template::parse(template).unwrap()),
            host_name: "h".into(),
            ..WorkloadSettings::default()
        };
        Workloads::new("/nonexistent".into(), known, settings)
    }

    #[test]
    fn a_cgroup_that_is_observed_is_looked_up_once_until_that_is_forgotten() {
        let mut workloads = workloads("{cgroup}", &[]);
        let other = OBSERVED as u64 + 1;
        workloads.observe(0);
        workloads.observe(1);
        // Its folder comes: nobody asks for it, until another cgroup has taken its place, or it is forgotten.
        workloads.unknown.clear();
        workloads.observe(1);
        assert!(workloads.unknown.is_empty());
        workloads.observe(other);
        workloads.observe(1);
        assert!(workloads.unknown.contains_key(&1));
        workloads.unknown.clear();
        workloads.forget_observed();
        workloads.observe(1);
        assert!(workloads.unknown.contains_key(&1) && !workloads.unknown.contains_key(&0));
    }

    fn process(executable: &str) -> Process {
        Process { pid: 1, executable: Some(executable.into()) }
    }

    #[test]
    fn a_workload_is_made_once_and_for_each_executable_only_where_that_matters() {
        let mut all = workloads("{unit|executable}", &["/x.service", "/plain"]);
        let (curl, wget) = (process("curl"), process("wget"));
        let mut name = |id, process| all.of(id, process).service_name.clone();
        assert_eq!(name(Some(1), Some(&curl)), "x");
        assert_eq!(name(Some(2), Some(&curl)), "curl");
        assert_eq!(name(Some(2), Some(&wget)), "wget");
        assert_eq!(name(Some(2), None), "h");
        assert_eq!(name(None, Some(&curl)), "curl");
        assert_eq!(name(Some(99), Some(&curl)), "curl", "of no known path");
        let mut same = |a: (Option<u64>, Option<&Process>), b: (Option<u64>, Option<&Process>)| {
            Arc::ptr_eq(&all.of(a.0, a.1), &all.of(b.0, b.1))
        };
        assert!(same((Some(1), Some(&curl)), (Some(1), None)));
        assert!(same((Some(1), Some(&curl)), (Some(1), Some(&wget))));
        assert!(same((Some(2), Some(&curl)), (Some(2), Some(&curl))));
        assert!(!same((Some(2), Some(&curl)), (Some(2), Some(&wget))));
        assert!(!same((Some(2), Some(&curl)), (None, Some(&curl))));
        assert!(same((Some(99), Some(&curl)), (None, Some(&curl))));
    }

    #[test]
    fn changed_labels_reach_the_next_record() {
        let labels = |app: &str| Arc::new(Labels::from([("app".into(), app.into())]));
        let (send, receive) = tokio::sync::watch::channel(labels("one"));
        let mut all = workloads("{label:app}-{executable}", &["/a"]).with_labels(receive);
        let curl = process("curl");
        for app in ["one", "two"] {
            send.send_replace(labels(app));
            for (process, name) in [(None, format!("{app}-")), (Some(&curl), format!("{app}-curl"))]
            {
                let workload = all.of(Some(1), process);
                assert_eq!(workload.service_name, name);
                let label = workload.resource.get(&"k8s.pod.label.app".into());
                assert_eq!(label.map(|v| v.to_string()).as_deref(), Some(app));
                assert!(Arc::ptr_eq(&workload, &all.of(Some(1), process)));
            }
        }
        // Nobody reads the file any more: the labels stay.
        drop(send);
        assert_eq!(all.of(Some(1), None).service_name, "two-");
    }

    #[test]
    fn a_path_tells_container_pod_and_unit() {
        let systemd_pod = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{ID}.scope",
            UID.replace('-', "_")
        );
        let cgroupfs_pod = format!("/kubepods/besteffort/pod{UID}/{ID}");
        let below_root = format!("/mine/kubepods/pod{UID}/crio-{ID}/container");
        let escaped = UID.replace('-', "_");
        let guaranteed =
            format!("/kubepods.slice/kubepods-pod{escaped}.slice/crio-{ID}.scope/container");
        let kind = format!(
            "/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/\
             kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{escaped}.slice"
        );
        let kind_container = format!("{kind}/cri-containerd-{ID}.scope");
        let monitor = format!("/kubepods.slice/kubepods-pod{HASH}.slice/crio-conmon-{ID}.scope");
        let static_pod =
            format!("/kubepods.slice/kubepods-burstable-pod{HASH}.slice/docker-{ID}.scope");
        let (c, short) = (Some(ID), Some(&ID[..12]));
        let cases: &[(&str, [Option<&str>; 4])] = &[
            // path; container id, pod uid, unit, and the service's name by container or unit
            ("/", [None; 4]),
            ("/system.slice/nginx.service", [None, None, Some("nginx.service"), Some("nginx")]),
            ("/user.slice/user-0.slice/session-3.scope", [None; 4]),
            ("/init.scope", [None; 4]),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service",
                [None, None, Some("foo.service"), Some("foo")],
            ),
            ("/system.slice/run-u12.scope", [None, None, Some("run-u12.scope"), Some("run-u12")]),
            (&format!("/system.slice/docker-{ID}.scope"), [c, None, None, short]),
            (&format!("/docker/{ID}"), [c, None, None, short]),
            (&format!("/machine.slice/libpod-{ID}.scope"), [c, None, None, short]),
            (&format!("/kubepods/{UID}/crio-{ID}.scope"), [c, None, None, short]),
            (&systemd_pod, [c, Some(UID), None, short]),
            (&cgroupfs_pod, [c, Some(UID), None, short]),
            (&below_root, [c, Some(UID), None, short]),
            (&guaranteed, [c, Some(UID), None, short]),
            (&kind_container, [c, Some(UID), None, short]),
            // Of the pod, and of none of its containers.
            (&kind, [None, Some(UID), None, None]),
            (&static_pod, [c, Some(HASH), None, short]),
            (&monitor, [None, Some(HASH), None, None]),
            ("/mine/podium", [None; 4]),
        ];
        let template = Template::parse("{container|unit}").unwrap();
        for (path, [container, pod, unit, service]) in cases {
            let parts = Parts::of(path);
            let labels = Labels::new();
            assert_eq!(parts.container_id, *container, "{path}");
            assert_eq!(parts.pod_uid.as_deref(), *pod, "{path}");
            assert_eq!(parts.unit, *unit, "{path}");
            let known = parts.known(Some(path), None, "h", &labels);
            assert_eq!(template.render(&known).as_deref(), *service, "{path}");
        }
    }

    #[test]
    fn the_service_name_falls_from_the_users_word_to_the_host() {
        let with = |name: Option<&str>, path: Option<&str>, executable: Option<&str>| {
            let settings = WorkloadSettings {
                service_name: name.map(|text| Template::parse(text).unwrap()),
                host_name: "host7".into(),
                ..WorkloadSettings::default()
            };
            new(&settings, path, executable).service_name
        };
        assert_eq!(with(Some("mine"), Some("/a/x.service"), Some("curl")), "mine");
        assert_eq!(with(None, Some("/a/x.service"), Some("curl")), "x");
        assert_eq!(with(None, Some("/a/b"), Some("curl")), "curl");
        assert_eq!(with(None, Some("/a/b"), None), "b");
        assert_eq!(with(None, Some("/"), None), "host7");
        assert_eq!(with(None, None, None), "host7");
        assert_eq!(with(Some("{folder}@{host}"), Some("/a/b"), None), "b@host7");
        assert_eq!(with(Some("web-{unit}"), Some("/a/b"), Some("curl")), "host7");
    }

    #[test]
    fn the_users_attributes_win() {
        let settings = WorkloadSettings {
            attributes: BTreeMap::from([
                ("service.name".into(), "named".into()),
                ("deployment.environment.name".into(), "prod".into()),
            ]),
            host_name: "h".into(),
            service_name: None,
        };
        let workload = new(&settings, Some("/a"), None);
        assert_eq!(workload.service_name, "named");
        let template = Template::parse("wins{unit}").ok();
        let wins = WorkloadSettings { service_name: template, ..settings.clone() };
        assert_eq!(new(&wins, Some("/x.service"), None).service_name, "winsx");
        assert_eq!(new(&wins, None, None).service_name, "h");
        let get = |key: &'static str| workload.resource.get(&key.into()).map(|v| v.to_string());
        assert_eq!(get("service.name").as_deref(), Some("named"));
        assert_eq!(get("deployment.environment.name").as_deref(), Some("prod"));
        assert_eq!(get("process.linux.cgroup").as_deref(), Some("/a"));
        assert_eq!(get("service.instance.id").as_deref(), Some("h:/a"));
    }
}
