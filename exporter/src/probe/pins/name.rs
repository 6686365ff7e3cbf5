//! What the pins are called. The BPF filesystem takes no dot in a name.

use flowend_probe_types::{LOST_SLOTS, SKIPPED_SLOTS};

use crate::probe::Role;

/// The number of the layout of events and counters. Programs that write one layout and a flowend that reads another
/// must not share a ring, so it stands in every name: raise it with each change of what crosses the kernel boundary.
pub(in crate::probe) const LAYOUT: u32 = 1;

/// The maps that outlive a restart, and the entries of those whose number is fixed: ring, counters, and the flag by
/// which user space asks to be woken.
pub(in crate::probe) const MAPS: [(&str, Option<usize>); 4] = [
    (RING, None),
    ("LOST", Some(LOST_SLOTS.len())),
    ("SKIPPED", Some(SKIPPED_SLOTS.len())),
    ("ASLEEP", Some(1)),
];

/// The ring buffer.
pub(in crate::probe) const RING: &str = "EVENTS";

/// What is pinned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::probe) enum Pin {
    /// A map, by its name in the object.
    Map(String),
    /// A program at a cgroup.
    Link(LinkKey),
    /// The tracepoint's program.
    Errors,
}

/// Which link of which cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::probe) struct LinkKey {
    /// The cgroup's id.
    pub(in crate::probe) cgroup: u64,
    /// What it is attached for.
    pub(in crate::probe) role: Role,
    /// Name of the program in the object.
    pub(in crate::probe) program: String,
}

/// A name that flowend gave, in one of its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::probe) enum Known {
    /// Of this layout.
    Here(Pin),
    /// Of another layout, or not finished.
    Other,
}

/// At the end of what is about to take another one's place.
pub(in crate::probe) const UNFINISHED: &str = "-new";

impl Pin {
    /// Its file's name.
    pub(in crate::probe) fn name(&self) -> String {
        match self {
            Self::Map(name) => format!("map-{LAYOUT}-{name}"),
            Self::Link(LinkKey { cgroup, role, program }) => {
                format!("link-{LAYOUT}-{cgroup}-{}-{program}", word(*role))
            }
            Self::Errors => format!("errors-{LAYOUT}"),
        }
    }
}

impl Known {
    /// Reads a file's name; `None` where it is not flowend's.
    pub(in crate::probe) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let kind = parts.next().filter(|kind| ["map", "link", "errors"].contains(kind))?;
        let layout: u32 = parts.next()?.parse().ok()?;
        let rest = parts.next();
        if layout != LAYOUT || name.ends_with(UNFINISHED) {
            return Some(Self::Other);
        }
        let pin = match (kind, rest) {
            ("errors", None) => Some(Pin::Errors),
            ("map", Some(name)) => {
                MAPS.iter().any(|(known, _)| *known == name).then(|| Pin::Map(name.into()))
            }
            ("link", Some(rest)) => link(rest).map(Pin::Link),
            _ => None,
        };
        Some(pin.map_or(Self::Other, Self::Here))
    }
}

fn link(rest: &str) -> Option<LinkKey> {
    let mut parts = rest.splitn(3, '-');
    let cgroup = parts.next()?.parse().ok()?;
    let named = parts.next()?;
    let role = [Role::Target, Role::Resolver].into_iter().find(|role| word(*role) == named)?;
    Some(LinkKey { cgroup, role, program: parts.next()?.into() })
}

const fn word(role: Role) -> &'static str {
    match role {
        Role::Target => "target",
        Role::Resolver => "resolver",
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use flowend_probe_types::{DnsEvent, ErrorEvent, ProcessEvent, TcpEvent};

    use super::*;

    #[test]
    fn a_name_says_what_is_pinned_and_anything_else_is_not_taken_for_it() {
        let key = |role| LinkKey { cgroup: 4711, role, program: "flowend_egress".into() };
        for pin in [
            Pin::Map(RING.into()),
            Pin::Link(key(Role::Target)),
            Pin::Link(key(Role::Resolver)),
            Pin::Errors,
        ] {
            let name = pin.name();
            assert!(!name.contains('.'), "{name}");
            assert_eq!(Known::parse(&name), Some(Known::Here(pin)), "{name}");
            assert_eq!(Known::parse(&format!("{name}{UNFINISHED}")), Some(Known::Other), "{name}");
        }
        for name in ["map-0-EVENTS", "link-99-1-target-x", "errors-0", "map-1-OTHER", "link-1-x"] {
            assert_eq!(Known::parse(name), Some(Known::Other), "{name}");
        }
        for name in ["", "map", "map-", "maps-1-EVENTS", "link-x-1", "somebody's"] {
            assert_eq!(Known::parse(name), None, "{name}");
        }
    }

    /// Sizes and places of what crosses the kernel boundary, as they are in layout 1.
    #[test]
    fn a_change_of_the_layout_has_a_new_number() {
        let sizes = [
            size_of::<TcpEvent>(),
            size_of::<ErrorEvent>(),
            size_of::<ProcessEvent>(),
            size_of::<DnsEvent>(),
        ];
        let places = [
            offset_of!(TcpEvent, time_ns),
            offset_of!(TcpEvent, bytes_acked),
            offset_of!(TcpEvent, local),
            offset_of!(TcpEvent, seq),
            offset_of!(TcpEvent, srtt_8us),
            offset_of!(TcpEvent, total_retrans),
            offset_of!(TcpEvent, keepalive_ms),
            offset_of!(ErrorEvent, time_ns),
            offset_of!(ProcessEvent, cookie),
            offset_of!(DnsEvent, cgroup_id),
            offset_of!(DnsEvent, seq),
        ];
        assert_eq!(
            (LAYOUT, sizes, places, LOST_SLOTS.len(), SKIPPED_SLOTS.len()),
            (1, [144, 48, 48, 72], [8, 40, 56, 88, 112, 136, 140, 8, 16, 24, 64], 7, 3),
            "the layout changed: raise LAYOUT, and say here what it is now"
        );
    }
}
