//! What the outputs call each attribute: a profile's names, with those the user changed, left out and
//! added. All outputs but text go through it.

use std::collections::{BTreeMap, HashMap};

use opentelemetry::Key as Name;

use super::attributes::{Value, attributes};
use super::keys::Key;
use crate::config::Profile;
use crate::record::Record;

/// The name of each attribute, and the static attributes beside them.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// By `Key as usize`; `None`: left out.
    names: Box<[Option<Name>]>,
    added: Vec<(Name, String)>,
}

/// What the user wants changed of a profile, as written in the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// Names that are left out.
    pub omit: &'a [String],
    /// Name to new name.
    pub rename: &'a BTreeMap<String, String>,
    /// Static attributes, added to each log record and span.
    pub add: &'a BTreeMap<String, String>,
}

/// Why changes cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("attributes.{place}: {problem}")]
pub struct MappingError {
    /// The key in the table `attributes`.
    pub place: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Mapping {
    /// A profile as it is.
    pub fn new(profile: Profile) -> Self {
        let names = Key::ALL.iter().map(|key| Some(Name::from_static_str(key.name(profile))));
        Self { names: names.collect(), added: Vec::new() }
    }

    /// A profile with changes. The names in them are those of the profile.
    ///
    /// # Errors
    /// A name that the profile does not have, one that is changed and left out, one that is given twice.
    pub fn with(profile: Profile, changes: Changes<'_>) -> Result<Self, MappingError> {
        let mut mapping = Self::new(profile);
        for name in changes.omit {
            let key = known(name, profile).map_err(|problem| error("omit", problem))?;
            mapping.names[key as usize] = None;
        }
        for (name, new) in changes.rename {
            let place = format!("rename.{name}");
            let key = known(name, profile).map_err(|problem| error(&place, problem))?;
            let Some(named) = &mut mapping.names[key as usize] else {
                let problem = format!(
                    "\"{name}\" is left out by attributes.omit; take it out of one of the two"
                );
                return Err(error(&place, problem));
            };
            *named = Name::new(new.clone());
        }
        for (name, value) in changes.add {
            mapping.added.push((Name::new(name.clone()), value.clone()));
        }
        mapping.check(profile)?;
        Ok(mapping)
    }

    /// The name of an attribute; `None` where it is left out.
    pub fn name(&self, key: Key) -> Option<&Name> {
        self.names[key as usize].as_ref()
    }

    /// The static attributes, in the order of their names.
    pub fn added(&self) -> &[(Name, String)] {
        &self.added
    }

    /// Hands each attribute of the record to `put` by its name, in the order of [`attributes`], and then
    /// the static ones.
    pub fn attributes<'a>(&'a self, record: &'a Record, mut put: impl FnMut(&'a Name, Value<'a>)) {
        attributes(record, &mut |key, value| {
            if let Some(name) = self.name(key) {
                put(name, value);
            }
        });
        for (name, value) in &self.added {
            put(name, Value::Str(value));
        }
    }

    /// Each name must be there, and once.
    fn check(&self, profile: Profile) -> Result<(), MappingError> {
        // Names that were changed come last: it is them that an error is about.
        let (changed, own): (Vec<_>, Vec<_>) = Key::ALL
            .iter()
            .filter_map(|key| Some((key.name(profile), self.name(*key)?.as_str())))
            .partition(|(old, new)| old != new);
        let own = own.into_iter().map(|(old, new)| (String::new(), old, new));
        let changed = changed.into_iter().map(|(old, new)| (format!("rename.{old}"), old, new));
        let added = self.added.iter().map(|(new, _)| (format!("add.{new}"), "", new.as_str()));
        let mut taken: HashMap<&str, &str> = HashMap::new();
        for (place, old, new) in own.chain(changed).chain(added) {
            if new.is_empty() {
                return Err(error(&place, "an attribute needs a name; write one".into()));
            }
            if let Some(other) = taken.insert(new, old) {
                let whose = if other == new {
                    "another attribute has it already".into()
                } else {
                    format!("\"{other}\" is renamed to it")
                };
                let problem = format!("\"{new}\" would be there twice: {whose}; use another name");
                return Err(error(&place, problem));
            }
        }
        Ok(())
    }
}

