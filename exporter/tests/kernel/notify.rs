//! What a service manager is told (sd_notify(3)): here this process is it.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{Cgroup, Flowend, PATIENCE, can_run};

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, folder }
    }

    fn manage(&self, command: &mut Command) {
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
    }

    /// The next message's lines.
    fn next(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).expect("a message of flowend");
        String::from_utf8(bytes[..n].to_vec()).unwrap().lines().map(str::to_owned).collect()
    }

    /// The next message that is not this one.
    fn next_but(&self, other: &str) -> Vec<String> {
        loop {
            let message = self.next();
            if message != [other] {
                return message;
            }
        }
    }

    fn has_nothing(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        self.socket.recv(&mut [0; 4096]).is_err()
    }
}

const ALIVE: &str = "WATCHDOG=1";

#[test]
fn the_service_manager_is_told_of_each_state() {
    if !can_run("the_service_manager_is_told_of_each_state", &[]) {
        return;
    }
    let (cgroup, manager) = (Cgroup::new(), Manager::new());
    let mut command = Flowend::command(&["run", &format!("--set=targets={}", cgroup.name)]);
    manager.manage(&mut command);
    // 100 ms: a sign of life each 50.
    command.env("WATCHDOG_USEC", "100000");
    let flowend = Flowend::spawn(command);
    assert!(flowend.stderr().contains(": attached"), "READY would be too early");
    assert_eq!(manager.next(), ["READY=1"]);
    assert_eq!(manager.next_but(ALIVE), ["STATUS=1 cgroup(s) attached"]);
    for _ in 0..3 {
        assert_eq!(manager.next(), [ALIVE]);
    }
    kill(Pid::from_raw(flowend.pid().cast_signed()), Signal::SIGHUP).unwrap();
    let reloading = manager.next_but(ALIVE);
    assert_eq!(reloading[0], "RELOADING=1");
    let time = reloading[1].strip_prefix("MONOTONIC_USEC=").expect("the time");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let seconds = time.parse::<i64>().unwrap() / 1_000_000;
    assert!((now.tv_sec() - seconds).abs() <= 60, "{time}");
    assert_eq!(manager.next_but(ALIVE), ["READY=1"]);
    assert_eq!(flowend.stop().0, Some(0));
    assert_eq!(manager.next_but(ALIVE), ["STOPPING=1"]);
    assert!(manager.has_nothing(), "the last word");
}

#[test]
fn who_does_not_ask_for_signs_of_life_gets_none() {
    if !can_run("who_does_not_ask_for_signs_of_life_gets_none", &[]) {
        return;
    }
    let (cgroup, manager) = (Cgroup::new(), Manager::new());
    let mut command = Flowend::command(&["run", &format!("--set=targets={}", cgroup.name)]);
    manager.manage(&mut command);
    // Meant for another process.
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let flowend = Flowend::spawn(command);
    assert_eq!(manager.next(), ["READY=1"]);
    assert_eq!(manager.next(), ["STATUS=1 cgroup(s) attached"]);
    assert_eq!(flowend.stop().0, Some(0));
    assert_eq!(manager.next(), ["STOPPING=1"]);
    assert!(manager.has_nothing());
}

/// Without the capabilities to load or attach: one message that says what is missing, exit status 1, and nobody
/// is told that flowend is ready.
#[test]
fn a_start_that_cannot_attach_fails_with_one_message_and_is_never_ready() {
    const TOOL: &str = "setpriv";
    if !can_run("a_start_that_cannot_attach_fails_with_one_message_and_is_never_ready", &[TOOL]) {
        return;
    }
    let manager = Manager::new();
    let flowend = Flowend::command(&["run", "--set=targets=/"]);
    let mut command = Command::new(TOOL);
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(flowend.get_program());
    command.args(flowend.get_args());
    for (name, value) in flowend.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    manager.manage(&mut command);
    let output = command.output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    assert_eq!(
        messages.lines().filter(|line| line.starts_with("flowend: ")).count(),
        1,
        "{messages}"
    );
    assert!(messages.contains("CAP_BPF"), "{messages}");
    assert!(manager.has_nothing(), "not ready");
}
