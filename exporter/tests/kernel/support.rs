//! What the tests share: requirements, cgroups, namespaces, puppets, the program itself.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flowend::probe::{LoadOptions, Ring, Without};
use flowend_probe_types::{DnsEvent, Event, EventKind, RingItem};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};

/// Longer than anything here takes, also where each instruction is emulated; a test that reaches it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than a delayed ACK (40 ms): one step of a connection is over before the next begins.
pub(crate) fn step() {
    std::thread::sleep(Duration::from_millis(60));
}

/// Says whether the test can run: as root, and with these tools on the PATH. Ends the test by a
/// failure where CI demands that it runs.
#[must_use]
pub(crate) fn can_run(test: &str, tools: &[&str]) -> bool {
    let mut lacks = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        lacks.push("root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for tool in tools {
        let found = std::env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
            .any(|folder| folder.join(tool).is_file());
        if !found {
            lacks.push(format!("the tool {tool}"));
        }
    }
    lacks.is_empty() || skip(test, &lacks.join(", "))
}

/// Says that a test is skipped, or fails it; returns false.
pub(crate) fn skip(test: &str, lacks: &str) -> bool {
    let required = std::env::var("TEST_REQUIRE").is_ok_and(|v| v == "all");
    assert!(!required, "TEST_REQUIRE=all, and {test} needs {lacks}");
    // Not eprintln: the harness would keep it to itself.
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {test}: needs {lacks} ***");
    false
}

/// All programs, with a ring of a page; those of names where `dns` says so.
pub(crate) const fn load_options(dns: bool) -> LoadOptions {
    LoadOptions {
        ring_bytes: 4096,
        process: dns,
        dns,
        mdns: false,
        llmnr: false,
        resolvers: dns,
        without: Without::NOTHING,
    }
}

/// A record of the ring that carries bytes of DNS.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) kind: EventKind,
    pub(crate) facts: DnsEvent,
    pub(crate) bytes: Vec<u8>,
}

impl Heard {
    pub(crate) fn local(&self) -> SocketAddr {
        SocketAddr::new(self.facts.local.into(), self.facts.local_port)
    }

    /// The server.
    pub(crate) fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.facts.remote.into(), self.facts.remote_port)
    }
}

/// What is in the ring: of names, and of connections.
pub(crate) fn drain(ring: &mut Ring) -> (Vec<Heard>, Vec<Event>) {
    let (mut heard, mut events) = (Vec::new(), Vec::new());
    while let Some(item) = ring.next() {
        match RingItem::decode(&item).expect("a record") {
            RingItem::Dns(kind, facts, bytes) => {
                heard.push(Heard { kind, facts, bytes: bytes.to_vec() });
            }
            RingItem::Event(event) => events.push(event),
        }
    }
    (heard, events)
}

/// A number that no other fixture of this machine has.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A cgroup of its own, removed when dropped.
pub(crate) struct Cgroup {
    /// As a target is written.
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
}

impl Cgroup {
    pub(crate) fn new() -> Self {
        Self::named(&format!("flowend-test-{}", unique()))
    }

