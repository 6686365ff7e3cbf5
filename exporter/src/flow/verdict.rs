//! The verdict on a connection that is over: what was seen, sorted into what is true.
//!
//! A field that cannot be told is absent. Three things tell how a connection ended: the closing segments
//! that TCP accepted, the state that the socket left for CLOSE with its counters, and the error that the
//! kernel reported. Where events were lost ([`Context::lossy`]), what was not seen proves nothing.

use flowend_probe_types::TcpState;

use super::census::Running;
use super::connection::{Connection, Sent};
use super::end::{ConnectionEnd, Counters, Direction, Reason, Rtt, Side};
use super::measure::{Segments, counters, isns, rtt, segments};
use super::{errors, zeek};

/// An RST past a gap is what closed the socket only when CLOSE followed within this time, ns.
const PAST_A_GAP_NS: u64 = 10_000_000;

/// How much less than its time the silence may take after which keepalive gives up, ns: the kernel counts jiffies,
/// which take up to 10 ms and stand still with the virtual CPU that advances them.
const JIFFIES_NS: u64 = 100_000_000;

/// What is known beside the connection's own events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Context {
    /// Events were lost while the connection was open.
    pub(super) lossy: bool,
    /// Until when events were lost.
    pub(super) lost_ns: u64,
    /// The error with which the socket closed.
    pub(super) error: Option<u16>,
    /// When the kernel reported it.
    pub(super) error_ns: Option<u64>,
    /// It may have been reported, but there were too many others.
    pub(super) error_forgotten: bool,
    /// Whether the kernel reports errors at all.
    pub(super) errors_reported: bool,
}

impl Context {
    /// Whether events were lost since then; for the whole life of the connection, where that is not known.
    pub(super) const fn lost_since(&self, time_ns: Option<u64>) -> bool {
        match time_ns {
            Some(time_ns) => self.lossy && self.lost_ns >= time_ns,
            None => self.lossy,
        }
    }
}

/// What is true of a connection that is over.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) direction: Direction,
    pub(super) start_known: bool,
    pub(super) syn_ack_seen: bool,
    /// The state it left for CLOSE; `Unknown` where CLOSE was not seen.
    pub(super) state: TcpState,
    pub(super) reason: Reason,
    pub(super) by: Option<Side>,
    pub(super) reset_by: Option<Side>,
    fin_local: Option<u64>,
    pub(super) fin_remote: Option<u64>,
    rst_local: Option<u64>,
    rst_remote: Option<u64>,
    pub(super) segments: Option<Segments>,
}

impl Facts {
    pub(super) fn of(connection: &Connection, context: &Context) -> Self {
        let c = connection;
        let state = c.closed.map_or(TcpState::Unknown, |closed| closed.state);
        let fin_local = c.fin_out.map(|f| f.time_ns);
        let fin_remote = c.accepted_fin().map(|f| f.time_ns);
        let rst_remote = accepted_rst(c, state);
        let (reason, reset_by) = reason(c, state, rst_remote.is_some(), context);
        // A reset on data after a full close leaves from no socket: it is known by what it did.
        let unseen_reset = reset_by == Some(Side::Local) && c.rst_out.is_none();
        let rst_local = c
            .rst_out
            .map(|r| r.time_ns)
            .or_else(|| c.closed.filter(|_| unseen_reset).map(|closed| closed.time_ns));
        let facts = Self {
            direction: c.direction,
            start_known: c.syn_ns.is_some(),
            syn_ack_seen: c.established.is_some() || c.syn_ack_ns.is_some(),
            state,
            reason,
            by: None,
            reset_by,
            fin_local,
            fin_remote,
            rst_local,
            rst_remote,
            // A FIN with data is counted among the segments with data. An own RST is counted only where it left before the counters were read, at CLOSE.
            segments: segments(
                c,
                u32::from(c.fin_out.is_some_and(|fin| !fin.has_data))
                    + u32::from(c.rst_out.is_some_and(|r| r.state != TcpState::Close)),
                u32::from(c.accepted_fin().is_some_and(|fin| !fin.has_data))
                    + u32::from(rst_remote.is_some()),
            ),
        };
        Self { by: facts.first_closer(c, context), ..facts }
    }

