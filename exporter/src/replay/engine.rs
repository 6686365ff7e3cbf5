//! From packets to ends of connections. No I/O, no clock.

use std::collections::VecDeque;
use std::sync::Arc;

use flowend_probe_types::Skip;
use ipnet::IpNet;

use super::capture::Packet;
use super::conversation::{Arrival, Conversation};
use super::fragments::FragmentStats;
use super::ip::IpPacket;
use super::link::{Link, NoIp};
use super::names::{NameSources, Names};
use super::stream::Mark;
use super::summary::{Cause, Summary};
use super::table::{Full, Leaving, Table};
use super::verdict::Verdicts;
use crate::dns::{DnsStats, StreamStats};
use crate::flow::{ConnectionEnd, Side};

/// An end and the names of its addresses, as they stood when it began.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) end: ConnectionEnd,
    pub(super) local_names: Vec<Arc<str>>,
    pub(super) remote_names: Vec<Arc<str>>,
}

/// Follows the connections of a capture.
#[derive(Debug)]
pub(super) struct Engine {
    table: Table,
    verdicts: Verdicts,
    names: Option<Names>,
    summary: Summary,
    ended: VecDeque<Ended>,
}

impl Engine {
    /// For at most `max_flows` connections at once; with names where there are sources for them.
    pub(super) fn new(max_flows: usize, names: Option<NameSources>, local: Vec<IpNet>) -> Self {
        Self {
            table: Table::new(max_flows),
            verdicts: Verdicts::new(local),
            names: names.map(Names::new),
            summary: Summary::default(),
            ended: VecDeque::new(),
        }
    }

    /// Takes in one packet.
    ///
    /// # Errors
    /// [`Full`], where it would begin a connection for which there is no room.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) -> Result<(), Full> {
        self.summary.packets += 1;
        let Some(link) = Link::from_number(packet.link) else {
            self.summary.skip_link(packet.link);
            return Ok(());
        };
        let ip_at = match link.ip_at(packet.bytes) {
            Ok(ip_at) => ip_at,
            Err(NoIp::Other) => return self.skip(Cause::NotIp),
            Err(NoIp::Truncated) => return self.skip(Cause::Truncated),
        };
        // What was captured was there, whatever the file says.
        let captured = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
        let behind_link =
            packet.on_the_wire.max(captured).saturating_sub(u32::try_from(ip_at).unwrap_or(0));
        let ip = IpPacket::new(packet.bytes.get(ip_at..).unwrap_or_default(), behind_link);
        let mark = Mark { index: packet.index, time_ns: packet.time_ns };
        let outcome = ip.tcp();
        if let Some(names) = &mut self.names {
            match &outcome {
                Ok(tcp) => names.segment(tcp, ip.tcp_payload().unwrap_or_default(), packet.time_ns),
                Err(_) => names.packet(&ip, packet.time_ns),
            }
        }
        match outcome {
            Ok(tcp) => {
                self.summary.tcp += 1;
                self.arrival(&Arrival { mark, tcp })
            }
            Err(Skip::NotTcp) => self.skip(Cause::NotTcp),
            Err(Skip::Fragment) => self.skip(Cause::Fragment),
            Err(Skip::Truncated) => self.skip(Cause::Truncated),
            Err(Skip::BadHeader) => self.skip(Cause::BadHeader),
        }
    }

    /// The next end, the one that came about first.
    pub(super) fn next_end(&mut self) -> Option<Ended> {
        self.ended.pop_front()
    }

    /// At the end of the capture: lets go of one more connection. False when there is none.
    pub(super) fn finish_one(&mut self) -> bool {
        let Self { table, verdicts, summary, ended, .. } = self;
        table.pop(|conversation, leaving| {
            summary.connections += 1;
            ended.extend(conclude(verdicts, conversation, leaving));
        })
    }

    /// What became of the packets so far.
    pub(super) const fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What became of the DNS messages so far, of the segments of DNS over TCP, and of fragments.
    pub(super) fn dns_stats(&self) -> Option<(DnsStats, StreamStats, FragmentStats)> {
        self.names.as_ref().map(Names::stats)
    }

    fn skip(&mut self, cause: Cause) -> Result<(), Full> {
        self.summary.skip(cause);
        Ok(())
    }

    fn arrival(&mut self, packet: &Arrival) -> Result<(), Full> {
        let Self { table, verdicts, names, summary, ended } = self;
        let begin = |conversation: &mut Conversation| {
            if let Some(names) = names {
                let at = conversation.first.time_ns;
                let of = |addr| names.of(addr, at);
                conversation.names =
                    [of(conversation.originator.addr), of(conversation.responder.addr)];
            }
        };
        table.apply(packet, begin, |conversation, leaving| {
            summary.connections += 1;
            ended.extend(conclude(verdicts, conversation, leaving));
        })
    }
}

/// The verdict, with the names on the sides that it puts the endpoints on.
fn conclude(
    verdicts: &mut Verdicts,
    mut conversation: Conversation,
    leaving: Leaving,
) -> Option<Ended> {
    let [originator_names, responder_names] = std::mem::take(&mut conversation.names);
    let originator = conversation.originator;
    let end = verdicts.of(conversation, leaving)?;
    let originator_side = if end.local == originator { Side::Local } else { Side::Remote };
    let (local_names, remote_names) = match originator_side {
        Side::Local => (originator_names, responder_names),
        Side::Remote => (responder_names, originator_names),
    };
    Some(Ended { end, local_names, remote_names })
}
