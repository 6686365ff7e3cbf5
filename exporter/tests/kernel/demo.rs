//! `flowend demo`: true, or it fails and says why.

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::support::{Flowend, Killed, Netns, can_run, collect, wait_until};

#[test]
fn the_demo_is_true_and_leaves_nothing_behind() {
    if !can_run("the_demo_is_true_and_leaves_nothing_behind", &[]) {
        return;
    }
    let output = Flowend::command(&["demo"]).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    for words in [
        "closed by the client",
        "closed by the server",
        "reset by the client",
        "reset by the server",
        "half-closed",
        "refused",
        "names: shop.demo.test is looked up",
        "connected by name",
        "source: shop.demo.test edge.demo.test",
        "destination: shop.demo.test edge.demo.test",
        "all true: ",
        "2 of them by name",
    ] {
        assert!(stdout.contains(words), "{words}: {stdout}");
    }
    let name = stdout.split("cgroup /").nth(1).and_then(|s| s.split(':').next()).unwrap();
    let folder = flowend::cgroup::find_mount().unwrap().join(name);
    assert!(!folder.exists(), "{} is left behind", folder.display());
}

/// An address of loopback with nobody on its port 53 is needed for the names alone.
#[test]
fn the_demo_says_so_when_port_53_is_taken_and_is_true_without_names() {
    let test = "the_demo_says_so_when_port_53_is_taken_and_is_true_without_names";
    if !can_run(test, &["ip"]) {
        return;
    }
    let netns = Netns::new();
    let _taken = netns.inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    let output = netns.inside(|| Flowend::command(&["demo"]).output().unwrap());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("names: left out, no DNS server for the demo: "), "{stdout}");
    assert!(stdout.contains("0 of them by name"), "{stdout}");
}

/// Detaches every link of a process, as another privileged program might.
fn detach_links_of(pid: u32) -> usize {
    let mut detached = 0;
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let id = text
            .lines()
            .find_map(|line| line.strip_prefix("link_id:"))
            .map(|id| id.trim().to_owned())
            .filter(|_| text.contains("link_type:\tcgroup"));
        if let Some(id) = id {
            let done = Command::new("bpftool")
                .args(["link", "detach", "id", &id])
                .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
                // It may be gone by now.
                .stderr(Stdio::null())
                .status()
                .unwrap();
            detached += usize::from(done.success());
        }
    }
    detached
}

#[test]
fn the_demo_fails_when_its_programs_are_detached_midway() {
    if !can_run("the_demo_fails_when_its_programs_are_detached_midway", &["bpftool"]) {
        return;
    }
    let mut child =
        Flowend::command(&["demo"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let mut child = Killed(child);
    let has = |output: &Mutex<String>, words: &str| output.lock().unwrap().contains(words);
    wait_until(|| has(&stdout, "making connections"), || "nothing begins".into());
    // Again and again: they are attached again at once, and an ending must fall into a gap.
    let mut detached = 0;
    let status = loop {
        detached += detach_links_of(child.0.id());
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
    };
    assert!(detached >= 3, "nothing to detach");
    let all = || format!("{}{}", stdout.lock().unwrap(), stderr.lock().unwrap());
    assert_eq!(status.code(), Some(1), "{}", all());
    wait_until(|| has(&stderr, "were detached from the cgroup by somebody else"), all);
    wait_until(|| has(&stdout, "\nwrong: "), all);
}
