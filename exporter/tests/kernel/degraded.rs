//! flowend without one of its programs: because the configuration says so, and because somebody else's program
//! takes no other beside it. What is told is true, and what is missing is what docs/kernels.md says.

use std::collections::BTreeMap;

use aya::programs::SockOps;
use flowend::probe::{Optional, Probe};

use super::connections::Role::{Client, Server};
use super::json::{Line, lines, of, wait_for_each};
use super::support::{Cgroup, Flowend, Puppet, can_run, load_options, run, step, wait_until};
use super::telemetry::{port, scrape, sum};
use super::ways::{Conn, Pair, Seen, WAYS, Way, sockets};

/// What nothing but sockops counts.
const OF_SOCKOPS: [&str; 4] = [
    "flowend.segments.sent",
    "flowend.segments.received",
    "flowend.retransmits",
    "flowend.rtt.handshake_us",
];

fn start(cgroup: &Cgroup, settings: &[&str]) -> Flowend {
    let target = format!("targets={}", cgroup.name);
    let mut args = vec!["--output=json", "--set", &target, "--set=telemetry.listen=127.0.0.1:0"];
    for setting in settings {
        args.extend(["--set", *setting]);
    }
    Flowend::run(&args)
}

fn pair(cgroup: &Cgroup, host: &str) -> Pair {
    Pair::new(Puppet::in_cgroup(cgroup), Puppet::in_cgroup(cgroup), host)
}

/// A connection of each way to end, which has ended.
fn make_all(pair: &mut Pair) -> Vec<Conn> {
    let end = |way| {
        let mut conn = pair.open(way);
        pair.half_close(&conn);
        pair.end(&mut conn);
        conn
    };
    WAYS.into_iter().map(end).collect()
}

/// The one end of each socket, once it is there.
fn ends(flowend: &Flowend, conns: &[Conn]) -> Vec<[Line; 2]> {
    wait_for_each(flowend, "end", &sockets(conns));
    let lines = lines(flowend);
    let end = |conn: &Conn, role| {
        let ends = of(&lines, "end", conn.addresses(role));
        assert_eq!(ends.len(), 1, "{role:?} of {conn:?}: {ends:?}");
        ends[0].clone()
    };
    conns.iter().map(|conn| [end(conn, Client), end(conn, Server)]).collect()
}

