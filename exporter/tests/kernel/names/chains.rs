//! From the name asked for to the address: what each resolver got is what the connections are told with,
//! in the right order, on every output.

use flowend::demo::Receiver;
use opentelemetry_proto::tonic::common::v1::any_value::Value;

use super::super::connections::of_socket;
use super::super::support::{Attributes, Cgroup, Flowend, Puppet, can_run, flat, text, wait_until};
use super::clients::Library;
use super::server::{MANY, NEAR, many, near};
use super::{Site, TOOLS, counted, names, record, watch};

/// `www` and what it is an alias for.
const CHAIN: [&str; 6] = [
    "www.names.test",
    "a.names.test",
    "b.names.test",
    "c.names.test",
    "d.names.test",
    "e.names.test",
];

fn strings(attributes: &Attributes, key: &str) -> Vec<String> {
    let Some(Value::ArrayValue(array)) = attributes.get(key) else {
        panic!("{key} is no array: {attributes:?}")
    };
    let string = |v: &Option<Value>| match v {
        Some(Value::StringValue(s)) => s.clone(),
        other => panic!("{key}: {other:?}"),
    };
    array.values.iter().map(|v| string(&v.value)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_five_aliases_is_told_whole_in_text_json_and_otlp() {
    let test = "a_chain_of_five_aliases_is_told_whole_in_text_json_and_otlp";
    if !can_run(test, &[TOOLS, &["cc"]].concat()) {
        return;
    }
    let receiver = Receiver::start().await.unwrap();
    tokio::task::block_in_place(|| {
        let mut site = Site::new();
        let cgroup = Cgroup::new();
        let flowend = Flowend::run(&[
            "--output=text",
            "--output=json",
            "--output=otlp",
            &format!("--set=targets={}", cgroup.name),
            &format!("--set=otlp.endpoint={}", receiver.endpoint()),
            "--set=export.interval=10ms",
        ]);
        let mut puppet = site.puppet_asking(&cgroup, &["127.0.0.1"]);
        let found = puppet.tell(&run(Library::Glibc, CHAIN[0]));
        assert_eq!(sorted(&found), ["127.0.1.1", "127.0.1.2", "fd77:53::1:1"]);
        for ip in sorted(&found) {
            let visit = site.visit(&mut puppet, ip);
            assert_eq!(names(&flowend, &visit), CHAIN, "{ip}");
            let (local, peer) = visit.addresses();
            let shown = format!("{}({ip}):{}", CHAIN[0], peer.port());
            wait_until(|| flowend.stdout().contains(&shown), || flowend.stdout());
            wait_until(
                || {
                    let (logs, spans) = of_socket(&receiver.received(), local, peer);
                    logs.len() == 1 && spans.len() == 1
                },
                || format!("no log record and span of {local}: {}", flowend.stderr()),
            );
            let (logs, spans) = of_socket(&receiver.received(), local, peer);
            for item in [&logs[0].item.attributes, &spans[0].item.attributes] {
                let a = flat(item);
                assert_eq!(strings(&a, "flowend.source.domains"), CHAIN);
                assert_eq!(text(&a, "source.address"), ip);
                assert_eq!(text(&a, "server.address"), CHAIN[0]);
            }
        }
        let (_, messages) = flowend.stop();
        // A and AAAA, each asked and answered.
        assert_eq!(counted(&messages, "dns messages", "seen"), 4, "{messages}");
        assert_eq!(counted(&messages, "dns messages", "learnt"), 2, "{messages}");
    });
}

/// A command to a puppet.
fn run(library: Library, name: &str) -> String {
    format!("run {} {name}", library.resolve().display())
}

fn sorted(answer: &str) -> Vec<&str> {
    let mut words: Vec<_> = answer.split(' ').collect();
    words.sort_unstable();
    words
}

/// Each with the servers it asks, and its command.
fn resolvers(over_tcp: bool) -> Vec<(&'static [&'static str], Vec<String>)> {
    let dig = |options: &str| {
        let one = |kind| format!("run dig +short {options} @127.0.0.1 NAME {kind}");
        vec![one("A"), one("AAAA")]
    };
    if over_tcp {
        return vec![(&["127.0.0.1"], dig("+tcp")), (&["::1"], dig("+tcp +keepopen"))];
    }
    vec![
        (&["127.0.0.1"], vec![run(Library::Glibc, "NAME")]),
        (&["::1"], vec![run(Library::Glibc, "NAME")]),
        (&["127.0.0.1", "127.0.0.2"], vec![run(Library::Musl, "NAME")]),
        // One socket of IPv6 for both, with the IPv4 server as a mapped address.
        (&["127.0.0.1", "::1"], vec![run(Library::Musl, "NAME")]),
        (&["127.0.0.1"], dig("")),
        (&["127.0.0.1"], dig("+noedns")),
        (&["127.0.0.1"], dig("+bufsize=4096")),
    ]
}

/// Each resolver in a cgroup of its own: it looks names up, and all their addresses are visited.
fn check_resolvers(over_tcp: bool) {
    let mut site = Site::new();
    let resolvers = resolvers(over_tcp);
    let cgroups: Vec<_> = resolvers.iter().map(|_| Cgroup::new()).collect();
    let flowend = watch(&cgroups.iter().collect::<Vec<_>>(), &[]);
    let cases: [(&[&str], &[&str]); 3] = [
        (&CHAIN, &["127.0.1.1", "127.0.1.2", "fd77:53::1:1"]),
        (
            &["multi.names.test"],
            &[
                "127.0.1.11",
                "127.0.1.12",
                "127.0.1.13",
                "fd77:53::1:11",
                "fd77:53::1:12",
                "fd77:53::1:13",
            ],
        ),
        (&["xn--bcher-kva.names.test"], &["127.0.4.2"]),
    ];
    let mut visits = Vec::new();
    for ((servers, commands), cgroup) in resolvers.iter().zip(&cgroups) {
        let mut puppet = site.puppet_asking(cgroup, servers);
        for (expected, ips) in cases {
            for command in commands {
                puppet.tell(&command.replace("NAME", expected[0]));
            }
            for ip in ips {
                visits.push((site.visit(&mut puppet, ip), commands, expected, ip));
            }
        }
        // Any name below a wildcard is one.
        puppet.tell(&commands[0].replace("NAME", "any.thing.wild.names.test"));
        let visit = site.visit(&mut puppet, "127.0.4.1");
        visits.push((visit, commands, &["any.thing.wild.names.test"], &"127.0.4.1"));
    }
    for (visit, commands, expected, ip) in &visits {
        assert_eq!(names(&flowend, visit), *expected, "{ip} by {commands:?}");
    }
    flowend.stop();
}

#[test]
fn every_resolver_gives_the_same_names() {
    let test = "every_resolver_gives_the_same_names";
    if can_run(test, &[TOOLS, &["cc", "musl-gcc"]].concat()) {
        check_resolvers(false);
    }
}

#[test]
fn answers_over_tcp_give_the_same_names() {
    if can_run("answers_over_tcp_give_the_same_names", TOOLS) {
        check_resolvers(true);
    }
}

/// Looks something up, visits addresses, and says what became of the messages.
fn look_up(command: &str, ips: &[&str], expected: &[&str]) -> String {
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &[]);
    let mut puppet = site.puppet_asking(&cgroup, &["127.0.0.1"]);
    puppet.tell(command);
    visit_all(&mut site, &mut puppet, &flowend, ips, expected);
    flowend.stop().1
}

