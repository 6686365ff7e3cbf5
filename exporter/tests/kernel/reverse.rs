//! Reverse lookups by a flowend that asks a real DNS server.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::support::{Cgroup, Flowend, Killed, Netns, Puppet, can_run, parse, wait_until};

const TOOLS: &[&str] = &["ip", "nsenter", "unshare", "mount", "dnsmasq", "dig"];

/// The address that has a PTR record, and one that has none.
const NAMED: &str = "10.99.0.7";
const NAMELESS: &str = "10.99.0.8";

/// Debian's dnsmasq on port 53 of a namespace's loopback.
fn server(netns: &Netns) -> Killed {
    let child = Command::new("nsenter")
        .arg(format!("--net={}", netns.file().display()))
        .args(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root"])
        .args(["--pid-file=", "--no-resolv", "--no-hosts", "--log-facility=-"])
        .args(["--ptr-record=7.0.99.10.in-addr.arpa,db.rev.test", "--local=/10.in-addr.arpa/"])
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Killed(child)
}

/// flowend in a network namespace, with this text as its /etc/resolv.conf.
fn flowend_in(netns: &Netns, cgroup: &Cgroup, resolv_conf: &str) -> Flowend {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), resolv_conf).unwrap();
    let inner = Flowend::command(&[]);
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.file().display()));
    command.args(["unshare", "--mount", "--propagation", "private", "sh", "-ec"]);
    command.args([r#"mount --bind "$1" /etc/resolv.conf; shift; exec "$@""#, "sh"]);
    command.arg(file.path()).arg(inner.get_program());
    command.args(["run", "--output=json", "--set=dns.reverse.enabled=true"]);
    command.args(["--set", &format!("targets={}", cgroup.name)]);
    for (name, value) in inner.get_envs() {
        if value.is_none() {
            command.env_remove(name);
        }
    }
    // It has read the file when this returns.
    Flowend::spawn(command)
}

/// Connects to the address with a name from the one without, and back; the records of both sockets.
fn connect(flowend: &Flowend, puppet: &mut Puppet) -> [Value; 2] {
    let listener = puppet.listen(&format!("{NAMED}:0"));
    let connected = parse(&puppet.tell(&format!("connect {} from {NAMELESS}:0", listener.local)));
    let accepted = puppet.accept(listener);
    puppet.close(connected);
    puppet.close(accepted);
    puppet.close(listener);
    [connected, accepted].map(|socket| {
        let find = || {
            let is_it = |r: &Value| {
                let a = &r["attributes"];
                a["network.local.port"] == socket.local.port()
                    && Some(a["network.peer.port"].clone()) == socket.peer.map(|p| p.port().into())
            };
            flowend.json().into_iter().find(is_it)
        };
        wait_until(|| find().is_some(), || flowend.stderr());
        find().unwrap()
    })
}

fn namespace() -> (Netns, Cgroup, Puppet) {
    let (netns, cgroup) = (Netns::new(), Cgroup::new());
    for address in [NAMED, NAMELESS] {
        netns.ip(&["address", "add", address, "dev", "lo"]);
    }
    let puppet =
        Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()]);
    (netns, cgroup, puppet)
}

#[test]
fn a_ptr_name_is_told_and_is_no_domain() {
    if !can_run("a_ptr_name_is_told_and_is_no_domain", TOOLS) {
        return;
    }
    let (netns, cgroup, mut puppet) = namespace();
    let _server = server(&netns);
    let mut far = Puppet::start(&["--netns".as_ref(), &netns.file()]);
    let ready = "run dig +short +tries=1 +time=1 @127.0.0.1 -x 10.99.0.7";
    wait_until(|| far.ask(ready) == Ok("db.rev.test.".into()), || "dnsmasq does not answer".into());
    let flowend = flowend_in(&netns, &cgroup, "nameserver 127.0.0.1\n");

    // The first ones end before the answer is there.
    let mut records = connect(&flowend, &mut puppet);
    wait_until(
        || {
            records = connect(&flowend, &mut puppet);
            records.iter().all(|record| record.to_string().contains("rev.test"))
        },
        || flowend.stderr(),
    );
    // The client, which has no name, ended it: it is the source.
    for record in &records {
        let a = &record["attributes"];
        assert_eq!(a["source.address"], NAMELESS, "{record}");
        assert_eq!(a["flowend.destination.ptr"], "db.rev.test", "{record}");
        assert_eq!(a.get("flowend.source.ptr"), None, "{record}");
        assert_eq!(a["server.address"], NAMED, "a PTR name is not what was looked up: {record}");
    }
    for record in flowend.json() {
        assert!(!record.to_string().contains("domains"), "{record}");
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let counts = "; asked 2 = named 1 + negative 1 + failed 0 + timed_out 0 + in_flight 0";
    assert!(messages.contains(counts), "{messages}");
}

#[test]
fn without_a_dns_server_flowend_runs_and_says_so() {
    if !can_run("without_a_dns_server_flowend_runs_and_says_so", TOOLS) {
        return;
    }
    let (netns, cgroup, mut puppet) = namespace();
    let flowend = flowend_in(&netns, &cgroup, "# nobody\n");
    flowend.wait_for_message("/etc/resolv.conf: ");
    flowend.wait_for_message("there are no reverse lookups");
    for record in connect(&flowend, &mut puppet) {
        assert!(!record.to_string().contains(".ptr"), "{record}");
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert!(!messages.contains("reverse lookups: wanted"), "{messages}");
}
