//! `pin = true`: programs and ring outlive flowend, and the next one goes on where it was.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::confine::{as_nobody, public_copy};
use super::json::Line;
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};

/// Own address and peer.
type Pair = (SocketAddr, SocketAddr);

/// A BPF filesystem of its own, and a place for the state. With it go all pins, whatever became of the test.
pub(crate) struct Site {
    pub(crate) cgroup: Cgroup,
    bpffs: PathBuf,
    folder: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bpffs = folder.path().join("bpf");
        std::fs::create_dir(&bpffs).unwrap();
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mount bpf");
        Self { cgroup: Cgroup::new(), bpffs, folder }
    }

    fn pins_folder(&self) -> PathBuf {
        self.bpffs.join("flowend")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("kept/state")
    }

    /// What each flowend here is started with.
    fn settings(&self, pin: bool) -> Vec<String> {
        vec![
            format!("--set=targets={}", self.cgroup.name),
            format!("--set=pin={pin}"),
            format!("--set=pin_folder={}", self.pins_folder().display()),
            format!("--set=pin_state={}", self.state().display()),
        ]
    }

    pub(crate) fn run(&self) -> Flowend {
        self.run_with(true, &[])
    }

    pub(crate) fn run_with(&self, pin: bool, more: &[&str]) -> Flowend {
        let settings = self.settings(pin);
        let mut args = vec!["--output=json"];
        args.extend(settings.iter().map(String::as_str).chain(more.iter().copied()));
        Flowend::run(&args)
    }

    /// `flowend` with this subcommand, to its end.
    fn command(&self, subcommand: &str) -> Output {
        let settings = self.settings(true);
        let mut args = vec![subcommand];
        args.extend(settings.iter().map(String::as_str));
        Flowend::command(&args).output().unwrap()
    }

    /// The names of what is pinned.
    fn pins(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.pins_folder()) else { return Vec::new() };
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        entries.map(|entry| name(entry).into_string().unwrap()).collect()
    }

    /// The links among them, by their ids in the kernel.
    fn links(&self) -> Vec<u32> {
        let id = |name: &String| {
            let pinned = aya::programs::links::PinnedLink::from_pin(self.pins_folder().join(name));
            aya::programs::links::FdLink::from(pinned.unwrap()).info().unwrap().id()
        };
        self.pins().iter().filter(|name| name.starts_with("link-")).map(id).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
    }
}

/// Whether a link is still there, whoever keeps it.
fn in_the_kernel(ids: &[u32]) -> usize {
    let links = aya::programs::loaded_links().flatten();
    links.filter(|link| ids.contains(&link.id())).count()
}

/// SIGKILL; its records.
fn kill_hard(flowend: Flowend) -> Vec<Line> {
    kill(Pid::from_raw(flowend.pid().cast_signed()), Signal::SIGKILL).unwrap();
    flowend.last_json().into_iter().map(Line).collect()
}

/// Stops it in an orderly way; its records and messages.
fn stop(flowend: Flowend) -> (Vec<Line>, String) {
    let (records, status, messages) = flowend.stop_with_json();
    assert_eq!(status, Some(0), "{messages}");
    (records.into_iter().map(Line).collect(), messages)
}

/// How often each is there: two connections may have the same ports, one after the other.
fn counted(pairs: impl IntoIterator<Item = Pair>) -> BTreeMap<Pair, usize> {
    let mut counts = BTreeMap::new();
    for pair in pairs {
        *counts.entry(pair).or_default() += 1;
    }
    counts
}

/// How many records each socket has.
fn by_socket(records: &[Line]) -> BTreeMap<Pair, usize> {
    counted(records.iter().map(Line::socket))
}

/// The record of a socket, of which there is one.
fn only(records: &[Line], socket: Pair) -> &Line {
    let found: Vec<_> = records.iter().filter(|record| record.socket() == socket).collect();
    let [record] = found.as_slice() else { panic!("{} records of {socket:?}", found.len()) };
    record
}

/// Opens a connection and ends it; both of its sockets.
fn connect(client: &mut Puppet, server: &mut Puppet) -> [Pair; 2] {
    let listener = server.listen("127.0.0.1:0");
    let c = client.connect(listener.local);
    let s = server.accept(listener);
    client.send(c, 10);
    server.recv(s, 10);
    client.close(c);
    server.drain(s);
    server.close(s);
    server.close(listener);
    [(c.local, listener.local), (listener.local, c.local)]
}

