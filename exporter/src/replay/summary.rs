//! What became of every packet of the capture.

use std::collections::BTreeSet;
use std::fmt;

/// Why a packet is no packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its interface's link type is not understood.
    LinkType,
    /// ARP and others.
    NotIp,
    /// UDP, ICMP and others.
    NotTcp,
    /// A part of a packet.
    Fragment,
    /// Not captured up to the end of its headers.
    Truncated,
    /// Its headers say what cannot be.
    BadHeader,
}

impl Cause {
    const ALL: [Self; 6] = [
        Self::LinkType,
        Self::NotIp,
        Self::NotTcp,
        Self::Fragment,
        Self::Truncated,
        Self::BadHeader,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::LinkType => "link_type",
            Self::NotIp => "not_ip",
            Self::NotTcp => "not_tcp",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::BadHeader => "bad_header",
        }
    }
}

/// Counts of a capture: `packets = tcp + skipped{cause}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Read.
    pub(super) packets: u64,
    /// Of a connection.
    pub(super) tcp: u64,
    /// Reported, or sampled out.
    pub(super) connections: u64,
    skipped: [u64; Cause::ALL.len()],
    /// Link types that are not understood.
    unknown_links: BTreeSet<u32>,
}

impl Summary {
    /// Counts a packet that is no packet of a connection.
    pub(super) fn skip(&mut self, cause: Cause) {
        self.skipped[cause as usize] += 1;
    }

    /// Counts a packet of a link type that is not understood.
    pub(super) fn skip_link(&mut self, number: u32) {
        self.skip(Cause::LinkType);
        self.unknown_links.insert(number);
    }

    /// The link types that are not understood, where no packet had another.
    pub(super) fn only_unknown_links(&self) -> Option<String> {
        let skipped = self.skipped[Cause::LinkType as usize];
        (skipped > 0 && skipped == self.packets).then(|| self.links())
    }

    /// Whether every packet is accounted for.
    #[cfg(any(test, fuzzing))]
    pub(super) fn holds(&self) -> bool {
        self.packets == self.tcp + self.skipped.iter().sum::<u64>()
    }

    fn links(&self) -> String {
        let numbers: Vec<_> = self.unknown_links.iter().map(u32::to_string).collect();
        numbers.join(", ")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packets {} = tcp {}", self.packets, self.tcp)?;
        for cause in Cause::ALL {
            let n = self.skipped[cause as usize];
            if n > 0 {
                write!(f, " + skipped{{{}}} {n}", cause.as_str())?;
            }
        }
        write!(f, "; connections {}", self.connections)?;
        if !self.unknown_links.is_empty() {
            write!(f, "; link types not understood: {}", self.links())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_an_identity() {
        let mut summary = Summary { packets: 5, tcp: 2, connections: 1, ..Summary::default() };
        summary.skip(Cause::Fragment);
        summary.skip_link(105);
        summary.skip_link(9);
        assert_eq!(
            summary.to_string(),
            "packets 5 = tcp 2 + skipped{link_type} 2 + skipped{fragment} 1; connections 1; \
             link types not understood: 9, 105"
        );
        assert_eq!(summary.only_unknown_links(), None);
        summary.packets = 2;
        assert_eq!(summary.only_unknown_links().as_deref(), Some("9, 105"));
    }
}
