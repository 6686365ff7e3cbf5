//! Datagrams of any bytes, as if sock_diag had sent them.

use flowend_probe_types::TcpState;

use super::super::socket::SocketKind;
use super::{HEADER_LENGTH, Message, messages};

/// `struct nlmsghdr`.
const NETLINK_HEADER: usize = 16;

/// Reads each message, and checks that no more come of a datagram than it has room for, and of none what it cannot
/// have said.
pub(crate) fn check(datagram: &[u8]) {
    let (mut read, mut sockets) = (0, 0);
    for message in messages(datagram) {
        read += 1;
        match message {
            Ok((Message::Socket { socket, .. }, _)) => {
                sockets += 1;
                let is_listener = socket.state == TcpState::Listen;
                assert!(!is_listener || socket.info.is_none(), "{socket:?}");
                let is_request = socket.kind == SocketKind::Request;
                assert!(!is_request || socket.info.is_none(), "{socket:?}");
            }
            Ok((Message::Refused(error), _)) => {
                assert!(error.raw_os_error().is_some_and(|code| code != 0), "{error:?}");
            }
            Ok((Message::Done | Message::Other, _)) => {}
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    // A last one may be cut.
    assert!(read <= datagram.len() / NETLINK_HEADER + 1, "{read} of {} bytes", datagram.len());
    assert!(sockets * (NETLINK_HEADER + HEADER_LENGTH) <= datagram.len(), "{sockets} sockets");
}
