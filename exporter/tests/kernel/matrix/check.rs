//! Compares one record with what is true, and says all that is wrong.

use std::net::SocketAddr;

use flowend::demo::Received;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span as OtlpSpan;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::super::connections::Role;
use super::super::support::{Attributes, flat};
use super::case::Row;
use super::made::Made;
use super::wire_check;

/// The log record and the span of one end.
pub(super) struct Record {
    pub(super) a: Attributes,
    pub(super) log: LogRecord,
    pub(super) span: OtlpSpan,
}

/// Pairs log records and spans by their span id, in the order of their ends.
pub(super) fn records(received: &Received, wrong: &mut Vec<String>) -> Vec<Record> {
    let mut records = Vec::new();
    for log in &received.logs {
        let a = flat(&log.item.attributes);
        let mut spans = received.spans.iter().filter(|s| s.item.span_id == log.item.span_id);
        match (spans.next(), spans.next()) {
            (Some(span), None) => {
                records.push(Record { a, log: log.item.clone(), span: span.item.clone() });
            }
            (Some(_), Some(_)) => wrong.push(format!("several spans for one log record: {a:?}")),
            (None, _) => wrong.push(format!("no span for this log record: {a:?}")),
        }
    }
    if received.spans.len() != received.logs.len() {
        let (spans, logs) = (received.spans.len(), received.logs.len());
        wrong.push(format!("{spans} spans, and {logs} log records"));
    }
    records.sort_by_key(|record| record.log.time_unix_nano);
    records
}

impl Record {
    /// Whether it is of this socket.
    pub(super) fn is_of(&self, (local, peer): (SocketAddr, SocketAddr)) -> bool {
        let is = |side: &str, address: SocketAddr| {
            let ip = self.a.get(&format!("network.{side}.address"));
            let port = self.a.get(&format!("network.{side}.port"));
            ip == Some(&Value::StringValue(address.ip().to_string()))
                && port == Some(&Value::IntValue(address.port().into()))
        };
        is("local", local) && is("peer", peer)
    }
}

/// One end of one connection, and its record.
pub(super) struct Check<'a> {
    made: &'a Made,
    role: Role,
    row: &'a Row,
    record: &'a Record,
    wrong: Vec<String>,
}

/// Everything that is wrong with a record. `client` is the span of the other end, for a server's.
pub(super) fn check(
    made: &Made,
    role: Role,
    row: &Row,
    record: &Record,
    client: Option<&Record>,
) -> Vec<String> {
    let mut check = Check { made, role, row, record, wrong: Vec::new() };
    check.addresses();
    check.verdict();
    check.numbers();
    check.times();
    check.envelope();
    check.trace(client);
    check.wrong
}

