//! DNS servers that nobody here wrote, on port 53 of a namespace's loopback: Debian's knot, which has the
//! zone, and dnsmasq, which forwards to it as a node-local cache does.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::support::{Cgroup, Killed, Netns, collect, path, wait_until};

/// A zone in the form of RFC 1035, section 5.
const ZONE: &str = include_str!("names.test.zone");

/// Addresses of `near`: its answer has 4,092 bytes, and the largest that is asked for over UDP has 4,096.
pub(super) const NEAR: u16 = 253;
/// Addresses of `many`, of each family: 3.2 kB of A fit into 4,096 bytes, 5.6 kB of AAAA do not.
pub(super) const MANY: u16 = 200;

/// Runs until it is dropped.
pub(super) struct Server {
    _process: Killed,
    _folder: tempfile::TempDir,
}

/// knot with the zone `names.test`, on 127.0.0.1, 127.0.0.2 and ::1. It answers when this returns.
pub(super) fn knot(netns: &Netns) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    std::fs::write(folder.path().join("names.test.zone"), zone()).unwrap();
    let config = format!(
        "server:\n  rundir: \"{path}\"\n  listen: [ 127.0.0.1@53, 127.0.0.2@53, ::1@53 ]\n  \
         udp-max-payload: 4096\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         log:\n  - target: stderr\n    any: info\n\
         database:\n  storage: \"{path}\"\n\
         zone:\n  - domain: names.test\n    storage: \"{path}\"\n    file: names.test.zone\n    \
         journal-content: none\n"
    );
    let file = folder.path().join("knot.conf");
    std::fs::write(&file, config).unwrap();
    let mut child =
        inside(netns, "knotd").arg("--config").arg(&file).stderr(Stdio::piped()).spawn().unwrap();
    let messages = collect(child.stderr.take().unwrap());
    let process = Killed(child);
    let messages = || messages.lock().unwrap().clone();
    wait_until(|| messages().contains("server started"), || format!("knotd: {}", messages()));
    Server { _process: process, _folder: folder }
}

/// dnsmasq on `address`, in a cgroup, which asks knot. It answers when this returns.
pub(super) fn dnsmasq(netns: &Netns, cgroup: &Cgroup, address: &str) -> Killed {
    // The shell becomes dnsmasq, in the cgroup that it joined.
    let join = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;
    let inner = inside(netns, "dnsmasq");
    let mut child = Command::new("sh")
        .args(["-c", join])
        .arg(&cgroup.folder)
        .arg(inner.get_program())
        .args(inner.get_args())
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file="])
        .args(["--no-resolv", "--no-hosts", "--server=127.0.0.1", "--log-facility=-"])
        .args(["--bind-interfaces", &format!("--listen-address={address}")])
        .env("PATH", path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let messages = collect(child.stderr.take().unwrap());
    let process = Killed(child);
    let messages = || messages.lock().unwrap().clone();
    // Its sockets are bound by then.
    wait_until(|| messages().contains("started, version"), || format!("dnsmasq: {}", messages()));
    process
}

/// A server program in a namespace.
fn inside(netns: &Netns, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.file().display())).arg(program).env("PATH", path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn zone() -> String {
    let mut zone = ZONE.to_owned();
    for i in 0..NEAR {
        let _ = writeln!(zone, "near A {}", near(i));
    }
    for i in 0..MANY {
        let (v4, v6) = many(i);
        let _ = writeln!(zone, "many A {v4}\nmany AAAA {v6}");
    }
    zone
}

/// An address of `near`.
pub(super) fn near(i: u16) -> String {
    format!("127.1.{}.{}", i / 250, 1 + i % 250)
}

/// An address of each family of `many`.
pub(super) fn many(i: u16) -> (String, String) {
    (format!("127.2.0.{}", 1 + i), format!("fd77:53::3:{:x}", 1 + i))
}

/// A file that stands in for /etc/resolv.conf.
pub(super) fn resolv_conf(folder: &Path, servers: &[&str]) -> std::path::PathBuf {
    // A file for each list: a puppet that runs must not see another's.
    let file = folder.join(format!("resolv.conf-{}", servers.join("+")));
    let text: String = servers.iter().map(|s| format!("nameserver {s}\n")).collect();
    std::fs::write(&file, text).unwrap();
    file
}
