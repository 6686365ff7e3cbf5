//! Targets that come, go and overlap.

use super::connections::{Role, make};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};

fn name(prefix: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("flowend-{prefix}-{}-{n}", std::process::id())
}

/// Makes one connection in the cgroup and waits for its two records; returns how many there are.
fn connection_in(cgroup: &Cgroup, flowend: &Flowend) -> usize {
    let before = flowend.json().len();
    let mut puppet = Puppet::in_cgroup(cgroup);
    let mut other = Puppet::in_cgroup(cgroup);
    make(&mut puppet, &mut other, "127.0.0.1:0", Role::Client, false);
    wait_until(
        || flowend.json().len() >= before + 2,
        || format!("{} records; {}", flowend.json().len() - before, flowend.stderr()),
    );
    // Longer than the verdict takes: a second record of one socket would be here by then.
    std::thread::sleep(std::time::Duration::from_millis(200));
    flowend.json().len() - before
}

#[test]
fn a_target_is_attached_when_it_appears_and_again_when_it_is_recreated() {
    if !can_run("a_target_is_attached_when_it_appears_and_again_when_it_is_recreated", &[]) {
        return;
    }
    let name = name("late");
    let flowend = Flowend::run(&["--output=json", "--set", &format!("targets={name}")]);
    flowend.wait_for_message(&format!("target {name}: no such cgroup"));
    for _ in 0..3 {
        let cgroup = Cgroup::named(&name);
        let attached = format!("cgroup /{name}: attached");
        wait_until(
            || {
                let messages = flowend.stderr();
                messages.matches(&attached).count()
                    > messages.matches("gone; no longer attached").count()
            },
            || flowend.stderr(),
        );
        assert_eq!(connection_in(&cgroup, &flowend), 2);
        drop(cgroup);
        let gone = flowend.stderr().matches(&attached).count();
        wait_until(
            || flowend.stderr().matches("gone; no longer attached").count() >= gone,
            || flowend.stderr(),
        );
    }
}

#[test]
fn overlapping_targets_give_one_record() {
    if !can_run("overlapping_targets_give_one_record", &[]) {
        return;
    }
    let name = name("overlap");
    let outer = Cgroup::named(&name);
    let inner = Cgroup::named(&format!("{name}/inner"));
    for targets in [
        format!("{name},{name}/inner"),
        format!("{name}/inner,{name}"),
        format!("{name}/**,{name}"),
        format!("flowend-overlap-*,{name}/*"),
    ] {
        let flowend = Flowend::run(&["--output=json", "--set", &format!("targets={targets}")]);
        assert_eq!(connection_in(&inner, &flowend), 2, "{targets}");
        assert_eq!(connection_in(&outer, &flowend), 2, "{targets}");
    }
    drop(inner);
}

/// The kernel keeps the programs of a removed cgroup going until its last socket is gone.
#[test]
fn a_connection_that_outlives_its_cgroup_is_still_reported() {
    if !can_run("a_connection_that_outlives_its_cgroup_is_still_reported", &[]) {
        return;
    }
    let name = name("orphan");
    let cgroup = Cgroup::named(&name);
    let flowend = Flowend::run(&["--output=json", "--set", &format!("targets={name}")]);
    let (mut inside, mut outside) = (Puppet::in_cgroup(&cgroup), Puppet::outside());
    let listener = outside.listen("127.0.0.1:0");
    let client = inside.connect(listener.local);
    let server = outside.accept(listener);
    // As much as the buffers hold: when the process is killed its FIN waits behind the data.
    inside.tell(&format!("fill {}", client.id));
    drop(inside);
    drop(cgroup);
    flowend.wait_for_message("gone; no longer attached");
    assert!(flowend.json().is_empty(), "the socket lives on: {:?}", flowend.json());
    outside.tell(&format!("drain {}", server.id));
    outside.close(server);
    wait_until(
        || flowend.json().len() == 1,
        || format!("{:?} {}", flowend.json(), flowend.stderr()),
    );
    let record = &flowend.json()[0];
    assert_eq!(record["attributes"]["flowend.end.reason"], "fin", "{record}");
    assert_eq!(record["attributes"]["flowend.end.by"], "local", "{record}");
    assert_eq!(record["resource"]["process.linux.cgroup"], format!("/{name}"), "{record}");
}