impl Check<'_> {
    fn shown(&self, key: &str) -> String {
        match self.record.a.get(key) {
            None => "absent".into(),
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(n)) => n.to_string(),
            Some(Value::BoolValue(b)) => b.to_string(),
            Some(other) => format!("{other:?}"),
        }
    }

    fn int(&self, key: &str) -> Option<i64> {
        match self.record.a.get(key) {
            Some(Value::IntValue(n)) => Some(*n),
            _ => None,
        }
    }

    fn is(&mut self, key: &str, expected: &str) {
        let got = self.shown(key);
        if !expected.split(" or ").any(|one| one == got) {
            self.wrong.push(format!("{key} is {got}, not {expected}"));
        }
    }

    fn is_within(&mut self, key: &str, bounds: std::ops::RangeInclusive<u64>) {
        let got = self.int(key).and_then(|n| u64::try_from(n).ok());
        if !got.is_some_and(|n| bounds.contains(&n)) {
            let (from, to) = bounds.into_inner();
            self.wrong.push(format!("{key} is {}, not {from} to {to}", self.shown(key)));
        }
    }

    fn addresses(&mut self) {
        let (local, peer) = self.made.addresses(self.role);
        let (source, destination) = match self.shown("flowend.end.by").as_str() {
            "remote" => (peer, local),
            _ => (local, peer),
        };
        let mut expected = vec![("source", source), ("destination", destination)];
        if self.shown("flowend.connection.direction") == "unknown" {
            for key in ["client.address", "client.port", "server.address", "server.port"] {
                self.is(key, "absent");
            }
        } else {
            expected.extend([("client", self.made.client), ("server", self.made.server)]);
        }
        for (prefix, address) in expected {
            self.is(&format!("{prefix}.address"), &address.ip().to_string());
            self.is(&format!("{prefix}.port"), &address.port().to_string());
        }
        self.is("network.transport", "tcp");
        self.is("network.type", if local.is_ipv4() { "ipv4" } else { "ipv6" });
    }

    fn verdict(&mut self) {
        let row = *self.row;
        self.is("flowend.connection.direction", row.direction);
        self.is("flowend.start_known", if row.start_known { "true" } else { "false" });
        self.is("flowend.end.reason", row.reason);
        self.is("flowend.end.by", row.by);
        self.is("flowend.end.reset_by", row.reset_by.unwrap_or("absent"));
        self.is("flowend.conn_state", row.conn_state);
        self.is("error.type", error_type(&self.shown("flowend.end.reason")));
        if row.start_known {
            self.is("flowend.history", row.history);
            let pid = self.made.end(self.role).pid.to_string();
            self.is("process.pid", &pid);
            // It may be gone before its name was asked for.
            self.is("process.executable.name", "puppet or absent");
        } else {
            self.closing_history();
        }
    }

    /// Without a start there is no handshake in the history, and with an unknown direction the own socket is
    /// upper case.
    fn closing_history(&mut self) {
        let expected = self.row.history.trim_start_matches("ShADad");
        let is_swapped =
            self.role == Role::Server && self.shown("flowend.connection.direction") == "unknown";
        let swap = |c: char| match c {
            c if c.is_ascii_uppercase() => c.to_ascii_lowercase(),
            c => c.to_ascii_uppercase(),
        };
        let expected: String =
            if is_swapped { expected.chars().map(swap).collect() } else { expected.into() };
        let history = self.shown("flowend.history");
        let got = history.trim_start_matches(['A', 'D', 'a', 'd']);
        if got != expected {
            self.wrong
                .push(format!("flowend.history is {history}, and does not end in {expected}"));
        }
    }

    fn numbers(&mut self) {
        let row = *self.row;
        for (key, n) in [("flowend.bytes.sent", row.sent), ("flowend.bytes.received", row.received)]
        {
            let known = row.start_known && row.established;
            let expected = if known { n.to_string() } else { format!("{n} or absent") };
            self.is(key, &expected);
        }
        if row.established {
            self.rtts();
        }
        if row.direction == "incoming" && !row.established {
            // A listener's answer to a SYN has no counters.
            return;
        }
        match self.int("flowend.retransmits") {
            Some(0) if row.retransmits => self.is("flowend.retransmits", "more than 0"),
            None if row.start_known => self.is("flowend.retransmits", "there"),
            _ => {}
        }
        if let Some(wire) = &self.made.wire {
            let (sent, received, retransmits) = wire_check::bounds(wire, self.role);
            if row.start_known || self.int("flowend.segments.sent").is_some() {
                self.is_within("flowend.segments.sent", sent);
                self.is_within("flowend.segments.received", received);
                self.is_within("flowend.retransmits", retransmits);
            }
        }
        for (role, info) in self.made.infos.clone() {
            if role != self.role {
                continue;
            }
            self.is("flowend.rtt.smoothed_us", &info.rtt_us.to_string());
            // The ACK of the own FIN may have been the fastest of all.
            let min_rtt = u64::try_from(info.min_rtt_us).expect("a time");
            self.is_within("flowend.rtt.min_us", 1..=min_rtt);
            self.is("flowend.retransmits", &info.retransmits.to_string());
            // What the application was told, and at most the FINs and their ACKs.
            for (key, n) in [
                ("flowend.segments.sent", info.segments_sent),
                ("flowend.segments.received", info.segments_received),
            ] {
                let n = u64::try_from(n).expect("a count");
                self.is_within(key, n + 1..=n + 2);
            }
        }
    }

    fn rtts(&mut self) {
        const LONGEST_US: u64 = 1_000_000;
        if self.row.handshake_rtt {
            self.is_within("flowend.rtt.handshake_us", 1..=LONGEST_US);
        } else {
            self.is("flowend.rtt.handshake_us", "absent");
        }
        if self.row.start_known {
            self.is_within("flowend.rtt.smoothed_us", 1..=LONGEST_US);
            self.is_within("flowend.rtt.min_us", 1..=LONGEST_US);
        }
    }

    fn times(&mut self) {
        let end = *self.made.end(self.role);
        if self.row.start_known {
            let bounds = end.ended.since(self.made.began);
            self.is_within("flowend.duration_us", us(bounds));
        } else {
            self.is("flowend.duration_us", "absent");
        }
        match end.fins {
            Some((first, second)) if self.row.half_close => {
                self.is_within("flowend.half_close_us", us(second.since(first)));
            }
            None if !self.row.half_close => self.is("flowend.half_close_us", "absent"),
            fins => panic!("the case contradicts itself: {fins:?} and {:?}", self.row),
        }
        // When the socket went to CLOSE, on the wall clock. A millisecond for the clock's own drift.
        let offset = flowend::clock::boot_to_unix_ns();
        let at = self.record.span.end_time_unix_nano.saturating_sub(offset);
        let slack = 1_000_000;
        if !(end.ended.from.saturating_sub(slack)..=end.ended.to + slack).contains(&at) {
            let late = at.cast_signed() - end.ended.to.cast_signed();
            self.wrong.push(format!(
                "the end is told as {at} ns after boot, not {:?}: {} us after the last moment",
                end.ended,
                late / 1000
            ));
        }
    }

    fn envelope(&mut self) {
        let (log, span) = (&self.record.log, &self.record.span);
        let error = error_type(&self.shown("flowend.end.reason"));
        let (severity, status) = match error {
            "absent" => ("INFO", StatusCode::Unset),
            _ => ("WARN", StatusCode::Error),
        };
        let mut wrong = Vec::new();
        let mut equal = |what: &str, equal: bool| {
            if !equal {
                wrong.push(format!("{what} is wrong: {log:?} {span:?}"));
            }
        };
        equal("an attribute of log record or span", flat(&span.attributes) == self.record.a);
        equal("the event's name", log.event_name == "flowend.tcp.end");
        equal("the span's name", span.name == "tcp connection");
        equal("the trace id", log.trace_id == span.trace_id && log.trace_id.len() == 16);
        equal("the record's time", log.time_unix_nano == span.end_time_unix_nano);
        equal("the severity", log.severity_text == severity);
        equal("the span's status", span.status.clone().unwrap_or_default().code() == status);
        if let Some(us) = self.int("flowend.duration_us") {
            let ns = span.end_time_unix_nano - span.start_time_unix_nano;
            equal("the span's length", u64::try_from(us) == Ok(ns / 1000));
        }
        let kind = match self.shown("flowend.connection.direction").as_str() {
            "outgoing" => SpanKind::Client,
            "incoming" => SpanKind::Server,
            _ => SpanKind::Internal,
        };
        equal("the span's kind", span.kind() == kind);
        self.wrong.extend(wrong);
    }

    /// Both ends in one trace, the server's span below the client's.
    fn trace(&mut self, client: Option<&Record>) {
        let span = &self.record.span;
        let is_known = self.row.start_known && self.row.established;
        match (self.role, client) {
            (Role::Client, _) if !span.parent_span_id.is_empty() => {
                self.wrong.push("the client's span has a parent".into());
            }
            (Role::Server, Some(client)) if is_known => {
                let client = &client.span;
                if (&span.trace_id, &span.parent_span_id) != (&client.trace_id, &client.span_id) {
                    self.wrong.push("the server's span is not below the client's".into());
                }
            }
            _ => {}
        }
    }
}

/// `error.type` of a reason.
fn error_type(reason: &str) -> &'static str {
    match reason {
        "reset" => "connection_reset",
        "refused" => "connection_refused",
        "timeout" | "connect_timeout" | "handshake_failed" => "timeout",
        "unreachable" => "unreachable",
        _ => "absent",
    }
}

fn us(ns: std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    ns.start() / 1000..=ns.end().div_ceil(1000)
}
