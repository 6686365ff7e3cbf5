//! Records as JSON lines, found by the socket that they are of.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::support::{Flowend, wait_until};

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line(pub(crate) Value);

/// All lines so far, of every kind.
pub(crate) fn lines(flowend: &Flowend) -> Vec<Line> {
    flowend.json().into_iter().map(Line).collect()
}

impl Line {
    /// "begin", "progress" or "end".
    pub(crate) fn kind(&self) -> &str {
        let name = self.0["event_name"].as_str().expect("event_name");
        name.strip_prefix("flowend.tcp.").expect("flowend's event")
    }

    /// An attribute that is a string.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0["attributes"][key].as_str()
    }

    /// An attribute that is an integer.
    pub(crate) fn int(&self, key: &str) -> Option<i64> {
        self.0["attributes"][key].as_i64()
    }

    /// An attribute of the resource.
    pub(crate) fn resource(&self, key: &str) -> Option<&str> {
        self.0["resource"][key].as_str()
    }

    /// Whether the connection was seen to begin.
    pub(crate) fn start_known(&self) -> bool {
        self.0["attributes"]["flowend.start_known"].as_bool().expect("flowend.start_known")
    }

    /// An address and port, such as that of "network.local".
    pub(crate) fn endpoint(&self, prefix: &str) -> Option<SocketAddr> {
        let ip: IpAddr = self.text(&format!("{prefix}.address"))?.parse().ok()?;
        Some((ip, u16::try_from(self.int(&format!("{prefix}.port"))?).ok()?).into())
    }

    /// Own address and peer.
    pub(crate) fn socket(&self) -> (SocketAddr, SocketAddr) {
        let end = |prefix| self.endpoint(prefix).expect(prefix);
        (end("network.local"), end("network.peer"))
    }
}

/// The lines of one kind of a socket: own address and peer.
pub(crate) fn of<'a>(
    lines: &'a [Line],
    kind: &str,
    socket: (SocketAddr, SocketAddr),
) -> Vec<&'a Line> {
    lines.iter().filter(|line| line.kind() == kind && line.socket() == socket).collect()
}

/// Waits until each of these sockets has a line of this kind.
pub(crate) fn wait_for_each(flowend: &Flowend, kind: &str, sockets: &[(SocketAddr, SocketAddr)]) {
    let missing = || -> Vec<_> {
        let lines = lines(flowend);
        sockets.iter().filter(|socket| of(&lines, kind, **socket).is_empty()).copied().collect()
    };
    wait_until(
        || missing().is_empty(),
        || format!("no {kind} of {:?}; {}", missing(), flowend.stderr()),
    );
}