fn error(place: &str, problem: String) -> MappingError {
    MappingError { place: place.into(), problem }
}

/// The attribute that a profile calls so, or what is wrong with the name.
fn known(name: &str, profile: Profile) -> Result<Key, String> {
    let named = |profile: Profile| Key::ALL.iter().find(|key| key.name(profile) == name).copied();
    if let Some(key) = named(profile) {
        return Ok(key);
    }
    let other = Profile::ALL.into_iter().find_map(named);
    let near = other.map(|key| key.name(profile)).or_else(|| {
        let names = Key::ALL.iter().map(|key| key.name(profile));
        names.min_by_key(|known| strsim::damerau_levenshtein(name, known))
    });
    Err(format!(
        "\"{name}\" is no attribute of the profile \"{}\"; did you mean \"{}\"?",
        profile.as_str(),
        near.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn mapping(
        profile: Profile,
        omit: &[&str],
        rename: Pairs<'_>,
        add: Pairs<'_>,
    ) -> Result<Mapping, String> {
        let omit: Vec<_> = omit.iter().map(|name| (*name).to_owned()).collect();
        let (rename, add) = (table(rename), table(add));
        Mapping::with(profile, Changes { omit: &omit, rename: &rename, add: &add })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_changed_left_out_and_added() {
        let changed = mapping(
            Profile::Tracee,
            &["flowend.history"],
            // Two that swap their names do not collide.
            &[("srcIP", "dstIP"), ("dstIP", "srcIP"), ("server.port", "flowend.history")],
            &[("team", "a"), ("env", "")],
        )
        .unwrap();
        for key in Key::ALL {
            let want = match key {
                Key::History => None,
                Key::SourceIp => Some("dstIP"),
                Key::DestinationIp => Some("srcIP"),
                Key::ServerPort => Some("flowend.history"),
                _ => Some(key.name(Profile::Tracee)),
            };
            assert_eq!(changed.name(*key).map(Name::as_str), want);
        }
        let added: Vec<_> = changed.added().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(added, [("env", ""), ("team", "a")]);
    }

    #[test]
    fn each_mistake_is_said_with_its_place() {
        let (semconv, tracee) = (Profile::Semconv, Profile::Tracee);
        let of = mapping;
        for (got, place, words) in [
            (
                of(semconv, &["server.prt"], &[], &[]),
                "attributes.omit: ",
                "\"server.prt\" is no attribute of the profile \"semconv\"; did you mean \"server.port\"?",
            ),
            // Right in the other profile.
            (of(semconv, &["srcIP"], &[], &[]), "attributes.omit: ", "mean \"source.address\"?"),
            (
                of(tracee, &[], &[("source.port", "p")], &[]),
                "attributes.rename.source.port: ",
                "profile \"tracee\"; did you mean \"srcPort\"?",
            ),
            (
                of(semconv, &["source.port"], &[("source.port", "p")], &[]),
                "attributes.rename.source.port: ",
                "left out by attributes.omit",
            ),
            (
                of(semconv, &[], &[("source.port", "server.port")], &[]),
                "attributes.rename.source.port: ",
                "\"server.port\" would be there twice: another attribute has it already",
            ),
            (
                of(semconv, &[], &[("source.port", "p"), ("server.port", "p")], &[]),
                "attributes.rename.server.port: ",
                "\"p\" would be there twice: \"source.port\" is renamed to it",
            ),
            (
                of(semconv, &[], &[], &[("error.type", "x")]),
                "attributes.add.error.type: ",
                "another attribute has it already",
            ),
            (
                of(semconv, &[], &[("error.type", "e")], &[("e", "x")]),
                "attributes.add.e: ",
                "\"error.type\" is renamed to it",
            ),
            (
                of(semconv, &[], &[("error.type", "")], &[]),
                "attributes.rename.error.type: ",
                "name",
            ),
            (of(semconv, &[], &[], &[("", "x")]), "attributes.add.: ", "needs a name"),
        ] {
            let error = got.unwrap_err();
            assert!(error.starts_with(place) && error.contains(words), "{error}\nlacks: {words}");
        }
    }
}
