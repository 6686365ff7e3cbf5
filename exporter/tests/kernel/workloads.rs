//! Connections that outlive the folder of their cgroup: their records still say whose they were.

use super::connections::Role::{Client, Server};
use super::json::{lines, of, wait_for_each};
use super::support::{Cgroup, Flowend, Puppet, can_run};
use super::ways::{Conn, Pair, Seen, WAYS, sockets};

const ID: &str = "5f1e0c7a9b3d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";

/// A container's cgroup.
fn container(parent: &Cgroup) -> Cgroup {
    let name = parent.name.trim_start_matches('/');
    Cgroup::named(&format!("{name}/docker-{ID}.scope"))
}

/// Connections of a container's processes, one of each way to end.
fn open(container: &Cgroup) -> (Pair, Vec<Conn>) {
    let (client, server) = (Puppet::in_cgroup(container), Puppet::in_cgroup(container));
    let mut pair = Pair::new(client, server, "127.0.0.1:0");
    let conns = WAYS.map(|way| pair.open(way));
    (pair, conns.to_vec())
}

/// Moves a container's processes to another cgroup, removes its folder, and ends their connections.
fn outlive(container: Cgroup, refuge: &Cgroup, mut pair: Pair, conns: &mut [Conn]) {
    for pid in [pair.client.pid(), pair.server.pid()] {
        std::fs::write(refuge.folder.join("cgroup.procs"), pid.to_string()).expect("move");
    }
    let folder = container.folder.clone();
    drop(container);
    assert!(!folder.exists(), "{}", folder.display());
    for conn in conns {
        pair.half_close(conn);
        pair.end(conn);
    }
}

/// `within`: the target is the container's cgroup, and not the one above it.
fn check(older: bool, within: bool) {
    let (parent, refuge) = (Cgroup::new(), Cgroup::new());
    let container = container(&parent);
    let path = container.name.clone();
    let before = older.then(|| open(&container));
    let target = if within { &path } else { &parent.name };
    let flowend = Flowend::run(&[
        "--output=json",
        "--set",
        &format!("targets={target}"),
        "--set",
        r#"events=["end", "progress"]"#,
        "--set=progress.interval=1s",
    ]);
    let (pair, mut conns) = before.unwrap_or_else(|| open(&container));
    let sockets = sockets(&conns);
    // Their progress says that flowend knows of them.
    wait_for_each(&flowend, "progress", &sockets);
    outlive(container, &refuge, pair, &mut conns);
    wait_for_each(&flowend, "end", &sockets);

    let lines = lines(&flowend);
    let seen = if older { Seen::End } else { Seen::Whole };
    for conn in &conns {
        for role in [Client, Server] {
            let ends = of(&lines, "end", conn.addresses(role));
            assert_eq!(ends.len(), 1, "{role:?} of {conn:?}");
            assert_eq!(conn.problems(role, ends[0], seen), [""; 0]);
            for (key, want) in [
                ("process.linux.cgroup", path.as_str()),
                ("service.name", &ID[..12]),
                ("container.id", ID),
                ("service.instance.id", ID),
            ] {
                assert_eq!(ends[0].resource(key), Some(want), "{key} {role:?}: {:?}", ends[0]);
            }
        }
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let ends = sockets.len();
    assert!(messages.contains(&format!("json: seen {ends} = exported {ends} +")), "{messages}");
}

#[test]
fn a_connection_outlives_the_folder_below_the_target() {
    if !can_run("a_connection_outlives_the_folder_below_the_target", &[]) {
        return;
    }
    check(false, false);
}

#[test]
fn a_connection_outlives_the_target_s_own_folder() {
    if !can_run("a_connection_outlives_the_target_s_own_folder", &[]) {
        return;
    }
    check(false, true);
}

#[test]
fn an_older_connection_outlives_the_folder() {
    if !can_run("an_older_connection_outlives_the_folder", &[]) {
        return;
    }
    check(true, false);
    check(true, true);
}