    /// Whether it is taken for orderly because nothing else was seen: our FIN was acknowledged, and the
    /// peer's is missing.
    pub(super) const fn rests_on_absence(&self) -> bool {
        matches!(self.state, TcpState::FinWait2) && self.fin_remote.is_none()
    }

    pub(super) const fn fin_of(&self, side: Side) -> Option<u64> {
        match side {
            Side::Local => self.fin_local,
            Side::Remote => self.fin_remote,
        }
    }

    pub(super) const fn rst_of(&self, side: Side) -> Option<u64> {
        match side {
            Side::Local => self.rst_local,
            Side::Remote => self.rst_remote,
        }
    }

    /// The sender of the first FIN or RST.
    ///
    /// The state says who closed first even where a FIN was not seen (RFC 9293, section 3.3.2): the peer on
    /// the way through CLOSE-WAIT, the own side in FIN-WAIT-2. FIN-WAIT-1 and CLOSING tell it only where our
    /// FIN was seen to leave: it may wait behind data, and the peer's FIN or RST be the first.
    fn first_closer(&self, c: &Connection, context: &Context) -> Option<Side> {
        let state = match self.state {
            TcpState::Unknown => c.state,
            state => state,
        };
        match state {
            TcpState::LastAck | TcpState::CloseWait => return Some(Side::Remote),
            TcpState::FinWait2 => return Some(Side::Local),
            TcpState::FinWait1 | TcpState::Closing | TcpState::TimeWait
                if self.fin_local.is_none() && (context.lossy || !c.begins_seen()) =>
            {
                return None;
            }
            // The application's RST leaves in CLOSE, which tells nothing of a FIN before it.
            _ if context.lossy
                && self.state == TcpState::Unknown
                && c.rst_out.is_some_and(|rst| rst.state == TcpState::Close) =>
            {
                return None;
            }
            _ => {}
        }
        [
            self.fin_local.map(|t| (t, Side::Local)),
            self.rst_local.map(|t| (t, Side::Local)),
            self.fin_remote.map(|t| (t, Side::Remote)),
            self.rst_remote.map(|t| (t, Side::Remote)),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(t, _)| *t)
        .map(|(_, side)| side)
    }

    /// CLOSE, or else the last closing segment or the error.
    fn end_ns(&self, c: &Connection, context: &Context) -> Option<u64> {
        let segments = [self.fin_local, self.fin_remote, self.rst_local, self.rst_remote];
        let last = segments.into_iter().flatten().max();
        c.closed.map(|closed| closed.time_ns).or_else(|| last.max(context.error_ns))
    }
}

/// How it ended, and who sent the RST.
fn reason(
    c: &Connection,
    state: TcpState,
    reset: bool,
    context: &Context,
) -> (Reason, Option<Side>) {
    let was_opening = state == TcpState::SynSent
        || (state == TcpState::Unknown
            && c.direction == Direction::Outgoing
            && c.established.is_none()
            && c.syn_ack_ns.is_none()
            && c.state == TcpState::SynSent);
    if was_opening {
        let own = c.rst_out.map(|_| Side::Local);
        return (attempt(c, reset, context), if reset { Some(Side::Remote) } else { own });
    }
    // With Fast Open the accepted socket exists before the handshake is complete.
    if state == TcpState::SynRecv && c.direction == Direction::Incoming && c.rst_out.is_none() {
        return (Reason::HandshakeFailed, reset.then_some(Side::Remote));
    }
    if c.gave_up {
        return (Reason::Timeout, None);
    }
    if let Some(rst) = &c.rst_out {
        return (own_reset(c, rst, context), Some(Side::Local));
    }
    if reset {
        return (Reason::Reset, Some(Side::Remote));
    }
    if resets_late_data(c, state) {
        return (Reason::Reset, Some(Side::Local));
    }
    // Before the error: one may have been reported on a connection that lived on.
    if is_orderly(c, state, context) {
        return (Reason::Fin, None);
    }
    match context.error {
        Some(errors::ABORTED) => (Reason::Aborted, None),
        // Zero-window probes without an answer: no RTO_CB and no segment.
        Some(_) => (Reason::Timeout, None),
        None => (Reason::Vanished, None),
    }
}