    pub(crate) fn named(name: &str) -> Self {
        let folder = flowend::cgroup::find_mount().expect("cgroup v2").join(name);
        std::fs::create_dir(&folder).expect("make a cgroup");
        Self { name: format!("/{name}"), folder }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..200 {
            match std::fs::remove_dir(&self.folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
        let _ = writeln!(std::io::stderr(), "cgroup {} is left behind", self.folder.display());
    }
}

/// The PATH with the folders of tools and servers, which not everybody's leads to.
pub(crate) fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Runs a command of iproute2 or nftables.
pub(crate) fn run(command: &str, args: &[&str]) {
    let output = Command::new(command).args(args).env("PATH", path()).output().expect(command);
    assert!(
        output.status.success(),
        "{command} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A network namespace of its own with loopback up, removed when dropped.
pub(crate) struct Netns {
    pub(crate) name: String,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let name = format!("flowend-{}", unique());
        run("ip", &["netns", "add", &name]);
        let netns = Self { name };
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, args: &[&str]) {
        run("ip", &[&["-n", &self.name], args].concat());
    }

    /// Makes a link to another namespace: there it is eth0, up and with this address, and here it has this name.
    pub(crate) fn link(&self, name: &str, other: &Self, address: &str) {
        let there = ["peer", "name", "eth0", "netns", &other.name];
        self.ip(&[&["link", "add", name, "type", "veth"], &there[..]].concat());
        self.ip(&["link", "set", name, "up"]);
        other.ip(&["addr", "add", address, "dev", "eth0"]);
        other.ip(&["link", "set", "eth0", "up"]);
    }

    /// Runs any command inside.
    pub(crate) fn exec(&self, args: &[&str]) {
        run("ip", &[&["netns", "exec", &self.name], args].concat());
    }

    /// Does something on a thread that is inside.
    pub(crate) fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = std::fs::File::open(self.file()).expect("open the network namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            thread.join().expect("the thread inside")
        })
    }

    /// Sets a value below /proc/sys/net.
    pub(crate) fn set(&self, key: &str, value: &str) {
        self.inside(|| {
            let file = Path::new("/proc/sys/net").join(key);
            std::fs::write(&file, value).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        });
    }

    /// Whether this kernel has such a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.inside(|| Path::new("/proc/sys/net").join(key).exists())
    }

    pub(crate) fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.name]);
    }
}

/// A process that makes connections on command (testing/puppet.rs).
pub(crate) struct Puppet {
    child: Killed,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    unanswered: u32,
}

/// A connection or listener of a puppet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Socket {
    pub(crate) id: u32,
    pub(crate) local: SocketAddr,
    /// Of a connection.
    pub(crate) peer: Option<SocketAddr>,
}

impl Puppet {
    pub(crate) fn in_cgroup(cgroup: &Cgroup) -> Self {
        Self::start(&["--cgroup".as_ref(), cgroup.folder.as_ref()])
    }

    pub(crate) fn outside() -> Self {
        Self::start(&[])
    }

    pub(crate) fn start(args: &[&Path]) -> Self {
        let mut command = Command::new(Self::program());
        command.args(args);
        Self::spawn(command)
    }

    pub(crate) fn program() -> PathBuf {
        let program = std::env::current_exe().expect("own path");
        program.parent().and_then(Path::parent).expect("target folder").join("examples/puppet")
    }

    /// By a command that becomes the puppet.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let program = Self::program();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; a plain `cargo test` builds it, and so does `cargo build --examples`", program.display()));
        let commands = child.stdin.take().expect("stdin");
        let answers = BufReader::new(child.stdout.take().expect("stdout"));
        let mut puppet = Self { child: Killed(child), commands, answers, unanswered: 0 };
        assert_eq!(puppet.answer(), Ok("ready".into()));
        puppet
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// One command, which must be obeyed.
    pub(crate) fn tell(&mut self, command: &str) -> String {
        self.ask(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// One command and its answer.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String, String> {
        writeln!(self.commands, "{command}").expect("the puppet is gone");
        self.answer()
    }

    /// One command, whose answer [`Puppet::reply`] will read.
    pub(crate) fn post(&mut self, command: &str) {
        writeln!(self.commands, "{command}").expect("the puppet is gone");
        self.unanswered += 1;
    }

    /// The answer to the command posted first.
    pub(crate) fn reply(&mut self) -> Result<String, String> {
        self.unanswered -= 1;
        self.answer()
    }

    /// Waits until all posted commands are obeyed.
    pub(crate) fn finish(&mut self) {
        while self.unanswered > 0 {
            self.reply().expect("obeyed");
        }
    }

    fn answer(&mut self) -> Result<String, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the puppet is gone");
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        if word == "ok" { Ok(rest.into()) } else { Err(rest.into()) }
    }

    pub(crate) fn listen(&mut self, address: &str) -> Socket {
        parse(&self.tell(&format!("listen {address}")))
    }

