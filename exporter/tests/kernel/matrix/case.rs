//! What a case is: how an ending is made, and the record that each socket's end must be.

use super::bench::{Bench, Open};
use super::made::Made;

/// One way for a connection to end.
pub(super) struct Case {
    /// In a few words.
    pub(super) name: &'static str,
    /// For users, where the name does not say it all.
    pub(super) what: &'static str,
    pub(super) make: Make,
    /// What is true of each connection that `make` makes, in this order.
    pub(super) ends: &'static [Ends],
}

/// How the connections of a case come to be.
#[derive(Clone, Copy)]
pub(super) enum Make {
    /// With flowend running.
    Watched(fn(&mut Bench) -> Vec<Made>),
    /// This ends a connection that was open before flowend ran; the data has been exchanged.
    Older(fn(&mut Bench, Open) -> Vec<Made>),
}

/// The records of one connection; none where a side has no socket, or none that ends.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) client: Option<Row>,
    pub(super) server: Option<Row>,
}

/// What a record must say. Text as in the record; " or " stands between values that are both true.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) direction: &'static str,
    pub(super) start_known: bool,
    pub(super) reason: &'static str,
    pub(super) by: &'static str,
    pub(super) reset_by: Option<&'static str>,
    pub(super) conn_state: &'static str,
    pub(super) history: &'static str,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// Whether something has to be sent again. On a busy machine it may be without need, so the rest is
    /// compared with the wire alone.
    pub(super) retransmits: bool,
    pub(super) half_close: bool,
    /// Whether the handshake was completed, so that there are RTTs and ids that both ends agree on.
    pub(super) established: bool,
    /// Whether SYN and SYN-ACK went once each, so that their RTT is known.
    pub(super) handshake_rtt: bool,
}

/// Payload of [`Bench::exchange`], from the client and from the server.
pub(super) const UP: u64 = 111;
pub(super) const DOWN: u64 = 3000;

impl Row {
    /// Of the socket that connected, after an exchange.
    pub(super) const fn client(
        reason: &'static str,
        by: &'static str,
        conn_state: &'static str,
        history: &'static str,
    ) -> Self {
        Self {
            direction: "outgoing",
            start_known: true,
            reason,
            by,
            reset_by: None,
            conn_state,
            history,
            sent: UP,
            received: DOWN,
            retransmits: false,
            half_close: false,
            established: true,
            handshake_rtt: true,
        }
    }

    /// Of the socket that was accepted, after an exchange.
    pub(super) const fn server(
        reason: &'static str,
        by: &'static str,
        conn_state: &'static str,
        history: &'static str,
    ) -> Self {
        let row = Self::client(reason, by, conn_state, history);
        Self { direction: "incoming", sent: DOWN, received: UP, ..row }
    }

    /// The SYN of the socket had no good answer.
    pub(super) const fn attempt(
        reason: &'static str,
        by: &'static str,
        conn_state: &'static str,
        history: &'static str,
    ) -> Self {
        let row = Self::client(reason, by, conn_state, history).moved(0, 0);
        Self { established: false, handshake_rtt: false, ..row }
    }

    /// A SYN that a listener answered, and that was never completed.
    pub(super) const fn embryo(
        by: &'static str,
        conn_state: &'static str,
        history: &'static str,
    ) -> Self {
        let row = Self::attempt("handshake_failed", by, conn_state, history);
        Self { direction: "incoming", ..row }
    }

    /// With an RST of this side.
    pub(super) const fn reset_by(self, side: &'static str) -> Self {
        Self { reset_by: Some(side), ..self }
    }

    /// With these numbers of payload bytes.
    pub(super) const fn moved(self, sent: u64, received: u64) -> Self {
        Self { sent, received, ..self }
    }

    /// Both FINs were seen.
    pub(super) const fn half_closed(self) -> Self {
        Self { half_close: true, ..self }
    }

    /// Something had to be sent again.
    pub(super) const fn retransmitted(self) -> Self {
        Self { retransmits: true, ..self }
    }

    /// SYN or SYN-ACK went more than once, or not in this order (Fast Open).
    pub(super) const fn without_handshake_rtt(self) -> Self {
        Self { handshake_rtt: false, ..self }
    }

    /// The connection is older than flowend: its start is unknown, and its opener may be.
    pub(super) const fn older(self) -> Self {
        let direction = match self.direction.as_bytes() {
            b"outgoing" => "outgoing or unknown",
            _ => "incoming or unknown",
        };
        Self { direction, start_known: false, handshake_rtt: false, ..self }
    }
}

impl Ends {
    /// Where flowend is not shown the server's SYN-ACKs: there is nothing to measure its handshake by, nor to know
    /// a handshake by that fails.
    pub(super) fn without_syn_acks(self) -> Self {
        let is_embryo = |row: &Row| row.direction == "incoming" && !row.established;
        let server = self.server.filter(|row| !is_embryo(row)).map(Row::without_handshake_rtt);
        Self { server, ..self }
    }

    /// How many records it makes.
    pub(super) fn records(self) -> usize {
        usize::from(self.client.is_some()) + usize::from(self.server.is_some())
    }
}

/// Both ends have a socket.
pub(super) const fn both(client: Row, server: Row) -> Ends {
    Ends { client: Some(client), server: Some(server) }
}

/// Only the client's end has a record.
pub(super) const fn only_client(client: Row) -> Ends {
    Ends { client: Some(client), server: None }
}

/// Only the server's end has a record.
pub(super) const fn only_server(server: Row) -> Ends {
    Ends { client: None, server: Some(server) }
}
