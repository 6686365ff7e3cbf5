//! What `flowend check` says of this kernel is what it shows.

use std::path::Path;

use flowend::kernel::{FEATURES, IPV6_SYN_ACKS, release};

use super::connections::{Role, make};
use super::support::{Cgroup, Flowend, Puppet, can_run, wait_until};

/// What `flowend check` prints for a cgroup where all is well.
fn said(cgroup: &Cgroup) -> String {
    let output = Flowend::command(&["check", "--set", &format!("targets={}", cgroup.name)])
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout
}

/// The server's records of two connections, over IPv4 and IPv6.
fn accepted(cgroup: &Cgroup) -> Vec<serde_json::Value> {
    let target = format!("targets={}", cgroup.name);
    let flowend = Flowend::run(&["--output=json", "--set", &target]);
    let (mut client, mut server) = (Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup));
    let made = ["127.0.0.1:0", "[::1]:0"]
        .map(|host| make(&mut client, &mut server, host, Role::Client, false));
    wait_until(
        || flowend.json().len() >= 2 * made.len(),
        || format!("{:?} {}", flowend.json(), flowend.stderr()),
    );
    let records = flowend.json();
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let of =
        |port: u16| records.iter().find(|r| r["attributes"]["network.local.port"] == port).cloned();
    made.iter().map(|m| of(m.server.port()).expect("the server's record")).collect()
}

#[test]
fn check_says_what_this_kernel_lacks_and_nothing_else() {
    if !can_run("check_says_what_this_kernel_lacks_and_nothing_else", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let said = said(&cgroup);
    assert!(said.contains(&format!("ok    kernel: Linux {}\n", release())), "{said}");
    assert!(!said.contains("BAD"), "{said}");

    let accepted = accepted(&cgroup);
    let has_handshake =
        |n: usize| accepted[n]["attributes"].get("flowend.rtt.handshake_us").is_some();
    assert!(has_handshake(0), "{accepted:?}");
    // What it says of the newest feature is true, and the numbers say of the others in the same way.
    let lacks = |words: &str| said.contains(words);
    assert_eq!(lacks(IPV6_SYN_ACKS.without), !has_handshake(1), "{said} {accepted:?}");
    for feature in FEATURES {
        assert_eq!(lacks(feature.without), !feature.is_here(), "{feature:?}: {said}");
    }
    let tracepoint = Path::new("/sys/kernel/tracing/events/sock/inet_sk_error_report");
    assert_eq!(lacks("ok    error reports: can be attached"), tracepoint.is_dir(), "{said}");
}