/// Connections one after the other, without pause, until they are told to stop.
struct Traffic {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Pair>>,
}

impl Traffic {
    fn start(cgroup: &Cgroup) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let (mut client, mut server) = (Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup));
        let told = Arc::clone(&enough);
        let thread = std::thread::spawn(move || {
            let mut made = Vec::new();
            while !told.load(Ordering::Relaxed) {
                made.extend(connect(&mut client, &mut server));
                // No more than flowend can report, built without optimization: this is no test of a full ring.
                std::thread::sleep(Duration::from_millis(1));
            }
            made
        });
        Self { enough, thread }
    }

    /// The sockets of all that were made.
    fn stop(self) -> Vec<Pair> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn what_ends_while_no_flowend_runs_is_told_by_the_next_one() {
    if !can_run("what_ends_while_no_flowend_runs_is_told_by_the_next_one", &[]) {
        return;
    }
    for orderly in [true, false] {
        let site = Site::new();
        let first = site.run();
        let before = if orderly { stop(first).0 } else { kill_hard(first) };
        assert!(before.is_empty(), "{before:?}");
        let (mut client, mut server) =
            (Puppet::in_cgroup(&site.cgroup), Puppet::in_cgroup(&site.cgroup));
        let made: Vec<_> = (0..200).flat_map(|_| connect(&mut client, &mut server)).collect();
        let second = site.run();
        wait_until(|| second.json().len() >= made.len(), || second.stderr());
        let (records, messages) = stop(second);
        assert_eq!(by_socket(&records), counted(made), "{messages}");
        for record in &records {
            assert!(record.start_known(), "{record:?}");
            assert_eq!(record.text("flowend.end.reason"), Some("fin"), "{record:?}");
        }
        assert!(messages.contains("ring and "), "{messages}");
        let said = "left no state, so it was killed";
        assert_eq!(messages.contains(said), !orderly, "{messages}");
    }
}

#[test]
fn traffic_over_several_restarts_has_one_record_for_each_socket() {
    if !can_run("traffic_over_several_restarts_has_one_record_for_each_socket", &[]) {
        return;
    }
    let site = Site::new();
    // Room for what happens while a flowend starts on a machine that has other things to do.
    let room = ["--set=ring.bytes=67108864"];
    let mut flowend = site.run_with(true, &room);
    let traffic = Traffic::start(&site.cgroup);
    let mut records = Vec::new();
    for restart in 0..5 {
        // Each stops in the midst of what it has begun to report.
        let some = 100 * (restart + 1);
        wait_until(|| flowend.json().len() >= some, || flowend.stderr());
        let (told, messages) = stop(flowend);
        assert!(messages.contains("open connections kept for the next start"), "{messages}");
        assert!(!messages.contains("events lost"), "{messages}");
        records.extend(told);
        flowend = site.run_with(true, &room);
        flowend.wait_for_message("open connections taken over");
    }
    let made = traffic.stop();
    wait_until(
        || records.len() + flowend.json().len() >= made.len(),
        || {
            format!(
                "{} sockets, and {} records before: {}",
                made.len(),
                records.len(),
                flowend.stderr()
            )
        },
    );
    let (told, messages) = stop(flowend);
    records.extend(told);
    assert_eq!(by_socket(&records), counted(made), "{messages}");
    for record in &records {
        assert!(record.start_known(), "{record:?}");
        assert_eq!(record.text("flowend.end.reason"), Some("fin"), "{record:?}");
    }
}

