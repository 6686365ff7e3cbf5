//! Reads the layers, checks each against the default file, and merges them with figment.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::changes::{self, Effect};
use super::raw::RawSettings;
use super::receiver::{NamedFile, TlsFiles};
use super::settings::{Output, Settings};
use super::{ConfigError, DEFAULT, env, sampling};

/// Keys whose values are tables of the user's own keys.
pub(super) const FREE_TABLES: [&str; 8] = [
    "attributes.add",
    "attributes.rename",
    "dns.resolver_cgroups",
    "otlp.headers",
    "otlp.logs.headers",
    "otlp.metrics.headers",
    "otlp.traces.headers",
    "resource.attributes",
];

/// Tables of tables that the user names, each with the keys of another table.
const DESTINATIONS: &str = "destinations";
const TEMPLATE: &str = "otlp";

/// The key of the default file that says what `key` may be: `otlp.timeout` for `destinations.x.timeout`.
pub(super) fn template(key: &str) -> Cow<'_, str> {
    let in_destination = |key: &str| {
        let (_, key) = key.strip_prefix(DESTINATIONS)?.strip_prefix('.')?.split_once('.')?;
        Some(format!("{TEMPLATE}.{key}"))
    };
    in_destination(key).map_or(Cow::Borrowed(key), Cow::Owned)
}

/// The table of the user's own keys that `key` is in, and its name there, which may hold dots.
pub(super) fn free_table(key: &str) -> Option<(&str, &str)> {
    let template = template(key);
    FREE_TABLES.iter().find_map(|table| {
        let rest = template.strip_prefix(table)?.strip_prefix('.')?;
        // The name is at the end of both.
        let (table, rest) = key.split_at(key.len() - rest.len());
        Some((table.trim_end_matches('.'), rest))
    })
}
/// Keys whose values are lists of tables, and every key of an entry with an example of its value.
pub(super) const TABLE_LISTS: [(&str, &str); 1] = [("sampling.rules", sampling::RULE)];

/// Where configuration comes from, so that tests need no process environment.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`, or FLOWEND_CONFIG.
    pub file: Option<PathBuf>,
    /// `--set KEY=VALUE`, in order.
    pub set: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
}

/// The merged configuration and where each value came from.
#[derive(Clone, Debug)]
pub struct Layered {
    figment: Figment,
    /// The last layer that set a key. Not figment's own record: its keys may hold no dots.
    origins: BTreeMap<String, String>,
    /// As resolved.
    pub settings: Settings,
    /// What the user should know, though it is no error.
    pub warnings: Vec<String>,
}

/// One layer: a table and the name of what it was read from.
pub(super) struct Layer {
    pub(super) origin: String,
    pub(super) dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Loads and resolves the configuration.
///
/// # Errors
/// [`ConfigError`], for the first thing that is wrong.
pub fn load(sources: &Sources) -> Result<Layered, ConfigError> {
    let file = sources.file.as_deref().map(read_file).transpose()?;
    load_over(file, sources)
}

/// As [`load`], with what was read from the file.
pub(super) fn load_over(file: Option<Layer>, sources: &Sources) -> Result<Layered, ConfigError> {
    let default = Layer { origin: "default".into(), dict: parse_toml("default", DEFAULT)? };
    let schema = Schema::of(&default.dict)?;
    let mut layers = Vec::from_iter(file);
    layers.extend(env::standard(&sources.env)?);
    layers.extend(env::own(&sources.env, &schema)?);
    for given in &sources.set {
        layers.push(parse_set(given, &schema)?);
    }
    let mut figment = Figment::from(default);
    let mut origins = BTreeMap::new();
    for mut layer in layers {
        insecure_as_text(&mut layer.dict);
        join_free_keys("", &mut layer.dict);
        schema.check(&layer)?;
        lower_case_headers(&mut layer.dict);
        let mut leaves = Vec::new();
        flatten("", &layer.dict, &mut leaves);
        origins.extend(leaves.into_iter().map(|(key, _)| (key, layer.origin.clone())));
        figment = figment.merge(layer);
    }
    let settings = resolve(&figment, &origins)?;
    let mut warnings = unused_destinations(&origins, &settings);
    warnings.extend(unused_files(&settings));
    Ok(Layered { figment, origins, settings, warnings })
}

fn resolve(figment: &Figment, origins: &BTreeMap<String, String>) -> Result<Settings, ConfigError> {
    let raw: RawSettings =
        figment.extract().map_err(|error| ConfigError::Other(error.to_string()))?;
    Settings::resolve(raw, &|key| origin_of(origins, key))
}

impl Layered {
    /// What of this configuration can be in force in a process that was started with `started`: the keys that
    /// need a restart stay as they were.
    ///
    /// # Errors
    /// When what is new does not go with what stays.
    pub fn in_force(&self, started: &Self) -> Result<Self, ConfigError> {
        let layer = |from: &Self, effect| Layer {
            origin: "reload".into(),
            dict: changes::only(effect, &from.root()),
        };
        let figment =
            Figment::from(layer(started, Effect::Restart)).merge(layer(self, Effect::Live));
        let mut origins = BTreeMap::new();
        for (from, effect) in [(started, Effect::Restart), (self, Effect::Live)] {
            let of_effect =
                from.origins.iter().filter(|(key, _)| changes::effect_of(key) == effect);
            origins.extend(of_effect.map(|(key, origin)| (key.clone(), origin.clone())));
        }
        let settings = resolve(&figment, &origins)?;
        Ok(Self { figment, origins, settings, warnings: self.warnings.clone() })
    }

