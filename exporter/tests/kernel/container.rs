//! flowend in a container: a cgroup namespace and mounts of its own, among the pods of a made-up kubelet.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use flowend::cgroup::find_mount;

use super::connections::{Role, make};
use super::json::{Line, lines};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};

const TOOLS: &[&str] = &["unshare", "mount"];

const OTHER_UID: &str = "00112233445566778899aabbccddeeff";
const APP: &str = "5f1e0c7a9b3d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";
const SIDECAR: &str = "6f1e0c7a9b3d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";
const COLLECTOR: &str = "7f1e0c7a9b3d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";

/// How a kubelet and its runtime name the folders of a pod.
#[derive(Clone, Copy, Debug)]
enum Driver {
    Systemd,
    Cgroupfs,
}

impl Driver {
    /// From the kubelet's root to the pod, a folder each.
    fn pod(self, uid: &str) -> Vec<String> {
        match self {
            Self::Systemd => vec![
                "kubepods.slice".into(),
                "kubepods-burstable.slice".into(),
                format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_")),
            ],
            Self::Cgroupfs => vec!["kubepods".into(), "burstable".into(), format!("pod{uid}")],
        }
    }

    fn container(self, id: &str) -> String {
        match self {
            Self::Systemd => format!("cri-containerd-{id}.scope"),
            Self::Cgroupfs => id.into(),
        }
    }
}

/// A machine's pods: one with three containers, and another.
struct Pods {
    /// Of the pod with three: on the whole machine of no other one.
    uid: String,
    app: Cgroup,
    sidecar: Cgroup,
    collector: Cgroup,
    stranger: Cgroup,
    plain: Cgroup,
    /// What the others are in, the innermost first: dropped after them, in this order.
    _folders: Vec<Cgroup>,
}

impl Pods {
    fn new(driver: Driver) -> Self {
        let root = Cgroup::new();
        let plain = below(&root, "plain.service");
        let mut folders = vec![root];
        let uid = unique_uid();
        let pod = make_pod(driver, &uid, &mut folders);
        let other = make_pod(driver, OTHER_UID, &mut folders);
        let container = |pod: &str, id| Cgroup::named(&format!("{pod}/{}", driver.container(id)));
        folders.reverse();
        Self {
            uid,
            app: container(&pod, APP),
            sidecar: container(&pod, SIDECAR),
            collector: container(&pod, COLLECTOR),
            stranger: container(&other, APP),
            plain,
            _folders: folders,
        }
    }
}

/// A UID that no other test's pod has, whichever runs beside this one.
fn unique_uid() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("0f1e2d3c-4b5a-6978-{n:04x}-{:012x}", std::process::id())
}

/// Makes the folders of a pod that are not there yet; returns its name.
fn make_pod(driver: Driver, uid: &str, folders: &mut Vec<Cgroup>) -> String {
    let mut name = folders[0].name.trim_start_matches('/').to_owned();
    for folder in driver.pod(uid) {
        name = format!("{name}/{folder}");
        if !folders.iter().any(|cgroup| cgroup.name.trim_start_matches('/') == name) {
            folders.push(Cgroup::named(&name));
        }
    }
    name
}

fn below(parent: &Cgroup, name: &str) -> Cgroup {
    Cgroup::named(&format!("{}/{name}", parent.name.trim_start_matches('/')))
}

/// Joins the cgroup $2, and becomes $1 in namespaces of its own.
const JOIN: &str = r#"
    script=$1
    echo $$ > "$2/cgroup.procs"
    shift 2
    exec unshare --mount --cgroup --propagation private sh -ec "$script" sh "$@"
"#;

/// Has the hierarchy at $2, if $3 says so, and at $1 one of its own that hides it. The kernel does not take the
/// same file system twice at one place, so there is another one between them.
const MOUNT: &str = r#"
    if $3; then mount --bind -o ro "$1" "$2"; fi
    mount -t tmpfs none "$1"
    mount -t cgroup2 none "$1"
    shift 3
    exec "$@"
"#;

/// flowend in the sidecar's container. Where the tests find the hierarchy it has its own, which begins at its
/// container; `with_host`: and the whole one at `folder`/host.
fn command(pods: &Pods, folder: &Path, with_host: bool, args: &[&str]) -> Command {
    let host = folder.join("host");
    std::fs::create_dir_all(&host).expect("a mount point");
    let flowend = Flowend::command(args);
    let mut command = Command::new("sh");
    command.args(["-ec", JOIN, "sh", MOUNT]).arg(&pods.sidecar.folder);
    command.arg(find_mount().expect("cgroup v2")).arg(host).arg(with_host.to_string());
    command.arg(flowend.get_program()).args(flowend.get_args());
    for (name, _) in flowend.get_envs().filter(|(_, value)| value.is_none()) {
        command.env_remove(name);
    }
    command
}

/// Makes a connection inside a cgroup, and ends it; returns the client's port.
fn connect(cgroup: &Cgroup) -> u16 {
    let (mut client, mut server) = (Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup));
    make(&mut client, &mut server, "127.0.0.1:0", Role::Client, false).client.port()
}

/// The records of a connection inside a watched cgroup: of both ends.
fn ends(flowend: &Flowend, cgroup: &Cgroup) -> Vec<Line> {
    let port = connect(cgroup);
    let found = || -> Vec<Line> {
        let is_of = |line: &Line| {
            let (local, peer) = line.socket();
            local.port() == port || peer.port() == port
        };
        lines(flowend).into_iter().filter(is_of).collect()
    };
    wait_until(|| found().len() == 2, || format!("{:?} {}", found(), flowend.stderr()));
    found()
}