#[test]
fn a_connection_open_over_a_restart_keeps_start_bytes_ids_and_process() {
    if !can_run("a_connection_open_over_a_restart_keeps_start_bytes_ids_and_process", &[]) {
        return;
    }
    let site = Site::new();
    let first = site.run_with(true, &["--set=events=[\"begin\",\"end\"]"]);
    let (mut client, mut server) =
        (Puppet::in_cgroup(&site.cgroup), Puppet::in_cgroup(&site.cgroup));
    let listener = server.listen("127.0.0.1:0");
    let c = client.connect(listener.local);
    let s = server.accept(listener);
    client.send(c, 111);
    server.recv(s, 111);
    wait_until(|| first.json().len() >= 2, || first.stderr());
    let links = site.links();
    let (begins, _) = stop(first);

    assert_eq!(in_the_kernel(&links), links.len(), "all stay attached");
    server.send(s, 3000);
    client.recv(c, 3000);
    // Other options, so other programs; the links are the same.
    let second = site.run_with(true, &["--set=events=[\"begin\",\"end\"]", "--set=dns.mdns=true"]);
    assert_eq!(site.links(), links);
    client.close(c);
    server.drain(s);
    server.close(s);
    wait_until(|| second.json().len() >= 2, || second.stderr());
    let (ends, messages) = stop(second);
    assert_eq!(ends.len(), 2, "{messages}");

    for (socket, sent, received) in
        [((c.local, listener.local), 111, 3000), ((listener.local, c.local), 3000, 111)]
    {
        let (begin, end) = (only(&begins, socket), only(&ends, socket));
        assert_eq!((begin.kind(), end.kind()), ("begin", "end"));
        for key in ["trace_id", "span_id"] {
            assert_eq!(begin.0[key], end.0[key], "{key}: {begin:?} {end:?}");
            assert!(end.0[key].is_string(), "{key}: {end:?}");
        }
        assert!(end.start_known());
        let bytes = (end.int("flowend.bytes.sent"), end.int("flowend.bytes.received"));
        assert_eq!(bytes, (Some(sent), Some(received)), "{end:?}");
        for key in ["process.executable.name", "process.pid"] {
            let of = |line: &Line| line.0["attributes"][key].clone();
            assert_eq!(of(begin), of(end), "{key}");
            assert!(!of(end).is_null(), "{key}: {end:?}");
        }
    }
}

#[test]
fn a_killed_one_costs_the_start_of_what_was_open_and_no_end() {
    if !can_run("a_killed_one_costs_the_start_of_what_was_open_and_no_end", &[]) {
        return;
    }
    let site = Site::new();
    let first = site.run_with(true, &["--set=events=[\"begin\",\"end\"]"]);
    let (mut client, mut server) =
        (Puppet::in_cgroup(&site.cgroup), Puppet::in_cgroup(&site.cgroup));
    let listener = server.listen("127.0.0.1:0");
    let c = client.connect(listener.local);
    let s = server.accept(listener);
    wait_until(|| first.json().len() >= 2, || first.stderr());
    kill_hard(first);
    let within = connect(&mut client, &mut server);
    let second = site.run();
    client.close(c);
    server.drain(s);
    server.close(s);
    wait_until(|| second.json().len() >= 4, || second.stderr());
    let (ends, messages) = stop(second);
    let old = [(c.local, listener.local), (listener.local, c.local)];
    for (sockets, known) in [(old, false), (within, true)] {
        for socket in sockets {
            let end = only(&ends, socket);
            assert_eq!(end.start_known(), known, "{end:?}: {messages}");
            assert_eq!(end.text("flowend.end.reason"), Some("fin"), "{end:?}");
        }
    }
    assert_eq!(ends.len(), 4, "{messages}");
}

#[test]
fn nothing_stays_without_pins_or_after_unpin() {
    if !can_run("nothing_stays_without_pins_or_after_unpin", &[]) {
        return;
    }
    let site = Site::new();
    let gone = |links: &[u32]| {
        wait_until(|| in_the_kernel(links) == 0, || format!("links {links:?} are left behind"));
        assert!(!site.pins_folder().exists(), "{:?}", site.pins());
        assert!(!site.state().exists());
    };
    let stopped = || {
        let flowend = site.run();
        let links = site.links();
        assert!(links.len() >= 5, "{:?}", site.pins());
        stop(flowend);
        assert_eq!(in_the_kernel(&links), links.len());
        assert!(site.state().exists());
        links
    };

    let links = stopped();
    let output = site.command("unpin");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains(" taken down"), "{said}");
    gone(&links);
    let said = String::from_utf8(site.command("unpin").stdout).unwrap();
    assert!(said.contains("nothing is pinned there"), "{said}");

    let links = stopped();
    let (_, messages) = stop(site.run_with(false, &[]));
    assert!(messages.contains("taken down; `pin` is false now"), "{messages}");
    gone(&links);
}

