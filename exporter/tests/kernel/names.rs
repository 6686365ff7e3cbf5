//! Names from a real DNS server, asked by a real resolver.

use std::process::{Command, Stdio};

use serde_json::json;

use super::support::{Cgroup, Flowend, Killed, Netns, Puppet, can_run, step, wait_until};

/// Debian's dnsmasq on port 53 of a namespace's loopback, IPv4 and IPv6.
fn server(netns: &Netns) -> Killed {
    let child = Command::new("nsenter")
        .arg(format!("--net={}", netns.file().display()))
        .args([
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
            "--pid-file=",
        ])
        .args(["--no-resolv", "--no-hosts", "--local-ttl=60", "--log-facility=-"])
        .args(["--host-record=end.cdn.test,127.0.0.5", "--cname=edge.test,end.cdn.test"])
        .args(["--cname=www.example.test,edge.test", "--host-record=six.test,::1"])
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Killed(child)
}

#[test]
fn a_connection_has_the_names_its_workload_looked_up() {
    let test = "a_connection_has_the_names_its_workload_looked_up";
    if !can_run(test, &["ip", "nsenter", "dnsmasq", "dig"]) {
        return;
    }
    let netns = Netns::new();
    let (asking, silent) = (Cgroup::new(), Cgroup::new());
    let target = format!("targets={},{}", asking.name, silent.name);
    let flowend = Flowend::run(&["--output=json", "--output=text", "--set", &target]);
    let puppet = |cgroup: &Cgroup| {
        Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()])
    };
    let (mut asker, mut other) = (puppet(&asking), puppet(&silent));
    let mut far = Puppet::start(&["--netns".as_ref(), &netns.file()]);
    let _server = server(&netns);
    let v4 = "run dig +short +tries=1 +time=1 @127.0.0.1 www.example.test A";
    wait_until(|| far.ask(v4).is_ok(), || "dnsmasq does not answer".into());

    assert!(asker.tell(v4).ends_with("127.0.0.5"));
    assert_eq!(asker.tell("run dig +short +tries=1 +time=1 @::1 six.test AAAA"), "::1");
    let mut expected = Vec::new();
    for (host, names) in [
        ("127.0.0.5:0", json!(["www.example.test", "edge.test", "end.cdn.test"])),
        ("[::1]:0", json!(["six.test"])),
    ] {
        let listener = far.listen(host);
        for (puppet, names) in [(&mut asker, Some(names)), (&mut other, None)] {
            let client = puppet.connect(listener.local);
            let accepted = far.accept(listener);
            step();
            far.close(accepted);
            step();
            puppet.close(client);
            expected.push((client.local.port(), listener.local, names));
        }
    }
    // Text and JSON lines share stdout.
    let json = || -> Vec<serde_json::Value> {
        let text = flowend.stdout();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    wait_until(|| json().len() >= expected.len(), || flowend.stderr());
    for (port, server, names) in expected {
        let records = json();
        let record =
            records.iter().find(|r| r["attributes"]["network.local.port"] == port).unwrap();
        let a = &record["attributes"];
        // The server ended it: it is the source.
        assert_eq!(a["source.address"], server.ip().to_string(), "always the address");
        match names {
            Some(names) => {
                assert_eq!(a["flowend.source.domains"], names, "{record}");
                assert_eq!(a["server.address"], names[0], "{record}");
                let shown =
                    format!("{}({}):{}", names[0].as_str().unwrap(), server.ip(), server.port());
                wait_until(|| flowend.stdout().contains(&shown), || flowend.stdout());
            }
            None => {
                assert_eq!(a.get("flowend.source.domains"), None, "another workload's: {record}");
                assert_eq!(a["server.address"], server.ip().to_string(), "{record}");
            }
        }
    }
    let (_, messages) = flowend.stop();
    assert!(
        messages.contains("dns: queries 2; answers: 2 named addresses, 0 without"),
        "{messages}"
    );
}

#[test]
fn switched_off_no_message_is_copied() {
    if !can_run("switched_off_no_message_is_copied", &["ip", "nsenter", "dnsmasq", "dig"]) {
        return;
    }
    let netns = Netns::new();
    let cgroup = Cgroup::new();
    let target = format!("targets={}", cgroup.name);
    let flowend = Flowend::run(&["--output=json", "--set", &target, "--set=dns.enabled=false"]);
    let mut puppet =
        Puppet::start(&["--cgroup".as_ref(), &cgroup.folder, "--netns".as_ref(), &netns.file()]);
    let _server = server(&netns);
    let ask = "run dig +short +tries=1 +time=1 @127.0.0.1 end.cdn.test A";
    wait_until(|| puppet.ask(ask).is_ok(), || "dnsmasq does not answer".into());
    let (_, messages) = flowend.stop();
    assert!(messages.contains("dns: queries 0; answers: 0 named addresses"), "{messages}");
}
