//! Workloads: what a cgroup's path says about container, pod and unit, and the resource made of it.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashlink::LruCache;
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

use super::Process;
use crate::cgroup::{self, Paths};

/// Workloads, and cgroups without a path, remembered at most.
const LIMIT: usize = 16_384;

/// A cgroup id without a folder is not looked for again within this time.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);

/// A monitored workload, and the OpenTelemetry resource that stands for it.
#[derive(Debug)]
pub struct Workload {
    /// `service.name`.
    pub service_name: String,
    /// Path of the cgroup below the mount, "/" for the root; absent when it could not be found out.
    pub cgroup_path: Option<String>,
    /// As OTLP takes it.
    pub resource: Resource,
}

/// What of the configuration shapes a resource.
#[derive(Clone, Debug, Default)]
pub struct WorkloadSettings {
    /// service.name of all.
    pub service_name: Option<String>,
    /// Added to every resource; they win over what flowend finds out, as the user's word.
    pub attributes: BTreeMap<String, String>,
    /// host.name.
    pub host_name: String,
}

/// cgroup, and executable where the cgroup does not name the service.
type WorkloadKey = (Option<u64>, Option<Arc<str>>);

/// Finds the workload of a connection by its cgroup and process. Bounded.
#[derive(Debug)]
pub struct Workloads {
    settings: WorkloadSettings,
    mount: PathBuf,
    paths: Paths,
    unknown: HashMap<u64, Instant>,
    workloads: LruCache<WorkloadKey, Arc<Workload>>,
}

impl Workloads {
    /// For the hierarchy mounted at `mount`.
    pub fn new(mount: PathBuf, paths: Paths, settings: WorkloadSettings) -> Self {
        Self { settings, mount, paths, unknown: HashMap::new(), workloads: LruCache::new(LIMIT) }
    }

    /// Makes the resources of records to come by other settings. Paths stay known: their folders may be gone.
    pub fn reconfigure(&mut self, settings: WorkloadSettings) {
        self.settings = settings;
        self.workloads.clear();
    }

    /// Looks a cgroup up while its folder is there: it may be gone when the connection ends.
    pub fn observe(&mut self, cgroup_id: u64) {
        if cgroup_id != 0 {
            self.path_of(cgroup_id);
        }
    }

    /// The workload of a socket.
    pub fn of(&mut self, cgroup_id: Option<u64>, process: Option<&Process>) -> Arc<Workload> {
        let path = cgroup_id.and_then(|id| self.path_of(id));
        let parts = path.as_deref().map(Parts::of).unwrap_or_default();
        let executable = process
            .and_then(|p| p.executable.clone())
            .filter(|_| self.settings.service_name.is_none() && parts.service().is_none());
        let key = (path.as_ref().and(cgroup_id), executable);
        if let Some(workload) = self.workloads.get(&key) {
            return Arc::clone(workload);
        }
        let workload =
            Arc::new(Workload::new(&self.settings, path.as_deref(), &parts, key.1.as_deref()));
        self.workloads.insert(key, Arc::clone(&workload));
        workload
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
    fn new(
        settings: &WorkloadSettings,
        path: Option<&str>,
        parts: &Parts<'_>,
        executable: Option<&str>,
    ) -> Self {
        let service_name = settings
            .service_name
            .clone()
            .or_else(|| parts.service())
            .or_else(|| executable.map(str::to_owned))
            .or_else(|| parts.folder.map(str::to_owned))
            .unwrap_or_else(|| settings.host_name.clone());
        let mut attributes = BTreeMap::from([
            ("service.name".to_owned(), service_name.clone()),
            ("host.name".to_owned(), settings.host_name.clone()),
        ]);
        let instance = match (parts.container_id, path) {
            (Some(id), _) => id.to_owned(),
            (None, Some(path)) => format!("{}:{path}", settings.host_name),
            (None, None) => settings.host_name.clone(),
        };
        attributes.insert("service.instance.id".into(), instance);
        if let Some(id) = parts.container_id {
            attributes.insert("container.id".into(), id.to_owned());
        }
        if let Some(uid) = &parts.pod_uid {
            attributes.insert("k8s.pod.uid".into(), uid.clone());
        }
        if let Some(path) = path {
            attributes.insert("process.linux.cgroup".into(), path.to_owned());
        }
        attributes.extend(settings.attributes.clone());
        // OTEL_SERVICE_NAME wins over a service.name in OTEL_RESOURCE_ATTRIBUTES (specification).
        if let Some(name) = &settings.service_name {
            attributes.insert("service.name".into(), name.clone());
        }
        let service_name = attributes.get("service.name").cloned().unwrap_or(service_name);
        let resource = Resource::builder_empty()
            .with_attributes(attributes.into_iter().map(|(k, v)| KeyValue::new(k, v)))
            .build();
        Self { service_name, cgroup_path: path.map(str::to_owned), resource }
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
            if parts.container_id.is_none() {
                parts.container_id = container_id(folder);
            }
            if parts.pod_uid.is_none() {
                parts.pod_uid = pod_uid(folder);
            }
            if parts.unit.is_none() {
                parts.unit = unit(folder);
            }
        }
        parts
    }