    fn root(&self) -> Dict {
        self.figment.extract().unwrap_or_default()
    }

    /// Every key with its value and the name of the layer it came from, in the order of the keys.
    pub(super) fn entries(&self) -> Vec<(String, Value, String)> {
        let mut leaves = Vec::new();
        flatten("", &self.root(), &mut leaves);
        leaves
            .into_iter()
            .map(|(key, value)| {
                let origin = origin_of(&self.origins, &key);
                (key, value, origin)
            })
            .collect()
    }
}

/// Destinations are for the output "otlp" alone.
fn unused_destinations(origins: &BTreeMap<String, String>, settings: &Settings) -> Vec<String> {
    if settings.outputs.contains(&Output::Otlp) {
        return Vec::new();
    }
    let endpoint = |key: &&String| key.ends_with(".endpoint") && template(key) != **key;
    let given = origins.keys().find(endpoint);
    given
        .map(|key| {
            format!("{}: key `{key}` is not used: `outputs` is without \"otlp\"", origins[key])
        })
        .into_iter()
        .collect()
}

/// Who names files for TLS means a secured connection.
fn unused_files(settings: &Settings) -> BTreeSet<String> {
    let receivers = settings.destinations.iter().flat_map(|one| [&one.logs, &one.traces]).flatten();
    receivers
        .filter(|receiver| !receiver.is_secure())
        .flat_map(|receiver| {
            let TlsFiles { authorities, client } = &receiver.tls;
            let client = client.as_ref().map(|client| &client.certificate);
            authorities.iter().chain(client).map(|file| {
                let NamedFile { origin, key, .. } = file;
                let endpoint = &receiver.endpoint;
                format!("{origin}: key `{key}` is not used for {endpoint}: it is not https://")
            })
        })
        .collect()
}

/// `insecure` may be left open, so it is text; but who writes true means "true".
fn insecure_as_text(dict: &mut Dict) {
    for (name, value) in dict {
        match value {
            Value::Dict(_, inner) => insecure_as_text(inner),
            Value::Bool(_, is) if name == "insecure" => *value = Value::from(is.to_string()),
            _ => {}
        }
    }
}

/// Names of HTTP headers are the same in any case, and must be for one layer to win over another.
fn lower_case_headers(dict: &mut Dict) {
    for (name, value) in dict {
        let Value::Dict(_, inner) = value else { continue };
        if name == "headers" {
            let lower = std::mem::take(inner).into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v));
            *inner = lower.collect();
        } else {
            lower_case_headers(inner);
        }
    }
}

/// The keys of free tables are one name each, dots and all: `server.port = "p"` without quotation marks means
/// the same as with them.
fn join_free_keys(prefix: &str, dict: &mut Dict) {
    for (name, value) in dict {
        let Value::Dict(_, inner) = value else { continue };
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if FREE_TABLES.contains(&&*template(&key)) {
            let mut leaves = Vec::new();
            flatten("", inner, &mut leaves);
            *inner = leaves.into_iter().collect();
        } else {
            join_free_keys(&key, inner);
        }
    }
}

