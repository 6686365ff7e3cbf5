//! Real connections in a real cgroup, ended by each side in each way, at a real OTLP/gRPC receiver.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use flowend::demo::{Item, Received, Receiver};
use flowend::kernel::IPV6_SYN_ACKS;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::support::{
    Attributes, Cgroup, Flowend, PATIENCE, Puppet, can_run, flat, int, step, text,
};

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}
use Role::{Client, Server};

impl Role {
    /// The other end.
    pub(crate) const fn other(self) -> Self {
        match self {
            Client => Server,
            Server => Client,
        }
    }
}

/// One connection as the puppets made it.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) ended_by: Role,
    pub(crate) reset: bool,
    pub(crate) up: i64,
    pub(crate) down: i64,
}

/// Opens a connection, moves data, and ends it as told.
pub(crate) fn make(
    client: &mut Puppet,
    server: &mut Puppet,
    host: &str,
    ended_by: Role,
    reset: bool,
) -> Made {
    let listener = server.listen(host);
    let c = client.connect(listener.local);
    let s = server.accept(listener);
    client.send(c, 111);
    server.recv(s, 111);
    server.send(s, 3000);
    client.recv(c, 3000);
    step();
    let (first, first_socket, second, second_socket) = match ended_by {
        Client => (client, c, server, s),
        Server => (server, s, client, c),
    };
    if reset {
        first.reset(first_socket);
    } else {
        first.close(first_socket);
    }
    step();
    second.close(second_socket);
    Made { client: c.local, server: listener.local, ended_by, reset, up: 111, down: 3000 }
}

