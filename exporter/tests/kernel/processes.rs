//! Whose sockets those are that were made before flowend came: found by who holds them (/proc/PID/fd).

use super::connections::Role::{self, Client, Server};
use super::json::{Line, lines, of, wait_for_each};
use super::support::{Cgroup, Flowend, Netns, Puppet, can_run};
use super::ways::{Conn, Pair, Way, sockets};

/// Connections that are older than flowend, and then some between the older listener and an older process.
/// All end while flowend runs; its records, and the connections.
fn records(process_enabled: bool) -> (Vec<Line>, Vec<Conn>) {
    let (netns, clients, servers) = (Netns::new(), Cgroup::new(), Cgroup::new());
    let puppet = |cgroup: &Cgroup| {
        Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()])
    };
    let mut far = Pair::new(puppet(&clients), puppet(&servers), "127.0.0.1:0");
    // In flowend's own network namespace, over IPv6.
    let (client, server) = (Puppet::in_cgroup(&clients), Puppet::in_cgroup(&servers));
    let mut near = Pair::new(client, server, "[::1]:0");
    let mut conns = Vec::new();
    for pair in [&mut far, &mut near] {
        conns.push(pair.open(Way::Closed(Client)));
        conns.push(pair.open(Way::Reset(Server)));
    }

    let flowend = Flowend::run(&[
        "--output=json",
        "--set",
        &format!("targets=[\"{}\", \"{}\"]", clients.name, servers.name),
        "--set",
        r#"events=["end", "progress"]"#,
        "--set=progress.interval=1s",
        "--set",
        &format!("process.enabled={process_enabled}"),
    ]);
    // Their progress says that flowend has looked at the sockets there are.
    wait_for_each(&flowend, "progress", &sockets(&conns));
    conns.push(far.open(Way::Closed(Server)));
    conns.push(near.open(Way::Closed(Server)));
    for (n, conn) in conns.iter_mut().enumerate() {
        let is_near = matches!(n, 2 | 3 | 5);
        if is_near { &mut near } else { &mut far }.end(conn);
    }
    wait_for_each(&flowend, "end", &sockets(&conns));
    let lines = lines(&flowend);
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    (lines, conns)
}

/// Each record of each end, and how many ends there are.
fn for_each(lines: &[Line], conns: &[Conn], mut check: impl FnMut(usize, &Conn, Role, &Line)) {
    for (n, conn) in conns.iter().enumerate() {
        for role in [Client, Server] {
            assert_eq!(of(lines, "end", conn.addresses(role)).len(), 1, "{role:?} of {conn:?}");
            for kind in ["end", "progress"] {
                for line in of(lines, kind, conn.addresses(role)) {
                    check(n, conn, role, line);
                }
            }
        }
    }
}

#[test]
fn sockets_older_than_flowend_have_their_process() {
    if !can_run("sockets_older_than_flowend_have_their_process", &["ip"]) {
        return;
    }
    let (lines, conns) = records(true);
    for_each(&lines, &conns, |n, conn, role, line| {
        assert_eq!(line.start_known(), n >= 4, "connection {n}: {line:?}");
        assert_eq!(line.int("process.pid"), Some(conn.pid(role).into()), "{role:?}: {line:?}");
        assert_eq!(line.text("process.executable.name"), Some("puppet"), "{role:?}: {line:?}");
    });
}

#[test]
fn with_process_enabled_false_no_record_has_a_process() {
    if !can_run("with_process_enabled_false_no_record_has_a_process", &["ip"]) {
        return;
    }
    let (lines, conns) = records(false);
    for_each(&lines, &conns, |n, _, role, line| {
        assert_eq!(line.start_known(), n >= 4, "connection {n}: {line:?}");
        assert_eq!(line.int("process.pid"), None, "{role:?}: {line:?}");
        assert_eq!(line.text("process.executable.name"), None, "{role:?}: {line:?}");
    });
}