fn origin_of(origins: &BTreeMap<String, String>, key: &str) -> String {
    // A layer sets a list as a whole, with all its entries.
    let list = || key.split_once('[').and_then(|(list, _)| origins.get(list));
    origins.get(key).or_else(list).cloned().unwrap_or_else(|| "default".into())
}

fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|cause| ConfigError::File { path: shown.clone(), cause })?;
    let origin = format!("file {shown}");
    let dict = parse_toml(&origin, &text)?;
    Ok(Layer { origin, dict })
}

pub(super) fn parse_toml(origin: &str, text: &str) -> Result<Dict, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Syntax {
        origin: origin.into(),
        message: error.to_string().trim_end().replace('\n', "\n  "),
    })
}

fn parse_set(given: &str, schema: &Schema) -> Result<Layer, ConfigError> {
    let (key, text) = given
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| ConfigError::Set { given: given.into() })?;
    let origin = format!("--set {key}");
    Ok(Layer { dict: nest(key, schema.parse_value(key, text)), origin })
}

/// `a.b.c` and a value as nested tables. A key below a free table is taken whole: it may hold dots.
pub(super) fn nest(key: &str, value: Value) -> Dict {
    let (path, last) = match free_table(key) {
        Some((table, rest)) => (table.split('.').collect(), rest),
        None => {
            let mut path: Vec<&str> = key.split('.').collect();
            let last = path.pop().unwrap_or_default();
            (path, last)
        }
    };
    let mut dict = Dict::from([(last.to_owned(), value)]);
    for part in path.into_iter().rev() {
        dict = Dict::from([(part.to_owned(), Value::from(dict))]);
    }
    dict
}

/// The leaves of a table by dotted key. Empty free tables are no leaves.
pub(super) fn flatten(prefix: &str, dict: &Dict, leaves: &mut Vec<(String, Value)>) {
    for (name, value) in dict {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Dict(_, inner) => flatten(&key, inner, leaves),
            _ => leaves.push((key, value.clone())),
        }
    }
}

/// The keys that there are and their types: those of the default file.
pub(super) struct Schema {
    leaves: BTreeMap<String, Value>,
    /// The entries of lists of tables, by the list's key.
    entries: BTreeMap<&'static str, Dict>,
}

impl Schema {
    pub(super) fn of(default: &Dict) -> Result<Self, ConfigError> {
        let mut leaves = Vec::new();
        flatten("", default, &mut leaves);
        let entries = TABLE_LISTS.into_iter().map(|(key, text)| Ok((key, parse_toml(key, text)?)));
        Ok(Self {
            leaves: leaves.into_iter().collect(),
            entries: entries.collect::<Result<_, _>>()?,
        })
    }

