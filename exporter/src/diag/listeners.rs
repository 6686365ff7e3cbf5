//! What is listened on in one network namespace.

use std::collections::HashMap;

use flowend_probe_types::Addr;
use smallvec::SmallVec;

use super::socket::Socket;
use crate::flow::Endpoint;

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The socket; accepted ones belong to its cgroup.
    pub socket: Socket,
    /// Whether a listener on `::` leaves IPv4 to others (IPV6_V6ONLY).
    pub v6_only: bool,
}

impl Listener {
    fn takes(&self, local: &Endpoint) -> bool {
        let own = self.socket.local.addr;
        own == local.addr || own == ANY_V4 && local.addr.is_v4() || {
            own == ANY_V6 && !(self.v6_only && local.addr.is_v4())
        }
    }
}

const ANY_V4: Addr = Addr::v4(0);
const ANY_V6: Addr = Addr::v6([0; 4]);

/// The listeners of one network namespace, by port. Which interface or VRF they are bound to is not
/// looked at.
#[derive(Clone, Debug, Default)]
pub struct Listeners(HashMap<u16, SmallVec<[Listener; 1]>>);

impl Listeners {
    /// The listener that an accepted connection with this own side came from: one bound to the very
    /// address before one bound to all of them, as the kernel chooses (net/ipv4/inet_hashtables.c,
    /// __inet_lookup_listener). Of several with SO_REUSEPORT, any.
    pub fn find(&self, local: &Endpoint) -> Option<&Listener> {
        self.0
            .get(&local.port)?
            .iter()
            .filter(|listener| listener.takes(local))
            .max_by_key(|listener| listener.socket.local.addr == local.addr)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.values().flatten()
    }

    /// Whether nothing is listened on.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<Listener> for Listeners {
    fn extend<T: IntoIterator<Item = Listener>>(&mut self, listeners: T) {
        for listener in listeners {
            self.0.entry(listener.socket.local.port).or_default().push(listener);
        }
    }
}

impl FromIterator<Listener> for Listeners {
    fn from_iter<T: IntoIterator<Item = Listener>>(listeners: T) -> Self {
        let mut all = Self::default();
        all.extend(listeners);
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;

    use flowend_probe_types::TcpState;

    use super::*;
    use crate::diag::SocketKind;

    pub(crate) fn endpoint(text: &str) -> Endpoint {
        let address: SocketAddr = text.parse().unwrap();
        Endpoint { addr: address.ip().into(), port: address.port() }
    }

    pub(crate) fn listener(local: &str, v6_only: bool) -> Listener {
        let socket = Socket {
            cookie: 1,
            cgroup_id: None,
            kind: SocketKind::Whole,
            state: TcpState::Listen,
            local: endpoint(local),
            remote: endpoint("0.0.0.0:0"),
            inode: 1,
            info: None,
        };
        Listener { socket, v6_only }
    }

    #[test]
    fn a_wildcard_takes_its_family_and_the_ipv6_one_takes_ipv4_too() {
        for (listening, v6_only, local, want) in [
            ("127.0.0.1:80", false, "127.0.0.1:80", true),
            ("127.0.0.1:80", false, "127.0.0.1:81", false),
            ("127.0.0.1:80", false, "127.0.0.2:80", false),
            ("0.0.0.0:80", false, "127.0.0.2:80", true),
            ("0.0.0.0:80", false, "[::1]:80", false),
            ("0.0.0.0:80", false, "[::ffff:127.0.0.2]:80", true),
            ("[::]:80", false, "[::1]:80", true),
            ("[::]:80", false, "127.0.0.2:80", true),
            ("[::]:80", true, "[::1]:80", true),
            ("[::]:80", true, "127.0.0.2:80", false),
            ("[::1]:80", false, "[::1]:80", true),
            ("[::1]:80", false, "127.0.0.1:80", false),
            ("[::ffff:0.0.0.0]:80", false, "127.0.0.2:80", true),
        ] {
            let listeners: Listeners = [listener(listening, v6_only)].into_iter().collect();
            let found = listeners.find(&endpoint(local)).is_some();
            assert_eq!(found, want, "{listening} (IPv6 only: {v6_only}) takes {local}");
        }
    }

    #[test]
    fn the_address_goes_before_the_wildcard() {
        for order in [["0.0.0.0:80", "127.0.0.1:80"], ["127.0.0.1:80", "0.0.0.0:80"]] {
            let listeners: Listeners = order.iter().map(|l| listener(l, false)).collect();
            let found = |local| listeners.find(&endpoint(local)).unwrap().socket.local.to_string();
            assert_eq!(found("127.0.0.1:80"), "127.0.0.1:80");
            assert_eq!(found("127.0.0.2:80"), "0.0.0.0:80");
        }
    }
}
