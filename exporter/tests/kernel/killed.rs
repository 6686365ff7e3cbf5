//! SIGKILL, after which nobody tidies up: what flowend had in the kernel goes with it.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::{Cgroup, Flowend, can_run, wait_until};

/// A program, map or link of the kernel, as /proc/PID/fdinfo calls its id.
type Object = (&'static str, u32);

const KINDS: [&str; 3] = ["prog_id", "map_id", "link_id"];

/// What a process holds by descriptors.
fn held_by(pid: u32) -> BTreeSet<Object> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    // A descriptor may be closed in between.
    let texts = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
    let objects = |text: String| -> Vec<Object> {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        let known = |(name, value): (&str, &str)| {
            let kind = KINDS.into_iter().find(|kind| *kind == name)?;
            Some((kind, value.trim().parse().ok()?))
        };
        fields.filter_map(known).collect()
    };
    texts.flat_map(objects).collect()
}

/// What there is in the kernel, whoever keeps it: a process, a cgroup, or a pin.
fn in_the_kernel() -> BTreeSet<Object> {
    // Other tests' come and go meanwhile, and what is gone when it is looked at is an error.
    let programs = aya::programs::loaded_programs().flatten().map(|info| ("prog_id", info.id()));
    let maps = aya::maps::loaded_maps().flatten().map(|info| ("map_id", info.id()));
    let links = aya::programs::loaded_links().flatten().map(|info| ("link_id", info.id()));
    programs.chain(maps).chain(links).collect()
}

/// The kernel gives an id again only after all others, so one that is back is not another's.
#[test]
fn sigkill_leaves_no_program_no_map_and_no_link_behind() {
    if !can_run("sigkill_leaves_no_program_no_map_and_no_link_behind", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let flowend = Flowend::run(&["--set", &format!("targets={}", cgroup.name), "--output=json"]);
    let held = held_by(flowend.pid());
    for kind in KINDS {
        assert!(held.iter().any(|(held, _)| *held == kind), "no {kind}: {held:?}");
    }
    let missing: Vec<_> = held.difference(&in_the_kernel()).copied().collect();
    assert!(missing.is_empty(), "of {held:?}, these are not found: {missing:?}");

    kill(Pid::from_raw(flowend.pid().cast_signed()), Signal::SIGKILL).unwrap();
    drop(flowend);
    let left = || held.intersection(&in_the_kernel()).copied().collect::<Vec<_>>();
    wait_until(|| left().is_empty(), || format!("left behind: {:?}", left()));
}
