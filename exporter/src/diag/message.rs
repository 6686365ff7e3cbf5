//! Netlink messages of a sock_diag dump: bytes in, sockets out. No I/O.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::io;

use flowend_probe_types::TcpState;
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NlasIterator, Parseable,
};
use netlink_packet_sock_diag::constants::{INET_DIAG_INFO, INET_DIAG_SKV6ONLY};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetResponseHeader, Timer};

use super::socket::{Socket, SocketKind, TcpInfo};
use crate::flow::Endpoint;

/// The cgroup of a socket (include/uapi/linux/inet_diag.h), which netlink-packet-sock-diag does not
/// know yet.
const INET_DIAG_CGROUP_ID: u16 = 21;

/// `struct inet_diag_msg` without its attributes.
const HEADER_LENGTH: usize = 72;

/// All TCP sockets (include/uapi/linux/inet_diag.h). The one request that takes both families: for each
/// request the kernel walks the connections of all network namespaces, which share a table.
const TCPDIAG_GETSOCK: u16 = 18;

/// A bit for each state from ESTABLISHED to NEW_SYN_RECV (include/net/tcp_states.h). Not for
/// BOUND_INACTIVE: one more table to walk, of sockets that are no connections.
const STATES: u32 = 0x1ffe;

/// The request for all TCP sockets, in every state, with their counters.
pub(super) fn request() -> Vec<u8> {
    // struct inet_diag_req: family, prefix lengths, attributes wanted; struct inet_diag_sockid; states,
    // dbs. All but two say "any".
    let mut body = [0; 4 + 48 + 8];
    body[3] = ExtensionFlags::INFO.bits();
    body[52..56].copy_from_slice(&STATES.to_ne_bytes());
    let mut header = NetlinkHeader::default();
    header.message_type = TCPDIAG_GETSOCK;
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut bytes = vec![0; header.buffer_len()];
    header.length = (bytes.len() + body.len()) as u32;
    header.emit(&mut bytes);
    bytes.extend_from_slice(&body);
    bytes
}

/// One message of an answer.
#[derive(Debug)]
pub(super) enum Message {
    /// A socket. Whether it takes IPv6 only is told of listeners.
    Socket { socket: Socket, v6_only: bool },
    /// The dump is over.
    Done,
    /// The kernel gave up.
    Refused(io::Error),
    /// Not for us to read.
    Other,
}

/// The messages of one datagram, each with whether the kernel says that the dump is inconsistent
/// (`NLM_F_DUMP_INTR`). Nothing can be found after a message whose length is wrong.
pub(super) fn messages(
    datagram: &[u8],
) -> impl Iterator<Item = Result<(Message, bool), DecodeError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(rest);
        // Messages are padded to 4 bytes; the last one need not be.
        let length =
            message.as_ref().map_or(rest.len(), |m| (m.length() as usize).next_multiple_of(4));
        rest = rest.get(length..).unwrap_or_default();
        Some(message.and_then(|m| {
            let interrupted = m.flags() & NLM_F_DUMP_INTR != 0;
            Ok((read(m.message_type(), m.payload())?, interrupted))
        }))
    })
}

fn read(message_type: u16, payload: &[u8]) -> Result<Message, DecodeError> {
    match message_type {
        TCPDIAG_GETSOCK => parse(payload),
        // Both carry 0 or a negative errno; a DONE without it has none (net/netlink/af_netlink.c).
        NLMSG_DONE => Ok(errno(payload).map_or(Message::Done, Message::Refused)),
        NLMSG_ERROR => Ok(errno(payload).map_or(Message::Other, Message::Refused)),
        _ => Ok(Message::Other),
    }
}

fn errno(payload: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(*payload.first_chunk()?);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}

/// Reads a `struct inet_diag_msg` and its attributes. Attributes are read in place: the crate's typed
/// ones are copied one by one, and its `TcpInfo` takes no struct of an older kernel.
fn parse(payload: &[u8]) -> Result<Message, DecodeError> {
    let header = InetResponseHeader::parse(payload)?;
    let mut info = None;
    let mut cgroup_id = None;
    let mut v6_only = false;
    for attribute in NlasIterator::new(payload.get(HEADER_LENGTH..).unwrap_or_default()) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            INET_DIAG_INFO => info = TcpInfo::parse(value),
            INET_DIAG_CGROUP_ID => {
                cgroup_id = value.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
            }
            INET_DIAG_SKV6ONLY => v6_only = value.first().is_some_and(|flag| *flag != 0),
            _ => {}
        }
    }
    let state = TcpState::from_kernel(header.state);
    let kind = if header.timer == Some(Timer::TimeWait) {
        SocketKind::TimeWait
    } else if matches!(state, TcpState::SynRecv | TcpState::NewSynRecv) && info.is_none() {
        SocketKind::Request
    } else {
        SocketKind::Whole
    };
    let id = &header.socket_id;
    let socket = Socket {
        cookie: cookie(id.cookie),
        cgroup_id,
        kind,
        state,
        local: Endpoint { addr: id.source_address.into(), port: id.source_port },
        remote: Endpoint { addr: id.destination_address.into(), port: id.destination_port },
        inode: header.inode,
        // A listener's are the lengths of its queues under other names (net/ipv4/tcp.c, tcp_get_info).
        info: info.filter(|_| state != TcpState::Listen),
    };
    Ok(Message::Socket { socket, v6_only })
}

