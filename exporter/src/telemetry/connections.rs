//! Connections that ended, by service: counted at each end, before sampling and rules, which would make the
//! counts depend on the configuration.

use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{Metric, Sample};
use crate::flow::{ConnectionEnd, Direction, Reason};

/// The service that stands for all that there is no row for. One that is really named so counts here, too.
const OTHER: &str = "other";

/// How connections ended and what they carried, of each service. Bounded; one task owns it.
#[derive(Debug)]
pub struct ConnectionCounts {
    services: HashMap<Box<str>, Row, RandomState>,
    max_services: usize,
    other: Row,
}

/// Of one service. The indices are the numbers of direction and reason.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    ended: [[u64; Reason::ALL.len()]; Direction::ALL.len()],
    /// Payload, bytes.
    sent: [u64; Direction::ALL.len()],
    received: [u64; Direction::ALL.len()],
}

impl ConnectionCounts {
    /// For at most so many services by name: all that come later count as "other".
    pub fn new(max_services: usize) -> Self {
        Self { services: HashMap::default(), max_services, other: Row::default() }
    }

    /// Counts a connection that is over. Bytes that are not known exactly are not counted.
    pub fn add(&mut self, service: &str, end: &ConnectionEnd) {
        let is_other = service == OTHER || self.services.len() >= self.max_services;
        let row = match self.services.get_mut(service) {
            Some(row) => row,
            None if is_other => &mut self.other,
            None => self.services.entry(service.into()).or_default(),
        };
        let direction = end.direction as usize;
        row.ended[direction][end.reason as usize] += 1;
        let add = |sum: &mut u64, n: Option<u64>| *sum = sum.saturating_add(n.unwrap_or(0));
        add(&mut row.sent[direction], end.counters.bytes_sent);
        add(&mut row.received[direction], end.counters.bytes_received);
    }

    /// The metrics of this moment, in the order of the services' names: none before the first end.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut rows: Vec<(&str, &Row)> =
            self.services.iter().map(|(s, row)| (&**s, row)).collect();
        rows.push((OTHER, &self.other));
        rows.sort_unstable_by_key(|(service, _)| *service);
        let mut ended = Metric::counter(
            "flowend.connections.ended",
            "Connections that ended, before sampling and rules; past telemetry.max_services as \"other\"",
        );
        let mut bytes = Metric::counter(
            "flowend.connection.bytes",
            "Payload bytes of connections that ended, before sampling and rules",
        );
        for (service, row) in rows {
            for (direction, reasons) in Direction::ALL.into_iter().zip(&row.ended) {
                let of_direction = [("direction", direction.as_str())];
                for (reason, n) in Reason::ALL.into_iter().zip(reasons).filter(|(_, n)| **n > 0) {
                    let labels = of_direction.into_iter().chain([("reason", reason.as_str())]);
                    ended.samples.push(sample(service, labels, *n));
                }
                if reasons.iter().any(|n| *n > 0) {
                    let index = direction as usize;
                    for (io, n) in [("sent", row.sent[index]), ("received", row.received[index])] {
                        let labels = of_direction.into_iter().chain([("io", io)]);
                        bytes.samples.push(sample(service, labels, n));
                    }
                }
            }
        }
        [ended, bytes].into_iter().filter(|metric| !metric.samples.is_empty()).collect()
    }
}

fn sample(
    service: &str,
    labels: impl Iterator<Item = (&'static str, &'static str)>,
    value: u64,
) -> Sample {
    let service = ("service", Cow::Owned(service.to_owned()));
    let others = labels.map(|(name, value)| (name, Cow::Borrowed(value)));
    Sample { labels: std::iter::once(service).chain(others).collect(), value }
}

#[cfg(test)]
mod tests {
    use flowend_probe_types::Addr;

    use super::*;
    use crate::flow::{Counters, Endpoint, Rtt};
    use crate::telemetry;