/// An attempt to connect that came to nothing.
const fn attempt(c: &Connection, refused: bool, context: &Context) -> Reason {
    match context.error {
        _ if refused => Reason::Refused,
        _ if c.gave_up => Reason::ConnectTimeout,
        // It may have been established unseen.
        Some(_) if context.lossy && c.closed.is_none() => Reason::Vanished,
        Some(errors::TIMED_OUT) => Reason::ConnectTimeout,
        Some(errors::ABORTED) => Reason::Aborted,
        // A timeout may carry the ICMP error that came before it; its own event may be lost, or nothing tells it.
        Some(_) if context.lossy || c.closed.is_none() => Reason::Vanished,
        Some(_) => Reason::Unreachable,
        None if context.lossy || context.error_forgotten || c.closed.is_none() => Reason::Vanished,
        None => Reason::Aborted,
    }
}

/// An RST by the own socket. The application's leaves in CLOSE; in any other state it is the kernel's:
/// keepalive gave up, or the socket was destroyed.
fn own_reset(c: &Connection, rst: &Sent, context: &Context) -> Reason {
    if rst.state == TcpState::Close {
        return Reason::Reset;
    }
    let silence_ns = c.closed.map_or(0, |closed| u64::from(closed.keepalive_ms) * 1_000_000);
    // Since its establishment at the longest: where keepalive gave up, that long nothing came.
    let open_ns = rst.time_ns.saturating_sub(c.first_seen_ns);
    let old_enough = open_ns.saturating_add(JIFFIES_NS) >= silence_ns || c.syn_ns.is_none();
    let keepalive = rst.is_idle && old_enough && (silence_ns > 0 || c.closed.is_none());
    let report_lost = context.errors_reported && (context.lossy || context.error_forgotten);
    match context.error {
        Some(errors::ABORTED) => Reason::Aborted,
        Some(_) => Reason::Timeout,
        // Either is possible.
        None if report_lost && keepalive => Reason::Vanished,
        // The application may have taken the error before it could be reported: SO_ERROR asks for no lock
        // (net/core/sock.c, sk_getsockopt), and since 6.10 CLOSE comes first (net/ipv4/tcp.c, tcp_done_with_error).
        None if keepalive && silence_ns > 0 => Reason::Timeout,
        None => Reason::Aborted,
    }
}

/// Whether data came after a full close(): TCP answers it with an RST, which leaves from no socket, and
/// drops the connection (RFC 9293, section 3.6.1; net/ipv4/tcp_input.c, tcp_rcv_state_process).
///
/// Such data is counted as a segment, but neither taken nor acknowledged.
fn resets_late_data(c: &Connection, state: TcpState) -> bool {
    let Some(fin) = &c.fin_out else { return false };
    let last = &c.last;
    let came = last.data_segs_in.wrapping_sub(fin.data_segs_in);
    let retransmitted = last.total_retrans.wrapping_sub(fin.total_retrans);
    let not_taken = last.bytes_received == fin.received;
    let not_acknowledged = last.segs_out.wrapping_sub(fin.segs_out) == retransmitted;
    match state {
        // There is no orderly way from here to CLOSE.
        TcpState::FinWait1 => came > 0 && not_taken,
        TcpState::FinWait2 => came > 0 && not_taken && not_acknowledged,
        _ => false,
    }
}

/// Whether both sides are known to have closed, or the own side has and its FIN was acknowledged.
fn is_orderly(c: &Connection, state: TcpState, context: &Context) -> bool {
    let all_acknowledged = c.last.snd_nxt == c.last.snd_una;
    match state {
        TcpState::LastAck | TcpState::Closing => all_acknowledged,
        TcpState::FinWait2 => {
            c.accepted_fin().is_some() || !context.lost_since(c.fin_out.map(|fin| fin.time_ns))
        }
        TcpState::TimeWait => true,
        TcpState::Unknown => {
            c.looked.time_wait || (c.fin_out.is_some() && c.accepted_fin().is_some())
        }
        _ => false,
    }
}