/// That the one cgroup has a program in this state, and all the other programs in `others`.
fn assert_state(flowend: &Flowend, program: Optional, state: &str, others: &str) {
    let port = port(flowend);
    let is_so = |metrics: &BTreeMap<String, u64>, optional: Optional| {
        let count = |labels: &str| sum(metrics, "flowend_probe_cgroups", labels);
        let want = if optional == program { state } else { others };
        let label = format!(r#"program="{}""#, optional.as_str());
        let in_state = || count(&format!(r#"{label},state="{want}""#)) == 1;
        // Not every machine has tracefs mounted.
        count(&label) == 1 && ((optional == Optional::Errors && optional != program) || in_state())
    };
    // It is told a moment after it is said.
    wait_until(
        || {
            let metrics = scrape(port);
            Optional::ALL.into_iter().all(|optional| is_so(&metrics, optional))
        },
        || format!("{program:?} is not {state}, or others not {others}: {:?}", scrape(port)),
    );
}

/// Ends without sockops: all is true, both are in one trace, and only what sockops counts is absent.
fn assert_true_without_sockops(conns: &[Conn], ends: &[[Line; 2]]) {
    for (conn, [client, server]) in conns.iter().zip(ends) {
        for (role, end) in [(Client, client), (Server, server)] {
            let mut problems = conn.problems(role, end, Seen::Whole);
            // Who resets, or closes before the other, may not have all bytes.
            problems.retain(|words| !words.contains("flowend.bytes.") || !words.contains(" None"));
            assert!(problems.is_empty(), "{problems:?}");
            assert!(end.start_known(), "{end:?}");
            for key in OF_SOCKOPS {
                assert_eq!(end.int(key), None, "{key}: {end:?}");
            }
        }
        assert_eq!(client.0["trace_id"], server.0["trace_id"], "{client:?} {server:?}");
    }
}

#[test]
fn without_sockops_each_end_is_told_once_and_true() {
    if !can_run("without_sockops_each_end_is_told_once_and_true", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    // A handshake that stays silent for a second has failed; these only seem to be silent.
    let settings =
        [r#"probe.without=["sockops"]"#, "flows.handshake_timeout=1s", "flows.look_interval=1h"];
    let flowend = start(&cgroup, &settings);
    let mut all = Vec::new();
    let mut pairs = ["127.0.0.1:0", "[::1]:0"].map(|host| pair(&cgroup, host));
    for pair in &mut pairs {
        let mut conns = make_all(pair);
        // The server takes its time: its FIN meets no socket any more, only a look tells of the client's end.
        let conn = pair.open(Way::Closed(Client));
        pair.client.close(conn.c);
        assert_eq!(pair.server.drain(conn.s), 0);
        step();
        pair.server.close(conn.s);
        conns.push(conn);
        assert_true_without_sockops(&conns, &ends(&flowend, &conns));
        all.extend(conns);
    }
    // Refused: nothing but the SYN and the RST.
    let listener = pairs[0].server.listen("127.0.0.1:0");
    pairs[0].server.close(listener);
    let error = pairs[0].client.ask(&format!("connect {}", listener.local));
    assert!(error.is_err(), "{error:?}");
    let is_refused = |line: &&Line| line.text("flowend.end.reason") == Some("refused");
    wait_until(|| lines(&flowend).iter().any(|l| is_refused(&l)), || flowend.stderr());

    assert_state(&flowend, Optional::Sockops, "off", "attached");
    let lines = lines(&flowend);
    assert_eq!(lines.len(), 2 * all.len() + 1, "{lines:?}");
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert_eq!(messages.matches("sockops switched off (probe.without)").count(), 1, "{messages}");
}

#[test]
fn without_connect_or_bind_only_its_processes_are_missing() {
    if !can_run("without_connect_or_bind_only_its_processes_are_missing", &[]) {
        return;
    }
    for (optional, lacks) in [(Optional::Connect, Client), (Optional::Bind, Server)] {
        let cgroup = Cgroup::new();
        let flowend = start(&cgroup, &[&format!(r#"probe.without=["{}"]"#, optional.as_str())]);
        let mut pair = pair(&cgroup, "127.0.0.1:0");
        let mut conns = vec![pair.open(Way::Closed(Client)), pair.open(Way::Reset(Server))];
        conns.iter_mut().for_each(|conn| pair.end(conn));
        for (conn, both) in conns.iter().zip(ends(&flowend, &conns)) {
            for (role, end) in [Client, Server].into_iter().zip(&both) {
                let problems = conn.problems(role, end, Seen::Whole);
                let lacking = problems.iter().filter(|words| words.contains("process.pid None"));
                assert_eq!(lacking.count(), usize::from(role == lacks), "{problems:?}");
                assert_eq!(problems.len(), usize::from(role == lacks), "{problems:?}");
                assert!(end.int("flowend.segments.sent").is_some(), "{end:?}");
            }
        }
        assert_state(&flowend, optional, "off", "attached");
        assert_eq!(flowend.stop().0, Some(0));
    }
}

#[test]
fn what_is_switched_off_is_said_by_run_and_by_check() {
    if !can_run("what_is_switched_off_is_said_by_run_and_by_check", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let names: Vec<_> = Optional::ALL.iter().map(|o| format!("\"{}\"", o.as_str())).collect();
    let without = format!("probe.without=[{}]", names.join(", "));
    let flowend = start(&cgroup, &[&without]);
    assert_state(&flowend, Optional::Errors, "off", "off");
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let check = Flowend::command(&["check", "--set", &without]).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success(), "{said}");
    for optional in Optional::ALL {
        assert_eq!(messages.matches(optional.without()).count(), 1, "{optional:?}: {messages}");
        assert_eq!(said.matches(optional.without()).count(), 1, "{optional:?}: {said}");
    }
    assert!(!messages.contains("WARN"), "as it was asked for: {messages}");

    let wrong = Flowend::command(&["check", "--set", r#"probe.without=["skb"]"#]).output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(
        said.contains(r#"probe.without"#) && said.contains(r#""skb" is none of "sockops""#),
        "{said}"
    );
}

/// A sockops program attached in the old way, which takes no other beside it; as long as it lives.
struct Exclusive<'a> {
    cgroup: &'a Cgroup,
    id: String,
    _probe: Probe,
}

impl<'a> Exclusive<'a> {
    fn new(cgroup: &'a Cgroup) -> Self {
        let mut probe = Probe::load(load_options(false)).expect("programs");
        let program: &mut SockOps =
            probe.ebpf_mut().program_mut("flowend_sockops").unwrap().try_into().unwrap();
        let id = program.info().unwrap().id().to_string();
        let exclusive = Self { cgroup, id, _probe: probe };
        exclusive.bpftool("attach");
        exclusive
    }

    fn bpftool(&self, what: &str) {
        let folder = self.cgroup.folder.to_str().expect("a path");
        run("bpftool", &["cgroup", what, folder, "sock_ops", "id", &self.id]);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        self.bpftool("detach");
    }
}

#[test]
fn where_somebody_elses_sockops_takes_no_other_flowend_runs_without_it_until_it_is_gone() {
    if !can_run("where_somebody_elses_sockops_takes_no_other", &["bpftool"]) {
        return;
    }
    let cgroup = Cgroup::new();
    let exclusive = Exclusive::new(&cgroup);
    let target = format!("targets={}", cgroup.name);
    let check = Flowend::command(&["check", "--set", &target]).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success(), "{said}");
    let refused =
        format!("cgroup {}: the kernel refused to attach flowend_sockops (EPERM)", cgroup.name);
    let costs = format!("flowend runs without it there: {}", Optional::Sockops.without());
    assert_eq!(said.matches(&refused).count(), 1, "{said}");
    assert_eq!(said.matches(&costs).count(), 1, "{said}");

    let flowend = start(&cgroup, &[]);
    assert_state(&flowend, Optional::Sockops, "refused", "attached");
    let mut pair = pair(&cgroup, "127.0.0.1:0");
    let conns = make_all(&mut pair);
    assert_true_without_sockops(&conns, &ends(&flowend, &conns));

    // It comes back by itself.
    drop(exclusive);
    flowend.wait_for_message("flowend_sockops is attached, too, now");
    assert_state(&flowend, Optional::Sockops, "attached", "attached");
    let conns = make_all(&mut pair);
    for (conn, both) in conns.iter().zip(ends(&flowend, &conns)) {
        for (role, end) in [Client, Server].into_iter().zip(&both) {
            assert_eq!(conn.problems(role, end, Seen::Whole), [""; 0]);
            assert!(end.int("flowend.segments.sent").is_some(), "{end:?}");
        }
    }
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    assert_eq!(messages.matches(&refused).count(), 1, "once, not at each look: {messages}");
    assert_eq!(messages.matches(&costs).count(), 1, "{messages}");
}