    fn end(direction: Direction, reason: Reason, bytes: [Option<u64>; 2]) -> ConnectionEnd {
        let endpoint = Endpoint { addr: Addr::v4(0), port: 0 };
        let [bytes_sent, bytes_received] = bytes;
        ConnectionEnd {
            cookie: 1,
            listener: None,
            cgroup_id: None,
            direction,
            local: endpoint,
            remote: endpoint,
            start_ns: 0,
            start_known: true,
            end_ns: 0,
            end_known: true,
            by: None,
            reason,
            reset_by: None,
            conn_state: "SF",
            history: String::new(),
            half_close_ns: None,
            counters: Counters { bytes_sent, bytes_received, ..Counters::default() },
            rtt: Rtt::default(),
            isns: None,
        }
    }

    /// The samples as text, without the comments.
    fn text(counts: &ConnectionCounts) -> Vec<String> {
        let text = telemetry::encode(counts.metrics());
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn directions_and_reasons_are_numbered_as_they_are_listed() {
        assert_eq!(Direction::ALL.map(|direction| direction as usize), [0, 1, 2]);
        assert_eq!(Reason::ALL.map(|reason| reason as usize), std::array::from_fn(|n| n));
    }

    #[test]
    fn ends_are_counted_by_service_direction_and_reason_with_their_bytes() {
        let mut counts = ConnectionCounts::new(10);
        assert!(counts.metrics().is_empty());
        let (incoming, outgoing) = (Direction::Incoming, Direction::Outgoing);
        counts.add("web", &end(incoming, Reason::Fin, [Some(10), Some(1)]));
        counts.add("web", &end(incoming, Reason::Fin, [Some(20), None]));
        counts.add("web", &end(incoming, Reason::Reset, [None, None]));
        counts.add("web", &end(outgoing, Reason::Refused, [None, None]));
        counts
            .add("a \"b\"", &end(Direction::Unknown, Reason::Vanished, [Some(u64::MAX), Some(7)]));
        counts.add("a \"b\"", &end(Direction::Unknown, Reason::Vanished, [Some(1), Some(0)]));
        let want = [
            r#"flowend_connections_ended_total{service="a \"b\"",direction="unknown",reason="vanished"} 2"#,
            r#"flowend_connections_ended_total{service="web",direction="incoming",reason="fin"} 2"#,
            r#"flowend_connections_ended_total{service="web",direction="incoming",reason="reset"} 1"#,
            r#"flowend_connections_ended_total{service="web",direction="outgoing",reason="refused"} 1"#,
            r#"flowend_connection_bytes_total{service="a \"b\"",direction="unknown",io="sent"} 18446744073709551615"#,
            r#"flowend_connection_bytes_total{service="a \"b\"",direction="unknown",io="received"} 7"#,
            r#"flowend_connection_bytes_total{service="web",direction="incoming",io="sent"} 30"#,
            r#"flowend_connection_bytes_total{service="web",direction="incoming",io="received"} 1"#,
            r#"flowend_connection_bytes_total{service="web",direction="outgoing",io="sent"} 0"#,
            r#"flowend_connection_bytes_total{service="web",direction="outgoing",io="received"} 0"#,
        ];
        assert_eq!(text(&counts), want);
    }

    #[test]
    fn services_past_the_limit_are_one_row_and_no_end_is_lost() {
        let mut counts = ConnectionCounts::new(2);
        for service in ["other", "a", "b", "c", "d", "a", "other"] {
            counts.add(service, &end(Direction::Incoming, Reason::Fin, [Some(1), Some(1)]));
        }
        let ended: Vec<_> = counts.metrics()[0]
            .samples
            .iter()
            .map(|s| (s.labels[0].1.to_string(), s.value))
            .collect();
        let want = [("a", 2), ("b", 1), ("other", 4)];
        assert_eq!(ended, want.map(|(service, n)| (service.to_owned(), n)));
        assert_eq!(counts.services.len(), 2);
    }
}
