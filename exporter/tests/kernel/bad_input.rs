//! What can be wrong at a start, and what is said then.

use std::process::{Command, Output};

use super::exclusive::Exclusive;
use super::support::{Cgroup, Flowend, can_run};

fn output(args: &[&str]) -> Output {
    Flowend::command(args).output().unwrap()
}

/// Exit status and words of stderr and stdout.
fn expect(output: &Output, status: i32, words: &[&str]) {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{text}");
    for word in words {
        assert!(text.contains(word), "no \"{word}\" in: {text}");
    }
}

#[test]
fn mistakes_of_the_command_line_and_the_configuration_need_no_root() {
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[], 2, &["Usage"]),
        (&["walk"], 2, &["unrecognized subcommand 'walk'"]),
        (&["run", "--output", "xml"], 2, &["invalid value 'xml'", "text, json, otlp"]),
        (&["run", "--set", "sampling.ratio"], 2, &["--set sampling.ratio: expected KEY=VALUE"]),
        (
            &["run", "--config", "/no/such.toml"],
            1,
            &["configuration file /no/such.toml", "No such file"],
        ),
        (
            &["run", "--set", "targt=/"],
            1,
            &["--set targt: unknown key `targt`; did you mean `targets`?"],
        ),
        (
            &["check", "--set", "ring.bytes=7"],
            1,
            &["--set ring.bytes: key `ring.bytes`: 7 is no power of two"],
        ),
        (
            &["print-config", "--set", "flows.max=many"],
            1,
            &["key `flows.max` must be a number", "\"many\""],
        ),
        (
            &["demo", "--set", "otlp.endpoint=ftp://collector"],
            1,
            &["key `otlp.endpoint`", "must begin with http://"],
        ),
    ];
    for (args, status, words) in cases {
        expect(&output(args), *status, words);
    }
    let mut command = Flowend::command(&["run"]);
    command.env("FLOWEND_CONFIG", "/no/such.toml");
    expect(&command.output().unwrap(), 1, &["configuration file /no/such.toml"]);
}

/// Runs the program under util-linux tools.
fn under(tool: &[&str], args: &[&str]) -> Output {
    let inner = Flowend::command(&[]);
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).arg(inner.get_program()).args(args);
    for name in ["FLOWEND_CONFIG", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        command.env_remove(name);
    }
    command.output().unwrap()
}

/// A copy of the program where any user may execute it.
fn public_copy() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_flowend"), folder.path().join("flowend")).unwrap();
    folder
}

#[test]
fn without_root_and_capabilities_it_says_so() {
    if !can_run("without_root_and_capabilities_it_says_so", &["setpriv"]) {
        return;
    }
    let copy = public_copy();
    let program = copy.path().join("flowend");
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        command.arg(&program).args(args).env_remove("FLOWEND_CONFIG").output().unwrap()
    };
    let words = &["CAP_BPF is missing", "CAP_NET_ADMIN is missing", "CAP_PERFMON is missing"];
    expect(&as_nobody(&["run"]), 1, words);
    expect(
        &as_nobody(&["check"]),
        1,
        &["BAD   CAP_BPF: missing", "BAD   CAP_NET_ADMIN: missing", "would not work here"],
    );
    expect(&as_nobody(&["demo"]), 1, &["cannot make the cgroup", "run as root"]);
    expect(&as_nobody(&["print-config"]), 0, &["targets = [\"/\"]"]);
}

#[test]
fn a_missing_or_old_cgroup_hierarchy_is_named() {
    if !can_run("a_missing_or_old_cgroup_hierarchy_is_named", &["unshare", "umount", "mount"]) {
        return;
    }
    let mount = flowend::cgroup::find_mount().unwrap();
    let program = env!("CARGO_BIN_EXE_flowend");
    let in_namespace = |prepare: &str| {
        let script = format!("{prepare}; exec {program} run");
        under(&["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"], &[])
    };
    // No cgroup file system of any version.
    let none = "for m in $(grep -E ' - cgroup2? ' /proc/self/mountinfo | cut -d' ' -f5); do umount -l $m; done";
    expect(&in_namespace(none), 1, &["no cgroup v2 hierarchy is mounted", "mount -t cgroup2"]);
    // Only the old one. A host may have none to keep: then a named hierarchy is mounted.
    let folder = tempfile::tempdir().unwrap();
    let old = format!(
        "{none}; mount -t cgroup -o none,name=flowend-test none {}",
        folder.path().display()
    );
    expect(&in_namespace(&old), 1, &["only cgroup v1 is mounted", "hybrid layout is enough"]);
    assert!(mount.exists());
}

#[test]
fn an_exclusive_program_in_the_way_is_named() {
    if !can_run("an_exclusive_program_in_the_way_is_named", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let _in_the_way = Exclusive::attach(&cgroup);
    let result = output(&["run", "--set", &format!("targets={}", cgroup.name)]);
    expect(
        &result,
        1,
        &[&format!("cgroup {}", cgroup.name), "EPERM", "allows no other", "bpftool cgroup tree"],
    );
    let result = output(&["check", "--set", &format!("targets={}", cgroup.name)]);
    expect(&result, 1, &["BAD   target", "allows no other"]);
}

#[test]
fn no_kernel_btf_is_needed() {
    if !can_run("no_kernel_btf_is_needed", &["unshare", "mount"]) {
        return;
    }
    // An empty file system over it: as on a kernel without CONFIG_DEBUG_INFO_BTF.
    let program = env!("CARGO_BIN_EXE_flowend");
    let script = format!(
        "if [ -d /sys/kernel/btf ]; then mount -t tmpfs none /sys/kernel/btf; fi; test ! -e /sys/kernel/btf/vmlinux; exec {program} demo"
    );
    let result =
        under(&["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh"], &[]);
    expect(&result, 0, &["all true: "]);
}
