//! Settings of any text through all of the configuration but the reading of its file.

use std::collections::BTreeMap;

use super::layers::{Layer, Layered, load_over, parse_toml};
use super::{ConfigError, Sources, changes, env, print};

/// Whose value is shown as it is only where nobody set it.
const SECRET_WITH_A_DEFAULT: &str = "ids.key";

/// The standard variable of that number, of which there are a few dozen.
pub(crate) fn variable(number: u8) -> String {
    let number = usize::from(number);
    let (signal, _) = env::SIGNALS[number % env::SIGNALS.len()];
    match env::STANDARD.get(number / env::SIGNALS.len()) {
        Some((setting, _)) => format!("OTEL_EXPORTER_OTLP_{signal}{setting}"),
        None if number % 2 == 0 => "OTEL_SERVICE_NAME".into(),
        None => "OTEL_RESOURCE_ATTRIBUTES".into(),
    }
}

/// Loads these settings and checks that they are refused with a reason, or are told as a configuration that means
/// the same.
pub(crate) fn check(file: &str, set: Vec<String>, env: BTreeMap<String, String>) {
    let given = Sources { file: None, set, env };
    let layered = match load(file, &given) {
        Ok(layered) => layered,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let default = load("", &Sources::default()).expect("the default configuration");
    // What is new may not go with what stays; then the reload is refused.
    let _ = layered.in_force(&default);
    assert!(changes(&layered, &layered).is_empty());

    let shown = print(&layered);
    let table: toml::Table =
        shown.parse().unwrap_or_else(|error| panic!("{error}, printed as:\n{shown}"));
    if shown.contains("<redacted>") {
        return;
    }
    let again = load(&shown, &Sources::default())
        .unwrap_or_else(|error| panic!("{error}, printed as:\n{shown}"));
    let mut differs = changes(&layered, &again);
    differs.restart.retain(|key| key != SECRET_WITH_A_DEFAULT);
    assert!(differs.is_empty(), "{differs:?}:\n{table:#?}");
}

fn load(file: &str, given: &Sources) -> Result<Layered, ConfigError> {
    let origin = "file fuzz";
    let layer = Layer { origin: origin.into(), dict: parse_toml(origin, file)? };
    load_over(Some(layer), given)
}
