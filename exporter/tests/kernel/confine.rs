//! What flowend gives up after its start: as promised in each thread, and nothing that it needs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use flowend::export::spool::Spool;

use super::connections::{Role, make};
use super::reload::Site;
use super::support::{Cgroup, Flowend, Killed, Puppet, can_run, wait_until};
use super::telemetry::{port, scrape, sum};

/// Of each thread of a process: what /proc says of its rights.
fn rights(pid: u32) -> Vec<BTreeMap<String, String>> {
    let of_thread = |folder: std::fs::DirEntry| {
        // One that has just ended has none.
        let status = std::fs::read_to_string(folder.path().join("status")).ok()?;
        let lines = status.lines().filter_map(|line| line.split_once(":\t"));
        Some(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.filter_map(|folder| of_thread(folder.unwrap())).collect()
}

/// As in CapEff, from bits of include/uapi/linux/capability.h.
fn mask(bits: &[u32]) -> String {
    format!("{:016x}", bits.iter().fold(0u64, |mask, bit| mask | 1 << bit))
}

const DAC_READ_SEARCH: u32 = 2;
const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Makes a connection, and waits for its two records.
fn report_a_connection(flowend: &Flowend, cgroup: &Cgroup) {
    let before = flowend.json().len();
    let (mut client, mut server) = (Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup));
    make(&mut client, &mut server, "127.0.0.1:0", Role::Client, false);
    wait_until(|| flowend.json().len() >= before + 2, || flowend.stderr());
}

/// Records that wait in the spool of a signal.
fn waiting(folder: &Path) -> u64 {
    let (spool, _) = Spool::open(folder, 1 << 30).unwrap();
    spool.waiting().iter().sum()
}

#[test]
fn a_running_flowend_has_little_left_and_does_all_it_is_for() {
    if !can_run("a_running_flowend_has_little_left_and_does_all_it_is_for", &[]) {
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let spool = state.path().join("spool");
    let name = format!("flowend-confine-{}", std::process::id());
    let text = |ratio: &str| format!("targets = [\"{name}\"]\n[sampling]\nratio = {ratio}\n");
    let settings = [
        "--set=confine=required".to_owned(),
        "--output=otlp".into(),
        // Nobody listens there: what is left at the stop goes to the spool.
        "--set=otlp.endpoint=http://127.0.0.1:9".into(),
        "--set=telemetry.listen=127.0.0.1:0".into(),
        format!("--set=spool.directory={}", spool.display()),
        format!("--set=dns.snapshot={}", state.path().join("names").display()),
        "--set=dns.hosts=true".into(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let site = Site::start_with(&text("1.0"), &settings);
    let flowend = &site.flowend;
    flowend.wait_for_message("confined: capabilities (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_PTRACE, ");
    flowend.wait_for_message(&format!("target {name}: no such cgroup"));

    // It appears after everything was given up.
    let cgroup = Cgroup::named(&name);
    flowend.wait_for_message(&format!("cgroup /{name}: attached"));
    report_a_connection(flowend, &cgroup);
    let process = flowend.json()[0]["attributes"]["process.executable.name"].clone();
    assert_eq!(process, "puppet", "{}", flowend.stderr());
    assert!(sum(&scrape(port(flowend)), "flowend_ends_seen_total", "") >= 2);
    site.replace(&text("0.5"));
    site.wait_for("configuration reloaded: sampling.ratio", 1);

    let kept = mask(&[DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, BPF]);
    let none = mask(&[]);
    let threads = rights(flowend.pid());
    // The main one, the runtime's two, and those that block.
    assert!(threads.len() > 3, "{} threads", threads.len());
    for thread in threads {
        for (key, want) in [
            ("CapEff", &kept),
            ("CapPrm", &kept),
            ("CapBnd", &kept),
            ("CapInh", &none),
            ("CapAmb", &none),
            ("NoNewPrivs", &"1".to_owned()),
            ("Seccomp", &"2".to_owned()),
        ] {
            assert_eq!(&thread[key], want, "{key} of thread {}", thread["Name"]);
        }
    }

    let Site { flowend, .. } = site;
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    for signal in ["logs", "traces"] {
        assert_eq!(waiting(&spool.join("otlp").join(signal)), 2, "{signal}: {messages}");
    }
    assert!(state.path().join("names").is_file(), "{messages}");
    for words in ["Operation not permitted", "Permission denied", "not confined"] {
        assert!(!messages.contains(words), "{messages}");
    }
}

/// A copy of the program where any user may execute it.
pub(super) fn public_copy() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = Flowend::command(&[]);
    std::fs::copy(program.get_program(), folder.path().join("flowend")).unwrap();
    folder
}

/// `flowend` of that folder with these arguments, as nobody with these capabilities alone, ambient.
pub(super) fn as_nobody(copy: &Path, capabilities: &[&str], args: &[&str]) -> Command {
    let set: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let set = format!("-all,{}", set.join(","));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(format!("--inh-caps={set}")).arg(format!("--ambient-caps={set}"));
    command.arg(format!("--bounding-set={set}"));
    command.arg(copy.join("flowend")).args(args).env_remove("FLOWEND_CONFIG");
    command
}

#[test]
fn another_user_with_three_capabilities_is_enough_and_keeps_two() {
    if !can_run("another_user_with_three_capabilities_is_enough_and_keeps_two", &["setpriv"]) {
        return;
    }
    let copy = public_copy();
    let cgroup = Cgroup::new();
    let target = format!("--set=targets={}", cgroup.name);
    // Nothing of others is read: Landlock is in force as well.
    let args = ["run", "--output=json", "--set=process.enabled=false", &target];
    let flowend = Flowend::spawn(as_nobody(copy.path(), &["bpf", "net_admin", "perfmon"], &args));
    report_a_connection(&flowend, &cgroup);
    let kept = mask(&[NET_ADMIN, BPF]);
    for thread in rights(flowend.pid()) {
        assert_eq!([&thread["CapEff"], &thread["CapPrm"]], [&kept, &kept]);
        // What cannot be dropped without CAP_SETPCAP cannot be gained with no_new_privs.
        assert_eq!(thread["CapBnd"], mask(&[NET_ADMIN, BPF, PERFMON]));
        assert_eq!([&*thread["NoNewPrivs"], &*thread["Seccomp"]], ["1", "2"]);
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert!(messages.contains("; the bounding set stays as it was)"), "{messages}");
}

#[test]
fn each_missing_capability_is_named_with_the_remedy() {
    if !can_run("each_missing_capability_is_named_with_the_remedy", &["setpriv"]) {
        return;
    }
    let copy = public_copy();
    let all = ["bpf", "net_admin", "perfmon"];
    for missing in all {
        let held: Vec<_> = all.into_iter().filter(|name| *name != missing).collect();
        let run = |args: &[&str]| {
            let output = as_nobody(copy.path(), &held, args).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
        };
        let name = format!("CAP_{}", missing.to_uppercase());
        let [_, messages] = run(&["run", "--set=targets=/nothere"]);
        let errors: Vec<_> = messages.lines().filter(|line| !line.contains(" INFO ")).collect();
        let [error] = errors.as_slice() else { panic!("{missing}: {messages}") };
        for words in ["flowend: BPF ", &format!("{name} is missing"), "run as root, or give it"] {
            assert!(error.contains(words), "{missing}: {error}");
        }
        assert_eq!(error.matches(" is missing").count(), 1, "{error}");
        let [said, _] = run(&["check", "--set=targets=/nothere"]);
        assert!(said.contains(&format!("BAD   {name}: missing (it is to ")), "{said}");
        assert_eq!(said.matches(": missing (it is to ").count(), 1, "{said}");
    }
}

/// What the example `confined` said of each thing that it tried, and of the measures.
fn confined(mut command: Command, args: &[&str]) -> (BTreeMap<String, String>, String) {
    let output = command.args(args).output().expect("the example `confined`");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let tries = said.lines().filter_map(|line| line.split_once(": "));
    (tries.map(|(name, result)| (name.to_owned(), result.to_owned())).collect(), said)
}

#[test]
fn what_is_forbidden_is_refused() {
    if !can_run("what_is_forbidden_is_refused", &["setpriv"]) {
        return;
    }
    let program = Puppet::program().with_file_name("confined");
    let mut other = Command::new("setpriv");
    other.args(["--reuid=65534", "--clear-groups", "sleep", "600"]);
    let other = Killed(other.spawn().unwrap());
    let pid = other.0.id().to_string();
    let exe = std::path::PathBuf::from(format!("/proc/{pid}/exe"));
    let sleeps = || std::fs::read_link(&exe).is_ok_and(|path| path.ends_with("sleep"));
    wait_until(sleeps, || "setpriv does not become sleep".into());
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |mut command: Command| {
        command.current_dir(folder.path());
        command
    };
    let always = [
        ("execute", "EPERM"),
        ("signal", "EPERM"),
        ("mount", "EPERM"),
        ("new user namespace", "EPERM"),
        ("enter a pid namespace", "EPERM"),
        ("routes", "EPERM"),
        ("sockets of the kernel", "ok"),
        ("option of IP", "EPERM"),
        ("load a program", "EPERM"),
        ("read", "ok"),
        ("connect", "ok"),
    ];
    let check = |tries: &BTreeMap<String, String>, others: &[(&str, &str)], said: &str| {
        for (name, want) in always.iter().chain(others) {
            assert_eq!(&tries[*name], want, "{name}: {said}");
        }
    };

    // As root, without a folder to write to: no file is opened for writing.
    let (tries, said) = confined(in_folder(Command::new(&program)), &["reads-processes", &pid]);
    check(
        &tries,
        &[
            ("enter a network namespace", "ok"),
            ("executable of another", "ok"),
            ("write elsewhere", "EPERM"),
        ],
        &said,
    );

    // Without power over others' namespaces, and without interest in their processes: Landlock.
    let written = tempfile::tempdir().unwrap();
    let mut command = Command::new("setpriv");
    command.arg("--bounding-set=-sys_admin,-sys_ptrace").arg(&program);
    let (tries, said) = confined(in_folder(command), &[&pid, written.path().to_str().unwrap()]);
    let landlock = said.contains("Landlock (files are written below ");
    let elsewhere = if landlock { "EACCES" } else { "ok" };
    check(
        &tries,
        &[
            ("enter a network namespace", "EPERM"),
            ("executable of another", "EACCES"),
            ("write elsewhere", elsewhere),
            ("write below a folder", "ok"),
        ],
        &said,
    );
    assert!(written.path().join("made/name").is_file());
    if !landlock {
        assert!(said.contains("Landlock: this kernel does not have it"), "{said}");
        let _ = super::support::skip("what_is_forbidden_is_refused", "a kernel with Landlock");
    }
}