    pub(crate) fn connect(&mut self, address: SocketAddr) -> Socket {
        parse(&self.tell(&format!("connect {address}")))
    }

    /// Sends a SYN and does not wait for the answer; see the puppet's options.
    pub(crate) fn start_to_connect(&mut self, address: SocketAddr, options: &str) -> Socket {
        let mut socket = parse(&self.tell(&format!("connect-start {address} {options}")));
        socket.peer = Some(address);
        socket
    }

    /// Waits for the answer; the error is the application's.
    pub(crate) fn wait_until_connected(&mut self, socket: Socket) -> Result<(), String> {
        self.ask(&format!("connect-wait {}", socket.id)).map(drop)
    }

    pub(crate) fn accept(&mut self, listener: Socket) -> Socket {
        parse(&self.tell(&format!("accept {}", listener.id)))
    }

    pub(crate) fn send(&mut self, socket: Socket, n: usize) {
        self.tell(&format!("send {} {n}", socket.id));
    }

    pub(crate) fn recv(&mut self, socket: Socket, n: usize) {
        self.tell(&format!("recv {} {n}", socket.id));
    }

    /// Half-closes: a FIN, and goes on reading.
    pub(crate) fn shutdown(&mut self, socket: Socket) {
        self.tell(&format!("shutdown {}", socket.id));
    }

    /// Receives until the peer's FIN; how many bytes.
    pub(crate) fn drain(&mut self, socket: Socket) -> u64 {
        self.tell(&format!("drain {}", socket.id)).parse().expect("a number")
    }

    pub(crate) fn close(&mut self, socket: Socket) {
        self.tell(&format!("close {}", socket.id));
    }

    /// Closes with an RST.
    pub(crate) fn reset(&mut self, socket: Socket) {
        self.tell(&format!("linger0 {}", socket.id));
        self.close(socket);
    }
}

pub(crate) fn parse(answer: &str) -> Socket {
    let mut words = answer.split(' ');
    let mut next = || words.next();
    Socket {
        id: next().and_then(|w| w.parse().ok()).expect("an id"),
        local: next().and_then(|w| w.parse().ok()).expect("an address"),
        peer: next().and_then(|w| w.parse().ok()),
    }
}

/// The program itself, as a user starts it.
pub(crate) struct Flowend {
    child: Killed,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
}