fn visit_all(
    site: &mut Site,
    puppet: &mut Puppet,
    flowend: &Flowend,
    ips: &[&str],
    expected: &[&str],
) {
    let visits: Vec<_> = ips.iter().map(|ip| site.visit(puppet, ip)).collect();
    for (visit, ip) in visits.iter().zip(ips) {
        assert_eq!(names(flowend, visit), expected, "{ip}");
    }
}

#[test]
fn an_answer_of_edns_size_names_all_its_addresses() {
    if !can_run("an_answer_of_edns_size_names_all_its_addresses", TOOLS) {
        return;
    }
    let messages = look_up(
        "run dig +short +ignore +bufsize=4096 @127.0.0.1 near.names.test A",
        &[&near(0), &near(NEAR / 2), &near(NEAR - 1)],
        &["near.names.test"],
    );
    assert_eq!(counted(&messages, "dns messages", "learnt"), 1, "{messages}");
    let (first, last) = (many(0).0, many(MANY - 1).0);
    look_up(
        "run dig +short +ignore +bufsize=4096 @127.0.0.1 many.names.test A",
        &[&first, &last],
        &["many.names.test"],
    );
}

/// The server cuts its answer, and the resolver asks again over TCP.
#[test]
fn a_truncated_answer_names_nothing_and_the_one_over_tcp_does() {
    let test = "a_truncated_answer_names_nothing_and_the_one_over_tcp_does";
    if !can_run(test, &[TOOLS, &["cc"]].concat()) {
        return;
    }
    let (v4, v6) = (many(MANY - 1).0, many(MANY - 1).1);
    let cut = look_up(
        "run dig +short +ignore +bufsize=4096 @127.0.0.1 many.names.test AAAA",
        &[&v6],
        &[],
    );
    assert_eq!(counted(&cut, "dns messages", "truncated"), 1, "{cut}");
    assert_eq!(counted(&cut, "dns messages", "learnt"), 0, "{cut}");
    let dig = look_up(
        "run dig +short +bufsize=4096 @127.0.0.1 many.names.test AAAA",
        &[&many(0).1, &v6],
        &["many.names.test"],
    );
    assert_eq!(counted(&dig, "dns messages", "truncated"), 1, "{dig}");
    assert_eq!(counted(&dig, "dns messages", "learnt"), 1, "{dig}");
    // Without EDNS, 512 bytes: both families go over TCP, as often as the library likes.
    let glibc = look_up(&run(Library::Glibc, "many.names.test"), &[&v4, &v6], &["many.names.test"]);
    assert!(counted(&glibc, "dns messages", "truncated") >= 1, "{glibc}");
    assert!(counted(&glibc, "dns messages", "learnt") >= 2, "{glibc}");
    assert!(counted(&glibc, "dns segments", "taken") >= 4, "{glibc}");
}

