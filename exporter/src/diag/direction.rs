//! Who opened a connection that is older than the probe.

use flowend_probe_types::TcpState;

use super::{Listeners, Socket, SocketKind};
use crate::flow::Direction;

/// Who opened the connection: by the kernel's counters where they tell, which is exact, else by
/// whether its own side is listened on in the same network namespace.
pub fn direction(socket: &Socket, listeners: &Listeners) -> Direction {
    match exact_direction(socket) {
        Some(direction) => direction,
        None if listeners.find(&socket.local).is_some() => Direction::Incoming,
        None => Direction::Unknown,
    }
}

/// Who opened the connection, where its state or its counters tell: they cannot err.
pub fn exact_direction(socket: &Socket) -> Option<Direction> {
    match (socket.kind, socket.state) {
        (_, TcpState::SynSent) => Some(Direction::Outgoing),
        (SocketKind::Request, _) | (_, TcpState::SynRecv) => Some(Direction::Incoming),
        _ => from_counters(socket),
    }
}

/// The acknowledgment of an opener's SYN counts in `bytes_acked` (net/ipv4/tcp_input.c,
/// tcp_snd_una_update, from tcp_rcv_synsent_state_process), that of a SYN-ACK does not: an accepted
/// socket begins behind it (net/ipv4/tcp_minisocks.c, tcp_create_openreq_child). With nothing on its
/// way, what else was acknowledged is the payload sent, each byte once, and in FIN_WAIT2 the own FIN.
///
/// `None` where it cannot be told, also where the counters do not add up: a segment that this host's own
/// firewall or queue dropped counts as sent, and is not retransmitted but sent anew.
fn from_counters(socket: &Socket) -> Option<Direction> {
    let own_fin = match socket.state {
        TcpState::Established | TcpState::CloseWait => 0,
        TcpState::FinWait2 => 1,
        _ => return None,
    };
    let info = socket.info.filter(|info| info.unacked == 0)?;
    let payload = info.bytes_sent?.checked_sub(info.bytes_retrans?)?;
    match info.bytes_acked?.checked_sub(payload)?.checked_sub(own_fin)? {
        0 => Some(Direction::Incoming),
        1 => Some(Direction::Outgoing),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::TcpInfo;
    use super::super::listeners::tests::{endpoint, listener};
    use super::*;

    fn socket(state: TcpState, info: Option<TcpInfo>) -> Socket {
        Socket {
            cookie: 1,
            cgroup_id: None,
            kind: SocketKind::Whole,
            state,
            local: endpoint("10.0.0.1:80"),
            remote: endpoint("10.0.0.2:40000"),
            inode: 1,
            info,
        }
    }

    fn counters(acked: u64, sent: u64, retrans: u64, unacked: u32) -> Option<TcpInfo> {
        Some(TcpInfo {
            unacked,
            bytes_acked: Some(acked),
            bytes_sent: Some(sent),
            bytes_retrans: Some(retrans),
            ..TcpInfo::default()
        })
    }

    #[test]
    fn the_counters_tell_where_they_can() {
        use Direction::{Incoming, Outgoing, Unknown};
        use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, SynSent};
        for (state, info, want) in [
            (Established, counters(1, 0, 0, 0), Outgoing),
            (Established, counters(0, 0, 0, 0), Incoming),
            (Established, counters(1001, 1000, 0, 0), Outgoing),
            (Established, counters(1000, 1000, 0, 0), Incoming),
            (Established, counters(1001, 1500, 500, 0), Outgoing),
            (CloseWait, counters(1000, 1500, 500, 0), Incoming),
            (FinWait2, counters(1002, 1000, 0, 0), Outgoing),
            (FinWait2, counters(1001, 1000, 0, 0), Incoming),
            (FinWait2, counters(1000, 1000, 0, 0), Unknown),
            (Established, counters(500, 1000, 0, 3), Unknown),
            (Established, counters(1002, 1000, 0, 0), Unknown),
            (Established, counters(999, 1000, 0, 0), Unknown),
            (Established, counters(5, 1, 2, 0), Unknown),
            (FinWait1, counters(1001, 1000, 0, 0), Unknown),
            (LastAck, counters(1001, 1000, 0, 0), Unknown),
            (Closing, counters(1001, 1000, 0, 0), Unknown),
            (Established, Some(TcpInfo::default()), Unknown),
            (Established, None, Unknown),
            (SynSent, counters(0, 0, 0, 1), Outgoing),
        ] {
            let got = direction(&socket(state, info), &Listeners::default());
            assert_eq!(got, want, "{state:?} {info:?}");
        }
    }

    #[test]
    fn a_handshake_under_way_tells_by_itself() {
        for kind in [SocketKind::Request, SocketKind::Whole] {
            let socket = Socket { kind, ..socket(TcpState::SynRecv, None) };
            assert_eq!(direction(&socket, &Listeners::default()), Direction::Incoming);
        }
    }

    #[test]
    fn else_what_is_listened_on_tells() {
        let listeners: Listeners = [listener("0.0.0.0:80", false)].into_iter().collect();
        let of = |info| direction(&socket(TcpState::Established, info), &listeners);
        assert_eq!(of(counters(500, 1000, 0, 3)), Direction::Incoming);
        assert_eq!(of(None), Direction::Incoming);
        assert_eq!(of(counters(1, 0, 0, 0)), Direction::Outgoing, "the counters are exact");
        let elsewhere: Listeners = [listener("0.0.0.0:81", false)].into_iter().collect();
        let unknown = direction(&socket(TcpState::TimeWait, None), &elsewhere);
        assert_eq!(unknown, Direction::Unknown);
    }
}