/// The log records and spans of one socket.
pub(crate) fn of_socket(
    received: &Received,
    local: SocketAddr,
    peer: SocketAddr,
) -> (Vec<Item<LogRecord>>, Vec<Item<Span>>) {
    let is_it = |a: &Attributes| {
        text(a, "network.local.address") == local.ip().to_string()
            && int(a, "network.local.port") == i64::from(local.port())
            && text(a, "network.peer.address") == peer.ip().to_string()
            && int(a, "network.peer.port") == i64::from(peer.port())
    };
    let logs = received.logs.iter().filter(|l| is_it(&flat(&l.item.attributes))).cloned().collect();
    let spans =
        received.spans.iter().filter(|s| is_it(&flat(&s.item.attributes))).cloned().collect();
    (logs, spans)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_ending_is_one_log_record_and_one_span_per_socket() {
    if !can_run("each_ending_is_one_log_record_and_one_span_per_socket", &[]) {
        return;
    }
    let cgroup = Cgroup::new();
    let receiver = Receiver::start().await.unwrap();
    let endpoint = format!("otlp.endpoint={}", receiver.endpoint());
    let target = format!("targets={}", cgroup.name);
    let flowend =
        Flowend::run(&["--set", &endpoint, "--set", &target, "--set", "export.interval=20ms"]);

    let (made, outside, pids) = tokio::task::block_in_place(|| {
        let (mut client, mut server) = (Puppet::in_cgroup(&cgroup), Puppet::in_cgroup(&cgroup));
        let (mut far_client, mut far_server) = (Puppet::outside(), Puppet::outside());
        let mut made = Vec::new();
        let mut outside = Vec::new();
        for host in ["127.0.0.1:0", "[::1]:0"] {
            for ended_by in [Client, Server] {
                for reset in [false, true] {
                    made.push(make(&mut client, &mut server, host, ended_by, reset));
                    outside.push(make(&mut far_client, &mut far_server, host, ended_by, reset));
                }
            }
        }
        (made, outside, (client.pid(), server.pid()))
    });
    receiver.wait_for(2 * made.len(), PATIENCE).await;
    let (status, messages) = flowend.stop();
    assert_eq!(status, Some(0), "{messages}");
    let received = receiver.received();

    assert_eq!((received.logs.len(), received.spans.len()), (2 * made.len(), 2 * made.len()));
    for m in &outside {
        assert!(of_socket(&received, m.client, m.server).0.is_empty(), "outside the target: {m:?}");
        assert!(of_socket(&received, m.server, m.client).0.is_empty(), "outside the target: {m:?}");
    }
    for m in &made {
        check(m, Client, pids.0, &cgroup, &received);
        check(m, Server, pids.1, &cgroup, &received);
    }
    for signal in ["otlp.logs", "otlp.traces"] {
        let line = format!(
            "{signal}: seen 16 = exported 16 + sampled_out 0 + filtered{{self}} 0 + in_flight 0"
        );
        assert!(messages.contains(&line), "{messages}");
    }
}

/// Every attribute of one socket's record, and that there is no other.
fn check(made: &Made, role: Role, pid: u32, cgroup: &Cgroup, received: &Received) {
    let (local, peer) = match role {
        Client => (made.client, made.server),
        Server => (made.server, made.client),
    };
    let (logs, spans) = of_socket(received, local, peer);
    let ([log], [span]) = (logs.as_slice(), spans.as_slice()) else {
        panic!("{role:?} of {made:?}: {} log records, {} spans", logs.len(), spans.len());
    };
    let a = flat(&log.item.attributes);
    assert_eq!(a, flat(&span.item.attributes), "log record and span say the same");

    let (source, destination) = match made.ended_by {
        Client => (made.client, made.server),
        Server => (made.server, made.client),
    };
    for (prefix, address) in [
        ("source", source),
        ("destination", destination),
        ("client", made.client),
        ("server", made.server),
        ("network.local", local),
        ("network.peer", peer),
    ] {
        assert_eq!(
            text(&a, &format!("{prefix}.address")),
            address.ip().to_string(),
            "{prefix} {made:?}"
        );
        assert_eq!(
            int(&a, &format!("{prefix}.port")),
            i64::from(address.port()),
            "{prefix} {made:?}"
        );
    }
    let by = if made.ended_by == role { "local" } else { "remote" };
    let direction = if role == Client { "outgoing" } else { "incoming" };
    let (sent, got) = if role == Client { (made.up, made.down) } else { (made.down, made.up) };
    let version = if made.client.is_ipv4() { "ipv4" } else { "ipv6" };
    assert_eq!(text(&a, "flowend.connection.direction"), direction);
    assert_eq!(text(&a, "network.transport"), "tcp");
    assert_eq!(text(&a, "network.type"), version);
    assert_eq!(text(&a, "flowend.end.by"), by, "{role:?} {made:?}");
    assert_eq!(
        text(&a, "flowend.end.reason"),
        if made.reset { "reset" } else { "fin" },
        "{role:?} {made:?}"
    );
    assert_eq!(int(&a, "flowend.bytes.sent"), sent, "{role:?} {made:?}");
    assert_eq!(int(&a, "flowend.bytes.received"), got, "{role:?} {made:?}");
    assert_eq!(int(&a, "flowend.retransmits"), 0);
    assert_eq!(a["flowend.start_known"], Value::BoolValue(true));
    assert_eq!(int(&a, "process.pid"), i64::from(pid));
    assert_eq!(text(&a, "process.executable.name"), "puppet");
    let state = match (made.reset, made.ended_by) {
        (false, _) => "SF",
        (true, Client) => "RSTO",
        (true, Server) => "RSTR",
    };
    assert_eq!(text(&a, "flowend.conn_state"), state);
    let history = text(&a, "flowend.history");
    assert!(history.starts_with("ShADad"), "{history}");
    let last = match (made.reset, made.ended_by) {
        // The second FIN is seen by the side that is not in TIME-WAIT yet.
        (false, Client) if role == Client => &["F", "Ff"][..],
        (false, Client) => &["Ff"],
        (false, Server) if role == Server => &["f", "fF"],
        (false, Server) => &["fF"],
        (true, Client) => &["R"],
        (true, Server) => &["r"],
    };
    assert!(last.contains(&&history["ShADad".len()..]), "{history} {role:?} {made:?}");

    let duration = int(&a, "flowend.duration_us");
    assert!((60_000..20_000_000).contains(&duration), "{duration}");
    // Of an accepted connection it is the time from the SYN-ACK.
    let no_syn_ack = role == Server && version == "ipv6" && !IPV6_SYN_ACKS.is_here();
    let handshake: &[_] = if no_syn_ack { &[] } else { &["flowend.rtt.handshake_us"] };
    for key in [handshake, &["flowend.rtt.smoothed_us", "flowend.rtt.min_us"]].concat() {
        assert!((1..1_000_000).contains(&int(&a, key)), "{key} {}", int(&a, key));
    }
    for key in ["flowend.segments.sent", "flowend.segments.received"] {
        assert!((1..20).contains(&int(&a, key)), "{key} {}", int(&a, key));
    }

    let mut keys: BTreeSet<&str> = a.keys().map(String::as_str).collect();
    let mut optional = vec!["flowend.half_close_us"];
    if made.reset {
        let reset_by = if made.ended_by == role { "local" } else { "remote" };
        assert_eq!(text(&a, "flowend.end.reset_by"), reset_by);
        assert_eq!(text(&a, "error.type"), "connection_reset");
        optional.extend(["flowend.end.reset_by", "error.type"]);
    } else if made.ended_by != role {
        let half_close = int(&a, "flowend.half_close_us");
        assert!((50_000..=duration).contains(&half_close), "{half_close}");
    }
    optional.iter().for_each(|key| {
        keys.remove(key);
    });
    let mut always = BTreeSet::from(ALWAYS);
    if no_syn_ack {
        always.remove("flowend.rtt.handshake_us");
    }
    assert_eq!(keys, always, "no attribute is missing and none is new");

    check_envelope(log, span, role, made, duration, cgroup, received);
}

/// The attributes of every connection that was seen to begin.
const ALWAYS: [&str; 31] = [
    "client.address",
    "client.port",
    "destination.address",
    "destination.port",
    "flowend.bytes.received",
    "flowend.bytes.sent",
    "flowend.conn_state",
    "flowend.connection.direction",
    "flowend.duration_us",
    "flowend.end.by",
    "flowend.end.reason",
    "flowend.history",
    "flowend.retransmits",
    "flowend.rtt.handshake_us",
    "flowend.rtt.min_us",
    "flowend.rtt.smoothed_us",
    "flowend.segments.received",
    "flowend.segments.sent",
    "flowend.start_known",
    "network.local.address",
    "network.local.port",
    "network.peer.address",
    "network.peer.port",
    "network.transport",
    "network.type",
    "process.executable.name",
    "process.pid",
    "server.address",
    "server.port",
    "source.address",
    "source.port",
];

/// Ids, times, severity, status, scope and resource.
fn check_envelope(
    log: &Item<LogRecord>,
    span: &Item<Span>,
    role: Role,
    made: &Made,
    duration_us: i64,
    cgroup: &Cgroup,
    received: &Received,
) {
    let (l, s) = (&log.item, &span.item);
    assert_eq!(l.event_name, "flowend.tcp.end");
    assert_eq!((l.trace_id.len(), l.span_id.len()), (16, 8));
    assert_eq!((&l.trace_id, &l.span_id), (&s.trace_id, &s.span_id));
    assert_eq!(s.name, "tcp connection");
    assert_eq!(l.time_unix_nano, s.end_time_unix_nano, "the record's time is the end");
    let span_us = (s.end_time_unix_nano - s.start_time_unix_nano) / 1000;
    assert_eq!(i64::try_from(span_us).unwrap(), duration_us);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let age = now - u128::from(s.end_time_unix_nano);
    assert!(age < 60_000_000_000, "the wall clock is right: {age} ns ago");
    let (severity, code) =
        if made.reset { ("WARN", StatusCode::Error) } else { ("INFO", StatusCode::Unset) };
    assert_eq!(l.severity_text, severity);
    assert_eq!(s.status.clone().unwrap_or_default().code(), code);
    let Some(Value::StringValue(body)) = l.body.clone().and_then(|b| b.value) else {
        panic!("no body")
    };
    assert!(body.starts_with("tcp connection ") && body.lines().count() == 1, "{body}");

    let (kind, parent) = match role {
        Client => (SpanKind::Client, vec![]),
        Server => {
            let (_, clients) = of_socket(received, made.client, made.server);
            assert_eq!(clients[0].item.trace_id, s.trace_id, "both ends in one trace");
            (SpanKind::Server, clients[0].item.span_id.clone())
        }
    };
    assert_eq!((s.kind(), &s.parent_span_id), (kind, &parent));

    for (resource, scope) in [(&log.resource, &log.scope), (&span.resource, &span.scope)] {
        let resource = flat(resource);
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        assert_eq!(text(&resource, "service.name"), "puppet");
        assert_eq!(text(&resource, "process.linux.cgroup"), cgroup.name);
        assert_eq!(text(&resource, "host.name"), host);
        assert_eq!(text(&resource, "service.instance.id"), format!("{host}:{}", cgroup.name));
        assert_eq!(resource.len(), 4, "{resource:?}");
        let scope = scope.clone().unwrap();
        assert_eq!(
            (scope.name.as_str(), scope.version.as_str()),
            ("flowend", env!("CARGO_PKG_VERSION"))
        );
    }
}
