//! What nothing tells flowend of is found by looking again: soon where it is known that something waits for it, also
//! where a look costs much and is made every few minutes at most.

use std::process::Command;

use super::exclusive::Exclusive;
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};

/// So many descriptors that reading of each what it is takes long: then the next recheck of somebody at rest is
/// minutes away, which is more than the patience of these tests.
const DESCRIPTORS: usize = 15_000;

/// flowend with many descriptors, which watches what lies in this cgroup.
fn unhurried(inside: &Cgroup) -> Flowend {
    let target = format!("targets={}/*", inside.name);
    let flowend = Flowend::command(&["run", "--output=json", "--set", &target]);
    let script = format!(
        "ulimit -n {}; for ((i = 0; i < {DESCRIPTORS}; i++)); do exec {{fd}}</dev/null; done; exec \"$@\"",
        DESCRIPTORS + 1000
    );
    let mut command = Command::new("bash");
    command.args(["-euc", &script, "bash"]).arg(flowend.get_program()).args(flowend.get_args());
    for (name, value) in flowend.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Flowend::spawn(command)
}

/// The links of a process with cgroups, by id: those that the kernel has not let go of.
fn links(flowend: &Flowend) -> Vec<String> {
    let folder = format!("/proc/{}/fdinfo", flowend.pid());
    let texts = std::fs::read_dir(folder).unwrap().flatten().filter_map(|entry| {
        // Some are closed meanwhile.
        std::fs::read_to_string(entry.path()).ok()
    });
    let is_link = |text: &String| text.contains("link_type:\tcgroup");
    let id = |text: &String| {
        text.lines().find_map(|line| Some(line.strip_prefix("link_id:")?.trim().to_owned()))
    };
    texts.filter(is_link).filter_map(|text| id(&text)).collect()
}

/// Detaches the programs of this cgroup, and waits until a recheck has found that: then the next is minutes away.
fn have_it_recheck(flowend: &Flowend, cgroup: &Cgroup) {
    // At once: between two of them a recheck may come, after which nothing else is looked at for minutes, and which lets go
    // of what was not detached yet.
    let batch: String = links(flowend).iter().map(|id| format!("link detach id {id}\n")).collect();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, batch.as_bytes()).unwrap();
    super::support::run("bpftool", &["batch", "file", &file.path().to_string_lossy()]);
    let found = format!("cgroup {}: somebody detached flowend's programs", cgroup.name);
    flowend.wait_for_message(&found);
}

fn attached(flowend: &Flowend, cgroup: &Cgroup) -> usize {
    flowend.stderr().matches(&format!("cgroup {}: attached", cgroup.name)).count()
}

fn inside(outer: &Cgroup, name: &str) -> Cgroup {
    Cgroup::named(&format!("{}/{name}", outer.name.trim_start_matches('/')))
}

#[test]
fn an_attachment_that_failed_is_tried_again_soon() {
    if !can_run("an_attachment_that_failed_is_tried_again_soon", &["bash", "bpftool"]) {
        return;
    }
    let outer = Cgroup::new();
    let first = inside(&outer, "first");
    let flowend = unhurried(&outer);
    have_it_recheck(&flowend, &first);
    let in_the_way = Exclusive::attach(&outer);
    let second = inside(&outer, "second");
    flowend.wait_for_message("allows no other");
    assert_eq!(attached(&flowend, &second), 0, "{}", flowend.stderr());
    drop(in_the_way);
    wait_until(|| attached(&flowend, &second) == 1, || flowend.stderr());
}

#[test]
fn the_links_of_a_cgroup_that_is_gone_are_let_go_soon() {
    if !can_run("the_links_of_a_cgroup_that_is_gone_are_let_go_soon", &["bash", "bpftool"]) {
        return;
    }
    let outer = Cgroup::new();
    let (first, second) = (inside(&outer, "first"), inside(&outer, "second"));
    let flowend = unhurried(&outer);
    have_it_recheck(&flowend, &first);
    wait_until(|| attached(&flowend, &second) == 2, || flowend.stderr());
    let links_of_two = links(&flowend).len();
    // A socket that outlives its cgroup: its FIN waits behind data.
    let (mut puppet, mut outside) = (Puppet::in_cgroup(&second), Puppet::outside());
    let listener = outside.listen("127.0.0.1:0");
    let client = puppet.connect(listener.local);
    let server = outside.accept(listener);
    puppet.tell(&format!("fill {}", client.id));
    drop(puppet);
    drop(second);
    flowend.wait_for_message("gone; no longer attached");
    assert_eq!(links(&flowend).len(), links_of_two, "its end is still to be seen");
    outside.drain(server);
    outside.close(server);
    wait_until(
        || links(&flowend).len() == links_of_two / 2,
        || format!("{} of {links_of_two} links; {}", links(&flowend).len(), flowend.stderr()),
    );
    assert_eq!(flowend.json().len(), 1, "{}", flowend.stderr());
}