#[test]
fn one_flowend_at_a_time_uses_a_folder() {
    if !can_run("one_flowend_at_a_time_uses_a_folder", &[]) {
        return;
    }
    let site = Site::new();
    let flowend = site.run();
    let pins = site.pins().len();
    let want = format!("another flowend (pid {}) runs on ", flowend.pid());
    for subcommand in ["run", "unpin"] {
        let output = site.command(subcommand);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{subcommand}: {said}");
        assert!(said.contains("key `pin_folder`") && said.contains(&want), "{subcommand}: {said}");
    }
    // One without pins leaves them to whoever has them.
    let (_, messages) = stop(site.run_with(false, &[]));
    assert!(!messages.contains("taken down"), "{messages}");
    assert_eq!(site.pins().len(), pins);
    stop(flowend);
}

#[test]
fn a_ring_of_another_size_is_kept_and_said() {
    if !can_run("a_ring_of_another_size_is_kept_and_said", &[]) {
        return;
    }
    let site = Site::new();
    stop(site.run_with(true, &["--set=ring.bytes=65536"]));
    let (mut client, mut server) =
        (Puppet::in_cgroup(&site.cgroup), Puppet::in_cgroup(&site.cgroup));
    let made: Vec<_> = (0..20).flat_map(|_| connect(&mut client, &mut server)).collect();
    let second = site.run_with(true, &["--set=ring.bytes=131072"]);
    wait_until(|| second.json().len() >= made.len(), || second.stderr());
    let (records, messages) = stop(second);
    assert_eq!(by_socket(&records), counted(made));
    let said = "has 65536 bytes and is kept, since another one would lose what is in it; for one of 131072";
    assert!(messages.contains(said), "{messages}");
}

#[test]
fn what_does_not_fit_into_the_ring_meanwhile_is_counted_as_lost() {
    if !can_run("what_does_not_fit_into_the_ring_meanwhile_is_counted_as_lost", &[]) {
        return;
    }
    let site = Site::new();
    stop(site.run_with(true, &["--set=ring.bytes=4096"]));
    let (mut client, mut server) =
        (Puppet::in_cgroup(&site.cgroup), Puppet::in_cgroup(&site.cgroup));
    for _ in 0..20 {
        connect(&mut client, &mut server);
    }
    let second = site.run();
    second.wait_for_message("the ring was full: events lost: ");
    let (_, messages) = stop(second);
    // They were judged and said once.
    let (_, again) = stop(site.run());
    assert!(!again.contains("events lost"), "{messages}\n{again}");
}

