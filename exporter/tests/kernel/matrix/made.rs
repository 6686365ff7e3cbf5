//! A connection as it was made, with the test's own times.

use std::net::SocketAddr;

use super::super::connections::Role;
use super::super::link::Crossing;
use super::bench::Open;

/// From when until when something happened, `CLOCK_BOOTTIME` ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Span {
    /// The least and the most that can lie between something in `earlier` and something in this one.
    pub(super) fn since(self, earlier: Self) -> std::ops::RangeInclusive<u64> {
        self.from.saturating_sub(earlier.to)..=self.to.saturating_sub(earlier.from)
    }
}

/// What one end did.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) pid: u32,
    /// In which time its socket went to CLOSE.
    pub(super) ended: Span,
    /// In which times it saw the two FINs, where the record must say it.
    pub(super) fins: Option<(Span, Span)>,
}

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Made {
    /// As the records show them: mapped addresses are IPv4.
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// In which time the SYN left and came.
    pub(super) began: Span,
    pub(super) at_client: End,
    pub(super) at_server: End,
    /// What the link saw of it; `None` where it was not on a link.
    pub(super) wire: Option<Vec<Crossing>>,
    /// `TCP_INFO` of an end just before it closed.
    pub(super) infos: Vec<(Role, Info)>,
}

/// What an application was told of its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    pub(super) rtt_us: i64,
    pub(super) min_rtt_us: i64,
    pub(super) retransmits: i64,
    pub(super) segments_sent: i64,
    pub(super) segments_received: i64,
}

impl Info {
    /// From the puppet's answer.
    pub(super) fn parse(answer: &str) -> Self {
        let numbers: Vec<i64> =
            answer.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [rtt_us, min_rtt_us, retransmits, segments_sent, segments_received] = numbers[..]
        else {
            panic!("{answer}: five numbers");
        };
        Self { rtt_us, min_rtt_us, retransmits, segments_sent, segments_received }
    }
}

impl Made {
    /// An open connection that ended at each end in these times.
    pub(super) fn of(open: &Open, client_ended: Span, server_ended: Span) -> Self {
        let end = |pid, ended| End { pid, ended, fins: None };
        Self {
            client: canonical(open.client_address),
            server: canonical(open.server_address),
            began: open.began,
            at_client: end(open.client_pid, client_ended),
            at_server: end(open.server_pid, server_ended),
            wire: None,
            infos: Vec::new(),
        }
    }

    /// It saw the first FIN and the second in these times.
    pub(super) fn half_closed(mut self, role: Role, first: Span, second: Span) -> Self {
        self.end_mut(role).fins = Some((first, second));
        self
    }

    /// As [`Made::half_closed`], at both ends.
    pub(super) fn both_half_closed(self, first: Span, second: Span) -> Self {
        self.half_closed(Role::Client, first, second).half_closed(Role::Server, first, second)
    }

    pub(super) const fn end(&self, role: Role) -> &End {
        match role {
            Role::Client => &self.at_client,
            Role::Server => &self.at_server,
        }
    }

    const fn end_mut(&mut self, role: Role) -> &mut End {
        match role {
            Role::Client => &mut self.at_client,
            Role::Server => &mut self.at_server,
        }
    }

    /// The own address and the peer's, seen from an end.
    pub(super) const fn addresses(&self, role: Role) -> (SocketAddr, SocketAddr) {
        match role {
            Role::Client => (self.client, self.server),
            Role::Server => (self.server, self.client),
        }
    }
}

/// The address as records show it.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