/// The time of the peer's RST, if that is what closed the socket.
fn accepted_rst(c: &Connection, state: TcpState) -> Option<u64> {
    let Some(closed) = c.closed else {
        return c.rsts_in.iter().find(|c| c.exact).map(|c| c.time_ns);
    };
    let rcv_nxt = c.last.rcv_nxt;
    let exact = c.rsts_in.iter().find(|r| match state {
        TcpState::SynSent => r.ack == c.last.snd_nxt || r.exact,
        // Orderly ends are explained already: an RST then changed nothing.
        TcpState::TimeWait => false,
        TcpState::LastAck | TcpState::Closing if c.last.snd_nxt == c.last.snd_una => false,
        _ => r.seq == rcv_nxt || (r.after_fin && r.seq == rcv_nxt.wrapping_sub(1)),
    });
    // With segments missing, an RST at the end of what was received out of order counts, too
    // (net/ipv4/tcp_input.c, tcp_validate_incoming); the socket goes to CLOSE at once then.
    let past_a_gap = || {
        let is_open =
            matches!(state, TcpState::Established | TcpState::CloseWait | TcpState::FinWait1);
        c.rsts_in.iter().find(|r| {
            is_open
                && c.rst_out.is_none()
                && !c.gave_up
                && r.seq.wrapping_sub(rcv_nxt) < 1 << 30
                && closed.time_ns.saturating_sub(r.time_ns) < PAST_A_GAP_NS
        })
    };
    exact.or_else(past_a_gap).map(|r| r.time_ns)
}

/// The record of a connection that is over.
pub(super) fn conclude(c: &Connection, context: &Context) -> ConnectionEnd {
    let facts = Facts::of(c, context);
    let end_ns = facts.end_ns(c, context);
    // Of a FIN that is sent again, the first time may be lost.
    let both_fins = facts.fin_local.zip(facts.fin_remote).filter(|_| !context.lossy);
    ConnectionEnd {
        start_known: facts.start_known,
        end_ns: end_ns.unwrap_or_else(|| c.looked.missed_ns.max(c.last_ns())),
        end_known: end_ns.is_some(),
        by: facts.by,
        reason: facts.reason,
        reset_by: facts.reset_by,
        conn_state: zeek::conn_state(&facts),
        history: zeek::history(&facts),
        half_close_ns: both_fins.map(|(local, remote)| local.abs_diff(remote)),
        counters: counters(c, &facts, context),
        ..common(c)
    }
}

/// The record of a connection that is still open.
pub(super) fn snapshot(c: &Connection, at_ns: u64, running: Option<&Running>) -> ConnectionEnd {
    let counted = running.copied().unwrap_or_default();
    let facts = Facts {
        reason: Reason::Open,
        by: None,
        reset_by: None,
        ..Facts::of(c, &Context::default())
    };
    let common = common(c);
    ConnectionEnd {
        end_ns: at_ns,
        end_known: true,
        conn_state: zeek::conn_state(&facts),
        history: zeek::history(&facts),
        counters: counted.counters,
        rtt: Rtt {
            smoothed_us: counted.srtt_us.or(common.rtt.smoothed_us),
            min_us: counted.min_rtt_us.or(common.rtt.min_us),
            ..common.rtt
        },
        ..common
    }
}

/// What is the same of an open and an ended connection.
fn common(c: &Connection) -> ConnectionEnd {
    ConnectionEnd {
        cookie: c.cookie,
        listener: c.listener,
        cgroup_id: (c.cgroup_id != 0).then_some(c.cgroup_id),
        direction: c.direction,
        local: c.local,
        remote: c.remote,
        start_ns: c.start_ns(),
        start_known: c.syn_ns.is_some(),
        end_ns: c.last_ns(),
        end_known: false,
        by: None,
        reason: Reason::Open,
        reset_by: None,
        conn_state: "OTH",
        history: String::new(),
        half_close_ns: None,
        counters: Counters::default(),
        rtt: rtt(c),
        isns: isns(c),
    }
}