    /// The service's name, where container or unit give one: the short form of a container's id, as
    /// its tools print it, or the unit without its suffix.
    fn service(&self) -> Option<String> {
        match (self.container_id, self.unit) {
            (Some(id), _) => Some(id.chars().take(12).collect()),
            (None, Some(unit)) => {
                Some(unit.rsplit_once('.').map_or(unit, |(name, _)| name).to_owned())
            }
            (None, None) => None,
        }
    }
}

/// `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>.scope`, `libpod-<id>.scope`, or the
/// bare id as the cgroupfs driver writes it: 64 hexadecimal digits.
fn container_id(folder: &str) -> Option<&str> {
    let name = folder.strip_suffix(".scope").unwrap_or(folder);
    let id = name.rsplit_once('-').map_or(name, |(_, id)| id);
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// `pod<uid>` (cgroupfs driver) or `kubepods-...-pod<uid>.slice` with underscores (systemd driver).
fn pod_uid(folder: &str) -> Option<String> {
    let uid = match folder.strip_suffix(".slice") {
        Some(name) if name.starts_with("kubepods") => name.rsplit_once("-pod")?.1,
        _ => folder.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    (uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')).then_some(uid)
}

/// A service, or a scope that is neither a container's, a login session's nor init's.
fn unit(folder: &str) -> Option<&str> {
    if folder.ends_with(".service") && !folder.starts_with("user@") {
        return Some(folder);
    }
    let scope = folder.strip_suffix(".scope")?;
    let is_named =
        container_id(folder).is_none() && !scope.starts_with("session-") && scope != "init";
    is_named.then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    #[test]
    fn a_path_tells_container_pod_and_unit() {
        let systemd_pod = format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{ID}.scope",
            UID.replace('-', "_")
        );
        let cgroupfs_pod = format!("/kubepods/besteffort/pod{UID}/{ID}");
        let (c, short) = (Some(ID), Some(&ID[..12]));
        let cases: &[(&str, [Option<&str>; 4])] = &[
            // path; container id, pod uid, unit, service name
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
            ("/mine/podium", [None; 4]),
        ];
        for (path, [container, pod, unit, service]) in cases {
            let parts = Parts::of(path);
            assert_eq!(parts.container_id, *container, "{path}");
            assert_eq!(parts.pod_uid.as_deref(), *pod, "{path}");
            assert_eq!(parts.unit, *unit, "{path}");
            assert_eq!(parts.service().as_deref(), *service, "{path}");
        }
    }

    #[test]
    fn the_service_name_falls_from_the_users_word_to_the_host() {
        let with = |name: Option<&str>, path: Option<&str>, executable: Option<&str>| {
            let settings = WorkloadSettings {
                service_name: name.map(str::to_owned),
                host_name: "host7".into(),
                ..WorkloadSettings::default()
            };
            let parts = path.map(Parts::of).unwrap_or_default();
            Workload::new(&settings, path, &parts, executable).service_name
        };
        assert_eq!(with(Some("mine"), Some("/a/x.service"), Some("curl")), "mine");
        assert_eq!(with(None, Some("/a/x.service"), Some("curl")), "x");
        assert_eq!(with(None, Some("/a/b"), Some("curl")), "curl");
        assert_eq!(with(None, Some("/a/b"), None), "b");
        assert_eq!(with(None, Some("/"), None), "host7");
        assert_eq!(with(None, None, None), "host7");
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
        let workload = Workload::new(&settings, Some("/a"), &Parts::of("/a"), None);
        assert_eq!(workload.service_name, "named");
        let wins = WorkloadSettings { service_name: Some("wins".into()), ..settings.clone() };
        assert_eq!(Workload::new(&wins, None, &Parts::default(), None).service_name, "wins");
        let get = |key: &'static str| workload.resource.get(&key.into()).map(|v| v.to_string());
        assert_eq!(get("service.name").as_deref(), Some("named"));
        assert_eq!(get("deployment.environment.name").as_deref(), Some("prod"));
        assert_eq!(get("process.linux.cgroup").as_deref(), Some("/a"));
        assert_eq!(get("service.instance.id").as_deref(), Some("h:/a"));
    }
}
