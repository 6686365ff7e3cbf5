//! How long a name holds, and that a connection keeps the one it was opened by.
//!
//! The only tests that wait for time to pass: a TTL is the server's, and knows whole seconds.

use std::time::Duration;

use super::super::support::{Cgroup, Puppet, can_run, wait_until};
use super::{Site, TOOLS, Visit, domains, names, record, watch};

/// Longer than the TTL of `brief`.
const LAPSE: Duration = Duration::from_millis(1200);

const BRIEF: &str = "run dig +short @127.0.0.1 brief.names.test A";
const LATER: &str = "run dig +short @127.0.0.1 later.names.test A";
const ZERO: &str = "run dig +short @127.0.0.1 zero.names.test A";
/// The address of `brief` and of `later`.
const SHARED: &str = "127.0.5.1";

#[test]
fn a_connection_keeps_the_name_it_was_opened_by() {
    if !can_run("a_connection_keeps_the_name_it_was_opened_by", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &["dns.min_ttl=0s"]);
    let mut puppet = site.puppet(&cgroup);
    assert_eq!(puppet.tell(BRIEF), SHARED);
    let first = site.open(&mut puppet, SHARED.parse().unwrap());
    std::thread::sleep(LAPSE);
    let nameless = site.open(&mut puppet, SHARED.parse().unwrap());
    assert_eq!(puppet.tell(LATER), SHARED);
    let second = site.open(&mut puppet, SHARED.parse().unwrap());
    for visit in [&first, &nameless, &second] {
        site.end(&mut puppet, visit);
    }
    assert_eq!(names(&flowend, &first), ["brief.names.test"], "though it has lapsed");
    assert_eq!(names(&flowend, &nameless), [""; 0], "answered later than it was opened");
    assert_eq!(names(&flowend, &second), ["later.names.test"], "the other has lapsed");
    flowend.stop();
}

/// Here the server's own workload looks its client up, as one does that checks names against addresses.
#[test]
fn an_accepted_connection_keeps_its_clients_name() {
    if !can_run("an_accepted_connection_keeps_its_clients_name", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &["dns.min_ttl=0s"]);
    let mut server = site.puppet(&cgroup);
    let listener = server.listen("127.0.0.1:0");
    let open = |site: &mut Site, server: &mut Puppet| {
        let command = format!("connect {} from {SHARED}:0", listener.local);
        let client = super::super::support::parse(&site.far.tell(&command));
        (client, server.accept(listener))
    };
    assert_eq!(server.tell(BRIEF), SHARED);
    let first = open(&mut site, &mut server);
    std::thread::sleep(LAPSE);
    assert_eq!(server.tell(LATER), SHARED);
    let second = open(&mut site, &mut server);
    for ((client, accepted), expected) in
        [(first, ["brief.names.test"]), (second, ["later.names.test"])]
    {
        site.far.close(client);
        assert_eq!(server.drain(accepted), 0);
        server.close(accepted);
        // What is recorded is the accepted socket.
        let visit = Visit { client: accepted, accepted: client };
        let record = record(&flowend, &visit);
        assert_eq!(domains(&record, "source"), expected, "{record}");
        assert_eq!(record["attributes"]["client.address"], expected[0], "{record}");
    }
    flowend.stop();
}

#[test]
fn a_ttl_of_zero_holds_for_the_connection_it_was_asked_for() {
    if !can_run("a_ttl_of_zero_holds_for_the_connection_it_was_asked_for", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let clamped = watch(&[&cgroup], &[]);
    let literal = watch(&[&cgroup], &["dns.min_ttl=0s"]);
    let mut puppet = site.puppet(&cgroup);
    assert_eq!(puppet.tell(ZERO), "127.0.5.3");
    let visit = site.visit(&mut puppet, "127.0.5.3");
    assert_eq!(names(&clamped, &visit), ["zero.names.test"]);
    assert_eq!(names(&literal, &visit), [""; 0], "what the server said, to the letter");
    clamped.stop();
    literal.stop();
}

/// A begin, a progress and the end of one connection tell the same.
#[test]
fn all_records_of_a_connection_have_the_names_of_its_beginning() {
    if !can_run("all_records_of_a_connection_have_the_names_of_its_beginning", TOOLS) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let flowend = watch(
        &[&cgroup],
        &["dns.min_ttl=0s", r#"events=["begin","progress","end"]"#, "progress.interval=1s"],
    );
    let mut puppet = site.puppet(&cgroup);
    assert_eq!(puppet.tell(BRIEF), SHARED);
    let visit = site.open(&mut puppet, SHARED.parse().unwrap());
    let events = || {
        let json = flowend.json();
        json.iter().map(|r| r["event_name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_until(|| events().contains(&"flowend.tcp.progress".into()), || flowend.stderr());
    assert_eq!(puppet.tell(LATER), SHARED);
    site.end(&mut puppet, &visit);
    wait_until(|| events().contains(&"flowend.tcp.end".into()), || flowend.stderr());
    for record in flowend.json() {
        let kind = record["event_name"].as_str().unwrap();
        // Before the end nobody has terminated it: there is no source.
        let peer = if kind == "flowend.tcp.end" { "source" } else { "peer" };
        assert_eq!(domains(&record, peer), ["brief.names.test"], "{record}");
    }
    flowend.stop();
}
