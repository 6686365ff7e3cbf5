//! What differs between two configurations, and what of it can take effect while flowend runs.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};

use super::layers::Layered;

/// When a changed key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// With the reload.
    Live,
    /// With the next start.
    Restart,
}

/// Keys, and tables with all that is in them, that take effect with the reload.
const LIVE: [&str; 14] = [
    "attributes",
    "destinations",
    "exclude",
    "export",
    "log",
    "otlp",
    "outputs",
    "resource.attributes",
    "resource.service_name",
    "sampling",
    "shutdown",
    "spans",
    "targets",
    "telemetry.ready_after",
];

/// Those that take effect with the next start: what the programs in the kernel were loaded with, what tables
/// were made for, what listens, and what all records of one connection must have in common. Whatever is not live is among them; the
/// list is for the test, so that nobody adds a key without a decision.
#[cfg(test)]
const RESTART: [&str; 19] = [
    "cgroup_mount",
    "confine",
    "dns",
    "events",
    "flows",
    "ids",
    "pin",
    "pin_folder",
    "pin_state",
    "probe",
    "process",
    "progress",
    "resource.labels_file",
    "ring",
    "spool",
    "telemetry.listen",
    "telemetry.max_services",
    "telemetry.otlp",
    "telemetry.otlp_interval",
];

/// The keys whose values differ, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// They take effect with the reload.
    pub live: Vec<String>,
    /// They take effect with the next start.
    pub restart: Vec<String>,
}

impl Changes {
    /// Whether nothing differs.
    pub const fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

/// What `new` changes. Names of keys alone: values may be secrets.
pub fn changes(old: &Layered, new: &Layered) -> Changes {
    let (old, new) = (leaves(old), leaves(new));
    let mut changes = Changes::default();
    let added = new.keys().filter(|key| !old.contains_key(*key));
    let changed = old.iter().filter(|(key, value)| new.get(*key) != Some(*value));
    for key in changed.map(|(key, _)| key).chain(added) {
        match effect_of(key) {
            Effect::Live => changes.live.push(key.clone()),
            Effect::Restart => changes.restart.push(key.clone()),
        }
    }
    changes.live.sort();
    changes.restart.sort();
    changes
}

fn leaves(layered: &Layered) -> BTreeMap<String, Value> {
    layered.entries().into_iter().map(|(key, value, _)| (key, value)).collect()
}

pub(super) fn effect_of(key: &str) -> Effect {
    if LIVE.iter().any(|entry| covers(entry, key)) { Effect::Live } else { Effect::Restart }
}

/// Whether an entry of the lists is this key, or a table that it is in.
fn covers(entry: &str, key: &str) -> bool {
    key.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The part of a configuration that takes effect then. Tables stay, though empty; but those that take effect
/// with the reload as a whole are no part of what needs a restart.
pub(super) fn only(effect: Effect, dict: &Dict) -> Dict {
    part("", effect, dict)
}

fn part(prefix: &str, effect: Effect, dict: &Dict) -> Dict {
    let mut kept = Dict::new();
    for (name, value) in dict {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            // Left empty, a destination that was taken out would be one without an endpoint.
            Value::Dict(..) if effect == Effect::Restart && effect_of(&key) == Effect::Live => {}
            Value::Dict(tag, inner) => {
                kept.insert(name.clone(), Value::Dict(*tag, part(&key, effect, inner)));
            }
            _ if effect_of(&key) == effect => {
                kept.insert(name.clone(), value.clone());
            }
            _ => {}
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn with(set: &[&str]) -> Layered {
        let set = set.iter().map(ToString::to_string).collect();
        load(&Sources { set, ..Sources::default() }).unwrap()
    }

    #[test]
    fn each_key_is_in_exactly_one_list() {
        for (key, _, _) in with(&[]).entries() {
            let times = LIVE.iter().chain(&RESTART).filter(|entry| covers(entry, &key)).count();
            assert_eq!(times, 1, "{key}: name it, or its table, in LIVE or in RESTART");
        }
        assert!(covers("a.b", "a.b") && covers("a", "a.b.c"));
        assert!(!covers("a.b", "a.bc") && !covers("a.b", "a"));
    }

    #[test]
    fn what_differs_is_named_by_when_it_takes_effect() {
        let base: &[&str] = &["sampling.ratio=0.5", "otlp.headers.x-key=hush", "flows.max=7"];
        let other = &["sampling.ratio=0.25", "otlp.headers.y-key=hush", "flows.max=8"];
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (base, &[], &[]),
            (
                other,
                &["otlp.headers.x-key", "otlp.headers.y-key", "sampling.ratio"],
                &["flows.max"],
            ),
            (&[], &["otlp.headers.x-key", "sampling.ratio"], &["flows.max"]),
        ];
        for (set, live, restart) in cases {
            let got = changes(&with(base), &with(set));
            assert_eq!(got.live, *live, "{set:?}");
            assert_eq!(got.restart, *restart, "{set:?}");
            assert_eq!(got.is_empty(), live.is_empty() && restart.is_empty());
        }
    }

    #[test]
    fn destinations_come_and_go() {
        let [endpoint, signals] =
            ["destinations.a.endpoint=http://a:4317", "destinations.a.signals=[\"logs\"]"];
        for (started, new) in [
            ([].as_slice(), [endpoint, signals].as_slice()),
            (&[endpoint, signals], &[]),
            (&[endpoint, signals], &[endpoint]),
        ] {
            let new = with(new);
            let in_force = new.in_force(&with(started)).unwrap();
            assert_eq!(in_force.settings.destinations, new.settings.destinations);
            assert!(changes(&new, &in_force).is_empty());
        }
    }

    #[test]
    fn what_needs_a_restart_stays_as_it_was_at_the_start() {
        let started = with(&["flows.max=7", "dns.resolver_cgroups.a=/", "otlp.headers.x=1"]);
        let new =
            with(&["flows.max=8", "dns.resolver_cgroups.b=/", "otlp.headers.y.z=2", "targets=t"]);
        let in_force = new.in_force(&started).unwrap();
        assert_eq!(changes(&started, &in_force).restart, Vec::<String>::new());
        assert_eq!(changes(&new, &in_force).live, Vec::<String>::new());
        let settings = &in_force.settings;
        assert_eq!(settings.max_flows, 7);
        assert_eq!(settings.watched.targets[0].as_str(), "t");
        assert_eq!(settings.names.resolvers[0].resolver.as_str(), "a");
        let headers: Vec<_> =
            settings.metrics_receiver.headers.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(headers, ["y.z"]);
        let origin = |layered: &Layered, key: &str| {
            layered.entries().into_iter().find(|(k, ..)| k == key).map(|(.., origin)| origin)
        };
        assert_eq!(origin(&in_force, "targets").as_deref(), Some("--set targets"));
        assert_eq!(origin(&in_force, "flows.max").as_deref(), Some("--set flows.max"));
        assert_eq!(origin(&in_force, "ids.key").as_deref(), Some("default"));
    }
}