/// Two words, the lower half first (net/core/sock_diag.c, sock_diag_save_cookie).
fn cookie(bytes: [u8; 8]) -> u64 {
    let [a, b, c, d, e, f, g, h] = bytes;
    u64::from(u32::from_ne_bytes([a, b, c, d])) | u64::from(u32::from_ne_bytes([e, f, g, h])) << 32
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{IpAddr, SocketAddr};

    use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};

    use super::*;

    /// An attribute with its padding.
    pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// A `struct inet_diag_msg`, as include/uapi/linux/inet_diag.h lays it out.
    fn diag_msg(
        state: u8,
        timer: u8,
        local: &str,
        remote: &str,
        attributes: &[Vec<u8>],
    ) -> Vec<u8> {
        let (local, remote): (SocketAddr, SocketAddr) =
            (local.parse().unwrap(), remote.parse().unwrap());
        let address = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => [&v4.octets()[..], &[0; 12]].concat(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
        let mut bytes = vec![family, state, timer, 0];
        bytes.extend_from_slice(&local.port().to_be_bytes());
        bytes.extend_from_slice(&remote.port().to_be_bytes());
        bytes.extend_from_slice(&address(local.ip()));
        bytes.extend_from_slice(&address(remote.ip()));
        for word in [0_u32, 0x0000_0007, 0x0000_0001, 0, 0, 0, 1000, 4242] {
            // idiag_if, both halves of the cookie, expires, rqueue, wqueue, uid, inode
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(bytes.len(), HEADER_LENGTH);
        bytes.extend(attributes.concat());
        bytes
    }

    /// A message with its header, padded.
    fn framed(message_type: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&message_type.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn one(payload: &[u8]) -> (Socket, bool) {
        let datagram = framed(TCPDIAG_GETSOCK, 2, payload);
        let mut all: Vec<_> = messages(&datagram).collect();
        assert_eq!(all.len(), 1);
        match all.remove(0).unwrap() {
            (Message::Socket { socket, v6_only }, false) => (socket, v6_only),
            other => panic!("{other:?}"),
        }
    }

    fn info() -> Vec<u8> {
        let mut info = vec![0; 248];
        info[120..128].copy_from_slice(&1001_u64.to_ne_bytes());
        attribute(INET_DIAG_INFO, &info)
    }

    #[test]
    fn a_connection_is_read_whole() {
        // SHUTDOWN stands between them: an attribute that nobody asked for.
        let attributes =
            [attribute(8, &[0]), info(), attribute(INET_DIAG_CGROUP_ID, &99_u64.to_ne_bytes())];
        let (socket, _) = one(&diag_msg(1, 0, "10.0.0.1:40000", "192.0.2.7:443", &attributes));
        assert_eq!(socket.cookie, 0x0000_0001_0000_0007);
        assert_eq!(socket.cgroup_id, Some(99));
        assert_eq!((socket.kind, socket.state), (SocketKind::Whole, TcpState::Established));
        assert_eq!(socket.local.to_string(), "10.0.0.1:40000");
        assert_eq!(socket.remote.to_string(), "192.0.2.7:443");
        assert_eq!(socket.inode, 4242);
        assert_eq!(socket.info.unwrap().bytes_acked, Some(1001));
    }

    #[test]
    fn an_ipv4_connection_is_the_same_whatever_the_family_of_its_socket() {
        let of = |local: &str, remote: &str| one(&diag_msg(1, 0, local, remote, &[])).0;
        let plain = of("10.0.0.1:40000", "192.0.2.7:443");
        let mapped = of("[::ffff:10.0.0.1]:40000", "[::ffff:192.0.2.7]:443");
        assert_eq!((plain.local, plain.remote), (mapped.local, mapped.remote));
        let v6 = of("[2001:db8::1]:40000", "[2001:db8::2]:443");
        assert_eq!(v6.remote.to_string(), "[2001:db8::2]:443");
    }

    #[test]
    fn what_is_no_whole_socket_is_told_from_one() {
        let kind = |state, timer, attributes: &[Vec<u8>]| {
            let (socket, _) = one(&diag_msg(state, timer, "10.0.0.1:1", "10.0.0.2:2", attributes));
            (socket.kind, socket.state)
        };
        for (state, timer, attributes, want) in [
            (6, 3, vec![], (SocketKind::TimeWait, TcpState::TimeWait)),
            (5, 3, vec![], (SocketKind::TimeWait, TcpState::FinWait2)),
            (5, 0, vec![info()], (SocketKind::Whole, TcpState::FinWait2)),
            (3, 1, vec![], (SocketKind::Request, TcpState::SynRecv)),
            (12, 1, vec![], (SocketKind::Request, TcpState::NewSynRecv)),
            // Fast Open, or both sides connecting.
            (3, 1, vec![info()], (SocketKind::Whole, TcpState::SynRecv)),
            (200, 0, vec![], (SocketKind::Whole, TcpState::Unknown)),
        ] {
            assert_eq!(kind(state, timer, &attributes), want, "state {state}, timer {timer}");
        }
    }

    #[test]
    fn a_listener_has_no_counters_and_may_take_ipv6_only() {
        let of = |flag: u8| {
            let attributes = [info(), attribute(INET_DIAG_SKV6ONLY, &[flag])];
            one(&diag_msg(10, 0, "[::]:80", "[::]:0", &attributes))
        };
        let (socket, v6_only) = of(1);
        assert_eq!((socket.state, socket.info, v6_only), (TcpState::Listen, None, true));
        assert!(!of(0).1);
    }

    #[test]
    fn one_datagram_carries_many_messages_and_the_end() {
        let socket = diag_msg(1, 0, "10.0.0.1:1", "10.0.0.2:2", &[]);
        let datagram = [
            framed(TCPDIAG_GETSOCK, 2, &socket),
            framed(1, 0, &[]),
            framed(TCPDIAG_GETSOCK, 2 | NLM_F_DUMP_INTR, &socket),
            framed(NLMSG_DONE, 2, &0_i32.to_ne_bytes()),
        ]
        .concat();
        let words: Vec<_> = messages(&datagram)
            .map(|message| match message.unwrap() {
                (Message::Socket { .. }, interrupted) => format!("socket {interrupted}"),
                (Message::Done, _) => "done".into(),
                (Message::Other, _) => "other".into(),
                (Message::Refused(error), _) => error.to_string(),
            })
            .collect();
        assert_eq!(words, ["socket false", "other", "socket true", "done"]);
    }

    #[test]
    fn a_refusal_says_which() {
        for (message_type, code) in [(NLMSG_ERROR, libc::EPERM), (NLMSG_DONE, libc::ENOMEM)] {
            let datagram = framed(message_type, 0, &(-code).to_ne_bytes());
            match messages(&datagram).next().unwrap().unwrap().0 {
                Message::Refused(error) => assert_eq!(error.raw_os_error(), Some(code)),
                other => panic!("{other:?}"),
            }
        }
        // i32::MIN has no positive counterpart.
        let hostile = framed(NLMSG_ERROR, 0, &i32::MIN.to_ne_bytes());
        assert!(matches!(messages(&hostile).next(), Some(Ok((Message::Refused(_), _)))));
        let acknowledged = framed(NLMSG_ERROR, 0, &0_i32.to_ne_bytes());
        assert!(matches!(messages(&acknowledged).next(), Some(Ok((Message::Other, _)))));
    }

    #[test]
    fn cut_and_garbled_messages_are_errors_and_never_a_panic() {
        let attributes = [info(), attribute(INET_DIAG_CGROUP_ID, &99_u64.to_ne_bytes())];
        let whole = diag_msg(1, 0, "10.0.0.1:1", "10.0.0.2:2", &attributes);
        let datagram = framed(TCPDIAG_GETSOCK, 2, &whole);
        for cut in 1..datagram.len() {
            let mut all: Vec<_> = messages(&datagram[..cut]).collect();
            assert_eq!(all.len(), 1, "{cut}");
            assert!(all.remove(0).is_err(), "the length field says more than {cut}");
        }
        // The frame is right and what is in it is short.
        for cut in 0..whole.len() {
            let framed = framed(TCPDIAG_GETSOCK, 2, &whole[..cut]);
            let read = messages(&framed).next().unwrap();
            assert!(cut >= HEADER_LENGTH || read.is_err(), "{cut}");
        }
        // Every length field with every bit flipped.
        for at in [0, 1, 2, 3, 16 + HEADER_LENGTH, 16 + HEADER_LENGTH + 1] {
            for bit in 0..8 {
                let mut garbled = datagram.clone();
                garbled[at] ^= 1 << bit;
                assert!(messages(&garbled).count() <= datagram.len() / 16, "{at} {bit}");
            }
        }
        let unknown_family = framed(TCPDIAG_GETSOCK, 2, &[77; HEADER_LENGTH]);
        assert!(messages(&unknown_family).next().unwrap().is_err());
    }

    #[test]
    fn a_request_asks_for_every_state_and_the_counters() {
        let bytes = request();
        assert_eq!(bytes.len(), 16 + 60);
        let message = NetlinkBuffer::new_checked(&bytes[..]).unwrap();
        assert_eq!((message.message_type(), message.length()), (TCPDIAG_GETSOCK, 76));
        assert_eq!(message.flags(), NLM_F_REQUEST | NLM_F_DUMP);
        let body = message.payload();
        assert_eq!(body[..4], [0, 0, 0, 1 << (INET_DIAG_INFO - 1)]);
        let states = u32::from_ne_bytes(*body[52..].first_chunk().unwrap());
        for state in TcpState::Established as u8..=TcpState::NewSynRecv as u8 {
            assert!(states >> state & 1 == 1, "{state}");
        }
    }
}