fn check_pod(driver: Driver) {
    let pods = Pods::new(driver);
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("host");

    // Older than flowend: the process that holds the listener is found by its cgroup.
    let mut server = Puppet::in_cgroup(&pods.app);
    let listener = server.listen("127.0.0.1:0");
    let mut command = command(&pods, folder.path(), true, &["run", "--output=json"]);
    command.env("FLOWEND_TARGETS", format!("pod:{}", pods.uid));
    let exclude = format!("pod:{}/{}", pods.uid, driver.container(COLLECTOR));
    command.env("FLOWEND_EXCLUDE", exclude);
    let flowend = Flowend::spawn(command);
    flowend.wait_for_message(&format!("{} shows the whole hierarchy", host.display()));

    // Nothing is to be seen of these; what comes after them says that it would have been.
    connect(&pods.stranger);
    connect(&pods.plain);
    connect(&pods.collector);
    let path = &pods.app.name;
    for end in ends(&flowend, &pods.app) {
        for (key, want) in [
            ("k8s.pod.uid", pods.uid.as_str()),
            ("container.id", APP),
            ("process.linux.cgroup", path.as_str()),
            ("service.name", &APP[..12]),
        ] {
            assert_eq!(end.resource(key), Some(want), "{driver:?} {key}: {end:?}");
        }
    }
    // Who holds the older listener is known a moment after the start.
    let mut client = Puppet::outside();
    let mut connections = 0;
    let of_listener = || -> Vec<Line> {
        let is_of = |line: &Line| line.socket().0 == listener.local;
        lines(&flowend).into_iter().filter(is_of).collect()
    };
    wait_until(
        || {
            let near = client.connect(listener.local);
            let far = server.accept(listener);
            client.close(near);
            server.close(far);
            connections += 1;
            wait_until(|| of_listener().len() == connections, || flowend.stderr());
            let newest = of_listener().pop().expect("a line");
            newest.text("process.executable.name") == Some("puppet")
        },
        || "the process of the older listener is not found".into(),
    );

    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let (seen, exported) = (4 + connections, 2 + connections);
    let want = format!(
        "json: seen {seen} = exported {exported} + sampled_out 0 + filtered{{self}} 0 + filtered{{excluded}} 2 + \
         in_flight 0"
    );
    assert!(messages.contains(&want), "{want}: {messages}");
}

#[test]
fn a_sidecar_sees_its_pod_of_the_systemd_driver_and_nothing_else() {
    if can_run("a_sidecar_sees_its_pod_of_the_systemd_driver_and_nothing_else", TOOLS) {
        check_pod(Driver::Systemd);
    }
}

#[test]
fn a_sidecar_sees_its_pod_of_the_cgroupfs_driver_and_nothing_else() {
    if can_run("a_sidecar_sees_its_pod_of_the_cgroupfs_driver_and_nothing_else", TOOLS) {
        check_pod(Driver::Cgroupfs);
    }
}

/// What a command says on both streams, and whether it went well.
fn said(mut command: Command) -> (bool, String) {
    let output = command.output().expect("flowend");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_mount_that_is_used_is_told_and_can_be_named() {
    if !can_run("the_mount_that_is_used_is_told_and_can_be_named", TOOLS) {
        return;
    }
    let pods = Pods::new(Driver::Systemd);
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("host").display().to_string();
    let own = find_mount().unwrap().display().to_string();
    let pod = format!("pod:{}", pods.uid);
    let targets = format!("targets={pod}");
    let named = |path: &str| format!("cgroup_mount={path}");
    let check = |with_host: bool, more: &[&str]| {
        let args = [&["check", "--set", targets.as_str()], more].concat();
        said(command(&pods, folder.path(), with_host, &args))
    };

    let name = pods.app.name.rsplit_once('/').unwrap().0;
    let (good, text) = check(true, &["--set", &format!("exclude={pod}/*{COLLECTOR}*,none")]);
    assert!(good, "{text}");
    for line in [
        format!("ok    cgroup v2: {host} shows the whole hierarchy"),
        format!("ok    target: {name}: can be attached"),
        format!("ok    exclude: {}: its connections are not reported", pods.collector.name),
        "ok    exclude: none: no such cgroup now".into(),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
    let (good, text) = check(true, &["--set", &format!("exclude={pod}")]);
    assert!(
        good && text.contains(&format!("less  target: {name}: `exclude` covers all")),
        "{text}"
    );

    // Without the host's, and by name although that is there: its own cgroup is all that it sees.
    for (with_host, more) in [(false, vec![]), (true, vec!["--set".to_owned(), named(&own)])] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let (good, text) = check(with_host, &more);
        assert!(good, "{text}");
        for line in [
            format!("less  cgroup v2: {own} shows a part of the hierarchy alone"),
            format!("less  target: {pod}: no such cgroup yet"),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
    for (path, words) in [
        ("/proc", "key `cgroup_mount`: /proc is of type proc, and not cgroup2"),
        ("/nonexistent", "key `cgroup_mount`: /nonexistent cannot be opened"),
    ] {
        let (good, text) = check(true, &["--set", &named(path)]);
        assert!(!good, "{text}");
        let remedy = format!("; leave the key empty for {host}, or name another one");
        assert!(text.contains(words) && text.contains(&remedy), "{words}: {text}");
    }
}
