//! Names from the hosts files of processes that have a mount namespace of their own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::support::{Cgroup, Flowend, Puppet, Socket, can_run, wait_until};

const TOOLS: &[&str] = &["unshare", "mount", "chroot"];

/// Does `script` in a mount namespace of its own, which then becomes a puppet in the cgroup. The script's
/// arguments are its $1 to $9.
fn puppet_after(script: &str, args: &[&Path], cgroup: &Cgroup) -> Puppet {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    command.arg(format!("puppet=$1 cgroup=$2; shift 2\n{script}")).arg("sh");
    command.arg(Puppet::program()).arg(&cgroup.folder).args(args);
    Puppet::spawn(command)
}

/// A puppet that sees the content of `etc` as its /etc.
fn puppet_with(etc: &Path, cgroup: &Cgroup) -> Puppet {
    let script = r#"mount --bind "$1" /etc; exec "$puppet" --cgroup "$cgroup""#;
    puppet_after(script, &[etc], cgroup)
}

fn flowend(targets: &[&Cgroup]) -> Flowend {
    let targets: Vec<_> = targets.iter().map(|cgroup| cgroup.name.as_str()).collect();
    let targets = format!("targets={}", targets.join(","));
    Flowend::run(&["--output=json", "--set", &targets, "--set=dns.hosts=true"])
}

/// The record of a connection, once there is one.
fn record(flowend: &Flowend, socket: Socket) -> Value {
    let found = || {
        let port = socket.local.port();
        flowend.json().into_iter().find(|r| r["attributes"]["network.local.port"] == port)
    };
    wait_until(|| found().is_some(), || flowend.stderr());
    found().unwrap()
}

/// A listener that anybody may connect to, and what its connections are called.
struct Server {
    puppet: Puppet,
    listener: Socket,
}

impl Server {
    fn new(address: &str) -> Self {
        let mut puppet = Puppet::outside();
        let listener = puppet.listen(address);
        Self { puppet, listener }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local
    }

    /// Ends a connection of `client`, which opened it, and says how its record calls the server.
    fn end(&mut self, flowend: &Flowend, client: &mut Puppet, socket: Socket) -> Value {
        let accepted = self.puppet.accept(self.listener);
        client.close(socket);
        self.puppet.close(accepted);
        let record = record(flowend, socket);
        record["attributes"]["flowend.destination.domains"].clone()
    }

    /// Connects until the server is called so.
    fn wait_until_called(&mut self, flowend: &Flowend, client: &mut Puppet, names: &Value) {
        let mut called = Value::Null;
        wait_until(
            || {
                let socket = client.connect(self.address());
                called = self.end(flowend, client, socket);
                called == *names
            },
            || format!("not called {names}; {}", flowend.stderr()),
        );
    }
}

#[test]
fn names_are_those_of_the_workload_s_own_hosts_file() {
    if !can_run("names_are_those_of_the_workload_s_own_hosts_file", TOOLS) {
        return;
    }
    let etc = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let new = etc.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, etc.path().join("hosts")).unwrap();
    };
    write("127.0.0.7 db.test db # of this workload alone\n");
    let (own, other) = (Cgroup::new(), Cgroup::new());
    let flowend = flowend(&[&own, &other]);
    let (mut client, mut stranger) = (puppet_with(etc.path(), &own), Puppet::in_cgroup(&other));
    let mut server = Server::new("127.0.0.7:0");

    // Open before flowend has seen anything of the cgroup; the servers accept in order.
    let mut first_server = Server::new("127.0.0.7:0");
    let first = client.connect(first_server.address());
    let names = json!(["db.test", "db"]);
    server.wait_until_called(&flowend, &mut client, &names);
    assert_eq!(first_server.end(&flowend, &mut client, first), names, "older than the first look");

    let strange = stranger.connect(server.address());
    assert_eq!(server.end(&flowend, &mut stranger, strange), Value::Null, "another workload's");

    // A change names the connections that begin after it.
    let before = client.connect(first_server.address());
    write("127.0.0.7 moved.test\n");
    let moved = json!(["moved.test"]);
    server.wait_until_called(&flowend, &mut client, &moved);
    assert_eq!(first_server.end(&flowend, &mut client, before), names, "begun before the change");

    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert!(messages.contains("hosts files: lookups "), "{messages}");
    assert!(messages.contains(", changed 1, bad lines 0, "), "{messages}");
}

#[test]
fn a_link_to_an_absolute_path_stays_inside_the_container() {
    if !can_run("a_link_to_an_absolute_path_stays_inside_the_container", TOOLS) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [root, etc, data] = ["root", "etc", "data"].map(|name| folder.path().join(name));
    for new in [&root, &etc, &data] {
        std::fs::create_dir(new).unwrap();
    }
    // One path, and another file inside than outside.
    std::fs::write(data.join("hosts"), "127.0.0.7 outside.test\n").unwrap();
    std::os::unix::fs::symlink(data.join("hosts"), etc.join("hosts")).unwrap();
    let script = r#"
        mount --rbind / "$1"
        mount --bind "$2" "$1/etc"
        mount -t tmpfs none "$1$3"
        echo 127.0.0.7 inside.test >"$1$3/hosts"
        exec chroot "$1" "$puppet" --cgroup "$cgroup""#;
    let cgroup = Cgroup::new();
    let flowend = flowend(&[&cgroup]);
    let mut client = puppet_after(script, &[&root, &etc, &data], &cgroup);
    let mut server = Server::new("127.0.0.7:0");
    server.wait_until_called(&flowend, &mut client, &json!(["inside.test"]));
    let (_, messages) = flowend.stop();
    assert!(messages.contains(", changed 0, "), "it was never another one: {messages}");
}

#[test]
fn a_hosts_file_that_is_none_holds_nothing_up() {
    if !can_run("a_hosts_file_that_is_none_holds_nothing_up", TOOLS) {
        return;
    }
    let etc = || tempfile::tempdir().unwrap();
    let (pipe, folder, large) = (etc(), etc(), etc());
    let hosts = |etc: &tempfile::TempDir| etc.path().join("hosts");
    nix::unistd::mkfifo(&hosts(&pipe), nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::fs::create_dir(hosts(&folder)).unwrap();
    let lines = format!("127.0.0.7 large.test\n{}", "# filling\n".repeat(1 << 20));
    std::fs::write(hosts(&large), lines).unwrap();

    let cgroups = [Cgroup::new(), Cgroup::new(), Cgroup::new()];
    let flowend = flowend(&cgroups.each_ref());
    let mut server = Server::new("127.0.0.7:0");
    let etcs = [&pipe, &folder, &large];
    for (etc, cgroup) in etcs.into_iter().zip(&cgroups) {
        let mut client = puppet_with(etc.path(), cgroup);
        let names = if etc.path() == large.path() { json!(["large.test"]) } else { Value::Null };
        server.wait_until_called(&flowend, &mut client, &names);
    }
    let said = [
        "it is a pipe, not a regular file",
        "it is a folder, not a regular file",
        "it is longer than 1048576 bytes; the rest is ignored",
    ];
    for (cgroup, words) in cgroups.iter().zip(said) {
        flowend.wait_for_message(&format!("/etc/hosts of {}: {words}", cgroup.name));
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    for words in said {
        assert_eq!(messages.matches(words).count(), 1, "{messages}");
    }
}
