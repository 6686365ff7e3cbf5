//! What flowend can do without, one by one: every program but the two that see segments.

/// A kind of program that a kernel, or somebody else's program in the same cgroup, may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Optional {
    /// Callbacks of sockets: establishment, giving up, CLOSE.
    Sockops,
    /// connect(): the process, and the address that was asked for.
    Connect,
    /// bind(): the process of listeners.
    Bind,
    /// sendmsg(): the server that an unconnected UDP socket asks.
    Sendmsg,
    /// The tracepoint of error reports.
    Errors,
}

impl Optional {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sockops, Self::Connect, Self::Bind, Self::Sendmsg, Self::Errors];

    /// As settings and metrics call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sockops => "sockops",
            Self::Connect => "connect",
            Self::Bind => "bind",
            Self::Sendmsg => "sendmsg",
            Self::Errors => "errors",
        }
    }

    /// What is missing without it, in words for the user.
    #[must_use]
    pub const fn without(self) -> &'static str {
        match self {
            Self::Sockops => {
                "an end is told with the second FIN, an RST, or when a look finds the socket gone, seconds later at worst; \
                 segments, retransmits, the handshake's RTT and the bytes of a reset are absent, what the kernel gave up \
                 is timeout by its error reports alone, else vanished, and there are no begin records and no \
                 handshake_failed"
            }
            Self::Connect => {
                "the process of a connection that is opened here is known only if a look finds it, and a name only for the \
                 address that the connection really has"
            }
            Self::Bind => "the process of a listener that is younger than flowend is not known",
            Self::Sendmsg => {
                "DNS over a UDP socket that is not connected, to a server that is translated on the way, teaches no name"
            }
            Self::Errors => super::tracepoint::WITHOUT,
        }
    }
}

/// What is switched off (`probe.without`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without(u8);

impl Without {
    /// Nothing is.
    pub const NOTHING: Self = Self(0);

    /// This, too.
    #[must_use]
    pub const fn and(self, optional: Optional) -> Self {
        Self(self.0 | 1 << optional as u8)
    }

    /// Whether this is.
    #[must_use]
    pub const fn contains(self, optional: Optional) -> bool {
        self.0 & 1 << optional as u8 != 0
    }
}

/// In how many target cgroups an optional program is at work, and in how many it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCount {
    /// Which.
    pub optional: Optional,
    /// Cgroups where it is attached.
    pub attached: usize,
    /// Cgroups where the kernel refuses it.
    pub refused: usize,
    /// Cgroups where it is not wanted.
    pub off: usize,
}

impl ProgramCount {
    /// The states, as a metric calls them.
    #[must_use]
    pub const fn states(&self) -> [(&'static str, usize); 3] {
        [("attached", self.attached), ("refused", self.refused), ("off", self.off)]
    }

    /// Whether some cgroup lacks it, whatever the cause.
    #[must_use]
    pub const fn is_lacking(&self) -> bool {
        self.refused + self.off > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_switched_off_is_that_alone() {
        for one in Optional::ALL {
            let without = Without::NOTHING.and(one);
            for other in Optional::ALL {
                assert_eq!(without.contains(other), one == other, "{one:?} {other:?}");
                assert!(!Without::NOTHING.contains(other));
            }
        }
    }
}