#[test]
fn a_damaged_state_is_set_aside_and_costs_no_end() {
    if !can_run("a_damaged_state_is_set_aside_and_costs_no_end", &[]) {
        return;
    }
    let site = Site::new();
    let first = site.run_with(true, &["--set=events=[\"begin\",\"end\"]"]);
    let (mut client, mut server) =
        (Puppet::in_cgroup(&site.cgroup), Puppet::in_cgroup(&site.cgroup));
    let listener = server.listen("127.0.0.1:0");
    let c = client.connect(listener.local);
    let s = server.accept(listener);
    // What it has not read yet would be read by the next one.
    wait_until(|| first.json().len() >= 2, || first.stderr());
    stop(first);
    let mut bytes = std::fs::read(site.state()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(site.state(), bytes).unwrap();
    client.close(c);
    server.drain(s);
    server.close(s);
    let second = site.run();
    second.wait_for_message("its checksum is wrong: it was damaged or cut");
    wait_until(|| second.json().len() >= 2, || second.stderr());
    let (ends, _) = stop(second);
    for socket in [(c.local, listener.local), (listener.local, c.local)] {
        assert!(!only(&ends, socket).start_known());
    }
    assert!(site.state().with_file_name("state-damaged").exists());
}

#[test]
fn a_cgroup_that_goes_meanwhile_has_its_last_ends_told_and_leaves_no_pin() {
    if !can_run("a_cgroup_that_goes_meanwhile_has_its_last_ends_told_and_leaves_no_pin", &[]) {
        return;
    }
    let site = Site::new();
    let pattern = format!("{}*", site.cgroup.name);
    let target = format!("--set=targets={pattern}");
    let first = site.run_with(true, &[&target]);
    let other = Cgroup::named(&format!("{}-other", site.cgroup.name.trim_start_matches('/')));
    first.wait_for_message(&format!("cgroup {}: attached", other.name));
    let links = site.links();
    stop(first);
    let (mut client, mut server) = (Puppet::in_cgroup(&other), Puppet::in_cgroup(&other));
    let made = connect(&mut client, &mut server);
    drop((client, server, other));
    let second = site.run_with(true, &[&target]);
    wait_until(|| second.json().len() >= 2, || second.stderr());
    // The kernel lets go of the cgroup when it gets to it.
    wait_until(|| site.links().len() < links.len(), || second.stderr());
    let now = site.links();
    assert!(
        now.len() < links.len() && now.iter().all(|id| links.contains(id)),
        "{now:?} {links:?}"
    );
    let (ends, messages) = stop(second);
    assert_eq!(by_socket(&ends), counted(made), "{messages}");
    // Its path is known, though the folder is gone.
    let name = format!("{}-other", site.cgroup.name);
    assert!(ends.iter().all(|end| end.0.to_string().contains(&name)), "{ends:?}");
}

#[test]
fn another_user_with_three_capabilities_goes_on_and_root_takes_down() {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    const NOBODY: u32 = 65534;
    let name = "another_user_with_three_capabilities_goes_on_and_root_takes_down";
    if !can_run(name, &["setpriv"]) {
        return;
    }
    let site = Site::new();
    let copy = public_copy();
    std::fs::set_permissions(site.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for folder in [site.pins_folder(), site.state().parent().unwrap().to_owned()] {
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // Nothing of others is read, so Landlock is in force as well: it writes to those two folders alone.
    let settings = site.settings(true);
    let target = format!("--set=targets={}*", site.cgroup.name);
    let more = ["run", "--output=json", "--set=process.enabled=false", "--set=confine=required"];
    let settings = settings.iter().map(String::as_str).chain([&*target]);
    let args: Vec<&str> = more.into_iter().chain(settings).collect();
    let start = || Flowend::spawn(as_nobody(copy.path(), &["bpf", "net_admin", "perfmon"], &args));
    let first = start();
    first.wait_for_message("1 cgroup(s) attached");
    let links = site.links().len();
    // It appears after everything was given up, and is pinned all the same.
    let other = Cgroup::named(&format!("{}-other", site.cgroup.name.trim_start_matches('/')));
    first.wait_for_message(&format!("cgroup {}: attached", other.name));
    assert_eq!(site.links().len(), 2 * links, "{}", first.stderr());
    let (mut client, mut server) = (Puppet::in_cgroup(&other), Puppet::in_cgroup(&site.cgroup));
    let listener = server.listen("127.0.0.1:0");
    let open = client.connect(listener.local);
    let accepted = server.accept(listener);
    client.send(open, 10);
    server.recv(accepted, 10);
    let (before, messages) = stop(first);
    assert!(before.is_empty(), "{messages}");
    let made = connect(&mut client, &mut server);

    let second = start();
    client.close(open);
    server.drain(accepted);
    server.close(accepted);
    wait_until(|| second.json().len() >= 4, || second.stderr());
    let (records, messages) = stop(second);
    let all = [(open.local, listener.local), (listener.local, open.local)];
    assert_eq!(by_socket(&records), counted(made.into_iter().chain(all)), "{messages}");
    assert!(records.iter().all(Line::start_known), "{records:?}");
    for words in ["Operation not permitted", "Permission denied"] {
        assert!(!messages.contains(words), "{messages}");
    }

    // Root does not believe what another user has pinned, but may take it down.
    let run = site.command("run");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && said.contains("belongs to user 65534"), "{said}");
    let unpin = site.command("unpin");
    assert!(unpin.status.success() && site.pins().is_empty(), "{unpin:?}");
}

#[test]
fn a_folder_elsewhere_is_refused() {
    if !can_run("a_folder_elsewhere_is_refused", &[]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "run".to_owned(),
        "--set=pin=true".into(),
        format!("--set=pin_folder={}", folder.path().join("pins").display()),
        format!("--set=pin_state={}", folder.path().join("state").display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let output = Flowend::command(&settings).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("is not on a BPF filesystem; mount one (mount -t bpf bpf"), "{said}");
}