#[test]
fn no_such_name_is_counted_and_names_nothing() {
    let test = "no_such_name_is_counted_and_names_nothing";
    if !can_run(test, &[TOOLS, &["cc"]].concat()) {
        return;
    }
    let mut site = Site::new();
    let cgroup = Cgroup::new();
    let flowend = watch(&[&cgroup], &[]);
    let mut puppet = site.puppet_asking(&cgroup, &["127.0.0.1"]);
    puppet.ask(&run(Library::Glibc, "nothing.names.test")).expect_err("no such name");
    // There is the name, but not of that type.
    assert_eq!(puppet.tell("run dig +short @127.0.0.1 ns.names.test AAAA"), "");
    visit_all(&mut site, &mut puppet, &flowend, &["127.0.2.1"], &[]);
    let (_, messages) = flowend.stop();
    // A host with a domain of its own is looked for below that, too.
    assert!(counted(&messages, "dns messages", "negative") >= 3, "{messages}");
    assert_eq!(counted(&messages, "dns messages", "learnt"), 0, "{messages}");
}

/// The name asked for comes first, then the host that the service is on.
#[test]
fn a_services_hosts_are_named_by_the_service() {
    if !can_run("a_services_hosts_are_named_by_the_service", TOOLS) {
        return;
    }
    look_up(
        "run dig @127.0.0.1 _http._tcp.names.test SRV",
        &["127.0.2.1", "fd77:53::2:1"],
        &["_http._tcp.names.test", "web.names.test"],
    );
    look_up(
        "run dig @127.0.0.1 svc.names.test HTTPS",
        &["127.0.2.2", "fd77:53::2:2"],
        &["svc.names.test", "front.names.test"],
    );
    look_up("run dig @127.0.0.1 hint.names.test HTTPS", &["127.0.2.3"], &["hint.names.test"]);
}

/// ESC, a newline and a quote in a name: escaped as RFC 4343, section 2.1, has it.
#[tokio::test(flavor = "multi_thread")]
async fn control_characters_in_a_name_reach_no_output() {
    if !can_run("control_characters_in_a_name_reach_no_output", TOOLS) {
        return;
    }
    let receiver = Receiver::start().await.unwrap();
    tokio::task::block_in_place(|| {
        let mut site = Site::new();
        let cgroup = Cgroup::new();
        let flowend = Flowend::run(&[
            "--output=text",
            "--output=json",
            "--output=otlp",
            &format!("--set=targets={}", cgroup.name),
            &format!("--set=otlp.endpoint={}", receiver.endpoint()),
            "--set=export.interval=10ms",
        ]);
        let mut puppet = site.puppet(&cgroup);
        for (asked, ip, name) in [
            (r"we\027ird.names.test", "127.0.3.1", r"we\027ird.names.test"),
            (r"new\010line.names.test", "127.0.3.2", r"new\010line.names.test"),
            (r"quo\034te.names.test", "127.0.3.3", r"quo\034te.names.test"),
        ] {
            assert_eq!(puppet.tell(&format!("run dig +short @127.0.0.1 {asked} A")), ip);
            let visit = site.visit(&mut puppet, ip);
            assert_eq!(names(&flowend, &visit), [name]);
            let body = record(&flowend, &visit)["body"].to_string();
            let (local, peer) = visit.addresses();
            wait_until(
                || !of_socket(&receiver.received(), local, peer).1.is_empty(),
                || flowend.stderr(),
            );
            let (_, spans) = of_socket(&receiver.received(), local, peer);
            let a = flat(&spans[0].item.attributes);
            assert_eq!(strings(&a, "flowend.source.domains"), [name]);
            assert!(!body.contains(char::is_control), "{body}");
            let shown = format!("{name}({ip}):{}", peer.port());
            wait_until(|| flowend.stdout().contains(&shown), || flowend.stdout());
        }
        // Each line ends in a newline, and no other control character is anywhere.
        let shown = flowend.stdout();
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
        let is_whole = |l: &str| l.contains("names.test") || l.starts_with("TIME");
        assert!(shown.lines().all(is_whole), "a line was broken: {shown:?}");
        flowend.stop();
    });
}