    /// Every key but those of free tables.
    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.leaves.keys().map(String::as_str)
    }

    /// The default of a key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.leaves.get(template(key).as_ref())
    }

    /// A value from a variable or from --set: TOML, or else a string. Where the key takes a string
    /// the text is not interpreted; where it takes a list, plain text is split at commas.
    pub(super) fn parse_value(&self, key: &str, text: &str) -> Value {
        let default = self.get(key);
        if matches!(default, Some(Value::String(..))) || is_in_free_table(key) {
            let quoted = toml::from_str::<Dict>(&format!("v = {text}"))
                .ok()
                .and_then(|mut d| d.remove("v"))
                .filter(|v| matches!(v, Value::String(..)));
            return quoted.unwrap_or_else(|| Value::from(text));
        }
        let parsed = toml::from_str::<Dict>(&format!("v = {text}"))
            .ok()
            .and_then(|mut d| d.remove("v"))
            .unwrap_or_else(|| Value::from(text));
        match (default, &parsed) {
            (Some(Value::Array(..)), Value::String(_, plain))
                if !self.entries.contains_key(key) =>
            {
                plain.split(',').map(|s| Value::from(s.trim())).collect::<Vec<_>>().into()
            }
            _ => parsed,
        }
    }

    fn check(&self, layer: &Layer) -> Result<(), ConfigError> {
        self.check_dict("", &layer.dict, &layer.origin)
    }

    fn check_dict(&self, prefix: &str, dict: &Dict, origin: &str) -> Result<(), ConfigError> {
        for (name, value) in dict {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            if let Some(entry) = self.entries.get(key.as_str()) {
                check_entries(&key, entry, value, origin)?;
            } else if let Some(default) = self.get(&key) {
                check_type(&key, (default, "default"), value, origin)?;
            } else if is_in_free_table(&key) {
                check_type(&key, (&Value::from("text"), "default"), value, origin)?;
            } else if self.is_table(&key) {
                match value {
                    Value::Dict(_, inner) => self.check_dict(&key, inner, origin)?,
                    other => return Err(wrong_type(&key, "a table".into(), other, origin)),
                }
            } else {
                let mut leaves = Vec::new();
                flatten("", &Dict::from([(key.clone(), value.clone())]), &mut leaves);
                let first = leaves.into_iter().next().map_or(key, |(leaf, _)| leaf);
                return Err(self.unknown(&first, origin));
            }
        }
        Ok(())
    }

    fn is_table(&self, key: &str) -> bool {
        let is_destination = |name: &str| !name.contains('.');
        if key == DESTINATIONS || key.strip_prefix("destinations.").is_some_and(is_destination) {
            return true;
        }
        let key = template(key);
        let prefix = format!("{key}.");
        FREE_TABLES.contains(&key.as_ref())
            || self.leaves.keys().any(|leaf| leaf.starts_with(&prefix))
    }

    fn unknown(&self, key: &str, origin: &str) -> ConfigError {
        let like = template(key);
        let remedy = match nearest(&like, self.leaves.keys()) {
            // In its own destination, that is.
            Some(known) => match known.strip_prefix(TEMPLATE) {
                Some(rest) if like != key => {
                    let table = key.split('.').take(2).collect::<Vec<_>>().join(".");
                    format!("did you mean `{table}{rest}`?")
                }
                _ => format!("did you mean `{known}`?"),
            },
            None => "`flowend print-config` lists all keys".into(),
        };
        ConfigError::UnknownKey { origin: origin.into(), key: key.into(), remedy }
    }
}

/// The key that was meant, if one is near.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    known
        .map(|known| (strsim::damerau_levenshtein(key, known), known.as_str()))
        .min()
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, known)| known)
}

/// A list of tables: each entry has known keys, of the types of the examples.
fn check_entries(
    key: &str,
    example: &Dict,
    value: &Value,
    origin: &str,
) -> Result<(), ConfigError> {
    let keys = || example.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let Value::Array(_, entries) = value else {
        let expected = format!("a list of tables, each with some of the keys {}", keys());
        return Err(wrong_type(key, expected, value, origin));
    };
    for (n, entry) in entries.iter().enumerate() {
        let key = format!("{key}[{n}]");
        let Value::Dict(_, entry) = entry else {
            let expected = format!("a table with some of the keys {}", keys());
            return Err(wrong_type(&key, expected, entry, origin));
        };
        for (name, value) in entry {
            let key = format!("{key}.{name}");
            let Some(example) = example.get(name) else {
                let remedy = match nearest(name, example.keys()) {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => format!("the keys are {}", keys()),
                };
                return Err(ConfigError::UnknownKey { origin: origin.into(), key, remedy });
            };
            check_type(&key, (example, "for example"), value, origin)?;
        }
    }
    Ok(())
}

pub(super) fn is_in_free_table(key: &str) -> bool {
    free_table(key).is_some()
}

/// Compares a value's type with that of another value, which is the default or an example.
fn check_type(
    key: &str,
    (model, is): (&Value, &str),
    value: &Value,
    origin: &str,
) -> Result<(), ConfigError> {
    let fits = match (model, value) {
        // Every other list of the configuration is a list of strings.
        (Value::Array(..), Value::Array(_, given)) => {
            return match given.iter().find(|v| !matches!(v, Value::String(..))) {
                None => Ok(()),
                Some(other) => Err(wrong_type(key, "a list of strings".into(), other, origin)),
            };
        }
        (Value::Num(_, d), Value::Num(_, v)) => d.to_f64().is_some() || v.to_f64().is_none(),
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    if fits {
        return Ok(());
    }
    Err(wrong_type(
        key,
        format!("{} ({is}: {})", kind(model), super::print::show(model)),
        value,
        origin,
    ))
}

fn wrong_type(key: &str, expected: String, found: &Value, origin: &str) -> ConfigError {
    ConfigError::Type {
        origin: origin.into(),
        key: key.into(),
        expected,
        found: format!("{} ({})", kind(found), super::print::show(found)),
    }
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a string",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a table",
        Value::Empty(..) => "empty",
    }
}