impl Flowend {
    /// The program that was built with the tests, or the one that TEST_FLOWEND names.
    pub(crate) fn command(args: &[&str]) -> Command {
        let program = std::env::var_os("TEST_FLOWEND")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_flowend").into());
        let mut command = Command::new(program);
        command.args(args);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("OTEL_") || n.starts_with("FLOWEND_")) {
                command.env_remove(name);
            }
        }
        command
    }

    /// `flowend run` with these options, and waits until it is attached.
    pub(crate) fn run(args: &[&str]) -> Self {
        Self::spawn(Self::command(&[&["run"], args].concat()))
    }

    pub(crate) fn spawn(command: Command) -> Self {
        let flowend = Self::spawn_unattached(command);
        flowend.wait_for_message("reporting the ends");
        flowend
    }

    pub(crate) fn spawn_unattached(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("flowend");
        let stdout = collect(child.stdout.take().expect("stdout"));
        let stderr = collect(child.stderr.take().expect("stderr"));
        Self { child: Killed(child), stdout, stderr }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().expect("lock").clone()
    }

    /// The whole lines of stdout from this byte on.
    pub(crate) fn stdout_from(&self, at: usize) -> String {
        let stdout = self.stdout.lock().expect("lock");
        let end = stdout.rfind('\n').map_or(0, |end| end + 1);
        stdout[at..end.max(at)].to_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().expect("lock").clone()
    }

    pub(crate) fn wait_for_message(&self, words: &str) {
        wait_until(
            || self.stderr().contains(words),
            || format!("no \"{words}\" in: {}", self.stderr()),
        );
    }

    /// The JSON lines so far.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        json_lines(&self.stdout())
    }

    /// Waits for the end of one that was told to; its JSON lines to the last.
    pub(crate) fn last_json(mut self) -> Vec<serde_json::Value> {
        let ended = || self.child.0.try_wait().expect("wait").is_some();
        wait_until(ended, || "flowend does not end".into());
        let stdout = Arc::clone(&self.stdout);
        drop(self);
        // The reader lets go of it at the end of the pipe.
        wait_until(|| Arc::strong_count(&stdout) == 1, || "stdout stays open".into());
        json_lines(&stdout.lock().expect("lock"))
    }

    /// As [`Flowend::stop`], with the JSON lines to the last.
    pub(crate) fn stop_with_json(self) -> (Vec<serde_json::Value>, Option<i32>, String) {
        let stdout = Arc::clone(&self.stdout);
        let (code, messages) = self.stop();
        wait_until(|| Arc::strong_count(&stdout) == 1, || "stdout stays open".into());
        (json_lines(&stdout.lock().expect("lock")), code, messages)
    }

    /// SIGTERM, and waits for the end; the exit status and all of stderr.
    pub(crate) fn stop(mut self) -> (Option<i32>, String) {
        kill(Pid::from_raw(self.child.0.id().cast_signed()), Signal::SIGTERM).expect("kill");
        let mut code = None;
        wait_until(
            || match self.child.0.try_wait().expect("wait") {
                Some(status) => {
                    code = status.code();
                    true
                }
                None => false,
            },
            || "flowend does not stop".into(),
        );
        // The reader lets go of it at the end of the pipe, a moment later.
        wait_until(|| Arc::strong_count(&self.stderr) == 1, || "stderr stays open".into());
        let messages = self.stderr();
        assert_ledgers_add_up(&messages);
        (code, messages)
    }
}

/// JSON lines; the last one may not be whole yet.
fn json_lines(text: &str) -> Vec<serde_json::Value> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

/// seen = exported + sampled_out + filtered + dropped{cause} + in_flight, in each line of the ledger.
fn assert_ledgers_add_up(messages: &str) {
    let mut lines = 0;
    for line in messages.lines() {
        let Some((_, identity)) = line.split_once(": seen ") else { continue };
        // What stands behind it is a remark.
        let identity = identity.split(';').next().unwrap_or_default();
        let (came, became) = identity.split_once(" = ").expect("an identity");
        let count = |term: &str| {
            term.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a count")
        };
        let sum = |terms: &str| terms.split(" + ").map(count).sum::<u64>();
        assert_eq!(sum(came), sum(became), "{line}");
        lines += 1;
    }
    assert!(lines > 0, "no ledger: {messages}");
}

/// A process that does not outlive its test.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a pipe to its end in the background.
pub(crate) fn collect(pipe: impl std::io::Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let shared = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            let mut text = shared.lock().expect("lock");
            text.push_str(&line);
            text.push('\n');
        }
    });
    text
}

/// Looks until it is so; fails with `words` after [`PATIENCE`].
pub(crate) fn wait_until(mut so: impl FnMut() -> bool, words: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{}", words());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Attributes by key.
pub(crate) type Attributes = BTreeMap<String, Value>;

pub(crate) fn flat(attributes: &[KeyValue]) -> Attributes {
    let value = |v: &AnyValue| v.value.clone();
    let flat: Attributes = attributes
        .iter()
        .map(|kv| (kv.key.clone(), kv.value.as_ref().and_then(value).expect("a value")))
        .collect();
    assert_eq!(flat.len(), attributes.len(), "a key stands twice");
    flat
}

pub(crate) fn text(attributes: &Attributes, key: &str) -> String {
    match attributes.get(key) {
        Some(Value::StringValue(s)) => s.clone(),
        other => panic!("{key}: {other:?} is no string"),
    }
}

pub(crate) fn int(attributes: &Attributes, key: &str) -> i64 {
    match attributes.get(key) {
        Some(Value::IntValue(n)) => *n,
        other => panic!("{key}: {other:?} is no integer"),
    }
}
